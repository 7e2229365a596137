"""A listener that redirects to https, and what else stands before a route: hosts, trusted proxies, auth."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from tests.client import Client, request
from tests.gateway import Gateway
from tests.strict import Message


@pytest.fixture(scope="module")
def gateway() -> Iterator[Gateway]:
    config = {
        "listen": [{"address": "127.0.0.1:0", "redirect": "https"}],
        "trusted_proxies": ["127.0.0.1"],
        "routes": [
            {"path": "/open", "respond": "open"},
            {"path": "/orders/{id}", "respond": "orders", "auth": ["api_key"]},
        ],
    }
    with Gateway(config) as running:
        yield running


def ask(gateway: Gateway, target: str, *fields: str, method: str = "GET") -> Message:
    with Client(gateway.port) as client:
        client.send(request(target, method, *fields))
        return client.read_response(method)


@pytest.mark.parametrize(
    ("target", "location"),
    [
        ("/open", b"https://gateway.test/open"),
        ("/orders/7?a=b&c", b"https://gateway.test/orders/7?a=b&c"),
        ("/no-such-route", b"https://gateway.test/no-such-route"),
        ("//evil.test/x", None),
        ("/%2fevil.test", None),
    ],
)
def test_plain_http_is_redirected_before_any_route(
    gateway: Gateway, target: str, location: bytes | None
) -> None:
    response = ask(gateway, target)

    if location is None:  # whatever form the path gets, it stays on this host
        assert response.status in (308, 400)
        assert (response.get("location") or b"https://gateway.test/").startswith(b"https://gateway.test/")
        return
    assert (response.status, response.get("location")) == (308, location)


@pytest.mark.parametrize("host", ["gateway.test:8080", "Gateway.test.:80", "gateway.test:443"])
def test_the_port_of_the_plain_listener_is_not_kept(gateway: Gateway, host: str) -> None:
    with Client(gateway.port) as client:
        client.send(request("/open", host=host))
        response = client.read_response()

    assert (response.status, response.get("location")) == (308, b"https://gateway.test/open")


@pytest.mark.parametrize("method", ["POST", "HEAD", "OPTIONS"])
def test_every_method_is_redirected(gateway: Gateway, method: str) -> None:
    assert ask(gateway, "/open", method=method).status == 308


def test_a_request_that_a_trusted_proxy_took_over_https_passes(gateway: Gateway) -> None:
    assert ask(gateway, "/open", "X-Forwarded-Proto: https").body == b"open"
    assert ask(gateway, "/orders/7", "X-Forwarded-Proto: https").status == 401
    assert ask(gateway, "/open", "X-Forwarded-Proto: http").status == 308


def test_a_request_without_host_is_not_redirected_to_nowhere(gateway: Gateway) -> None:
    with socket.create_connection(("127.0.0.1", gateway.port)) as client:
        client.sendall(b"GET /open HTTP/1.0\r\n\r\n")
        received = b"".join(iter(lambda: client.recv(4096), b""))

    assert received.split(b" ")[1] in (b"400", b"404", b"405")
    assert b"open" not in received.partition(b"\r\n\r\n")[2]


def test_the_word_of_a_client_that_is_not_trusted_does_not_count() -> None:
    config = {
        "listen": [{"address": "127.0.0.1:0", "redirect": 8443}],
        "routes": [{"path": "/", "respond": "open"}],
    }
    with Gateway(config) as gateway:
        response = ask(gateway, "/", "X-Forwarded-Proto: https")

    assert (response.status, response.get("location")) == (308, b"https://gateway.test:8443/")
