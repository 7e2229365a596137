"""WebSockets and reloads: a tunnel outlives every reload, and is told when the gateway goes away."""

from __future__ import annotations

import struct
from typing import Any

from tests.client import Client
from tests.control.admin_client import call
from tests.gateway import Gateway
from tests.upstream import Upstream
from tests.wire.test_tunnels import mirror, switch

GOING_AWAY = b"\x88\x02" + struct.pack(">H", 1001)  # RFC 6455 §5.5.1, §7.4.1


def routes(upstream: Upstream, version: int) -> dict[str, Any]:
    """The route of the tunnel, and others that change with every version."""
    return {
        "server": {"drain_timeout": "20s"},
        "upstreams": {"chat": {"targets": [upstream.url]}, f"other{version}": {"targets": [upstream.url]}},
        "routes": [
            {"path": "/ws", "upstream": "chat"},
            {"path": f"/only/{version}", "upstream": f"other{version}"},
            {"path": "/version", "respond": str(version)},
        ],
    }


def reload(gateway: Gateway, config: dict[str, Any]) -> None:
    gateway.write_config(config)
    answer = call(gateway.admin, "/api/gateway/reload", "POST")
    assert answer.status == 200, answer


def echo(client: Client, text: bytes) -> None:
    """One masked text frame out and, from an upstream that mirrors bytes, the same bytes back."""
    frame = bytes((0x81, 0x80 | len(text))) + b"\0\0\0\0" + text
    client.send(frame)
    assert client.read_exactly(len(frame)) == frame


def test_a_tunnel_outlives_reloads_and_is_told_of_the_end() -> None:
    with (
        Upstream(mirror()) as upstream,
        Gateway(routes(upstream, 0), workers=2) as gateway,
        Client(gateway.port) as client,
    ):
        switch(client, "whole")
        for version in range(1, 13):
            reload(gateway, routes(upstream, version))
            echo(client, b"still here %d" % version)

        gateway.terminate()

        assert client.read_to_end() == GOING_AWAY


def test_a_tunnel_outlives_a_change_of_the_number_of_workers() -> None:
    with (
        Upstream(mirror()) as upstream,
        Gateway(routes(upstream, 0), workers=1, check_descriptors=False) as gateway,
        Client(gateway.port) as client,
    ):
        switch(client, "whole")
        before = set(gateway.worker_pids())
        reload(gateway, {**routes(upstream, 1), "workers": 2})
        assert set(gateway.worker_pids()) - before

        echo(client, b"served by the old worker")


def test_a_tunnel_is_not_cut_into_by_the_close() -> None:
    """A frame under way to the client when the gateway stops: no close frame may stand in its middle."""
    half = b"\x82\x7e\x10\x00" + b"x" * 100  # the head of a frame of 4096 bytes, and a piece of it

    with (
        Upstream(mirror()) as upstream,
        Gateway(routes(upstream, 0)) as gateway,
        Client(gateway.port) as client,
    ):
        switch(client, "whole")
        client.send(half)
        assert client.read_exactly(len(half)) == half

        gateway.terminate()

        assert client.read_to_end() == b""
