"""Who may share a response with whom, through the real gateway: an origin that writes into each response
what it was shown, and two clients of which the second must never get what was made for the first.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.caching.redis_server import RedisServer
from tests.client import Client, request
from tests.gateway import Gateway
from tests.strict import Message
from tests.upstream import Peer, Upstream

CACHE: dict[str, Any] = {"ttl": "60s"}


class Echo:
    """An origin whose responses anybody may cache, and that writes the fields it was sent into them."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.asked = 0

    def script(self, peer: Peer) -> None:
        while True:
            try:
                asked = peer.read_request()
            except TimeoutError:  # an idle connection
                return
            with self._lock:
                self.asked += 1
                number = self.asked
            fields: dict[str, list[str]] = {}
            for name, value in asked.headers:
                fields.setdefault(name.decode("latin-1").lower(), []).append(value.decode("latin-1"))
            said = {"number": number, "target": asked.target.decode(), "fields": fields}
            body = json.dumps(said).encode()
            extra = "".join(f"{line}\r\n" for line in fields.get("x-say", ()))
            head = (
                f"HTTP/1.1 200 OK\r\nCache-Control: max-age=60\r\n{extra}Content-Length: {len(body)}\r\n\r\n"
            )
            peer.send(head.encode() + (b"" if asked.method == b"HEAD" else body))


class Decider:
    """A forward-auth service: lets everybody pass; the cookie says whom, if it is to say so."""

    def script(self, peer: Peer) -> None:
        while True:
            try:
                asked = peer.read_request()
            except TimeoutError:
                return
            who = (asked.get("cookie") or b"").decode("latin-1").partition("user=")[2]
            named = f"X-User: {who}\r\n" if asked.get("x-name") else ""
            role = f"X-Role: {who}\r\n"
            peer.send(f"HTTP/1.1 200 OK\r\n{named}{role}Content-Length: 0\r\n\r\n".encode())


def config(origin: str, second: str, decider: str, store: dict[str, Any]) -> dict[str, Any]:
    return {
        "trusted_proxies": "127.0.0.0/8",
        "cache_store": store,
        "auth": {
            "forward": {
                "url": decider,
                "request_headers": ["Cookie", "X-Name"],
                "upstream_headers": ["X-Role"],
                "consumer_header": "X-User",
            }
        },
        "routes": [
            # Two routes of one URL, told apart by a field and by a parameter.
            {"path": "/routes/*", "name": "by-field", "headers": {"X-Internal": "1"}, "upstream": second},
            {"path": "/routes/*", "name": "by-query", "query": {"internal": "1"}, "upstream": second},
            {"path": "/routes/*", "name": "by-method", "methods": ["HEAD"], "upstream": second},
            {"path": "/routes/*", "name": "public", "upstream": origin, "cache": {"key": {"query": "none"}}},
            {"path": "/any-field/*", "headers": {"X-Env": "~^(a|b)$"}, "upstream": origin},
            {
                "path": "/any-query/*",
                "query": {"v": "*"},
                "upstream": origin,
                "cache": {"key": {"query": "none"}},
            },
            {
                "path": "/edited/*",
                "upstream": origin,
                "request_headers": {
                    "set": {"X-Client": "{client_ip}", "X-Trace": "{request_id}"},
                    "rename": {"X-Old": "X-New"},
                    "remove": ["X-Gone"],
                },
            },
            {
                "path": "/keyed/*",
                "upstream": origin,
                "request_headers": {"rename": {"X-Old": "X-New"}},
                "cache": {"key": {"headers": ["X-New", "X-Forwarded-For"]}},
            },
            {"path": "/forward/*", "upstream": origin, "auth": ["forward"]},
            {
                "path": "/shared-forward/*",
                "upstream": origin,
                "auth": ["forward"],
                "cache": {"share_private": True},
            },
            {"path": "/shadow/*", "upstream": origin, "auth": {"schemes": ["basic"], "enforce": False}},
            {"path": "/cookie/*", "upstream": origin, "cache": {"key": {"cookies": ["lang", "b"]}}},
            {"path": "/*", "name": "plain", "upstream": origin},
        ],
    }


