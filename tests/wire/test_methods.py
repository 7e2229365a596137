"""Methods that HTTP does not know, and TRACE."""

from __future__ import annotations

import pytest

from tests.client import Client, get, request
from tests.gateway import Gateway
from tests.upstream import Upstream, echo
from tests.wire.conftest import NEXT, Wire


@pytest.fixture(scope="module")
def served():  # type: ignore[no-untyped-def]
    with Upstream(echo) as upstream:
        config = {
            "upstreams": {
                "origin": {
                    "targets": [upstream.url],
                    "pool": {"max_requests": 1},
                    "credentials": {"env": "UPSTREAM_SECRET"},
                }
            },
            "routes": [
                {"path": "/brew", "upstream": "origin", "methods": ["BREW", "GET"]},
                {
                    "path": "/traced",
                    "upstream": "origin",
                    "methods": ["TRACE", "GET"],
                    "request_headers": {"set": {"X-Secret": "s3cret-edit"}},
                },
                {"path": "/*", "upstream": "origin"},
            ],
        }
        with Gateway(config, environ={"UPSTREAM_SECRET": "s3cret-credential"}) as gateway:
            yield Wire(gateway, upstream)


@pytest.fixture(autouse=True)
def fresh(served: Wire) -> None:
    served.upstream.requests.clear()


BODIES = {
    "none": request("/brew", "BREW"),
    "counted": request("/brew", "BREW", body=b"hello"),
    "chunked": request("/brew", "BREW", "Transfer-Encoding: chunked", body=b"2\r\nok\r\n0\r\n\r\n"),
    "after an empty line": b"\r\n" + request("/brew", "BREW"),
}


@pytest.mark.parametrize("delivery", ["whole", "bytewise", "trailing"])
@pytest.mark.parametrize("data", BODIES.values(), ids=BODIES)
def test_an_extension_method_passes_where_a_route_names_it(served: Wire, delivery: str, data: bytes) -> None:
    with served.client() as client:
        client.send(data + NEXT if delivery == "trailing" else data, bytewise=delivery == "bytewise")
        assert client.read_response("BREW").status == 200
        if delivery == "trailing":
            assert client.read_response().status == 200

    seen = served.upstream.requests[0]
    assert (seen.method, seen.target) == (b"BREW", b"/brew")
    assert seen.body == {b"h": b"hello", b"2": b"ok"}.get(data.partition(b"\r\n\r\n")[2][:1], b"")
    assert [message.method for message in served.upstream.requests[1:]] == [b"GET"] * (delivery == "trailing")


def test_where_no_route_of_the_path_names_it_the_answer_says_what_is_allowed(served: Wire) -> None:
    found = get(served.gateway.port, "/traced", method="BREW")

    assert (found.status, found.listed("allow")) == (
        405,
        [b"delete", b"get", b"head", b"options", b"patch", b"post", b"put", b"trace"],
    )


@pytest.mark.parametrize("data", [b"B", b"BRE", b"\r\nB"])
def test_a_method_that_never_ends_is_a_slow_head(data: bytes) -> None:
    routes = [{"path": "/*", "respond": "ok"}]
    with (
        Gateway({"routes": routes, "server": {"header_timeout": "200ms"}}) as gateway,
        Client(gateway.port) as client,
    ):
        client.send(data)
        assert client.read_response().status == 408


def test_pipelined_requests_before_half_a_method_are_answered(served: Wire) -> None:
    with served.client() as client:
        client.send(NEXT + NEXT + b"BR")
        assert [client.read_response().status for _ in range(2)] == [200, 200]
        client.send(request("/brew", "BREW")[2:])
        assert client.read_response().status == 200

    assert [message.method for message in served.upstream.requests] == [b"GET", b"GET", b"BREW"]


def test_trace_is_not_for_routes_that_do_not_name_it(served: Wire) -> None:
    found = get(served.gateway.port, "/x", method="TRACE")

    assert found.status == 405
    assert b"get" in found.listed("allow")
    assert b"trace" not in found.listed("allow")
    assert served.upstream.requests == []


def test_trace_shows_no_secret_of_the_gateway(served: Wire) -> None:
    assert get(served.gateway.port, "/traced", "X-Secret: mine", method="TRACE").status == 200
    assert b"s3cret" not in served.upstream.requests[0].raw
    assert get(served.gateway.port, "/traced").status == 200
    assert b"s3cret-credential" in served.upstream.requests[1].raw
    assert b"s3cret-edit" in served.upstream.requests[1].raw
