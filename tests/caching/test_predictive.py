"""The predictive parts and the strategies at work, through the real gateway."""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Iterator
from typing import Any

import jwt
import pytest

from fastgate.caching.predictor import (
    AdaptiveTtlConfig,
    PredictConfig,
    Predictor,
    PrefetchConfig,
    build_predictor,
)
from tests.client import get
from tests.control.admin_client import scrape_idle
from tests.gateway import Gateway
from tests.strict import Message
from tests.upstream import Peer, Upstream

S = 1_000_000_000
STALE = "Cache-Control: max-age=60\r\nAge: 60\r\n"  # from the beginning


class Origin:
    """Numbers its answers and counts who asks; `fields` go into every answer."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.fields = ""
        self.body = ""  # the same every time; else the number of the request
        self.lock = threading.Lock()

    def __call__(self, peer: Peer) -> None:
        while True:
            asked = peer.read_request()
            with self.lock:
                self.asked.append(asked.target.decode())
                body = (self.body or str(len(self.asked))).encode()
            head = f"HTTP/1.1 200 OK\r\n{self.fields}Content-Length: {len(body)}\r\n\r\n"
            peer.send(head.encode() + body)

    def wait_for(self, target: str, times: int = 1) -> None:
        deadline = time.monotonic() + 60
        while self.asked.count(target) < times:
            assert time.monotonic() < deadline, f"{target} was not asked for {times} times: {self.asked}"
            time.sleep(0.005)


@pytest.fixture
def origin() -> Iterator[tuple[Origin, Upstream]]:
    script = Origin()
    with Upstream(script) as upstream:
        yield script, upstream


def gateway_for(upstream: Upstream, **cache: Any) -> Gateway:
    return Gateway({"routes": [{"path": "/*", "upstream": upstream.url, "cache": {"ttl": "60s", **cache}}]})


def ttl_of(answer: Message) -> int:
    found = re.search(rb"ttl=(\d+)", answer.values("cache-status")[0])
    assert found, answer
    return int(found[1])


def settled(port: int, target: str) -> Message:
    """The answer once it comes from the cache: a fetch behind the scenes takes a moment to be stored."""
    deadline = time.monotonic() + 60
    while True:
        answer = get(port, target)
        if b"hit" in answer.values("cache-status")[0] or time.monotonic() > deadline:
            return answer
        time.sleep(0.005)


def test_a_strategy_decides_over_key_storing_and_lifetime(origin: tuple[Origin, Upstream]) -> None:
    script, upstream = origin
    strategy = {"use": "tests.caching.strategies:ByGroup", "options": {"seconds": 9}}

    with gateway_for(upstream, strategy=strategy) as gateway:
        first, second = get(gateway.port, "/a/1"), get(gateway.port, "/a/2")
        other = get(gateway.port, "/b/1")
        uncached = [get(gateway.port, "/a/uncached").body for _ in range(2)]
        script.fields = "X-Secret: yes\r\n"
        secret = [get(gateway.port, "/c").body for _ in range(2)]

    assert first.body == second.body != other.body
    assert ttl_of(second) <= 9
    assert uncached[0] != uncached[1]
    assert secret[0] != secret[1]


def test_a_strategy_lengthens_nothing_that_the_origin_limits(origin: tuple[Origin, Upstream]) -> None:
    script, upstream = origin
    script.fields = "Cache-Control: max-age=5\r\n"
    strategy = {"use": "tests.caching.strategies:ByGroup", "options": {"seconds": 900}}

    with gateway_for(upstream, strategy=strategy) as gateway:
        get(gateway.port, "/a")

        assert ttl_of(get(gateway.port, "/a")) <= 5


def test_a_failing_strategy_caches_nothing_and_costs_no_request(origin: tuple[Origin, Upstream]) -> None:
    strategy = "tests.caching.strategies:Failing"
    route = {"path": "/*", "upstream": origin[1].url, "cache": {"ttl": "60s", "strategy": strategy}}

    with Gateway({"routes": [route]}, allow="no key today|Traceback|cache strategy") as gateway:
        answers = [get(gateway.port, "/a") for _ in range(3)]

    assert [answer.status for answer in answers] == [200] * 3
    assert len({answer.body for answer in answers}) == 3


def test_adaptive_ttl_grows_for_what_stays_the_same(origin: tuple[Origin, Upstream]) -> None:
    script, upstream = origin
    script.body = "always this"
    adaptive = {"min": "10m", "max": "1h", "staleness": 0.5}

    with gateway_for(upstream, ttl="5m", predict={"adaptive_ttl": adaptive}) as gateway:
        get(gateway.port, "/page")
        assert ttl_of(get(gateway.port, "/page")) <= 300
        get(gateway.port, "/page", "Cache-Control: no-cache")

        assert script.asked == ["/page"] * 2
        assert ttl_of(get(gateway.port, "/page")) > 300


def test_adaptive_ttl_leaves_the_origins_own_word_alone(origin: tuple[Origin, Upstream]) -> None:
    script, upstream = origin
    script.fields = "Cache-Control: max-age=30\r\n"

    with gateway_for(upstream, predict={"adaptive_ttl": {"max": "10s"}}) as gateway:
        get(gateway.port, "/page")

        assert ttl_of(get(gateway.port, "/page")) > 20


def test_a_popular_answer_is_fetched_again_before_it_expires(origin: tuple[Origin, Upstream]) -> None:
    script, upstream = origin
    script.fields = "Cache-Control: max-age=12\r\n"  # half of it is left for the fetch on a loaded machine

    with gateway_for(upstream, predict={"refresh_ahead": {"window": 0.5, "hits": 2}}) as gateway:
        answers = [get(gateway.port, "/hot")]
        while len(script.asked) < 2 or len(answers) < 20:
            answers.append(get(gateway.port, "/hot"))
            time.sleep(0.1)

    assert all(b"hit" in answer.values("cache-status")[0] for answer in answers[1:]), "nobody waited again"
    assert 2 <= len(script.asked) <= 4


def test_what_usually_follows_is_there_before_it_is_asked_for(origin: tuple[Origin, Upstream]) -> None:
    script, upstream = origin
    script.fields = STALE
    prefetch = {"support": 3, "budget": 1.0}

    with gateway_for(upstream, predict={"prefetch": prefetch}) as gateway:
        for _ in range(4):
            get(gateway.port, "/list")
            get(gateway.port, "/item?id=1")
        scrape_idle(gateway.admin)  # until the prefetch of the last round is finished
        script.fields = "Cache-Control: max-age=60\r\n"
        before = script.asked.count("/item?id=1")
        get(gateway.port, "/list")
        script.wait_for("/item?id=1", before + 1)

        assert b"hit" in settled(gateway.port, "/item?id=1").values("cache-status")[0]
        assert script.asked.count("/item?id=1") == before + 1


def test_nothing_is_predicted_unless_it_is_asked_for() -> None:
    assert build_predictor(None) is None
    assert build_predictor(PredictConfig()) is None
    predictor = build_predictor(PredictConfig(cost_aware=True))
    assert predictor is not None
    assert predictor.follows(b"client", b"/a", 0) == []
    assert not predictor.due(0, 10, 1, 100)
    assert predictor.ttl_ns(b"key", None, b"body", 0, 7) == 7


def test_cost_is_told_in_lives() -> None:
    predictor = Predictor(PredictConfig(cost_aware=True))
    for _ in range(100):
        predictor.lives(1_000_000, 1000)

    assert predictor.lives(1_000_000, 1000) == 0
    assert predictor.lives(4_500_000, 1000) == 2
    assert predictor.lives(10**12, 1000) == 3


def test_an_entity_tag_speaks_for_the_body() -> None:
    predictor = Predictor(PredictConfig(adaptive_ttl=AdaptiveTtlConfig(min_ns=S, max_ns=10**6 * S)))
    same = [predictor.ttl_ns(b"k", b'"1"', f"clock {n}".encode(), n * 60 * S, 60 * S) for n in range(5)]
    kept = predictor.ttl_ns(b"k", None, None, 300 * S, 60 * S)
    changed = predictor.ttl_ns(b"k", b'"2"', b"new", 360 * S, 60 * S)

    assert same == sorted(same)
    assert changed < kept


def test_prefetches_that_nobody_uses_are_settled_as_wasted() -> None:
    predictor = Predictor(PredictConfig(prefetch=PrefetchConfig(support=2)))
    assert predictor.budget is not None
    assert predictor.may_fetch(b"/a")
    predictor.fetching(b"/a", 0)
    assert not predictor.may_fetch(b"/a"), "it is on its way"

    predictor.follows(b"c", b"/other", 61 * S)

    assert (predictor.budget.used, predictor.budget.wasted) == (0, 1)


@pytest.mark.parametrize(
    ("cache", "says"),
    [
        ({"strategy": "nowhere:Mine"}, "cannot import 'nowhere'"),
        ({"strategy": "tests.caching.strategies:Missing"}, "has no 'Missing'"),
        ({"strategy": "tests.caching.strategies:S"}, "has no 'S'"),
        ({"strategy": "fastgate.settings:Settings"}, "not a subclass"),
        ({"strategy": "unknown"}, "no cache strategy named"),
        ({"strategy": {"use": "tests.caching.strategies:Plain", "options": {"a": 1}}}, "takes no settings"),
        (
            {"strategy": {"use": "tests.caching.strategies:ByGroup", "options": {"seconds": "x"}}},
            "Expected `int`, got `str`",
        ),
        ({"predict": {"adaptive_ttl": {"min": "2h", "max": "1h"}}}, "more than max"),
        ({"predict": {"prefetch": {"budget": 2}}}, "budget"),
    ],
)
def test_bad_settings_are_refused_with_their_path(cache: dict[str, Any], says: str) -> None:
    from fastgate.config import check

    route = {"path": "/", "upstream": "http://127.0.0.1:1", "cache": cache}
    found = check(json.dumps({"routes": [route]}), "json")

    text = str(found)
    assert says in text
    assert "$.routes[0].cache" in text


def test_what_is_fetched_ahead_for_a_consumer_stays_that_consumers(origin: tuple[Origin, Upstream]) -> None:
    script, upstream = origin
    script.fields = STALE
    secret = "0123456789abcdef0123456789abcdef"
    issuer = {"issuer": "https://issuer.test", "secret": secret, "algorithms": ["HS256"]}
    tokens = {
        name: jwt.encode({"iss": issuer["issuer"], "sub": name, "exp": 4_000_000_000}, secret, "HS256")
        for name in ("ann", "bob")
    }
    route = {
        "path": "/*",
        "upstream": upstream.url,
        "auth": ["jwt"],
        "cache": {"ttl": "60s", "predict": {"prefetch": {"support": 3, "budget": 1.0}}},
    }

    with Gateway({"auth": {"jwt": {"issuers": [issuer]}}, "routes": [route]}) as gateway:

        def ask(name: str, target: str) -> Message:
            return get(gateway.port, target, f"Authorization: Bearer {tokens[name]}")

        for _ in range(4):
            ask("ann", "/list")
            ask("ann", "/mine")
        scrape_idle(gateway.admin)  # until the prefetch of the last round is finished
        script.fields = "Cache-Control: max-age=60\r\n"
        before = script.asked.count("/mine")
        ask("ann", "/list")
        script.wait_for("/mine", before + 1)

        theirs = ask("bob", "/mine")

    assert theirs.status == 200
    assert b"hit" not in theirs.values("cache-status")[0]
