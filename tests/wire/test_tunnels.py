"""Upgrades: after a 101 the connection is a pipe, byte for byte both ways; without one it stays HTTP."""

from __future__ import annotations

import os
import threading

import pytest

from tests.client import Client, request
from tests.gateway import Gateway
from tests.upstream import OK, Disconnected, Peer, Script, Upstream
from tests.wire.conftest import Wire

UPGRADE = request(
    "/ws",
    "GET",
    "Connection: keep-alive, Upgrade",
    "Upgrade: websocket",
    "Sec-WebSocket-Version: 13",
    "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
    "Sec-WebSocket-Protocol: chat",
)
SWITCHING = (
    b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n"
)


def mirror(early: bytes = b"") -> Script:
    def script(peer: Peer) -> None:
        peer.read_head()
        peer.send(SWITCHING + early)
        while True:
            peer.send(peer.read_some())

    return script


def switch(client: Client, delivery: str, behind: bytes = b"") -> None:
    """Asks for the upgrade and reads the head of the 101."""
    client.send(UPGRADE + behind, bytewise=delivery == "bytewise")
    head = client.read_until(b"\r\n\r\n")
    lines = head.lower().split(b"\r\n")
    assert lines[0].startswith(b"http/1.1 101 ")
    assert b"upgrade: websocket" in lines
    assert b"connection: upgrade" in lines
    assert b"sec-websocket-accept: s3pplmbitxaq9kygzzhzrbk+xoo=" in lines


def test_handshake_reaches_the_upstream(wire: Wire, delivery: str) -> None:
    wire.upstream.script = mirror()

    with wire.client() as client:
        switch(client, delivery)

    seen = wire.upstream.requests[0]
    assert seen.listed("connection") == [b"upgrade"]
    assert seen.get("upgrade") == b"websocket"
    assert seen.get("sec-websocket-key") == b"dGhlIHNhbXBsZSBub25jZQ=="
    assert seen.get("sec-websocket-protocol") == b"chat"


@pytest.mark.parametrize("size", [1, 1000, 200_000])
def test_bytes_pass_both_ways_unchanged(wire: Wire, delivery: str, size: int) -> None:
    wire.upstream.script = mirror()
    data = os.urandom(size)

    with wire.client() as client:
        switch(client, delivery)
        for _ in range(3):
            sender = threading.Thread(target=client.send, args=(data,))
            sender.start()
            assert client.read_exactly(size) == data
            sender.join()


def test_bytes_right_behind_the_101_are_the_clients(wire: Wire, delivery: str) -> None:
    early = b"\x81\x05hello HTTP/1.1 200 OK\r\n\r\n"
    wire.upstream.script = mirror(early)

    with wire.client() as client:
        switch(client, delivery)
        assert client.read_exactly(len(early)) == early


def test_101_byte_by_byte_is_still_a_101(wire: Wire) -> None:
    def script(peer: Peer) -> None:
        peer.read_head()
        peer.send_bytewise(SWITCHING + b"early")
        while True:
            peer.send(peer.read_some())

    wire.upstream.script = script
    with wire.client() as client:
        switch(client, "whole")
        assert client.read_exactly(5) == b"early"
        client.send(b"late")
        assert client.read_exactly(4) == b"late"


def test_bytes_right_behind_the_handshake_reach_the_upstream(wire: Wire, delivery: str) -> None:
    wire.upstream.script = mirror()
    behind = b"\x81\x85\x00\x00\x00\x00hello"

    with wire.client() as client:
        switch(client, delivery, behind)
        assert client.read_exactly(len(behind)) == behind


def test_bytes_that_look_like_http_are_only_bytes(wire: Wire) -> None:
    wire.upstream.script = mirror()
    data = request("/other") + b"\r\n\r\n\x00\r\n" + request("/", "POST", body=b"x")

    with wire.client() as client:
        switch(client, "whole")
        client.send(data)
        assert client.read_exactly(len(data)) == data

    assert len(wire.upstream.peers) == 1


def test_end_of_the_upstream_reaches_the_client(wire: Wire) -> None:
    def script(peer: Peer) -> None:
        peer.read_head()
        peer.send(SWITCHING + b"bye")
        peer.close()

    wire.upstream.script = script
    with wire.client() as client:
        switch(client, "whole")
        assert client.read_to_end() == b"bye"


def test_end_of_the_client_reaches_the_upstream(wire: Wire) -> None:
    ended = threading.Event()

    def script(peer: Peer) -> None:
        peer.read_head()
        peer.send(SWITCHING)
        assert peer.read_exactly(3) == b"bye"
        if peer.wait_closed():
            ended.set()

    wire.upstream.script = script
    with wire.client() as client:
        switch(client, "whole")
        client.send(b"bye")

    assert ended.wait(60)


def test_what_the_upstream_sends_before_its_reset_is_not_a_clean_http_end(wire: Wire) -> None:
    def script(peer: Peer) -> None:
        peer.read_head()
        peer.send(SWITCHING)
        peer.read_exactly(2)
        peer.reset()

    wire.upstream.script = script
    with wire.client() as client:
        switch(client, "whole")
        client.send(b"go")
        assert client.read_to_end() == b""


def test_half_close_in_a_tunnel_keeps_the_other_direction(wire: Wire) -> None:
    def script(peer: Peer) -> None:
        peer.read_head()
        peer.send(SWITCHING)
        data = peer.read_to_end()
        peer.send(b"got " + data)
        peer.close()

    wire.upstream.script = script
    with wire.client() as client:
        switch(client, "whole")
        client.send(b"all")
        client.half_close()
        # Without half-open tunnels the gateway ends both sides; what it must not do is to deliver half an
        # answer.
        assert client.read_to_end() in (b"got all", b"")


