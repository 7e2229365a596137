"""The cache as clients and origins see it: through the real gateway, with an origin that is told what to
say.
"""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import pytest

from fastgate._core.cache.http_dates import format_date
from tests.client import Client, get, request
from tests.control.admin_client import call, scrape, value
from tests.gateway import Gateway
from tests.server.gateway_harness import until
from tests.strict import Message
from tests.upstream import Peer, Upstream


class Origin:
    """Answers with `say(request)`, or with `reply`, and counts what came. One per test."""

    def __init__(self) -> None:
        self.asked: list[Message] = []
        self.reply = answer(b"one", "Cache-Control: max-age=60")
        self.say: Any = lambda _: self.reply
        self.gate = threading.Event()
        self.gate.set()

    def script(self, peer: Peer) -> None:
        while True:
            asked = peer.read_request()
            self.asked.append(asked)
            self.gate.wait(60)
            said = self.say(asked)
            if said is None:
                peer.close()
                return
            head, _, body = said.partition(b"\r\n\r\n")
            peer.send(head + b"\r\n\r\n" + (b"" if asked.method == b"HEAD" else body))


def answer(body: bytes, *fields: str, status: str = "200 OK") -> bytes:
    lines = [f"HTTP/1.1 {status}", *fields]
    if not any(line.lower().startswith("date:") for line in fields):
        lines.append(f"Date: {format_date(int(time.time())).decode()}")
    if not status.startswith(("204", "304")):
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + body


class Harness:
    """One gateway before one origin."""

    def __init__(
        self,
        route: dict[str, Any] | None = None,
        root: dict[str, Any] | None = None,
        workers: int = 1,
        **cache: Any,
    ) -> None:
        self._workers = workers
        self.origin = Origin()
        self._upstream = Upstream(self.origin.script)
        self._route = {"path": "/*", "name": "all", "cache": cache, **(route or {})}
        self._root = root or {}

    def __enter__(self) -> Harness:
        self._upstream.__enter__()
        self._route["upstream"] = self._upstream.url
        self.gateway = Gateway({**self._root, "routes": [self._route]}, workers=self._workers)
        self.gateway.start()
        return self

    def __exit__(self, *error: Any) -> None:
        self.gateway.__exit__(*error)
        self._upstream.__exit__(*error)

    def get(self, target: str = "/", *fields: str, method: str = "GET", body: bytes = b"") -> Message:
        return get(self.gateway.port, target, *fields, method=method, body=body)

    def takes(self, count: int) -> None:
        """Returns once so many requests are with the gateway."""
        until(
            lambda: value(scrape(self.gateway.admin), "fastgate_requests_active") == count,
            f"{count} requests at once",
        )

    def stores(self, count: float) -> None:
        """Returns once the disk tier has stored so many answers: it is written behind the answer."""
        until(lambda: self.stored() >= count, f"{count} answers on the disk")

    def stored(self) -> float:
        samples = scrape(self.gateway.admin)
        return value(samples, "fastgate_cache_tier_total", tier="disk", event="stored")

    @property
    def asked(self) -> int:
        return len(self.origin.asked)


def status_of(message: Message) -> str:
    """The Cache-Status without the name of the cache."""
    return (message.get("cache-status") or b"").decode().partition("; ")[2]


def test_a_hit_says_so_and_keeps_the_origins_date() -> None:
    with Harness() as harness:
        harness.origin.reply = answer(
            b"one", "Cache-Control: max-age=60", "Date: Tue, 14 Nov 2023 22:13:20 GMT", "X-A: b"
        )
        harness.origin.reply = harness.origin.reply.replace(b"max-age=60", b"max-age=999999999")

        first, second = harness.get(), harness.get()

        assert (first.body, second.body, harness.asked) == (b"one", b"one", 1)
        assert status_of(first) == "fwd=uri-miss; fwd-status=200; stored"
        assert status_of(second).startswith("hit; ttl=")
        assert second.get("date") == b"Tue, 14 Nov 2023 22:13:20 GMT"
        assert int(second.get("age") or b"-1") > 1000
        assert second.get("x-a") == b"b"