class Harness:
    def __init__(self, gateway: Gateway, origin: Echo) -> None:
        self.gateway = gateway
        self.origin = origin
        self.config: dict[str, Any] = {}
        self._numbers = iter(range(1, 10_000))

    def fresh(self, path: str) -> str:
        """A URL that nobody has asked for."""
        return f"{path}/{next(self._numbers)}"

    def get(self, target: str, *fields: str, method: str = "GET", host: str = "here.example") -> Message:
        with Client(self.gateway.port) as client:
            client.send(request(target, method, *fields, host=host))
            return client.read_response(method)

    def seen(self, target: str, *fields: str, host: str = "here.example") -> dict[str, Any]:
        """What the response says that the origin was shown."""
        response = self.get(target, *fields, host=host)
        assert response.status == 200, response
        return dict(json.loads(response.body))


@pytest.fixture(scope="module", params=["memory", "disk", "redis"])
def harness(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Harness]:
    """One worker with its memory, two with a disk alone, two with Redis alone."""
    directory: Path = tmp_path_factory.mktemp(request.param)
    redis = RedisServer(directory / "redis") if request.param == "redis" else None
    store: dict[str, Any] = {}
    if request.param == "disk":
        store = {"memory": "0B", "disk": {"path": str(directory / "answers"), "size": "64MiB"}}
    elif redis is not None:
        redis.start()
        store = {"memory": "0B", "redis": {"url": redis.url, "timeout": "10s", "secret": "of the fleet"}}
    origin = Echo()
    with (
        Upstream(origin.script) as first,
        Upstream(origin.script) as second,
        Upstream(Decider().script) as decider,
    ):
        made = config(first.url, second.url, decider.url, store)
        for route in made["routes"]:
            route["cache"] = {**CACHE, **route.get("cache", {})}
            route.setdefault("preserve_host", True)
        with Gateway(made, workers=1 if request.param == "memory" else 2, check_descriptors=False) as gateway:
            yield Harness(gateway, origin)
    if redis is not None:
        redis.stop()


def until_hit(
    harness: Harness, target: str, *fields: str, host: str = "here.example", again: bool = False
) -> dict[str, Any]:
    """Asks until the response comes from the store; what was shown to the origin for it.

    The origin is asked once: two workers that both fetch it would store one after the other. With `again` it
    is asked until then, for what a purge that is still on its way to Redis may take away once more.
    """
    response = harness.get(target, *fields, host=host)
    for _ in range(6000):
        if response.get("age") is not None:
            return dict(json.loads(response.body))
        threading.Event().wait(0.01)
        only = () if again else ("Cache-Control: only-if-cached",)
        response = harness.get(target, *fields, *only, host=host)
    raise AssertionError(f"{target} is never answered from the store")


def test_a_public_response_is_shared(harness: Harness) -> None:
    target = harness.fresh("/plain")
    first = until_hit(harness, target)

    assert until_hit(harness, target, "X-Other: 1")["number"] == first["number"]


@pytest.mark.parametrize(("query", "field"), [("", "X-Internal: 1"), ("?internal=1", "X-Nothing: 1")])
def test_routes_of_one_url_share_nothing(harness: Harness, query: str, field: str) -> None:
    target = harness.fresh("/routes")
    internal = until_hit(harness, target + query, field)
    public = until_hit(harness, target)

    assert public["number"] != internal["number"]
    assert until_hit(harness, target + query, field)["number"] == internal["number"]


