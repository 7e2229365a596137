"""TLS and the PROXY protocol on the listeners of a real gateway."""

from __future__ import annotations

import socket
import ssl
import time
import urllib.request
from pathlib import Path

import pytest

from tests.authority import Authority, Pair
from tests.client import Client
from tests.gateway import Gateway
from tests.upstream import Upstream

REQUEST = b"GET /a HTTP/1.1\r\nHost: www.test\r\n\r\n"
HEADER = b"PROXY TCP4 192.0.2.44 198.51.100.7 56324 443\r\n"
RENEWAL_S = 60  # workers look at the files every second; only ever ends a hang


def config(upstream: Upstream, pair: Pair, *, proxy_protocol: bool = False) -> dict[str, object]:
    tls = {"certificates": [{"certificate": pair.certificate, "key": pair.key}]}
    return {
        "listen": [{"address": "127.0.0.1:0", "tls": tls, "proxy_protocol": proxy_protocol}],
        "routes": [{"path": "/*", "upstream": upstream.url}],
        "server": {"header_timeout": "60s"},  # also of a handshake, and this machine may be busy
    }


def trusting(authority: Authority) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=authority.certificate)


def serial(client: Client) -> str:
    assert isinstance(client.sock, ssl.SSLSocket)
    shown = client.sock.getpeercert()
    assert shown is not None
    return str(shown["serialNumber"])


def test_requests_over_tls_are_proxied_and_said_to_be_https(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    pair = authority.issue("www", ["www.test"])

    with Upstream() as upstream, Gateway(config(upstream, pair)) as gateway:
        with Client(gateway.port, tls=trusting(authority), name="www.test") as client:
            client.send(REQUEST * 2)
            statuses = [client.read_response().status for _ in range(2)]

        assert statuses == [200, 200]
        assert upstream.requests[0].get("x-forwarded-proto") == b"https"


def test_a_renewed_certificate_is_taken_up_while_connections_go_on(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    pair = authority.issue("www", ["www.test"])

    with (
        Upstream() as upstream,
        Gateway(config(upstream, pair)) as gateway,
        Client(gateway.port, tls=trusting(authority), name="www.test") as before,
    ):
        old = serial(before)
        authority.issue("www", ["www.test"])

        until = time.monotonic() + RENEWAL_S
        shown = old
        while shown == old and time.monotonic() < until:
            with Client(gateway.port, tls=trusting(authority), name="www.test") as client:
                shown = serial(client)
        assert shown != old

        before.send(REQUEST)
        assert before.read_response().status == 200


V2 = b"\r\n\r\n\0\r\nQUIT\n"
HEADERS = {
    "version 1": (HEADER, b"192.0.2.44"),
    "version 1 unknown": (b"PROXY UNKNOWN\r\n", b"127.0.0.1"),
    "version 2": (
        V2 + b"\x21\x11\x00\x10" + bytes((192, 0, 2, 45, 198, 51, 100, 7, 0, 80, 1, 187)) + b"\xea\0\x01x",
        b"192.0.2.45",
    ),
    "version 2 local": (V2 + b"\x20\x00\x00\x00", b"127.0.0.1"),
}


@pytest.mark.parametrize("bytewise", [False, True])
@pytest.mark.parametrize("kind", HEADERS)
def test_a_proxy_header_gives_the_client_address(kind: str, bytewise: bool) -> None:
    header, address = HEADERS[kind]
    listen = [{"address": "127.0.0.1:0", "proxy_protocol": True}]
    with Upstream() as upstream:
        routes = [{"path": "/*", "upstream": upstream.url}]
        with Gateway({"listen": listen, "routes": routes}) as gateway, Client(gateway.port) as client:
            client.send(header + REQUEST + REQUEST, bytewise=bytewise)
            statuses = [client.read_response().status for _ in range(2)]

        assert statuses == [200, 200]
        assert [request.get("x-forwarded-for") for request in upstream.requests] == [address, address]


@pytest.mark.parametrize(
    "sent", [REQUEST, b"PROXY TCP4 1.1.1.1 2.2.2.2 1\r\n" + REQUEST, V2 + b"\x31" + REQUEST]
)
def test_a_connection_without_a_good_proxy_header_is_refused_and_counted(sent: bytes) -> None:
    listen = [{"address": "127.0.0.1:0", "proxy_protocol": True}]
    with Upstream() as upstream:
        routes = [{"path": "/*", "upstream": upstream.url}]
        with Gateway({"listen": listen, "routes": routes}) as gateway:
            with Client(gateway.port) as client:
                client.send(sent)
                assert client.read_response().status == 400
                assert client.read_to_end() == b""
            with urllib.request.urlopen(f"http://{gateway.admin}/metrics", timeout=RENEWAL_S) as answer:
                metrics = answer.read().decode()

        assert 'reason="bad_proxy_header"' in metrics
        assert not upstream.requests


@pytest.mark.parametrize("bytewise", [False, True])
def test_a_proxy_header_in_front_of_tls_gives_the_client_address(tmp_path: Path, bytewise: bool) -> None:
    authority = Authority(tmp_path)
    pair = authority.issue("www", ["www.test"])

    with (
        Upstream() as upstream,
        Gateway(config(upstream, pair, proxy_protocol=True)) as gateway,
        socket.create_connection(("127.0.0.1", gateway.port), timeout=RENEWAL_S) as plain,
    ):
        plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for piece in [HEADER[at : at + 1] for at in range(len(HEADER))] if bytewise else [HEADER]:
            plain.sendall(piece)
        with trusting(authority).wrap_socket(plain, server_hostname="www.test") as secured:
            secured.sendall(REQUEST)
            assert secured.recv(12) == b"HTTP/1.1 200"

        assert upstream.requests[0].get("x-forwarded-for") == b"192.0.2.44"
        assert upstream.requests[0].get("x-forwarded-proto") == b"https"
