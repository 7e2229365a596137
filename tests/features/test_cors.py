"""CORS through real sockets: what browsers are told, by whom, and that it is always one thing."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from fastgate._core.gates.cors import CorsGate
from fastgate.errors import REASONS
from fastgate.features.cors.build import Wildcard, read_origin
from tests.client import get
from tests.gateway import Gateway
from tests.strict import Message
from tests.upstream import Upstream, answer

APP = "https://app.example.com"


OWN_IDEA = (
    b"HTTP/1.1 200 OK\r\nAccess-Control-Allow-Origin: https://upstream.test\r\nVary: Accept-Encoding\r\n"
    b"ACCESS-CONTROL-EXPOSE-HEADERS: X-Upstream\r\nAccess-Control-Max-Age: 1\r\nX-Own: 1\r\n"
    b"Content-Length: 2\r\n\r\nok"
)


@pytest.fixture(scope="module")
def gateway() -> Iterator[Gateway]:
    with Upstream(answer(OWN_IDEA)) as upstream:
        config = {
            "auth": {"hmac": {"keys": {"k": {"consumer": "c", "secret": "0123456789abcdef"}}}},
            "upstreams": {"origin": {"targets": [upstream.url]}},
            "routes": [
                {
                    "path": "/listed",
                    "upstream": "origin",
                    "methods": ["GET", "PUT"],
                    "cors": {
                        "origins": [APP, "https://*.example.org:8443", r"~https://pr-[0-9]+\.test", "null"],
                        "credentials": True,
                        "expose": ["X-Own", "X-Total"],
                        "headers": ["X-Token", "Content-Type"],
                        "max_age": "30s",
                        "private_network": True,
                    },
                },
                {"path": "/listed", "upstream": "origin", "methods": ["POST"]},
                {"path": "/any", "upstream": "origin", "cors": "*"},
                {"path": "/closed", "upstream": "origin", "auth": ["hmac"], "cors": APP},
                {"path": "/small", "upstream": "origin", "max_body": "3B", "cors": [APP]},
                {"path": "/guarded", "upstream": "origin", "cors": {"origins": [APP], "refuse_others": True}},
                {
                    "path": "/shadow",
                    "upstream": "origin",
                    "cors": {"origins": [APP], "refuse_others": True, "enforce": False},
                },
                {"path": "/gone", "upstream": "http://127.0.0.1:1", "cors": APP},
                {"path": "/fixed", "respond": {"body": "x"}, "cors": APP},
                {"path": "/edited", "upstream": "origin", "cors": APP,
                 "response_headers": {"set": {"X-Edited": "1"}}},
                {"path": "/plain", "upstream": "origin"},
                {"path": "/cached", "upstream": "origin", "cache": {"ttl": "60s"},
                 "cors": [APP, "https://other.example.com"],
                 "security_headers": {"preset": "api", "upstream": "kept"}},
            ],
        }  # fmt: skip
        with Gateway(config, allow="upstream_connect_failed") as running:
            yield running


def values(message: Message, name: str) -> list[str]:
    return [value.decode("latin-1") for value in message.values(name)]


def cors_of(message: Message) -> dict[str, list[str]]:
    names = {key.decode().lower() for key, _ in message.headers}
    names = {name for name in names if name.startswith("access-control-")}
    return {name.removeprefix("access-control-"): values(message, name) for name in names}


def preflight(gateway: Gateway, path: str, origin: str, method: str = "PUT", *fields: str) -> Message:
    return get(
        gateway.port,
        path,
        f"Origin: {origin}",
        f"Access-Control-Request-Method: {method}",
        *fields,
        method="OPTIONS",
    )


@pytest.mark.parametrize(
    "origin",
    [APP, "https://a.example.org:8443", "https://a.b.example.org:8443", "https://pr-17.test", "null"],
)
def test_an_allowed_origin_may_read_the_answer(gateway: Gateway, origin: str) -> None:
    for _ in range(2):
        message = get(gateway.port, "/listed", f"Origin: {origin}")

        assert message.status == 200
        assert cors_of(message) == {
            "allow-origin": [origin],
            "allow-credentials": ["true"],
            "expose-headers": ["X-Own, X-Total"],
        }
        assert sorted(values(message, "vary")) == ["Accept-Encoding", "Origin"]


@pytest.mark.parametrize(
    "origin",
    [
        "http://app.example.com", "https://app.example.com:444", "https://app.example.com.evil.test",
        "https://example.org:8443", "https://.example.org:8443", "https://a.example.org", "https://aexample.org:8443",
        "https://evil.test/.example.org:8443", "https://evil.test#.example.org:8443", "https://a..example.org:8443",
        "https://pr-.test", "https://pr-1.test.evil.test", "https://pr-1xtest", "HTTPS://APP.EXAMPLE.COM",
        "https://app.example.com/", "*", "file://", "a b", "https://user@a.example.org:8443", "https://é.example.org:8443",
    ],
)  # fmt: skip
def test_any_other_origin_is_told_nothing(gateway: Gateway, origin: str) -> None:
    message = get(gateway.port, "/listed", f"Origin: {origin}")

    assert message.status == 200
    assert cors_of(message) == {}
    assert "Origin" in values(message, "vary")


def test_two_origins_are_none(gateway: Gateway) -> None:
    message = get(gateway.port, "/listed", f"Origin: {APP}", f"Origin: {APP}")

    assert cors_of(message) == {}


def test_without_an_origin_the_answer_still_says_that_it_depends_on_it(gateway: Gateway) -> None:
    message = get(gateway.port, "/listed")

    assert cors_of(message) == {}
    assert sorted(values(message, "vary")) == ["Accept-Encoding", "Origin"]


def test_a_preflight_is_answered_without_the_upstream(gateway: Gateway) -> None:
    for _ in range(3):
        message = preflight(gateway, "/listed", APP, "PUT", "Access-Control-Request-Headers: x-token")

        assert (message.status, message.body) == (204, b"")
        assert cors_of(message) == {
            "allow-origin": [APP],
            "allow-credentials": ["true"],
            "allow-methods": ["GET, PUT, HEAD"],
            "allow-headers": ["X-Token, Content-Type"],
            "max-age": ["30"],
        }
        assert values(message, "vary") == [
            "Origin, Access-Control-Request-Method, Access-Control-Request-Headers"
        ]
        assert values(message, "x-own") == []


def test_a_preflight_goes_to_the_route_of_the_method_it_asks_for(gateway: Gateway) -> None:
    assert preflight(gateway, "/listed", APP, "GET").status == 204
    assert preflight(gateway, "/listed", APP, "POST").status == 405
    assert preflight(gateway, "/listed", APP, "DELETE").status == 405
    assert get(gateway.port, "/listed", f"Origin: {APP}", method="OPTIONS").status == 405
    assert get(gateway.port, "/listed", "Access-Control-Request-Method: GET", method="OPTIONS").status == 405
    assert preflight(gateway, "/plain", APP, "GET").status == 200
    assert preflight(gateway, "/nowhere", APP, "GET").status == 404
    assert preflight(gateway, "/listed", APP, "OPTIONS").status == 405


def test_an_options_that_is_no_preflight_goes_upstream(gateway: Gateway) -> None:
    message = get(gateway.port, "/any", "Origin: https://x.test", method="OPTIONS")

    assert (message.status, values(message, "x-own")) == (200, ["1"])


def test_a_foreign_preflight_is_refused_and_says_so(gateway: Gateway) -> None:
    message = preflight(gateway, "/listed", "https://evil.test")

    assert message.status == 403
    assert b"Origin not allowed" in message.body
    assert cors_of(message) == {}
    assert values(message, "vary") == ["Origin"]


def test_a_private_network_is_open_to_those_that_ask_only(gateway: Gateway) -> None:
    asked = preflight(gateway, "/listed", APP, "PUT", "Access-Control-Request-Private-Network: true")
    again = preflight(gateway, "/listed", APP, "PUT")

    assert values(asked, "access-control-allow-private-network") == ["true"]
    assert values(again, "access-control-allow-private-network") == []
    other = preflight(gateway, "/any", APP, "PUT", "Access-Control-Request-Private-Network: true")
    assert values(other, "access-control-allow-private-network") == []


def test_any_origin_is_a_star_that_does_not_vary(gateway: Gateway) -> None:
    for fields in ((), ("Origin: https://x.test",), ("Origin: null",)):
        message = get(gateway.port, "/any", *fields)
        assert cors_of(message) == {"allow-origin": ["*"]}
        assert values(message, "vary") == ["Accept-Encoding"]

    message = preflight(
        gateway, "/any", "https://x.test", "PATCH", "Access-Control-Request-Headers: x-a,authorization"
    )
    assert message.status == 204
    assert values(message, "access-control-allow-headers") == ["x-a,authorization"]
    assert "PATCH" in values(message, "access-control-allow-methods")[0]


def test_several_lines_of_asked_headers_are_one_list(gateway: Gateway) -> None:
    lines = [f"Access-Control-Request-Headers: {names}" for names in ("x-a, x-b", "authorization")]

    message = preflight(gateway, "/any", "https://x.test", "PATCH", *lines)
    again = preflight(gateway, "/any", "https://x.test", "PATCH", lines[0])

    assert values(message, "access-control-allow-headers") == ["x-a, x-b, authorization"]
    assert values(again, "access-control-allow-headers") == ["x-a, x-b"]


@pytest.mark.parametrize("asked", ["x-a\x01", "x-a; evil", 'x-"a"', "a" * 5000])
def test_only_names_are_reflected(gateway: Gateway, asked: str) -> None:
    message = preflight(gateway, "/any", "https://x.test", "PUT", f"Access-Control-Request-Headers: {asked}")

    assert message.status in (204, 400)
    assert values(message, "access-control-allow-headers") == []


def test_refusals_and_failures_can_be_read_too(gateway: Gateway) -> None:
    origin = f"Origin: {APP}"
    for message, status in (
        (get(gateway.port, "/closed", origin), 401),
        (get(gateway.port, "/small", origin, method="POST", body=b"12345"), 413),
        (get(gateway.port, "/gone", origin), 502),
        (get(gateway.port, "/fixed", origin), 200),
        (get(gateway.port, "/edited", origin), 200),
    ):
        assert message.status == status
        assert cors_of(message) == {"allow-origin": [APP]}
        assert "Origin" in values(message, "vary")


def test_a_cached_answer_speaks_to_the_origin_that_asks(gateway: Gateway) -> None:
    for origin in (APP, "https://other.example.com", "https://evil.test", APP):
        message = get(gateway.port, "/cached", f"Origin: {origin}")

        assert message.status == 200
        allowed = [] if "evil" in origin else [origin]
        assert values(message, "access-control-allow-origin") == allowed
        assert "Origin" in ", ".join(values(message, "vary"))
        assert values(message, "x-frame-options") == ["DENY"]
        assert values(message, "x-content-type-options") == ["nosniff"]
    assert b"hit" in (message.get("cache-status") or b"")


def test_a_preflight_needs_no_credentials(gateway: Gateway) -> None:
    message = preflight(gateway, "/closed", APP, "GET", "Access-Control-Request-Headers: authorization")

    assert message.status == 204
    assert values(message, "access-control-allow-headers") == ["authorization"]


def test_foreign_requests_are_refused_where_the_config_says_so(gateway: Gateway) -> None:
    assert get(gateway.port, "/guarded", "Origin: https://evil.test").status == 403
    assert get(gateway.port, "/guarded", f"Origin: {APP}").status == 200
    assert get(gateway.port, "/guarded").status == 200
    assert get(gateway.port, "/shadow", "Origin: https://evil.test").status == 200


def test_a_flood_of_origins_does_not_fill_memory() -> None:
    gate = CorsGate(suffixes=[("https://", ".example.com", "")], refused=REASONS["cors_refused"])

    for i in range(5000):
        assert gate.allows(f"https://a{i}.example.com")
        assert not gate.allows(f"https://a{i}.example.net")


def test_any_origin_with_credentials_cannot_be_built() -> None:
    with pytest.raises(ValueError, match="credentials"):
        CorsGate(any_origin=True, credentials=True, refused=REASONS["cors_refused"])


@pytest.mark.parametrize(
    ("text", "read"),
    [
        ("https://a.test", "https://a.test"),
        ("http://[::1]:8080", "http://[::1]:8080"),
        ("null", "null"),
        ("https://*.a.test:8", Wildcard("https://", ".a.test", ":8")),
        ("chrome-extension://abcdef", "chrome-extension://abcdef"),
    ],
)
def test_an_origin_is_read(text: str, read: object) -> None:
    assert read_origin(text) == read


@pytest.mark.parametrize(
    "text",
    [
        "https://a.test/", "https://A.test", "a.test", "https://a.test:443", "http://a.test:80", "https://*.com",
        "https://a.*.test", "https://*", "https://a.test?x", "~(", "https://a test", "", "https://a.test:0",
    ],
)  # fmt: skip
def test_what_no_browser_writes_is_no_origin(text: str) -> None:
    with pytest.raises(ValueError):
        read_origin(text)