@pytest.mark.parametrize(
    ("path", "one", "other"),
    [
        ("/any-field", ("", "X-Env: a"), ("", "X-Env: b")),
        ("/any-query", ("?v=1", "X-A: b"), ("?v=2", "X-A: b")),
        ("/plain", ("", "X-Forwarded-Proto: https"), ("", "X-Forwarded-Proto: http")),
        ("/plain", ("", "X-Forwarded-Host: a.example"), ("", "X-Forwarded-Host: b.example")),
        ("/plain", ("", "X-Forwarded-Port: 1"), ("", "X-Forwarded-Port: 2")),
        ("/plain", ("", "X-Forwarded-Prefix: /a"), ("", "X-Forwarded-Prefix: /b")),
        ("/plain", ("", "X-Original-URL: /a"), ("", "X-Original-URL: /b")),
        ("/plain", ("", "Client-Cert: :YQ==:"), ("", "Client-Cert: :Yg==:")),
        (
            "/plain",
            ("", "Forwarded: for=1.1.1.1;host=a.example"),
            ("", "Forwarded: for=1.1.1.1;host=b.example"),
        ),
        ("/plain", ("", "Forwarded: for=1.1.1.1;proto=https"), ("", "Forwarded: for=1.1.1.1;proto=http")),
        ("/edited", ("", "X-Forwarded-For: 9.9.9.1"), ("", "X-Forwarded-For: 9.9.9.2")),
        ("/keyed", ("", "X-Old: a"), ("", "X-Old: b")),
        ("/keyed", ("", "X-Forwarded-For: 9.9.9.1"), ("", "X-Forwarded-For: 9.9.9.2")),
        ("/cookie", ("", "Cookie: lang=de,evil"), ("", "Cookie: lang=de")),
        ("/cookie", ("", "Cookie: lang=de; b=1"), ("", "Cookie: lang=de\r\nCookie: b=2")),
        ("/cookie", ("", "Cookie: l%61ng=evil"), ("", "Cookie: x=1")),
        ("/cookie", ("", "Cookie: x=1,lang=evil"), ("", "Cookie: x=1")),
        ("/cookie", ("", 'Cookie: lang="de;evil"'), ("", 'Cookie: lang="de;other"')),
        ("/cookie", ("", "Cookie: lang=a;b=c"), ("", "Cookie: lang=a=c")),
        ("/forward", ("", "Cookie: user=anna\r\nX-Name: 1"), ("", "Cookie: user=otto\r\nX-Name: 1")),
    ],
)
def test_what_the_upstream_is_shown_keeps_responses_apart(
    harness: Harness, path: str, one: tuple[str, str], other: tuple[str, str]
) -> None:
    target = harness.fresh(path)
    first = until_hit(harness, target + one[0], one[1])

    second = until_hit(harness, target + other[0], other[1])

    assert second["number"] != first["number"]
    assert until_hit(harness, target + one[0], one[1])["number"] == first["number"]


def test_clients_behind_a_proxy_share_where_only_their_address_differs(harness: Harness) -> None:
    target = harness.fresh("/plain")
    other = "True-Client-IP", "CF-Connecting-IP", "X-Client-IP", "X-Cluster-Client-IP", "X-Real-IP"
    first = until_hit(
        harness,
        target,
        "X-Forwarded-For: 9.9.9.1",
        "Forwarded: for=9.9.9.1;proto=https",
        *(f"{name}: 9.9.9.1" for name in other),
    )

    second = until_hit(
        harness,
        target,
        "X-Forwarded-For: 9.9.9.2",
        "Forwarded: for=9.9.9.2;proto=https",
        *(f"{name}: 9.9.9.2" for name in other),
    )

    assert second["number"] == first["number"]