def test_refused_upgrade_stays_http(wire: Wire, delivery: str) -> None:
    def script(peer: Peer) -> None:
        peer.read_head()
        peer.send(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 2\r\n\r\nno")
        peer.wait_closed()

    wire.upstream.script = script
    with wire.client() as client:
        behind = request("/next") if delivery == "trailing" else b""
        client.send(UPGRADE + behind, bytewise=delivery == "bytewise")
        response = client.read_response()
        assert (response.status, response.body) == (403, b"no")
        if response.keeps_alive:
            if not behind:
                client.send(request("/next"))
            assert client.read_response().status == 403
        else:
            assert client.read_to_end() == b""


def test_ignored_upgrade_is_a_plain_answer(wire: Wire, delivery: str) -> None:
    def script(peer: Peer) -> None:
        peer.read_head()
        peer.send(OK)
        peer.wait_closed()

    wire.upstream.script = script
    with wire.client() as client:
        client.send(UPGRADE, bytewise=delivery == "bytewise")
        assert client.read_response().body == b"ok"


def test_request_with_a_body_is_upgraded_or_not_but_sends_its_body(wire: Wire, delivery: str) -> None:
    """A gateway may leave out Upgrade here (RFC 9110 §7.8: a server may ignore it); it must not lose the
    body over it.
    """

    def script(peer: Peer) -> None:
        message = peer.read_request()
        assert message.body == b"hello"
        if not message.values("upgrade"):
            peer.send(OK)
            peer.wait_closed()
        peer.send(SWITCHING)
        while True:
            peer.send(peer.read_some())

    wire.upstream.script = script
    data = request("/ws", "POST", "Connection: Upgrade", "Upgrade: websocket", body=b"hello")
    with wire.client() as client:
        client.send(data, bytewise=delivery == "bytewise")
        if client.read_until(b"\r\n\r\n").startswith(b"HTTP/1.1 101 "):
            client.send(b"ping")
            assert client.read_exactly(4) == b"ping"
        else:
            assert client.read_exactly(2) == b"ok"


def test_upgrade_without_the_connection_option_is_not_one(wire: Wire, delivery: str) -> None:
    _, seen = wire.passes(request("/a", "GET", "Upgrade: websocket"), delivery)

    assert seen.values("upgrade") == []
    assert b"upgrade" not in seen.listed("connection")


def test_upgrade_to_h2c_is_not_relayed_or_is_transparent(wire: Wire) -> None:
    fields = (
        "Connection: Upgrade, HTTP2-Settings",
        "Upgrade: h2c",
        "HTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA",
    )

    _, seen = wire.passes(request("/a", "GET", *fields))

    assert seen.values("http2-settings") == []


def test_http_1_0_client_cannot_upgrade(wire: Wire) -> None:
    data = request("/a", "GET", "Connection: Upgrade", "Upgrade: websocket", version="1.0")

    _, seen = wire.passes(data, closes=True)

    assert seen.values("upgrade") == []


def test_many_tunnels_at_once(wire: Wire) -> None:
    wire.upstream.script = mirror()
    clients = [wire.client() for _ in range(20)]

    try:
        for client in clients:
            switch(client, "whole")
        for number, client in enumerate(clients):
            client.send(b"%06d" % number)
        assert [client.read_exactly(6) for client in clients] == [b"%06d" % number for number in range(20)]
    finally:
        for client in clients:
            client.close()


def test_slow_reader_of_a_tunnel_gets_everything(wire: Wire) -> None:
    data = os.urandom(3_000_000)

    def script(peer: Peer) -> None:
        peer.read_head()
        peer.send(SWITCHING)
        peer.read_exactly(2)
        peer.send(data)
        peer.close()

    wire.upstream.script = script
    with Client(wire.gateway.port, window=16_384) as client:
        switch(client, "whole")
        client.send(b"go")
        assert client.read_to_end() == data


def test_upstream_that_vanishes_before_the_101_is_502(wire: Wire) -> None:
    def script(peer: Peer) -> None:
        peer.read_head()
        raise Disconnected

    wire.upstream.script = script
    with wire.client() as client:
        client.send(UPGRADE)
        assert client.read_response().status == 502


@pytest.mark.parametrize("half_sent", [False, True])
def test_websocket_is_told_1001_between_frames_on_drain(half_sent: bool) -> None:
    frame = b"\x82\x05hello"
    finish = threading.Event()

    def script(peer: Peer) -> None:
        peer.read_head()
        peer.send(SWITCHING + (frame[:3] if half_sent else frame))
        assert finish.wait(60)
        if half_sent:
            peer.send(frame[3:])
        peer.wait_closed()

    with Upstream(script) as upstream:
        config = {
            "server": {"drain_timeout": "30s"},
            "routes": [{"path": "/{rest...}", "upstream": upstream.url}],
        }
        with Gateway(config) as gateway, Client(gateway.port) as client:
            switch(client, "whole")
            seen = client.read_exactly(3 if half_sent else len(frame))
            gateway.terminate()
            finish.set()
            rest = client.read_to_end()

    assert seen + rest == frame + b"\x88\x02\x03\xe9"


def test_other_tunnels_just_end_on_drain() -> None:
    def script(peer: Peer) -> None:
        peer.read_head()
        peer.send(SWITCHING.replace(b"websocket", b"thing"))
        peer.wait_closed()

    with Upstream(script) as upstream:
        config = {
            "server": {"drain_timeout": "1s"},
            "routes": [{"path": "/{rest...}", "upstream": upstream.url}],
        }
        with Gateway(config) as gateway, Client(gateway.port) as client:
            client.send(request("/", "GET", "Connection: Upgrade", "Upgrade: thing"))
            client.read_until(b"\r\n\r\n")
            gateway.terminate()
            assert client.read_to_end() == b""
