"""Who is asking, and what is nobody else's business: forwarding fields, hop-by-hop fields, the request id."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.client import Client, request
from tests.gateway import Gateway
from tests.strict import Message
from tests.upstream import Upstream, answer
from tests.wire.conftest import Wire

SPOOFED = (
    "X-Forwarded-For: 6.6.6.6",
    "X-Forwarded-Proto: https",
    "X-Forwarded-Host: evil.test",
    "Forwarded: for=6.6.6.6;proto=https;host=evil.test",
)


@pytest.fixture(scope="module")
def trusting() -> Iterator[Wire]:
    """A gateway that believes what 127.0.0.0/8 and 10.0.0.0/8 say about their clients."""
    with Upstream(answer()) as upstream:
        config = {
            "trusted_proxies": ["127.0.0.0/8", "10.0.0.0/8"],
            "routes": [{"path": "/{rest...}", "upstream": upstream.url}],
        }
        with Gateway(config) as gateway:
            yield Wire(gateway, upstream)


def relay(wire: Wire, *fields: str) -> Message:
    """The request as the upstream saw it."""
    wire.upstream.script = answer()
    with Client(wire.gateway.port) as client:
        client.send(request("/a", "GET", *fields))
        assert client.read_response().status == 200
    return wire.upstream.requests[-1]


def test_client_address_scheme_and_host_are_told(wire: Wire) -> None:
    seen = relay(wire)

    assert seen.get("x-forwarded-for") == b"127.0.0.1"
    assert seen.get("x-forwarded-proto") == b"http"
    assert seen.get("x-forwarded-host") == b"gateway.test"
    forwarded = (seen.get("forwarded") or b"").lower()
    assert b"for=127.0.0.1" in forwarded.replace(b'"', b"")
    assert b"proto=http" in forwarded
    assert b"host=" in forwarded


def test_nobody_believes_an_untrusted_client(wire: Wire) -> None:
    seen = relay(wire, *SPOOFED)

    assert seen.get("x-forwarded-for") == b"127.0.0.1"
    assert seen.get("x-forwarded-proto") == b"http"
    assert seen.get("x-forwarded-host") == b"gateway.test"
    assert b"6.6.6.6" not in seen.raw
    assert b"evil.test" not in seen.raw


@pytest.mark.parametrize("name", ["X-Forwarded-For", "x-forwarded-for", "X-FORWARDED-FOR"])
def test_repeated_forwarding_fields_do_not_slip_through(wire: Wire, name: str) -> None:
    seen = relay(wire, f"{name}: 6.6.6.6", f"{name}: 7.7.7.7", "X-Forwarded-For: 8.8.8.8")

    assert seen.values("x-forwarded-for") == [b"127.0.0.1"]


def test_trusted_proxy_is_believed_and_extended(trusting: Wire) -> None:
    seen = relay(
        trusting,
        "X-Forwarded-For: 203.0.113.7, 10.1.1.1",
        "X-Forwarded-Proto: https",
        "X-Forwarded-Host: www.test",
    )

    assert seen.listed("x-forwarded-for") == [b"203.0.113.7", b"10.1.1.1", b"127.0.0.1"]
    assert seen.get("x-forwarded-proto") == b"https"
    assert seen.get("x-forwarded-host") == b"www.test"


def test_trusted_proxy_without_fields_gets_them(trusting: Wire) -> None:
    seen = relay(trusting)

    assert seen.listed("x-forwarded-for") == [b"127.0.0.1"]
    assert seen.get("x-forwarded-proto") == b"http"


def test_forwarded_of_a_trusted_proxy_is_extended(trusting: Wire) -> None:
    seen = relay(trusting, "Forwarded: for=203.0.113.7;proto=https")

    members = seen.listed("forwarded")
    assert members[0] == b"for=203.0.113.7;proto=https"
    assert b"for=127.0.0.1" in members[-1].replace(b'"', b"")


def test_via_is_extended_both_ways(wire: Wire) -> None:
    wire.upstream.script = answer(b"HTTP/1.1 200 OK\r\nVia: 1.0 origin\r\nContent-Length: 2\r\n\r\nok")

    with wire.client() as client:
        client.send(request("/a", "GET", "Via: 1.0 edge"))
        response = client.read_response()

    assert wire.upstream.requests[0].listed("via") == [b"1.0 edge", b"1.1 fastgate"]
    assert response.listed("via")[0] == b"1.0 origin"


def test_request_id_is_made_and_told_to_both(wire: Wire) -> None:
    wire.upstream.script = answer()

    with wire.client() as client:
        client.send(request("/a") + request("/b"))
        responses = [client.read_response() for _ in range(2)]

    identities = [response.get("x-request-id") for response in responses]
    assert identities == [message.get("x-request-id") for message in wire.upstream.requests]
    assert identities[0] != identities[1]
    assert all(identity and len(identity) >= 16 for identity in identities)


def test_request_id_of_a_trusted_proxy_is_kept(trusting: Wire) -> None:
    seen = relay(trusting, "X-Request-ID: abc-123-def")

    assert seen.get("x-request-id") == b"abc-123-def"


@pytest.mark.parametrize("value", ["x" * 5000, "a b", 'a"b', "{}", "<script>", "a;b"])
def test_unfit_request_id_is_replaced(trusting: Wire, value: str) -> None:
    seen = relay(trusting, f"X-Request-ID: {value}")

    assert seen.get("x-request-id") != value.encode()


def test_repeated_request_id_reaches_the_upstream_once(wire: Wire) -> None:
    seen = relay(wire, "X-Request-ID: one", "X-Request-ID: two")

    assert len(seen.values("x-request-id")) == 1


def test_hop_by_hop_fields_end_here(wire: Wire, delivery: str) -> None:
    fields = (
        "Connection: X-Secret, keep-alive",
        "Connection: x-other",
        "X-Secret: 1",
        "X-Other: 2",
        "X-Kept: 3",
        "Keep-Alive: timeout=5",
        "Proxy-Connection: keep-alive",
        "Proxy-Authorization: Basic eDp5",
        "TE: gzip",
        "Upgrade: websocket",
    )

    _, seen = wire.passes(request("/a", "GET", *fields), delivery)

    for name in (
        "x-secret",
        "x-other",
        "keep-alive",
        "proxy-connection",
        "proxy-authorization",
        "te",
        "upgrade",
    ):
        assert seen.values(name) == [], name
    assert seen.get("x-kept") == b"3"


def test_connection_cannot_strip_what_the_gateway_needs(wire: Wire, delivery: str) -> None:
    fields = ("Connection: Host, Content-Length, X-Forwarded-For, X-Request-ID, Via, Forwarded",)

    _, seen = wire.passes(request("/a", "POST", *fields, body=b"hello"), delivery)

    assert seen.body == b"hello"
    assert seen.get("host") == b"gateway.test"
    assert seen.get("x-forwarded-for") == b"127.0.0.1"
    assert seen.get("x-request-id")


def test_connection_cannot_strip_the_chunked_framing(wire: Wire, delivery: str) -> None:
    data = request(
        "/a",
        "POST",
        "Connection: Transfer-Encoding",
        "Transfer-Encoding: chunked",
        body=b"2\r\nok\r\n0\r\n\r\n",
    )

    _, seen = wire.passes(data, delivery)

    assert seen.body == b"ok"


def test_hop_by_hop_fields_of_the_upstream_end_here(wire: Wire) -> None:
    wire.upstream.script = answer(
        b"HTTP/1.1 200 OK\r\nConnection: X-Secret, keep-alive\r\nX-Secret: 1\r\nX-Kept: 2\r\n"
        b"Keep-Alive: timeout=5\r\nProxy-Connection: keep-alive\r\nProxy-Authenticate: Basic\r\n"
        b"Upgrade: h2c\r\nContent-Length: 2\r\n\r\nok"
    )

    with wire.client() as client:
        client.send(request("/a"))
        seen = client.read_response()

    for name in ("x-secret", "keep-alive", "proxy-connection", "proxy-authenticate", "upgrade"):
        assert seen.values(name) == [], name
    assert seen.get("x-kept") == b"2"
    assert seen.body == b"ok"


def test_connection_of_the_upstream_cannot_strip_the_framing(wire: Wire) -> None:
    wire.upstream.script = answer(
        b"HTTP/1.1 200 OK\r\nConnection: Content-Length\r\nContent-Length: 2\r\n\r\nok"
    )

    with wire.client() as client:
        client.send(request("/a") + request("/b"))
        bodies = [client.read_response().body for _ in range(2)]

    assert bodies == [b"ok", b"ok"]


def test_underscore_names_cannot_pose_as_forwarding_fields(wire: Wire) -> None:
    """Upstreams that build CGI names read X_Forwarded_For as X-Forwarded-For: it is dropped, refused or left
    visibly itself.
    """
    wire.upstream.script = answer()

    with wire.client() as client:
        client.send(request("/a", "GET", "X_Forwarded_For: 6.6.6.6"))
        response = client.read_response()

    assert response.status in (200, 400)
    assert all(message.get("x-forwarded-for") == b"127.0.0.1" for message in wire.upstream.requests)


def test_host_of_the_client_is_kept_when_asked(wire: Wire) -> None:
    assert relay(wire).get("host") == b"gateway.test"


def test_host_is_the_upstreams_otherwise(trusting: Wire) -> None:
    assert relay(trusting).get("host") == f"127.0.0.1:{trusting.upstream.port}".encode()
