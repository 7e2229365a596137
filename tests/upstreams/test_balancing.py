"""Balancing, passive health and circuit breakers through real sockets: which target a request reaches."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from tests.client import Client, get, request
from tests.control.admin_client import call, scrape_idle, value
from tests.gateway import Gateway
from tests.server.gateway_harness import until
from tests.strict import Malformed
from tests.upstream import OK, Peer, Upstream, answer

BAD = b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 4\r\n\r\nbusy"
CLOSED = "http://127.0.0.1:1"


class Server(Upstream):
    """Responds with `reply`, which may change between two requests of a connection."""

    def __init__(self) -> None:
        super().__init__(self._respond)
        self.reply = OK

    def _respond(self, peer: Peer) -> None:
        while True:
            peer.read_request()
            peer.send(self.reply)


@pytest.fixture
def three() -> Iterator[list[Server]]:
    with ExitStack() as stack:
        yield [stack.enter_context(Server()) for _ in range(3)]


def config(targets: list[Any], **settings: Any) -> dict[str, Any]:
    return {
        "upstreams": {"orders": {"targets": targets, **settings}},
        "routes": [{"name": "orders", "path": "/{rest...}", "upstream": "orders"}],
    }


def counts(upstreams: list[Server]) -> list[int]:
    return [len(upstream.requests) for upstream in upstreams]


def rows(gateway: Gateway) -> dict[str, dict[str, Any]]:
    """The targets by URL, as the admin API has them."""
    (found,) = call(gateway.admin, "/api/gateway/upstreams").json["upstreams"]
    return {row["url"]: row for row in found["targets"]}


def states(gateway: Gateway) -> Counter[str]:
    return Counter(row["state"] for row in rows(gateway).values())


class TestStrategies:
    @pytest.mark.parametrize(
        "balance",
        ["round_robin", "random", "least_requests", "p2c_ewma", "latency", {"strategy": "intelligent"}],
    )
    def test_every_target_gets_requests(self, three: list[Server], balance: Any) -> None:
        with Gateway(config([upstream.url for upstream in three], balance=balance)) as gateway:
            for _ in range(60):
                assert get(gateway.port).status == 200

        assert sum(counts(three)) == 60
        assert all(counts(three))

    def test_round_robin_is_exact_with_weights(self, three: list[Server]) -> None:
        targets = [
            {"url": upstream.url, "weight": weight} for upstream, weight in zip(three, (3, 2, 1), strict=True)
        ]
        with Gateway(config(targets)) as gateway:
            for _ in range(60):
                get(gateway.port)

        assert counts(three) == [30, 20, 10]

    @pytest.mark.parametrize("workers", [1, 2])
    def test_hash_keeps_a_key_at_its_target(self, three: list[Server], workers: int) -> None:
        balance = {"strategy": "hash", "by": ["header:X-User", "cookie:sid", "ip"]}
        fields = [
            *(f"X-User: user-{i}" for i in range(12)),
            *(f"Cookie: a=b; sid=session-{i}; c=d" for i in range(12)),
        ]
        with Gateway(
            config([upstream.url for upstream in three], balance=balance), workers=workers
        ) as gateway:
            for field in fields * 3:
                get(gateway.port, "/", field)
            for _ in range(3):
                get(gateway.port, "/by-address")

        seen: dict[str, set[int]] = {}
        for place, upstream in enumerate(three):
            for message in upstream.requests:
                key = message.get("x-user") or message.get("cookie") or message.target
                seen.setdefault(str(key), set()).add(place)
        assert len(seen) == 25
        assert all(len(places) == 1 for places in seen.values()), seen
        assert {place for places in seen.values() for place in places} == {0, 1, 2}

    def test_priority_fails_over_in_listed_order(self, three: list[Server]) -> None:
        targets = [CLOSED, three[0].url, three[1].url]
        with Gateway(
            config(targets, balance="priority", ejection={"consecutive_failures": 1}),
            allow="upstream_connect_failed",
        ) as gateway:
            for _ in range(10):
                assert get(gateway.port).status == 200

        assert counts(three) == [10, 0, 0]

    def test_cost_takes_the_cheapest_and_the_next_when_it_fails(self, three: list[Server]) -> None:
        targets = [
            {"url": three[0].url, "cost": 2.0},
            {"url": CLOSED, "cost": 0.5},
            {"url": three[2].url, "cost": 1.0},
        ]
        with Gateway(config(targets, balance="cost"), allow="upstream_connect_failed") as gateway:
            for _ in range(5):
                assert get(gateway.port).status == 200

        assert counts(three) == [0, 0, 5]

    def test_targets_nearby_are_preferred(self, three: list[Server]) -> None:
        targets = [
            {"url": three[0].url, "zone": "us-1", "region": "us"},
            {"url": three[1].url, "zone": "eu-1", "region": "eu"},
            {"url": three[2].url, "zone": "eu-2", "region": "eu"},
        ]
        here = {"locality": {"zone": "eu-1", "region": "eu"}}
        ejection = {"consecutive_failures": 1, "time": "60s", "max_ejected": "100%"}
        with Gateway({**config(targets, ejection=ejection), **here}) as gateway:
            for _ in range(5):
                get(gateway.port)
            assert counts(three) == [0, 5, 0]
            three[1].reply = BAD
            get(gateway.port)
            for _ in range(5):
                get(gateway.port)

        assert counts(three) == [0, 6, 5]


class TestEjection:
    @pytest.mark.parametrize("workers", [1, 2, 4])
    def test_a_failing_target_is_left_by_all_workers(self, three: list[Server], workers: int) -> None:
        three[1].reply = BAD
        with Gateway(
            config([upstream.url for upstream in three], ejection={"consecutive_failures": 3, "time": "60s"}),
            workers=workers,
        ) as gateway:
            statuses = Counter(get(gateway.port).status for _ in range(60))
            assert states(gateway) == {"usable": 2, "ejected": 1}
            samples = scrape_idle(gateway.admin)

        assert statuses[503] == counts(three)[1]
        assert 3 <= statuses[503] <= 3 + workers
        assert value(samples, "fastgate_target_ejections_total", target=three[1].url) == 1
        assert value(samples, "fastgate_target_state", target=three[1].url, state="ejected") == 1
        assert value(samples, "fastgate_target_failures_total") == statuses[503]
        assert value(samples, "fastgate_target_requests_total") == 60

    def test_it_returns_after_its_time(self, three: list[Server]) -> None:
        three[1].reply = BAD
        settings = {"consecutive_failures": 1, "time": "200ms"}
        with Gateway(config([upstream.url for upstream in three], ejection=settings)) as gateway:
            for _ in range(3):
                get(gateway.port)
            assert counts(three)[1] == 1
            three[1].reply = OK

            def used_again() -> bool:
                get(gateway.port)
                return counts(three)[1] > 4

            until(used_again, "the target is used again")

    def test_not_all_targets_are_ejected(self, three: list[Server]) -> None:
        for upstream in three:
            upstream.reply = BAD
        settings = {"consecutive_failures": 1, "time": "60s", "max_ejected": "70%"}
        with Gateway(config([upstream.url for upstream in three], ejection=settings)) as gateway:
            for _ in range(30):
                assert get(gateway.port).body == b"busy"
            assert states(gateway) == {"usable": 1, "ejected": 2}

        assert sorted(counts(three)) == [1, 1, 28]

    def test_a_reload_keeps_it(self, three: list[Server]) -> None:
        three[0].reply = BAD
        settings = {"consecutive_failures": 1, "time": "60s"}
        before = config([upstream.url for upstream in three], ejection=settings)
        with Gateway(before) as gateway:
            get(gateway.port)
            assert states(gateway)["ejected"] == 1
            # Another pool, so that the upstream is rebuilt.
            gateway.write_config(
                config([upstream.url for upstream in three], ejection=settings, pool={"max_connections": 50})
            )
            assert call(gateway.admin, "/api/gateway/reload", "POST").status == 200
            for _ in range(6):
                assert get(gateway.port).status == 200

        assert counts(three) == [1, 3, 3]

    def test_error_rates_are_judged(self, three: list[Server]) -> None:
        def sometimes(peer: Peer) -> None:
            while True:
                peer.read_request()
                peer.send(BAD if len(three[0].requests) % 2 else OK)

        three[0].script = sometimes
        settings = {"consecutive_failures": 0, "error_rate": "40%", "min_requests": 10, "time": "60s"}
        with Gateway(config([upstream.url for upstream in three], ejection=settings)) as gateway:
            for _ in range(60):
                get(gateway.port)
            assert rows(gateway)[three[0].url]["state"] == "ejected"

        assert counts(three)[0] <= 11

    def test_slow_responses_are_judged(self, three: list[Server]) -> None:
        def slow(peer: Peer) -> None:
            while True:
                peer.read_request()
                time.sleep(0.05)
                peer.send(OK)

        three[0].script = slow
        settings = {
            "consecutive_failures": 0,
            "slow_call": "40ms",
            "slow_rate": "90%",
            "min_requests": 3,
            "time": "60s",
        }
        with Gateway(config([three[0].url, three[1].url], ejection=settings)) as gateway:
            for _ in range(20):
                get(gateway.port)

            # On a busy machine the other one may be slow, too; then it is not ejected, because one is.
            assert states(gateway)["ejected"] == 1


GUARDED = {"failure_threshold": 2, "recovery_timeout": "60s"}


class TestBreaker:
    @pytest.mark.parametrize("workers", [1, 2])
    def test_it_refuses_when_every_target_is_open(self, three: list[Server], workers: int) -> None:
        for upstream in three:
            upstream.reply = BAD
        with Gateway(
            config([upstream.url for upstream in three], breaker=GUARDED), workers=workers
        ) as gateway:
            until(lambda: get(gateway.port).body != b"busy", "the breakers are open")
            refused = get(gateway.port)
            asked = counts(three)
            for _ in range(10):
                get(gateway.port)
            samples = scrape_idle(gateway.admin)
            assert counts(three) == asked
            assert states(gateway) == {"breaker_open": 3}

        assert refused.status == 503
        body = json.loads(refused.body)
        assert body["error"] == "Service temporarily unavailable"
        assert (body["code"], body["service"]) == ("breaker_open", "orders")
        assert 1 <= body["retry_after"] <= 66
        assert refused.get("retry-after") == str(body["retry_after"]).encode()
        assert all(2 <= count <= 1 + workers for count in asked)
        assert value(samples, "fastgate_refusals_total", reason="breaker_open") == 12
        assert value(samples, "fastgate_target_breaker_opened_total") == 3

    def test_probes_close_it(self, three: list[Server]) -> None:
        upstream = three[0]
        upstream.reply = BAD
        settings = {"failure_threshold": 1, "recovery_timeout": "100ms", "success_threshold": 2}
        with Gateway(config([upstream.url], breaker=settings)) as gateway:
            get(gateway.port)
            assert get(gateway.port).status == 503
            upstream.reply = OK
            until(lambda: get(gateway.port).status == 200, "a probe is admitted")
            until(lambda: get(gateway.port).status == 200, "another one is")
            for _ in range(10):
                assert get(gateway.port).status == 200
            assert rows(gateway)[upstream.url]["breaker"] == "closed"

    def test_one_probe_at_a_time_for_all_workers(self, three: list[Server]) -> None:
        upstream = three[0]
        upstream.reply = BAD
        settings = {"failure_threshold": 1, "recovery_timeout": "200ms", "max_recovery_timeout": "200ms"}
        with Gateway(config([upstream.url], breaker=settings, pool={"max_idle": 0}), workers=4) as gateway:
            assert get(gateway.port).status == 503
            probed = threading.Event()

            def hold(peer: Peer) -> None:
                peer.read_request()
                probed.set()
                peer.wait_closed()

            upstream.script = hold
            asked = len(upstream.requests)
            with ExitStack() as stack:

                def is_probing() -> bool:
                    client = stack.enter_context(Client(gateway.port))
                    client.send(request("/"))
                    until(lambda: probed.is_set() or not client.is_idle(), "refused, or a probe")
                    return probed.is_set()

                until(is_probing, "a probe is admitted")
                for _ in range(40):
                    assert get(gateway.port).status == 503
                assert rows(gateway)[upstream.url]["state"] == "breaker_half_open"
            assert len(upstream.requests) - asked == 1

    def test_a_client_that_leaves_says_nothing_about_the_target(self, three: list[Server]) -> None:
        upstream = three[0]

        def silent(peer: Peer) -> None:
            peer.read_request()
            peer.wait_closed()

        upstream.script = silent
        with Gateway(config([upstream.url], breaker=GUARDED)) as gateway:
            for count in range(1, 6):
                with Client(gateway.port) as client:
                    client.send(request("/"))
                    until(lambda count=count: len(upstream.requests) == count, "it arrived")
            upstream.script = answer()
            assert get(gateway.port).status == 200
            until(lambda: rows(gateway)[upstream.url]["in_flight"] == 0, "all are over")
            assert rows(gateway)[upstream.url]["breaker_opened"] == 0

    @pytest.mark.parametrize("failure", ["refused", "silent", "reset", "cut"])
    def test_every_failure_of_a_target_counts(self, three: list[Server], failure: str) -> None:
        upstream = three[0]

        def silent(peer: Peer) -> None:
            peer.read_request()
            peer.wait_closed()

        def reset(peer: Peer) -> None:
            peer.read_request()
            peer.reset()

        def cut(peer: Peer) -> None:
            peer.read_request()
            peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf")
            peer.close()

        upstream.script = {"silent": silent, "reset": reset, "cut": cut}.get(failure, answer())
        url = CLOSED if failure == "refused" else upstream.url
        with Gateway(
            config([url], breaker=GUARDED, timeouts={"first_byte": "200ms"}),
            allow="upstream_connect_failed",
        ) as gateway:
            for _ in range(2):
                with Client(gateway.port) as client:
                    client.send(request("/", method="POST"))
                    if failure == "cut":
                        with pytest.raises(Malformed, match="closed within a response body"):
                            client.read_response()
                    else:
                        assert client.read_response().status in (502, 504)
            until(lambda: states(gateway)["breaker_open"] == 1, "the breaker is open")
            assert json.loads(get(gateway.port).body)["code"] == "breaker_open"

    def test_a_stored_response_stands_in(self, three: list[Server]) -> None:
        upstream = three[0]
        fresh = (
            b"HTTP/1.1 200 OK\r\nCache-Control: max-age=0, stale-if-error=600\r\nContent-Length: 3\r\n\r\nold"
        )
        upstream.reply = fresh
        tree = config([upstream.url], breaker={"failure_threshold": 1, "recovery_timeout": "60s"})
        tree["routes"][0]["cache"] = {}
        with Gateway(tree) as gateway:
            assert get(gateway.port).body == b"old"
            upstream.reply = BAD
            assert get(gateway.port).body == b"old"
            asked = len(upstream.requests)
            stale = get(gateway.port)
            other = get(gateway.port, "/other")

        assert stale.body == b"old"
        assert stale.get("retry-after") is None
        assert len(upstream.requests) == asked
        assert json.loads(other.body)["code"] == "breaker_open"


class TestProcesses:
    def test_a_killed_worker_leaves_nothing_in_flight(self, three: list[Server]) -> None:
        upstream = three[0]

        def silent(peer: Peer) -> None:
            peer.read_request()
            peer.wait_closed()

        upstream.script = silent
        with Gateway(config([upstream.url]), workers=2, allow="worker|killed|signal") as gateway:
            with ExitStack() as stack:
                for _ in range(8):
                    client = stack.enter_context(Client(gateway.port))
                    client.send(request("/"))
                until(lambda: rows(gateway)[upstream.url]["in_flight"] == 8, "all are in flight")
                for pid in gateway.worker_pids():
                    os.kill(pid, signal.SIGKILL)
                until(lambda: rows(gateway)[upstream.url]["in_flight"] == 0, "none is in flight")
            upstream.script = answer()
            until(lambda: _serves(gateway), "new workers serve")
            until(lambda: rows(gateway)[upstream.url]["in_flight"] == 0, "none is in flight again")

    def test_status_lists_the_worst_targets_first(self, three: list[Server]) -> None:
        three[2].reply = BAD
        with Gateway(
            config([upstream.url for upstream in three], ejection={"consecutive_failures": 1, "time": "60s"})
        ) as gateway:
            for _ in range(9):
                get(gateway.port)
            listed = call(gateway.admin, "/api/gateway/status").json["targets"]

        assert [row["state"] for row in listed] == ["ejected", "usable", "usable"]
        assert listed[0]["target"] == three[2].url
        assert (listed[0]["requests"], listed[0]["failures"]) == (1, 1)


def _serves(gateway: Gateway) -> bool:
    try:
        return get(gateway.port).status == 200
    except OSError:
        return False