def test_hits_follow_each_other_on_a_connection() -> None:
    with Harness() as harness, Client(harness.gateway.port) as client:
        harness.get()
        client.send(request("/") * 3 + request("/", "HEAD") + request("/"))

        bodies = [client.read_response(method).body for method in ("GET", "GET", "GET", "HEAD", "GET")]

        assert bodies == [b"one", b"one", b"one", b"", b"one"]
        assert harness.asked == 1


def test_an_old_client_gets_its_connection_closed() -> None:
    with Harness() as harness, Client(harness.gateway.port) as client:
        harness.get()
        client.send(request("/", version="1.0"))

        assert client.read_to_end().endswith(b"\r\n\r\none")
        assert harness.asked == 1


def test_a_request_without_host_has_a_key_of_its_own() -> None:
    with Harness() as harness:
        harness.get()
        for _ in range(2):
            with Client(harness.gateway.port) as client:
                client.send(request("/", host=None, version="1.0"))
                assert client.read_to_end().endswith(b"one")

        assert harness.asked == 2


def test_head_and_ranges_and_conditions_are_answered_from_a_get() -> None:
    with Harness() as harness:
        harness.origin.reply = answer(b"0123456789", "Cache-Control: max-age=60", 'ETag: "a"')
        harness.get()

        head = harness.get(method="HEAD")
        part = harness.get("/", "Range: bytes=2-3")
        parts = harness.get("/", "Range: bytes=0-0,-1")
        beyond = harness.get("/", "Range: bytes=10-")
        same = harness.get("/", 'If-None-Match: "a"')
        other = harness.get("/", 'If-None-Match: "b"')

        assert (head.body, head.get("content-length")) == (b"", b"10")
        assert (part.status, part.body, part.get("content-range")) == (206, b"23", b"bytes 2-3/10")
        assert (parts.status, parts.body.count(b"Content-Range")) == (206, 2)
        assert (beyond.status, beyond.get("content-range")) == (416, b"bytes */10")
        assert (same.status, same.body, same.get("etag")) == (304, b"", b'"a"')
        assert (other.status, other.body) == (200, b"0123456789")
        assert harness.asked == 1


def test_a_stale_answer_is_confirmed_and_renewed() -> None:
    with Harness() as harness:
        harness.origin.reply = answer(
            b"one", "Cache-Control: max-age=0", 'ETag: "a"', "X-Kept: 1", "X-New: 1"
        )
        harness.get()
        harness.origin.reply = answer(
            b"", "Cache-Control: max-age=60", 'ETag: "a"', "X-New: 2", status="304 Not Modified"
        )

        confirmed = harness.get("/", 'If-None-Match: "mine"')
        fresh = harness.get()

        assert harness.origin.asked[1].values("if-none-match") == [b'"a"']
        assert (confirmed.status, confirmed.body, confirmed.get("x-new")) == (200, b"one", b"2")
        assert (fresh.body, fresh.get("x-kept"), fresh.get("x-new")) == (b"one", b"1", b"2")
        assert harness.asked == 2


def test_a_stale_answer_that_is_no_longer_so_is_replaced() -> None:
    with Harness() as harness:
        harness.origin.reply = answer(b"one", "Cache-Control: max-age=0", 'ETag: "a"')
        harness.get()
        harness.origin.reply = answer(b"two", "Cache-Control: max-age=60", 'ETag: "b"')

        assert [harness.get().body for _ in range(2)] == [b"two", b"two"]
        assert harness.asked == 2


def test_stale_while_revalidate_answers_at_once_and_renews_behind() -> None:
    with Harness(stale_while_revalidate="60s", ttl="1ms") as harness:
        harness.origin.reply = answer(b"one")
        harness.get()
        time.sleep(0.01)
        harness.origin.reply = answer(b"two", "Cache-Control: max-age=60")

        assert harness.get().body == b"one"
        deadline = time.monotonic() + 60
        while harness.get().body != b"two" and time.monotonic() < deadline:
            time.sleep(0.01)

        assert harness.get().body == b"two"
        assert harness.asked == 2


@pytest.mark.parametrize(
    "failure", [None, answer(b"no", status="503 Service Unavailable")], ids=["gone", "503"]
)
def test_stale_if_error_stands_in_for_a_failing_origin(failure: bytes | None) -> None:
    with Harness(stale_if_error="60s", ttl="1ms") as harness:
        harness.origin.reply = answer(b"one")
        harness.get()
        time.sleep(0.01)
        harness.origin.say = lambda _: failure

        stale = harness.get()

        assert (stale.status, stale.body) == (200, b"one")
        assert "hit" in status_of(stale)


