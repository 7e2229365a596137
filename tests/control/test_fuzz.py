"""Whatever is sent to the admin API, the response is a result or an error that says why: never 500."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from tests.control.admin_client import call
from tests.gateway import Gateway

HELLO = {"name": "hello", "path": "/hello", "respond": "hello"}
LONG = int("9" * 4000)

# fmt: off
TEXTS = [
    "", "a", "acme", "a\n", "ä", "\x00", "x" * 300, "free", "1h", "0", "100000d", "9" * 5000 + "s",
    "1e5d", "-1s",
    "2262-04-12T00:00:00Z", "9999-12-31T23:59:59Z", "0001-01-01T00:00:00+23:59", "1969-01-01",
    "²", "2027-01-01",
    "http://[", "http://a/", "/a/*", "http://a:99999/", "true", "request.path ==", "allow", "deny",
    "10.0.0.1", "::1", "1.2.3.4/33",
]
# fmt: on
texts = st.sampled_from(TEXTS) | st.text(max_size=6).filter(lambda text: text.isprintable())
numbers = st.sampled_from(
    [0, -1, 1, 2**31, 2**63 - 1, 2**63, 2**64 - 1, 2**64, -(2**63) - 1, LONG, 0.5, 1e308]
)
values = st.recursive(
    st.none() | st.booleans() | numbers | texts,
    lambda below: st.lists(below, max_size=3) | st.dictionaries(texts, below, max_size=3),
    max_leaves=5,
)
limits = st.dictionaries(
    st.sampled_from(["per_minute", "per_day", "burst", "concurrent", "cost_per_hour", "nonsense"]),
    numbers | st.none(),
    max_size=3,
)
FIELDS: dict[str, st.SearchStrategy[Any]] = {
    "consumer": texts, "name": texts, "tier": texts, "scopes": st.lists(texts, max_size=2) | values,
    "roles": st.lists(texts, max_size=2), "metadata": st.dictionaries(texts, values, max_size=3) | values,
    "limits": limits | values, "expires_at": texts, "expires_in": texts, "starts_at": texts,
    "starts_in": texts,
    "overlap": texts, "disabled": st.booleans() | values, "for": texts, "value": texts | values,
    "url": texts, "tag": texts, "pattern": texts, "key": texts, "prefix": texts,
    "all": st.booleans() | values,
    "when": texts, "action": texts, "priority": numbers, "status": numbers, "limit": values,
    "policies": values,
}  # fmt: skip
OTHERS = {name: field for name, field in FIELDS.items() if name != "consumer"}
bodies = (
    st.fixed_dictionaries({"consumer": st.just("acme")}, optional=OTHERS)
    | st.dictionaries(st.sampled_from(sorted(FIELDS)), values, max_size=4)
    | st.fixed_dictionaries({}, optional=FIELDS)
    | values
    | st.lists(st.fixed_dictionaries({"name": texts, "when": texts, "action": texts}), max_size=2)
)
CALLS = [
    ("POST", "/api/keys", ""), ("POST", "/api/auth/api-key", ""), ("GET", "/api/keys", ""),
    ("GET", "/api/keys/{}", ""), ("PATCH", "/api/keys/{}", ""), ("DELETE", "/api/keys/{}", ""),
    ("POST", "/api/keys/{}/rotate", ""), ("POST", "/api/keys/{}/revoke", ""),
    ("POST", "/api/consumers", ""), ("GET", "/api/consumers", ""), ("PATCH", "/api/consumers/{}", ""),
    ("GET", "/api/consumers/{}", ""), ("DELETE", "/api/consumers/{}", ""),
    ("GET", "/api/limits", "consumer"), ("PUT", "/api/limits", "consumer"), ("DELETE",
    "/api/limits", "consumer"),
    ("POST", "/api/limits/reset", "ip"), ("POST", "/api/limits/ban", "ip"), ("POST",
    "/api/limits/ban", "key"),
    ("POST", "/api/limits/ban", "consumer"), ("POST", "/api/limits/pardon", "ip"),
    ("GET", "/api/policies", ""), ("PUT", "/api/policies", ""), ("DELETE", "/api/policies", ""),
    ("GET", "/api/policies/violations", "limit"), ("GET", "/api/cache", ""), ("POST", "/api/cache/purge", ""),
    ("GET", "/api/secrets", ""), ("PUT", "/api/secrets/{}", ""), ("DELETE", "/api/secrets/{}", ""),
    ("GET", "/api/gateway/stats", ""), ("GET", "/api/gateway/status", ""),
]  # fmt: skip
EXAMPLES: list[tuple[tuple[str, str, str], str, Any]] = [
    (("POST", "/api/keys", ""), "", {"consumer": "acme", "metadata": {"n": 2**64}}),
    (("POST", "/api/keys", ""), "", {"consumer": "acme", "metadata": {"n": [LONG]}}),
    (("POST", "/api/keys", ""), "", {"consumer": "acme", "expires_in": "100000d"}),
    (("POST", "/api/keys", ""), "", {"consumer": "acme", "expires_at": "9999-12-31T23:59:59Z"}),
    (("POST", "/api/keys", ""), "", {"consumer": "acme\n"}),
    (("POST", "/api/keys", ""), "", {"consumer": "acme", "scopes": ["a\n"]}),
    (("POST", "/api/limits/ban", "ip"), "10.0.0.1", {"for": "100000d"}),
    (("POST", "/api/cache/purge", ""), "", {"url": "http://["}),
    (("POST", "/api/consumers", ""), "", {"name": "beta", "metadata": {"n": -(2**63) - 1}}),
    (("PUT", "/api/secrets/{}", ""), "a\n", {"value": "x"}),
    (("PATCH", "/api/keys/{}", ""), "a\n", {}),
    (("GET", "/api/keys", ""), "", None),
]


@pytest.fixture(scope="module")
def served() -> Iterator[Gateway]:
    with Gateway({"auth": {"api_key": {}}, "routes": [HELLO]}) as gateway:
        yield gateway


def ask(gateway: Gateway, made: tuple[str, str, str], text: str, body: Any) -> tuple[int, Any]:
    method, path, name = made
    target = path.replace("{}", quote(text, safe="") or "x")
    if name:
        target += f"?{name}={quote(text, safe='')}"
    data = None if method == "GET" else json.dumps(body).encode()
    answer = call(gateway.admin, target, method, body=data)
    return answer.status, answer.body


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(CALLS), texts, bodies)
def test_nothing_that_is_sent_ends_in_500(
    served: Gateway, made: tuple[str, str, str], text: str, body: Any
) -> None:
    status, told = ask(served, made, text, body)

    assert status < 500 or status == 507, (made, text, body, told)


@pytest.mark.parametrize(("made", "text", "body"), EXAMPLES)
def test_what_ended_in_500_is_refused_with_its_place(
    served: Gateway, made: tuple[str, str, str], text: str, body: Any
) -> None:
    status, told = ask(served, made, text, body)

    assert status == (400 if made[0] != "GET" else 200), (made, text, body, told)
    if made[1] == "/api/keys" and made[0] == "POST":
        assert b'"path":"$.' in told.replace(b'": "', b'":"')


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(texts)
@example("http://[")
@example("null")
def test_no_origin_ends_in_500(served: Gateway, origin: str) -> None:
    if not origin.isascii() or not origin.isprintable():
        return
    assert call(served.admin, "/api/keys", origin=origin).status == 403 or origin == ""
