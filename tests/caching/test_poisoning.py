"""Attempts to plant one client's answer in the cache for another, through the real gateway.

The origin is as gullible as frameworks get: it takes its host, path and method from any header that offers
one, parameters from behind `;` as from behind `&` and from the body of a GET, and writes what it took into
answers that anybody may cache. What a victim gets must be what it would have got without the attack.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from urllib.parse import unquote_to_bytes

import pytest

from tests.client import Client, get, request
from tests.gateway import Gateway
from tests.strict import Message
from tests.upstream import Peer, Upstream

LIFETIME = "Cache-Control: max-age=60"
HOSTS = ("x-forwarded-host", "x-host", "x-original-host", "x-forwarded-server", "forwarded")


def gullible(asked: Message) -> bytes:
    """What this origin makes of a request, as text."""

    def first(*names: str) -> bytes:
        return next((value for name in names for value in asked.values(name)), b"")

    target = first("x-original-url", "x-rewrite-url") or asked.target
    path, _, query = target.partition(b"?")
    method = first("x-http-method-override", "x-method-override", "x-http-method") or asked.method
    parameters: dict[bytes, bytes] = {}
    for text in (query, asked.body):
        for pair in text.replace(b";", b"&").split(b"&"):
            name, _, value = pair.partition(b"=")
            parameters[unquote_to_bytes(name).partition(b"[")[0].strip().lower()] = value
    host = next((value for name in HOSTS for value in asked.values(name)), first("host"))
    return b"|".join((method, host, path, parameters.get(b"callback", b"-"), first("x-forwarded-scheme")))


def origin(peer: Peer) -> None:
    while True:
        try:
            asked = peer.read_request()
        except TimeoutError:  # an idle connection, as one origin serves many tests
            return
        body = gullible(asked)
        extra = b"X-Host: " + body.split(b"|")[1]
        head = f"HTTP/1.1 200 OK\r\n{LIFETIME}\r\n".encode() + extra + b"\r\nContent-Length: %d\r\n\r\n"
        peer.send(head % len(body) + (b"" if asked.method == b"HEAD" else body))


def gateway_for(upstream: Upstream, **cache: Any) -> Gateway:
    route = {"path": "/*", "upstream": upstream.url, "preserve_host": True, "cache": cache}
    return Gateway({"routes": [route]})


@pytest.fixture(scope="module")
def gullible_upstream() -> Iterator[Upstream]:
    with Upstream(origin) as upstream:
        yield upstream


@pytest.fixture(scope="module")
def everything_keyed(gullible_upstream: Upstream) -> Iterator[Gateway]:
    with gateway_for(gullible_upstream) as gateway:
        yield gateway


@pytest.fixture(scope="module")
def callback_keyed(gullible_upstream: Upstream) -> Iterator[Gateway]:
    with gateway_for(gullible_upstream, key={"query": ["callback"]}) as gateway:
        yield gateway


def from_cache(answer: Message) -> bool:
    return answer.get("age") is not None


def sent(port: int, raw: bytes, method: str = "GET") -> Message:
    with Client(port) as client:
        client.send(raw)
        return client.read_response(method)


def test_an_honest_request_is_answered_from_the_cache(everything_keyed: Gateway) -> None:
    first, second = (get(everything_keyed.port, "/honest?callback=mine") for _ in range(2))

    assert first.body == second.body == b"GET|gateway.test|/honest|mine|"
    assert not from_cache(first)
    assert from_cache(second)


HEADERS = [
    "X-Forwarded-Host: evil.test",
    "X-Host: evil.test",
    "X-Original-Host: evil.test",
    "X-Forwarded-Server: evil.test",
    "Forwarded: evil.test",
    "X-Original-URL: /evil",
    "X-Rewrite-URL: /evil",
    "X_Original_URL: /evil",
    "X-HTTP-Method-Override: EVIL",
    "X-HTTP-Method: EVIL",
    "X-Method-Override: EVIL",
    "X-Forwarded-Scheme: evil",
]


@pytest.mark.parametrize("field", HEADERS)
def test_a_header_that_is_not_in_the_key_plants_nothing(everything_keyed: Gateway, field: str) -> None:
    target = f"/header/{HEADERS.index(field)}"

    get(everything_keyed.port, target, field)
    victim = get(everything_keyed.port, target)

    assert victim.body == f"GET|gateway.test|{target}|-|".encode()
    assert b"evil" not in victim.raw.lower()


def test_a_port_in_host_is_part_of_the_key(everything_keyed: Gateway) -> None:
    sent(everything_keyed.port, request("/port", host="gateway.test:1337"))
    victim = get(everything_keyed.port, "/port")

    assert victim.body == b"GET|gateway.test|/port|-|"


def test_an_absolute_target_is_keyed_by_its_own_host(everything_keyed: Gateway) -> None:
    sent(everything_keyed.port, request("http://evil.test/absolute"))
    victim = get(everything_keyed.port, "/absolute")

    assert victim.body == b"GET|gateway.test|/absolute|-|"


CLOAKS = [
    "?callback=mine&utm=1;callback=evil",
    "?callback=mine&utm=1%3Bcallback=evil",
    "?callback=mine&utm;callback=evil",
    "?callback=mine&CALLBACK=evil",
    "?callback=mine&%63allback=evil",
    "?callback=mine&callback[]=evil",
    "?callback=mine&callback%5B0%5D=evil",
    "?callback=mine&+callback=evil",
    "?callback=mine&callback=evil",
    "?callback=mine;callback=evil",
]


@pytest.mark.parametrize("query", CLOAKS)
def test_a_cloaked_parameter_plants_nothing(callback_keyed: Gateway, query: str) -> None:
    path = f"/cloak/{CLOAKS.index(query)}"

    get(callback_keyed.port, path + query)
    victim = get(callback_keyed.port, path + "?callback=mine")

    assert victim.body.split(b"|")[3] == b"mine"


def test_a_parameter_outside_the_key_may_differ(callback_keyed: Gateway) -> None:
    get(callback_keyed.port, "/tracked?callback=mine&utm=1")

    assert from_cache(get(callback_keyed.port, "/tracked?utm=2&callback=mine"))


@pytest.mark.parametrize("framing", ["length", "chunked"])
def test_a_body_on_get_plants_nothing(everything_keyed: Gateway, framing: str) -> None:
    target = f"/fat/{framing}?callback=mine"
    body = b"callback=evil"
    if framing == "length":
        attack = request(target, body=body)
    else:
        attack = request(target, "GET", "Transfer-Encoding: chunked") + b"%x\r\n%b\r\n0\r\n\r\n" % (
            len(body),
            body,
        )

    sent(everything_keyed.port, attack)
    victim = get(everything_keyed.port, target)

    assert victim.body.split(b"|")[3] == b"mine"


PATHS = [
    ("/public/%2e%2e/evil", "/public/"),
    ("/public/../evil", "/public/"),
    ("/a/..%2fevil", "/a/"),
    ("/b%2fevil", "/b/evil"),
    ("/c//d", "/c/d"),
    ("/e;evil", "/e"),
    ("/f%3fevil", "/f"),
    ("/g%23evil", "/g"),
    ("/account/evil.css", "/account"),
    ("/h%00", "/h"),
    ("/i/./j", "/i/"),
]


@pytest.mark.parametrize(("attack", "target"), PATHS)
def test_paths_that_differ_for_the_origin_differ_in_the_key(
    everything_keyed: Gateway, attack: str, target: str
) -> None:
    get(everything_keyed.port, attack)
    victim = get(everything_keyed.port, target)

    assert victim.body == f"GET|gateway.test|{target}|-|".encode()


def test_head_does_not_stand_in_for_get(everything_keyed: Gateway) -> None:
    get(everything_keyed.port, "/head", method="HEAD")

    assert get(everything_keyed.port, "/head").body == b"GET|gateway.test|/head|-|"


# --- origins with answers of their own ---


def answers(*wanted: bytes) -> Any:
    """A script that gives these answers to the requests of all its connections, in turn, then the last."""
    left = list(wanted)

    def script(peer: Peer) -> None:
        while True:
            peer.read_request()
            reply = left.pop(0) if len(left) > 1 else left[0]
            peer.send(reply)
            if b"Connection: close" in reply:
                peer.close()
                return

    return script


def ok(body: bytes, *fields: str, status: str = "200 OK") -> bytes:
    head = "\r\n".join((f"HTTP/1.1 {status}", *fields, f"Content-Length: {len(body)}"))
    return head.encode("latin-1") + b"\r\n\r\n" + body


def exchange(*replies: bytes, requests: list[bytes], allow: str | None = None, **cache: Any) -> list[Message]:
    """What the clients get, one after the other, and each on a connection of its own."""
    with Upstream(answers(*replies)) as upstream:
        route = {"path": "/*", "upstream": upstream.url, "cache": cache}
        with Gateway({"routes": [route]}, allow=allow) as gateway:
            return [sent(gateway.port, raw) for raw in requests]


GOOD = ok(b"good", LIFETIME)


def test_a_part_does_not_stand_in_for_the_whole() -> None:
    part = ok(b"e", LIFETIME, "Content-Range: bytes 0-0/4", status="206 Partial Content")

    answers_seen = exchange(part, GOOD, requests=[request("/", "GET", "Range: bytes=0-0"), request("/")])

    assert [answer.body for answer in answers_seen] == [b"e", b"good"]


def test_a_304_to_an_attackers_condition_is_not_an_empty_answer_to_others() -> None:
    unchanged = f"HTTP/1.1 304 Not Modified\r\n{LIFETIME}\r\n\r\n".encode()

    seen = exchange(unchanged, GOOD, requests=[request("/", "GET", 'If-None-Match: "x"'), request("/")])

    assert [answer.status for answer in seen] == [304, 200]
    assert seen[1].body == b"good"


@pytest.mark.parametrize(
    "broken",
    [
        ok(b"evil", LIFETIME, "X: a\rSet-Cookie: evil=1"),
        ok(b"evil", LIFETIME, "X: a\0b"),
        ok(b"evil", LIFETIME, "X: a\n b"),
        ok(b"evil", LIFETIME, "X : a"),
    ],
    ids=["carriage return", "NUL", "folded line", "space before the colon"],
)
def test_a_head_that_could_be_read_in_two_ways_is_not_stored(broken: bytes) -> None:
    bad, good = exchange(broken, GOOD, requests=[request("/")] * 2)

    assert (bad.status, good.status) in ((502, 200), (200, 200))
    assert not bad.values("set-cookie")
    if bad.status == 502:
        assert good.body == b"good"
        assert not from_cache(good)


def test_an_answer_with_an_injected_cookie_is_not_stored() -> None:
    split = ok(b"evil", LIFETIME, "Location: /\r\nSet-Cookie: session=evil", status="302 Found")

    _, victim = exchange(split, GOOD, requests=[request("/")] * 2)

    assert victim.body == b"good"
    assert not victim.values("set-cookie")


@pytest.mark.parametrize(
    "cut",
    [
        b"Content-Length: 9\r\n\r\nevil",
        b"Transfer-Encoding: chunked\r\n\r\n4\r\nevil\r\n",
    ],
    ids=["length", "chunked"],
)
def test_a_cut_answer_is_not_stored(cut: bytes) -> None:
    head = b"HTTP/1.1 200 OK\r\nCache-Control: max-age=60\r\nConnection: close\r\n"
    with Upstream(answers(head + cut, GOOD)) as upstream:
        route = {"path": "/*", "upstream": upstream.url, "cache": {}}
        with Gateway({"routes": [route]}) as gateway:
            with Client(gateway.port) as client:
                client.send(request("/"))
                client.read_to_end()
            assert get(gateway.port).body == b"good"


@pytest.mark.parametrize(
    "validator",
    ['ETag: "' + "x" * 4000 + '"', "ETag: nonsense\x7f", "Last-Modified: nonsense", 'ETag: "a", "b"'],
    ids=["oversized", "control character", "not a date", "two tags"],
)
def test_an_odd_validator_harms_nobody(validator: str) -> None:
    stale = ok(b"first", "Cache-Control: max-age=0", validator)

    seen = exchange(stale, GOOD, requests=[request("/")] * 2)

    assert seen[-1].body == b"good"


@pytest.mark.parametrize(
    "field",
    [
        'If-None-Match: "' + "x" * 9000 + '"',
        "If-None-Match: ,,,",
        "If-Modified-Since: nonsense",
        "Range: bytes=9-1",
        "If-Range: x",
    ],
)
def test_a_clients_odd_condition_harms_nobody(field: str) -> None:
    seen = exchange(GOOD, requests=[request("/"), request("/", "GET", field), request("/")])

    assert [answer.body for answer in seen] == [b"good"] * 3


def test_an_error_that_a_header_provokes_is_not_kept() -> None:
    refusal = ok(b"evil", status="400 Bad Request")

    _, victim = exchange(
        refusal, GOOD, requests=[request("/", "GET", "X-Big: " + "x" * 5000), request("/")], ttl="60s"
    )

    assert victim.body == b"good"


@pytest.mark.parametrize("credential", ["Cookie: session=1", "Authorization: Bearer 1"])
def test_an_answer_to_a_credential_is_not_shared_by_default_lifetimes(credential: str) -> None:
    seen = exchange(
        ok(b"private"), ok(b"public"), requests=[request("/", "GET", credential), request("/")], ttl="60s"
    )

    assert [answer.body for answer in seen] == [b"private", b"public"]


def one_name(asked: Message) -> bytes:
    """The language as WSGI, CGI and PHP have it: the last field whose name reads HTTP_X_LANG."""
    found = b"-"
    for line in asked.raw.partition(b"\r\n\r\n")[0].split(b"\r\n")[1:]:
        name, _, value = line.partition(b":")
        if name.lower().replace(b"_", b"-").replace(b".", b"-") == b"x-lang":
            found = value.strip()
    return found


def folding(peer: Peer) -> None:
    while True:
        body = one_name(peer.read_request())
        head = f"HTTP/1.1 200 OK\r\n{LIFETIME}\r\nVary: X-Lang\r\nContent-Length: {len(body)}\r\n\r\n"
        peer.send(head.encode() + body)


@pytest.mark.parametrize("cache", [{"key": {"headers": ["X-Lang"]}}, {}], ids=["key", "vary"])
@pytest.mark.parametrize("other", ["X_Lang", "X.Lang", "x_lang", "X_LANG"])
@pytest.mark.parametrize("victim", [("X-Lang: de",), ()], ids=["named", "without"])
def test_another_spelling_of_a_name_in_the_key_plants_nothing(
    cache: dict[str, Any], other: str, victim: tuple[str, ...]
) -> None:
    with Upstream(folding) as upstream, gateway_for(upstream, **cache) as gateway:
        for attack in ((*victim, f"{other}: evil"), (f"{other}: evil", *victim)):
            get(gateway.port, "/a", *attack)

            assert get(gateway.port, "/a", *victim).body == (b"de" if victim else b"-")
        asked = len(upstream.requests)
        assert get(gateway.port, "/a", *victim).body == (b"de" if victim else b"-")
        assert len(upstream.requests) == asked  # it is cached all the same