def test_must_revalidate_is_never_served_stale() -> None:
    with Harness(stale_if_error="60s", stale_while_revalidate="60s") as harness:
        harness.origin.reply = answer(b"one", "Cache-Control: max-age=0, must-revalidate", 'ETag: "a"')
        harness.get()
        harness.origin.say = lambda _: None

        assert harness.get().status == 502


def test_only_if_cached_never_reaches_the_origin() -> None:
    with Harness() as harness:
        assert harness.get("/", "Cache-Control: only-if-cached").status == 504
        harness.get()
        assert harness.get("/", "Cache-Control: only-if-cached").body == b"one"
        assert harness.asked == 1


def test_variants_live_beside_each_other() -> None:
    with Harness() as harness:
        harness.origin.say = lambda asked: answer(
            asked.get("accept-language") or b"-", "Cache-Control: max-age=60", "Vary: Accept-Language"
        )

        for _ in range(2):
            for language in ("de", "en", "DE"):
                assert (
                    harness.get("/", f"Accept-Language: {language}").body.lower() == language.lower().encode()
                )
            assert harness.get().body == b"-"

        assert harness.asked == 3


def test_a_write_ends_what_it_may_have_changed() -> None:
    with Harness() as harness:
        for target in ("/a", "/b", "/c", "/d"):
            harness.get(target)
        harness.origin.say = lambda asked: (
            answer(b"ok", "Location: /b", "Content-Location: c")
            if asked.method == b"POST"
            else answer(b"new", "Cache-Control: max-age=60")
        )

        harness.get("/a", method="POST", body=b"x")

        assert [harness.get(target).body for target in ("/a", "/b", "/c", "/d")] == [
            b"new",
            b"new",
            b"new",
            b"one",
        ]


@pytest.mark.parametrize(
    ("header", "renewed"),
    [
        ("X-Purge: red", ["/t"]),
        ("x-purge: /a", ["/a"]),
        ("X-Purge: /s/*, red", ["/s/1", "/s/2", "/t"]),
        ("X-Purge: *", ["/a", "/s/1", "/s/2", "/t"]),
        ("X-Other: *", []),
    ],
)
def test_an_upstream_purges_in_an_answer(header: str, renewed: list[str]) -> None:
    with Harness(purge_header="X-Purge", workers=2) as harness:
        targets = ["/a", "/s/1", "/s/2", "/t"]
        age = "Cache-Control: max-age=60"
        harness.origin.say = lambda asked: answer(
            b"old", age, *(["Surrogate-Key: red"] if asked.target == b"/t" else [])
        )
        for target in (
            targets * 24
        ):  # until both workers have each, whichever the kernel gives a connection to
            harness.get(target)
        harness.origin.say = lambda asked: answer(b"new", age, *([header] if asked.method == b"POST" else []))

        told = harness.get("/tell", method="POST", body=b"x")

        assert told.get("x-purge") is None
        for _ in range(4):
            assert [target for target in targets if harness.get(target).body == b"new"] == renewed


def test_a_failed_write_ends_nothing() -> None:
    with Harness() as harness:
        harness.get()
        harness.origin.reply = answer(b"no", status="500 Internal Server Error")

        harness.get(method="DELETE")

        assert harness.get().body == b"one"


def test_a_write_ends_every_variant() -> None:
    with Harness() as harness:
        harness.origin.reply = answer(b"one", "Cache-Control: max-age=60", "Vary: X")
        for value in "12":
            harness.get("/", f"X: {value}")
        harness.get(method="PUT", body=b"x")
        harness.origin.reply = answer(b"two", "Cache-Control: max-age=60", "Vary: X")

        assert [harness.get("/", f"X: {value}").body for value in "12"] == [b"two", b"two"]


def test_post_is_cached_by_its_body_where_told() -> None:
    with Harness(methods=["GET", "POST"], key={"body": True}) as harness:
        harness.origin.say = lambda asked: answer(asked.body or b"-", "Cache-Control: max-age=60")

        for _ in range(2):
            for body in (b"a", b"b"):
                assert harness.get(method="POST", body=body).body == body

        assert harness.asked == 2


