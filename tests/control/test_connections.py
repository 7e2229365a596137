"""The admin listener under connections that send nothing: probes and revocation get through."""

from __future__ import annotations

import contextlib
import json
import resource
import socket

import pytest

from tests.control.admin_client import call, scrape
from tests.gateway import Gateway
from tests.server.gateway_harness import until

HELLO = {"path": "/*", "respond": {"status": 200, "body": "hello"}}


@pytest.fixture
def many_descriptors() -> None:
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    if 0 <= hard < 4096:
        pytest.skip("this test needs 4 096 descriptors")
    resource.setrlimit(resource.RLIMIT_NOFILE, (4096, hard))


@pytest.mark.usefixtures("many_descriptors")
@pytest.mark.parametrize("sent", [b"", b"GET /ready HTTP/1.1\r\nHost: x\r\nX-Slow: "])
def test_slow_connections_do_not_shut_the_admin_listener(sent: bytes) -> None:
    with (
        Gateway({"routes": [HELLO]}, allow="admin listener has") as gateway,
        contextlib.ExitStack() as stack,
    ):
        host, _, port = gateway.admin.rpartition(":")
        for number in range(1400):
            sock = stack.enter_context(socket.create_connection((host, int(port)), 60))
            sock.sendall(sent)
            if number % 350 == 349:
                assert call(gateway.admin, "/ready").status == 200
                assert call(gateway.admin, "/api/keys").status == 200
        assert len(gateway.stderr_text) < 100_000
        closed = scrape(gateway.admin)["fastgate_admin_connections_closed_total", frozenset()]
        assert closed >= 1400 - 512


@pytest.mark.usefixtures("many_descriptors")
def test_a_head_that_does_not_end_is_cut_at_its_bound() -> None:
    with Gateway({"routes": [HELLO]}) as gateway:
        host, _, port = gateway.admin.rpartition(":")
        with socket.create_connection((host, int(port)), 60) as sock:
            sock.sendall(b"GET /ready HTTP/1.1\r\nHost: x\r\n")
            with pytest.raises(OSError):
                for _ in range(100_000):
                    sock.sendall(b"X-Long: " + 1000 * b"a" + b"\r\n")
        assert call(gateway.admin, "/ready").status == 200


def test_a_large_body_that_comes_with_its_head_is_read() -> None:
    body = json.dumps({"url": "http://x/" + 90_000 * "a"}).encode()
    head = b"POST /api/gateway/explain HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n"
    with Gateway({"routes": [HELLO]}) as gateway:
        host, _, port = gateway.admin.rpartition(":")
        with socket.create_connection((host, int(port)), 60) as sock:
            sock.sendall(head + b"Content-Length: %d\r\n\r\n" % len(body) + body)
            sock.settimeout(60)
            response = b""
            while piece := sock.recv(65536):
                response += piece

    assert response.startswith(b"HTTP/1.1 ")


def test_a_head_that_never_comes_is_cut_in_time() -> None:
    with Gateway({"routes": [HELLO]}) as gateway:
        host, _, port = gateway.admin.rpartition(":")
        with socket.create_connection((host, int(port)), 60) as sock:
            sock.sendall(b"GET /ready HTTP/1.1\r\n")
            sock.settimeout(60)

            def is_cut() -> bool:
                try:
                    return sock.recv(1) == b""
                except ConnectionResetError:
                    return True

            until(is_cut, "the connection is cut", 60)
