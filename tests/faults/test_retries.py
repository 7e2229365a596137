"""Retries through real sockets: what is sent again, where to, after which wait, within which budget."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.client import Client, get, request
from tests.control.admin_client import scrape_idle, value
from tests.gateway import Gateway
from tests.server.gateway_harness import until
from tests.strict import Malformed
from tests.upstream import OK, Peer, Upstream, answer

CLOSED = "http://127.0.0.1:1"
BUSY = b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 4\r\n\r\nbusy"
AT_ONCE = {"backoff": {"base": "1ms", "jitter": "none"}}


def silent(peer: Peer) -> None:
    peer.read_request()
    peer.wait_closed()


def reset(peer: Peer) -> None:
    peer.read_request()
    peer.reset()


def closes(peer: Peer) -> None:
    peer.read_request()
    peer.close()


def cut(peer: Peer) -> None:
    peer.read_request()
    peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf")
    peer.close()


def rubbish(peer: Peer) -> None:
    peer.read_request()
    peer.send(b"SSH-2.0-OpenSSH_9.2\r\n")
    peer.close()


@pytest.fixture
def two() -> Iterator[list[Upstream]]:
    with ExitStack() as stack:
        yield [stack.enter_context(Upstream()) for _ in range(2)]


def config(targets: list[str], retry: Any, **more: Any) -> dict[str, Any]:
    upstream = more.pop("upstream", {})
    return {
        "upstreams": {"orders": {"targets": targets, "pool": {"max_idle": 0}, **upstream}},
        "routes": [
            {"name": "orders", "path": "/{rest...}", "upstream": "orders", "retry": retry, **more},
        ],
    }


def counts(upstreams: list[Upstream]) -> list[int]:
    return [len(upstream.requests) for upstream in upstreams]


class TestWhatIsRetried:
    @pytest.mark.parametrize("failure", [reset, closes, rubbish, answer(BUSY)])
    @pytest.mark.parametrize("method", ["GET", "PUT", "DELETE"])
    def test_a_failed_attempt_is_made_again_elsewhere(
        self, two: list[Upstream], failure: Callable[[Peer], None], method: str
    ) -> None:
        two[0].script = failure
        with Gateway(config([two[0].url, two[1].url], AT_ONCE)) as gateway:
            for _ in range(4):
                assert get(gateway.port, method=method, body=b"x" if method == "PUT" else b"").status == 200

        assert counts(two)[1] == 4
        assert 1 <= counts(two)[0] <= 4

    @pytest.mark.parametrize("failure", [reset, closes, answer(BUSY), silent])
    def test_a_post_is_sent_once(self, two: list[Upstream], failure: Callable[[Peer], None]) -> None:
        for upstream in two:
            upstream.script = failure
        retry = {**AT_ONCE, "on": ["connect_failed", "reset", "timeout", 503], "per_try_timeout": "300ms"}
        with Gateway(config([two[0].url, two[1].url], retry)) as gateway:
            response = get(gateway.port, method="POST", body=b"order")

        assert response.status in (502, 503, 504)
        assert sum(counts(two)) == 1

    def test_a_post_with_an_idempotency_key_is_retried(self, two: list[Upstream]) -> None:
        two[0].script = reset
        with Gateway(config([two[0].url, two[1].url], AT_ONCE)) as gateway:
            for i in range(2):
                response = get(gateway.port, "/", f"Idempotency-Key: {i}", method="POST", body=b"order")
                assert response.status == 200

        assert [message.body for message in two[1].requests] == [b"order"] * 2

    def test_a_key_that_the_upstream_does_not_get_permits_nothing(self, two: list[Upstream]) -> None:
        two[0].script = two[1].script = reset
        tree = config([two[0].url, two[1].url], AT_ONCE, request_headers={"remove": ["Idempotency-Key"]})
        with Gateway(tree) as gateway:
            get(gateway.port, "/", "Idempotency-Key: 1", method="POST", body=b"order")
            get(gateway.port, "/", "Idempotency-Key:", method="POST", body=b"order")

        assert sum(counts(two)) == 2

    def test_a_connection_that_fails_is_retried_for_any_method(self, two: list[Upstream]) -> None:
        with Gateway(config([CLOSED, two[0].url], AT_ONCE), allow="upstream_connect_failed") as gateway:
            for _ in range(4):
                assert get(gateway.port, method="POST", body=b"order").status == 200

        assert counts(two) == [4, 0]

    def test_nothing_is_retried_after_the_head(self, two: list[Upstream]) -> None:
        for upstream in two:
            upstream.script = cut
        with Gateway(config([two[0].url, two[1].url], AT_ONCE)) as gateway, Client(gateway.port) as client:
            client.send(request("/"))
            with pytest.raises(Malformed, match="closed within a response body"):
                client.read_response()

        assert sum(counts(two)) == 1

    def test_other_statuses_are_passed_on(self, two: list[Upstream]) -> None:
        for upstream in two:
            upstream.script = answer(b"HTTP/1.1 500 Oops\r\nContent-Length: 4\r\n\r\noops")
        with Gateway(config([two[0].url, two[1].url], AT_ONCE)) as gateway:
            assert get(gateway.port).body == b"oops"

        assert sum(counts(two)) == 1

    def test_the_last_response_reaches_the_client(self, two: list[Upstream]) -> None:
        for upstream in two:
            upstream.script = answer(BUSY)
        with Gateway(config([two[0].url, two[1].url], {"attempts": 3, **AT_ONCE})) as gateway:
            response = get(gateway.port)
            samples = scrape_idle(gateway.admin)

        assert (response.status, response.body) == (503, b"busy")
        assert sum(counts(two)) == 3
        assert min(counts(two)) == 1
        assert value(samples, "fastgate_retries_total", route="orders") == 2
        assert value(samples, "fastgate_upstream_attempts_total", route="orders") == 3
        assert value(samples, "fastgate_requests_total", status="5xx") == 1

    def test_without_a_policy_a_failed_attempt_is_final(self, two: list[Upstream]) -> None:
        two[0].script = two[1].script = reset
        tree = config([two[0].url, two[1].url], None)
        with Gateway(tree) as gateway:
            assert get(gateway.port).status == 502

        assert sum(counts(two)) == 1


class TestTime:
    def test_a_silent_target_is_left_after_the_limit_of_an_attempt(self, two: list[Upstream]) -> None:
        two[0].script = silent
        retry = {**AT_ONCE, "on": ["timeout"], "per_try_timeout": "200ms"}
        with Gateway(config([two[0].url, two[1].url], retry)) as gateway:
            for _ in range(2):
                assert get(gateway.port).status == 200

        assert counts(two)[1] == 2

    def test_the_limit_of_an_attempt_is_an_error_of_its_own(self, two: list[Upstream]) -> None:
        two[0].script = silent
        retry = {**AT_ONCE, "attempts": 2, "per_try_timeout": "200ms", "on": ["timeout"]}
        with Gateway(config([two[0].url], retry)) as gateway:
            response = get(gateway.port)

        assert (response.status, json.loads(response.body)["code"]) == (504, "per_try_timeout")
        assert counts(two)[0] == 2

    def test_the_time_of_the_whole_request_bounds_attempts_and_waits(self, two: list[Upstream]) -> None:
        for upstream in two:
            upstream.script = answer(BUSY)
        retry = {"attempts": 20, "backoff": {"base": "300ms", "strategy": "constant", "jitter": "none"}}
        with Gateway(config([two[0].url, two[1].url], retry, timeouts={"total": "1s"})) as gateway:
            began = time.monotonic()
            response = get(gateway.port)
            took = time.monotonic() - began

        assert response.status in (503, 504)
        assert sum(counts(two)) <= 4
        assert took > 0.5  # it has waited, and the bound above says that it has ended

    def test_retry_after_is_waited_for(self, two: list[Upstream]) -> None:
        times: list[float] = []

        def once_busy(peer: Peer) -> None:
            peer.read_request()
            times.append(time.monotonic())
            peer.send(OK if len(times) > 1 else BUSY.replace(b"\r\n\r\n", b"\r\nRetry-After: 1\r\n\r\n"))

        two[0].script = once_busy
        with Gateway(config([two[0].url], AT_ONCE)) as gateway:
            assert get(gateway.port).status == 200

        assert times[1] - times[0] >= 0.99

    def test_waits_are_counted_from_the_response(self, two: list[Upstream]) -> None:
        times: list[float] = []

        def slow_and_busy(peer: Peer) -> None:
            peer.read_request()
            if not times:
                time.sleep(1.2)
            times.append(time.monotonic())
            peer.send(OK if len(times) > 1 else BUSY.replace(b"\r\n\r\n", b"\r\nRetry-After: 1\r\n\r\n"))

        two[0].script = slow_and_busy
        with Gateway(config([two[0].url], AT_ONCE)) as gateway:
            assert get(gateway.port).status == 200

        assert times[1] - times[0] >= 0.99

    @pytest.mark.parametrize("text", [b"0.5", b"soon", b"", b"-1"])
    def test_a_retry_after_that_cannot_be_read_is_ignored(self, two: list[Upstream], text: bytes) -> None:
        two[0].script = answer(BUSY.replace(b"\r\n\r\n", b"\r\nRetry-After: " + text + b"\r\n\r\n"))
        with Gateway(config([two[0].url], AT_ONCE)) as gateway:
            get(gateway.port)

        assert counts(two)[0] == 3

    def test_the_limit_of_an_attempt_does_not_count_the_upload(self, two: list[Upstream]) -> None:
        retry = {**AT_ONCE, "on": ["timeout"], "per_try_timeout": "400ms"}
        upstream = {"breaker": {"failure_threshold": 1}}
        tree = config([two[0].url], retry, upstream=upstream, request_buffering="0B")
        with Gateway(tree) as gateway, Client(gateway.port) as client:
            client.send(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\na")
            time.sleep(1)
            client.send(b"b")
            assert client.read_response().status == 200

        assert [message.body for message in two[0].requests] == [b"ab"]

    def test_a_longer_retry_after_is_passed_on(self, two: list[Upstream]) -> None:
        two[0].script = answer(BUSY.replace(b"\r\n\r\n", b"\r\nRetry-After: 60\r\n\r\n"))
        with Gateway(config([two[0].url], AT_ONCE)) as gateway:
            response = get(gateway.port)

        assert (response.status, response.get("retry-after")) == (503, b"60")
        assert counts(two)[0] == 1

    def test_a_client_that_leaves_during_a_wait_ends_it(self, two: list[Upstream]) -> None:
        two[0].script = answer(BUSY)
        retry = {"attempts": 2, "backoff": {"base": "30s", "max": "30s", "jitter": "none"}}
        with Gateway(config([two[0].url], retry)) as gateway:
            with Client(gateway.port) as client:
                client.send(request("/"))
                until(lambda: counts(two)[0] == 1, "the first attempt")
            until(
                lambda: value(scrape_idle(gateway.admin), "fastgate_refusals_total", reason="client_closed"),
                "over",
            )

        assert counts(two)[0] == 1


class TestBodies:
    @pytest.mark.parametrize(("size", "most", "attempts"), [(60_000, "64KB", 2), (5_000_000, "10MB", 2)])
    def test_a_body_that_was_kept_is_sent_again_whole(
        self, two: list[Upstream], size: int, most: str, attempts: int
    ) -> None:
        body = bytes(range(256)) * (size // 256)
        seen: list[bytes] = []

        def second_time(peer: Peer) -> None:
            seen.append(peer.read_request().body)
            peer.send(OK if len(seen) > 1 else BUSY)

        two[0].script = second_time
        with Gateway(config([two[0].url], {**AT_ONCE, "max_body": most})) as gateway:
            assert get(gateway.port, method="PUT", body=body).status == 200

        assert seen == [body] * attempts

    def test_a_larger_body_is_sent_once(self, two: list[Upstream]) -> None:
        two[0].script = answer(BUSY)
        with Gateway(config([two[0].url], {**AT_ONCE, "max_body": "64KB"})) as gateway:
            response = get(gateway.port, method="PUT", body=b"x" * 3_000_000)

        assert (response.status, response.body) == (503, b"busy")
        assert counts(two)[0] == 1


class TestBudget:
    @pytest.mark.parametrize("workers", [1, 2, 4])
    def test_it_is_one_for_all_workers(self, two: list[Upstream], workers: int) -> None:
        two[0].script = answer(BUSY)
        budget = {"share": "10%", "min_per_second": 0, "burst": 5}
        with Gateway(
            config([two[0].url], {"attempts": 3, **AT_ONCE, "budget": budget}), workers=workers
        ) as gateway:
            for _ in range(100):
                assert get(gateway.port).body == b"busy"
            samples = scrape_idle(gateway.admin)

        retries = value(samples, "fastgate_retries_total")
        assert counts(two)[0] == 100 + retries
        assert 13 <= retries <= 15
        assert value(samples, "fastgate_retries_over_budget_total") > 80

    def test_it_survives_a_reload(self, two: list[Upstream]) -> None:
        two[0].script = answer(BUSY)
        budget = {"share": "0%", "min_per_second": 0.001, "burst": 3}
        tree = config([two[0].url], {"attempts": 3, **AT_ONCE, "budget": budget})
        with Gateway(tree) as gateway:
            for _ in range(5):
                get(gateway.port)
            assert counts(two)[0] == 5 + 3
            tree["routes"][0]["response_headers"] = {"set": {"X-New": "1"}}
            gateway.write_config(tree)
            gateway.process.send_signal(1)
            until(lambda: get(gateway.port).get("x-new") == b"1", "the new config")
            asked = counts(two)[0]
            get(gateway.port)
            assert counts(two)[0] == asked + 1


class TestOtherFeatures:
    def test_the_upstream_is_told_the_attempt_and_clients_cannot_claim_one(self, two: list[Upstream]) -> None:
        two[0].script = answer(BUSY)
        retry = {"attempts": 3, **AT_ONCE, "attempt_header": "X-Attempt"}
        with Gateway(config([two[0].url], retry)) as gateway:
            get(gateway.port, "/", "X-Attempt: 99")

        assert [message.values("x-attempt") for message in two[0].requests] == [[b"1"], [b"2"], [b"3"]]

    def test_a_retry_goes_around_an_open_breaker(self, two: list[Upstream]) -> None:
        two[0].script = answer(BUSY)
        upstream = {"breaker": {"failure_threshold": 1, "recovery_timeout": "60s"}}
        with Gateway(config([two[0].url, two[1].url], AT_ONCE, upstream=upstream)) as gateway:
            for _ in range(10):
                assert get(gateway.port).status == 200

        assert counts(two) == [1, 10]

    def test_when_all_breakers_are_open_there_is_nothing_to_retry(self, two: list[Upstream]) -> None:
        for each in two:
            each.script = answer(BUSY)
        upstream = {"breaker": {"failure_threshold": 1, "recovery_timeout": "60s"}}
        with Gateway(
            config([two[0].url, two[1].url], {"attempts": 5, **AT_ONCE}, upstream=upstream)
        ) as gateway:
            first = get(gateway.port)
            second = get(gateway.port)

        assert first.status == 503
        assert json.loads(second.body)["code"] == "breaker_open"
        assert counts(two) == [1, 1]

    def test_a_stored_response_is_better_than_the_last_failure(self, two: list[Upstream]) -> None:
        fresh = (
            b"HTTP/1.1 200 OK\r\nCache-Control: max-age=0, stale-if-error=600\r\nContent-Length: 3\r\n\r\nold"
        )
        two[0].script = answer(fresh)
        with Gateway(config([two[0].url], {"attempts": 2, **AT_ONCE}, cache={})) as gateway:
            assert get(gateway.port).body == b"old"
            two[0].script = answer(BUSY)
            assert get(gateway.port).body == b"old"

        assert counts(two)[0] == 3

    def test_many_requests_in_a_wait_at_once(self, two: list[Upstream]) -> None:
        gate = threading.Event()

        def busy_at_first(peer: Peer) -> None:
            peer.read_request()
            peer.send(OK if gate.is_set() else BUSY)

        two[0].script = busy_at_first
        retry = {
            "attempts": 20,
            "backoff": {"base": "50ms", "max": "50ms"},
            "budget": {"share": "100%", "burst": 100_000},
        }
        with Gateway(config([two[0].url], retry)) as gateway, ExitStack() as stack:
            clients = [stack.enter_context(Client(gateway.port)) for _ in range(50)]
            for client in clients:
                client.send(request("/"))
            until(lambda: counts(two)[0] >= 50, "all have been tried")
            gate.set()
            statuses = [client.read_response().status for client in clients]

        assert statuses == [200] * 50


def test_explain_prints_the_policy(tmp_path: Path) -> None:
    path = tmp_path / "gateway.json"
    path.write_text(json.dumps(config([CLOSED], {"attempts": 4, "on": ["reset", 503], "budget": "10%"})))

    done = subprocess.run(
        [sys.executable, "-m", "fastgate", "explain", "--config", str(path), "GET", "http://a/x"],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )

    assert done.returncode == 0, done.stderr
    assert "4 attempts on reset, 503; budget 10%" in done.stdout