def test_bodies_out_of_bounds_are_not_kept() -> None:
    with Harness(min_size="2B", max_size="4B") as harness:
        for body, kept in ((b"1", False), (b"12", True), (b"1234", True), (b"12345", False)):
            harness.origin.reply = answer(body, "Cache-Control: max-age=60")
            target = f"/{len(body)}"
            harness.get(target)

            assert (harness.get(target).get("age") is not None) is kept


def test_a_chunked_answer_is_kept_whole() -> None:
    with Harness() as harness:
        head = b"HTTP/1.1 200 OK\r\nCache-Control: max-age=60\r\nTransfer-Encoding: chunked\r\n\r\n"
        harness.origin.reply = head + b"2\r\nab\r\n1\r\nc\r\n0\r\n\r\n"
        first, second = harness.get(), harness.get()

        assert first.body == second.body == b"abc"
        assert second.get("content-length") == b"3"
        assert harness.asked == 1


@pytest.mark.parametrize(
    "status", ["204 No Content", "301 Moved Permanently", "404 Not Found", "599 Whatever"]
)
def test_other_statuses_are_kept_too(status: str) -> None:
    with Harness() as harness:
        body = b"" if status.startswith("204") else b"body"
        harness.origin.reply = answer(body, "Cache-Control: max-age=60", status=status)
        first, second = harness.get(), harness.get()

        assert (first.status, first.body) == (second.status, second.body) == (int(status[:3]), body)
        assert second.phrase == first.phrase
        assert harness.asked == 1


def test_one_request_for_many_at_once() -> None:
    with Harness(coalesce_wait="60s") as harness:
        harness.origin.gate.clear()
        bodies: list[bytes] = []
        threads = [threading.Thread(target=lambda: bodies.append(harness.get().body)) for _ in range(8)]
        for thread in threads:
            thread.start()
        harness.takes(8)
        harness.origin.gate.set()
        for thread in threads:
            thread.join()

        assert bodies == [b"one"] * 8
        assert harness.asked == 1


def test_shadow_mode_answers_from_the_origin() -> None:
    with Harness(enforce=False) as harness:
        answers = [harness.get() for _ in range(3)]

        assert harness.asked == 3
        assert all(each.get("age") is None for each in answers)


def keys(harness: Harness) -> dict[str, str]:
    """A fresh API key of each of two consumers."""
    made = {}
    for name in ("ann", "bob"):
        reply = call(
            harness.gateway.admin, "/api/auth/api-key", "POST", body={"consumer": name, "tier": "internal"}
        )
        made[name] = reply.json["api_key"]
    return made


def by_consumer(fields: str) -> Any:
    """An origin that answers everyone with their own name."""
    return lambda asked: answer(asked.get("x-consumer-id") or b"?", *fields.split("; "))


@pytest.mark.parametrize("field", ["X-API-Key: ", "Authorization: Bearer "])
def test_consumers_have_answers_of_their_own(field: str) -> None:
    with Harness({"auth": ["api_key"]}) as harness:
        harness.origin.say = by_consumer("Cache-Control: max-age=60")
        for name, key in keys(harness).items():
            for _ in range(2):
                assert harness.get("/", field + key).body == name.encode()

        assert harness.get().status == 401
        assert harness.asked == 2


def test_private_answers_are_not_kept_or_stay_with_their_consumer_where_told() -> None:
    for private, asked in (("never", 4), ("consumer", 2)):
        with Harness({"auth": ["api_key"]}, private=private) as harness:
            harness.origin.say = by_consumer("Cache-Control: private, max-age=60")
            for name, key in keys(harness).items():
                for _ in range(2):
                    assert harness.get("/", f"X-API-Key: {key}").body == name.encode()

            assert harness.asked == asked


def test_consumers_share_where_that_is_said_twice() -> None:
    with Harness({"auth": ["api_key"]}, key={"consumer": "shared"}, share_private=True) as harness:
        for key in keys(harness).values():
            assert harness.get("/", f"X-API-Key: {key}").body == b"one"

        assert harness.get().status == 401
        assert harness.asked == 1