@pytest.mark.parametrize(
    ("path", "vary", "one", "other"),
    [
        ("/plain", "X-Forwarded-For", "X-Forwarded-For: 9.9.9.1", "X-Forwarded-For: 9.9.9.2"),
        ("/plain", "Forwarded", "Forwarded: for=9.9.9.1", "Forwarded: for=9.9.9.2"),
        ("/plain", "X-Real-IP", "X-Real-IP: 9.9.9.1", "X-Real-IP: 9.9.9.2"),
        ("/edited", "X-New", "X-Old: a", "X-Old: b"),
        ("/plain", "Accept-Language", "Accept-Language: de", "Accept-Language: en"),
    ],
)
def test_vary_compares_what_went_upstream(
    harness: Harness, path: str, vary: str, one: str, other: str
) -> None:
    target = harness.fresh(path)
    say = f"X-Say: Vary: {vary}"
    first = until_hit(harness, target, say, one)

    second = until_hit(harness, target, say, other)

    assert second["number"] != first["number"]
    assert second["fields"].get(vary.lower()) != first["fields"].get(vary.lower())
    assert until_hit(harness, target, say, one)["number"] == first["number"]


def test_vary_on_what_never_goes_upstream_separates_nobody(harness: Harness) -> None:
    target = harness.fresh("/edited")
    first = until_hit(harness, target, "X-Say: Vary: X-Gone", "X-Gone: a")

    assert until_hit(harness, target, "X-Say: Vary: X-Gone", "X-Gone: b")["number"] == first["number"]


@pytest.mark.parametrize(
    ("path", "name"), [("/plain", "X-Request-ID"), ("/edited", "X-Trace"), ("/plain", "Range")]
)
def test_what_varies_by_a_field_that_no_two_requests_share_is_not_stored(
    harness: Harness, path: str, name: str
) -> None:
    target = harness.fresh(path)

    responses = [harness.get(target, f"X-Say: Vary: {name}") for _ in range(4)]

    assert len({response.body for response in responses}) == 4
    assert b"detail=vary_unique" in (responses[0].get("cache-status") or b"")


@pytest.mark.parametrize("path", ["/forward", "/shadow"])
@pytest.mark.parametrize("say", ["X-Say: X-A: b", "X-Say: Cache-Control: private"])
def test_nothing_is_stored_where_only_the_upstream_knows_who_asks(
    harness: Harness, path: str, say: str
) -> None:
    target = harness.fresh(path)

    seen = [harness.seen(target, say, f"Cookie: user={name}") for name in ("anna", "anna", "otto", "otto")]

    assert [each["fields"]["cookie"] for each in seen] == [
        [f"user={name}"] for name in ("anna", "anna", "otto", "otto")
    ]
    assert len({each["number"] for each in seen}) == 4


def test_they_share_where_share_private_says_so(harness: Harness) -> None:
    target = harness.fresh("/shared-forward")
    first = until_hit(harness, target, "Cookie: user=anna")

    # X-Role, which the service said, is shown to the upstream, and so keeps them apart even so.
    assert until_hit(harness, target, "Cookie: user=otto")["number"] != first["number"]
    assert until_hit(harness, target, "Cookie: user=anna")["number"] == first["number"]


def test_a_long_url_is_answered_at_once(harness: Harness) -> None:
    target = harness.fresh("/plain") + "?q=" + "x" * 6000

    first = harness.seen(target)

    assert until_hit(harness, target)["target"] == first["target"]


@pytest.mark.parametrize("count", [62, 63, 64, 127, 128, 129, 200])
def test_many_tags_delay_nothing(harness: Harness, count: int) -> None:
    target = harness.fresh("/plain")
    tags = " ".join(f"t{number}" for number in range(count))

    response = harness.get(target, f"X-Say: Surrogate-Key: {tags}")

    assert response.status == 200
    if count <= 128:
        until_hit(harness, target)
    else:
        assert b"detail=tags" in (response.get("cache-status") or b"")


@pytest.mark.parametrize("size", [900, 1100, 3000])
def test_a_write_to_a_long_url_purges_it(harness: Harness, size: int) -> None:
    target = harness.fresh("/plain") + "?q=" + "x" * size
    first = until_hit(harness, target)

    written = harness.get(target, f"X-Say: Location: {target}&more={'y' * size}", method="DELETE")

    assert written.status == 200
    assert until_hit(harness, target, again=True)["number"] > first["number"]