def test_a_renewal_by_one_worker_is_found_by_the_others(tmp_path: Path) -> None:
    store = {"cache_store": {"disk": {"path": str(tmp_path / "cache"), "size": "16MiB"}}}
    with Harness(root=store, workers=2) as harness:
        harness.origin.reply = answer(b"one", "Cache-Control: max-age=1", 'ETag: "a"')
        for _ in range(20):  # until every worker has it
            harness.get()
            time.sleep(0.02)
        time.sleep(1.1)  # the age of an answer is in whole seconds of the clock of the machine
        harness.origin.reply = answer(
            b"", "Cache-Control: max-age=60", 'ETag: "a"', status="304 Not Modified"
        )
        stored = harness.stored()
        harness.get()
        harness.stores(stored + 1)
        asked = harness.asked

        assert {harness.get().body for _ in range(20)} == {b"one"}
        assert harness.asked == asked


HOOKS = "tests.caching.hooks:"


def test_chunk_hooks_see_an_answer_from_the_store_once_and_to_its_end() -> None:
    with Harness({"plugins": [HOOKS + "Chunks"]}) as harness, Client(harness.gateway.port) as client:
        harness.origin.reply = answer(b"one", "Cache-Control: max-age=0", 'ETag: "a"')
        harness.get()
        harness.origin.reply = answer(b"", 'ETag: "a"', status="304 Not Modified")
        for _ in range(3):
            client.send(request("/"))

            assert client.read_response().body == b"ONE<END>"
        assert client.unread == b""
        harness.origin.reply = answer(b"", "Cache-Control: max-age=60")

        assert [harness.get("/empty").body for _ in range(2)] == [b"<END>"] * 2


def test_what_is_kept_has_not_met_the_response_hooks() -> None:
    with Harness({"plugins": [HOOKS + "Whole"]}) as harness:
        assert [harness.get().body for _ in range(3)] == [b"one|r"] * 3
        assert harness.asked == 1


def ask_together(harness: Harness, times: int, at_once: int = 1) -> list[bytes]:
    """So many requests at once. The origin answers the first when the gateway has them all, and the others
    when it has been asked `at_once` times.
    """
    before = harness.asked
    all_are_here, enough = threading.Event(), threading.Event()

    def say(_: Message) -> bytes:
        assert (all_are_here if harness.asked == before + 1 else enough).wait(60)
        return harness.origin.reply

    harness.origin.say = say
    clients = [Client(harness.gateway.port) for _ in range(times)]
    try:
        for client in clients:
            client.send(request("/"))
        harness.takes(times)
        all_are_here.set()
        until(lambda: harness.asked >= before + at_once, f"{at_once} requests at the origin")
        enough.set()
        return [client.read_response().body for client in clients]
    finally:
        for client in clients:
            client.close()


def test_what_is_stale_as_it_comes_is_not_waited_for_one_by_one() -> None:
    with Harness(coalesce_wait="60s") as harness:
        harness.origin.reply = answer(b"one", "Cache-Control: no-cache", 'ETag: "a"')

        # After the first they go together: the origin holds them back until it has 20.
        assert ask_together(harness, 40, at_once=20) == [b"one"] * 40


def test_one_failure_is_told_to_all_who_wait_for_the_answer() -> None:
    with Harness(coalesce_wait="60s") as harness:
        harness.origin.reply = answer(b"one", "Cache-Control: max-age=1, stale-if-error=60")
        harness.get()
        time.sleep(1.1)
        harness.origin.reply = answer(b"bad", status="503 Service Unavailable")

        assert ask_together(harness, 40) == [b"one"] * 40
        assert harness.asked == 2


def test_a_request_without_a_key_is_neither_kept_nor_confused_with_another() -> None:
    with Harness(methods=["GET", "POST"], key={"body": True}) as harness:
        for body in (b"a", b"b", b"a"):
            harness.origin.reply = answer(b"for " + body, "Cache-Control: max-age=60")
            chunked = b"1\r\n" + body + b"\r\n0\r\n\r\n"
            with Client(harness.gateway.port) as client:
                client.send(request("/", "POST", "Transfer-Encoding: chunked") + chunked)
                said = client.read_response("POST")

            assert said.body == b"for " + body
            assert status_of(said) == "fwd=request"
        assert harness.asked == 3
