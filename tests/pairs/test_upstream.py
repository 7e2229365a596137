"""Pairs of features that meet where requests go upstream."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from tests.client import Client, get, request
from tests.control.admin_client import call, scrape, value
from tests.gateway import Gateway
from tests.plugins.conftest import use
from tests.server.gateway_harness import until
from tests.upstream import OK, Peer, Upstream, answer, echo

NAMED = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b"


@pytest.mark.parametrize(
    ("label", "phase"),
    [
        ("D", "decide"),
        ("W", "request"),
        ("U", "upstream_request"),
        ("U", "upstream_response"),
        ("K", "request_chunk"),
        ("K", "response_chunk"),
        ("L", "log"),
    ],
)
@pytest.mark.parametrize("kind", ["cancelled", "exit"])
def test_a_hook_that_raises_a_base_exception_returns_the_concurrency_lease(
    tmp_path: Path, label: str, phase: str, kind: str
) -> None:
    record = tmp_path / "record"
    plugins = [
        use("Decider", "D", record),
        use("Waiter", "W", record),
        use("Upstreamer", "U", record),
        use("Chunker", "K", record),
        use("Logger", "L", record),
    ]
    with Upstream(echo) as upstream:
        route = {"path": "/*", "upstream": upstream.url, "limits": {"concurrent": 1}, "plugins": plugins}
        with Gateway({"routes": [route]}, allow=".") as gateway:
            with Client(gateway.port) as client:
                client.send(request("/", "POST", f"X-{label}: {phase}=raise:{kind}", body=b"hello"))
                client.read_to_end() if phase == "response_chunk" else client.read_response()

            assert get(gateway.port).status == 200


def test_a_request_whose_body_is_collected_holds_its_concurrency_lease_once() -> None:
    with Upstream(echo) as upstream:
        route = {"path": "/*", "upstream": upstream.url, "limits": {"concurrent": 1}}
        with Gateway({"routes": [route]}) as gateway:
            slow = Client(gateway.port)
            slow.send(request("/", "POST", "Content-Length: 10", body=b"half"))
            deadline = time.monotonic() + 60
            while get(gateway.port).status != 429:
                assert time.monotonic() < deadline
            slow.close()
            while get(gateway.port).status != 200:
                assert time.monotonic() < deadline


def test_the_body_limit_holds_while_a_body_is_collected() -> None:
    with Upstream(echo) as upstream:
        route = {"path": "/*", "upstream": upstream.url, "max_body": "100B", "request_buffering": "64KB"}
        with Gateway({"routes": [route]}) as gateway, Client(gateway.port) as client:
            client.send(request("/", "POST", "Transfer-Encoding: chunked"))
            client.send(b"40\r\n" + b"x" * 64 + b"\r\n")
            assert client.is_idle(0.1)
            client.send(b"40\r\n" + b"x" * 64 + b"\r\n")
            assert client.read_response().status == 413
            assert upstream.peers == []


def test_a_plugin_that_holds_a_body_and_collecting_wait_only_once(tmp_path: Path) -> None:
    with Upstream(echo) as upstream:
        plugin = use("Waiter", "W", tmp_path / "record", bound="1MB")
        route = {"path": "/*", "upstream": upstream.url, "plugins": [plugin], "request_buffering": "1KB"}
        with Gateway({"routes": [route]}) as gateway, Client(gateway.port) as client:
            client.send(request("/", "POST", "Content-Length: 200000"))
            for _ in range(4):
                client.send(b"x" * 50_000)
            assert client.read_response().body == b"x" * 200_000


def test_the_total_time_out_holds_while_a_body_is_collected() -> None:
    with Upstream(echo) as upstream:
        route = {"path": "/*", "upstream": upstream.url, "timeouts": {"total": "300ms"}}
        with Gateway({"routes": [route]}) as gateway, Client(gateway.port) as client:
            client.send(request("/", "POST", "Content-Length: 10", body=b"half"))
            assert client.read_response().status == 504
            assert upstream.peers == []


def overriding(green: Upstream, blue: Upstream, tmp_path: Path, **route: Any) -> dict[str, Any]:
    """A route to green, which its plugin overrides: `X-D: decide=override:blue`."""
    return {
        "upstreams": {
            "green": {"targets": green.url, "timeouts": {"first_byte": "300ms"}},
            "blue": {"targets": blue.url, "preserve_host": True},
        },
        "routes": [
            {
                "path": "/*",
                "upstream": "green",
                "plugins": [use("Decider", "D", tmp_path / "record")],
                **route,
            }
        ],
    }


TO_BLUE = "X-D: decide=override:blue"


def test_an_override_brings_the_time_outs_of_its_upstream(tmp_path: Path) -> None:
    def late(peer: Peer) -> None:
        peer.read_request()
        time.sleep(1)  # three times what the route's own upstream may take
        peer.send(OK)
        peer.wait_closed()

    with (
        Upstream(answer()) as green,
        Upstream(late) as blue,
        Gateway(overriding(green, blue, tmp_path)) as gateway,
    ):
        assert get(gateway.port, "/", TO_BLUE).status == 200


def test_an_override_brings_the_host_policy_of_its_upstream(tmp_path: Path) -> None:
    with (
        Upstream(answer()) as green,
        Upstream(answer()) as blue,
        Gateway(overriding(green, blue, tmp_path)) as gateway,
        Client(gateway.port) as client,
    ):
        client.send(request("/", "GET", TO_BLUE, host="asked.test"))
        assert client.read_response().status == 200
        assert blue.requests[0].get("host") == b"asked.test"


def test_an_override_that_names_no_upstream_is_refused(tmp_path: Path) -> None:
    with (
        Upstream(answer()) as green,
        Upstream(answer()) as blue,
        Gateway(overriding(green, blue, tmp_path)) as gateway,
    ):
        assert get(gateway.port, "/", "X-D: decide=override:nowhere").status >= 500
        assert green.requests == []


def test_an_override_caches_the_responses_of_its_upstream_as_their_own(tmp_path: Path) -> None:
    with (
        Upstream(answer(NAMED % (5, b"green"))) as green,
        Upstream(answer(NAMED % (4, b"blue"))) as blue,
        Gateway(overriding(green, blue, tmp_path, cache={"ttl": "60s"})) as gateway,
    ):
        assert [get(gateway.port, "/", TO_BLUE).body for _ in range(2)] == [b"blue", b"blue"]
        assert [get(gateway.port, "/").body for _ in range(2)] == [b"green", b"green"]
        assert (len(blue.requests), len(green.requests)) == (1, 1)


def test_an_override_goes_by_the_settings_that_a_reload_gave_its_upstream(tmp_path: Path) -> None:
    with (
        Upstream(answer(NAMED % (5, b"green"))) as green,
        Upstream(answer(NAMED % (4, b"blue"))) as blue,
    ):
        cache = {"ttl": "60s", "predict": {"adaptive_ttl": {}}}
        config = overriding(green, blue, tmp_path, cache=cache)
        with Gateway(config) as gateway, Client(gateway.port) as client:
            for preserve_host, expected in (
                (True, b"asked.test"),
                (False, blue.url.partition("//")[2].encode()),
            ):
                config["upstreams"]["blue"]["preserve_host"] = preserve_host
                gateway.write_config(config)
                assert call(gateway.admin, "/api/gateway/reload", "POST").status == 200
                for _ in range(2):
                    client.send(request("/", "GET", TO_BLUE, host="asked.test"))
                    assert client.read_response().body == b"blue"
                assert blue.requests[-1].get("host") == expected
        assert len(blue.requests) == 2


def test_a_plugin_that_holds_responses_lets_an_event_stream_pass_event_by_event(tmp_path: Path) -> None:
    seen = threading.Event()

    def events(peer: Peer) -> None:
        peer.read_request()
        peer.send(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")
        peer.send(b"9\r\ndata: 1\n\n\r\n")
        seen.wait(5)
        peer.send(b"9\r\ndata: 2\n\n\r\n0\r\n\r\n")
        peer.wait_closed()

    with Upstream(events) as upstream:
        plugin = use("Whole", "H", tmp_path / "record", bound="100KB")
        route = {"path": "/*", "upstream": upstream.url, "plugins": [plugin]}
        with Gateway({"routes": [route]}) as gateway, Client(gateway.port) as client:
            client.send(request("/"))
            client.sock.settimeout(2)
            try:
                assert b"data: 1" in client.read_until(b"data: 1")
            finally:
                seen.set()
                client.sock.settimeout(60)
                client.read_until(b"0\r\n\r\n")


def test_a_held_response_that_stalls_is_refused_for_its_missing_bytes(tmp_path: Path) -> None:
    def stalls(peer: Peer) -> None:
        peer.read_request()
        peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf")
        peer.wait_closed()

    with Upstream(stalls) as upstream:
        route = {
            "path": "/*",
            "upstream": upstream.url,
            "plugins": [use("Whole", "H", tmp_path / "record", bound="100KB")],
            "timeouts": {"first_byte": "60s", "between_bytes": "300ms"},
        }
        with Gateway({"routes": [route]}) as gateway:
            response = get(gateway.port)
            assert response.status == 504
            assert b"upstream_between_bytes_timeout" in response.body


def test_an_upgrade_response_carries_header_edits_and_passes_the_hooks(tmp_path: Path) -> None:
    def switch(peer: Peer) -> None:
        peer.read_head()
        peer.send(
            b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: echo\r\nConnection: Upgrade\r\nServer: x\r\n\r\n"
        )
        peer.send(peer.read_exactly(4))
        peer.wait_closed()

    record = tmp_path / "record"
    with Upstream(switch) as upstream:
        route = {
            "path": "/*",
            "upstream": upstream.url,
            "plugins": [use("Upstreamer", "U", record), use("Responder", "R", record)],
            "response_headers": {"set": {"X-Route": "edited"}, "remove": ["Server"]},
            "security_headers": {"preset": "api"},
        }
        with Gateway({"routes": [route]}) as gateway, Client(gateway.port) as client:
            client.send(request("/", "GET", "Connection: Upgrade", "Upgrade: echo", "X-R: response=edit"))
            head = client.read_until(b"\r\n\r\n").decode()
            client.send(b"ping")
            assert client.read_exactly(4) == b"ping"

    lines = head.lower().split("\r\n")
    assert lines[0] == "http/1.1 101 switching protocols"
    assert {"x-route: edited", "x-edited: r", "upgrade: echo", "connection: upgrade"} <= set(lines)
    assert not any(line.startswith("server:") for line in lines)
    assert lines.count("upgrade: echo") == 1


def test_a_hook_cannot_change_the_status_of_an_upgrade_response(tmp_path: Path) -> None:
    def switch(peer: Peer) -> None:
        peer.read_head()
        peer.send(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: echo\r\nConnection: Upgrade\r\n\r\n")
        peer.wait_closed()

    with Upstream(switch) as upstream:
        route = {
            "path": "/*",
            "upstream": upstream.url,
            "plugins": [use("Upstreamer", "U", tmp_path / "record")],
        }
        with Gateway({"routes": [route]}, allow=".") as gateway:
            response = get(
                gateway.port, "/", "Connection: Upgrade", "Upgrade: echo", "X-U: upstream_response=status:200"
            )
            assert response.status == 502


@pytest.mark.parametrize("part", ["collected", "in the context"])
def test_a_body_that_must_be_whole_is_refused_when_others_fill_the_memory_for_bodies(
    tmp_path: Path, part: str
) -> None:
    """Others are still arriving, or are complete and in `ctx.body` until their requests end."""
    big = (
        80 * 1024 * 1024
    )  # more than the 64 MiB for the bodies of a worker, less than the bound of the plugin
    missing = 1 if part == "collected" else 0
    plugins = [use("Waiter", "W", tmp_path / "record", bound="80MiB")]
    with Upstream(answer()) as upstream:
        route = {"path": "/*", "upstream": upstream.url, "max_body": "100MB", "plugins": plugins}
        with Gateway({"routes": [route]}, allow=".") as gateway:
            filler = Client(gateway.port)
            # Sent is read, but for a few megabytes in the buffers of the kernel.
            waits = "X-W: request=wait"
            filler.send(request("/", "POST", f"Content-Length: {big}", waits, body=b"x" * (big - missing)))
            if not missing:
                until(
                    lambda: gauge(gateway, "fastgate_request_bodies_collecting") == 0, "the body is complete"
                )
            with Client(gateway.port) as client:
                client.send(request("/", "POST", "Content-Length: 2", body=b"a"))
                refused = client.read_response()
            with Client(gateway.port) as client:  # one that is here already needs no more memory
                client.send(request("/", "POST", body=b"ab"))
                assert client.read_response().status == 200

            filler.close()
            until(lambda: gauge(gateway, "fastgate_requests_active") == 0, "the first request is given up")
            with Client(gateway.port) as client:
                client.send(request("/", "POST", "Content-Length: 2", body=b"a"))
                client.send(b"b")
                assert client.read_response().status == 200

    assert refused.status == 503
    assert json.loads(refused.body)["code"] == "request_bodies_full"


def gauge(gateway: Gateway, name: str) -> float:
    return value(scrape(gateway.admin), name)


def test_a_revalidation_in_the_background_passes_over_interim_responses() -> None:
    seen = 0

    def script(peer: Peer) -> None:
        nonlocal seen
        while True:
            peer.read_request()
            seen += 1
            if seen > 1:
                peer.send(b"HTTP/1.1 103 Early Hints\r\nLink: </a.css>; rel=preload\r\n\r\n")
            body = b"%d" % seen
            fields = b"Cache-Control: max-age=0, stale-while-revalidate=60\r\n"
            peer.send(b"HTTP/1.1 200 OK\r\n%bContent-Length: %d\r\n\r\n%b" % (fields, len(body), body))

    with Upstream(script) as upstream:
        route = {"path": "/*", "upstream": upstream.url, "cache": {}}
        with Gateway({"routes": [route]}) as gateway:
            assert get(gateway.port).body == b"1"

            until(lambda: get(gateway.port).body != b"1", "the stored response is renewed in the background")


def test_a_stale_response_to_post_is_not_renewed_by_a_get() -> None:
    """The key has the body. A background GET has none: its response is one to something else."""

    def script(peer: Peer) -> None:
        while True:
            asked = peer.read_request()
            body = asked.method + b" " + asked.body
            fields = b"Cache-Control: max-age=0, stale-while-revalidate=60\r\n"
            peer.send(b"HTTP/1.1 200 OK\r\n%bContent-Length: %d\r\n\r\n%b" % (fields, len(body), body))

    with Upstream(script) as upstream:
        cache = {"methods": ["GET", "POST"], "key": {"body": True}}
        route = {"path": "/*", "upstream": upstream.url, "cache": cache}
        with Gateway({"routes": [route]}) as gateway, Client(gateway.port) as client:
            for _ in range(4):
                client.send(request("/", "POST", body=b"query"))
                assert client.read_response().body == b"POST query"

        assert {asked.method for asked in upstream.requests} == {b"POST"}


def test_nothing_of_the_client_follows_a_body_that_a_plugin_put_in_its_place(tmp_path: Path) -> None:
    with Upstream(echo) as upstream:
        plugins = [use("Upstreamer", "U", tmp_path / "record")]
        route = {"path": "/*", "upstream": upstream.url, "request_buffering": "0B", "plugins": plugins}
        with Gateway({"routes": [route]}, allow=".") as gateway, Client(gateway.port) as client:
            rest = b"GET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n"
            client.send(
                request(
                    "/", "POST", f"Content-Length: {len(rest) + 1}", "X-U: upstream_request=body:replaced"
                )
            )
            client.send(b"x")
            until(lambda: len(upstream.requests) == 1, "the request is upstream")
            client.send(rest)
            assert client.read_response().body == b"replaced"
            assert get(gateway.port, "/next").status == 200

        assert [asked.target for asked in upstream.requests] == [b"/", b"/next"]


@pytest.mark.parametrize("buffering", ["0B", "64KiB"])
@pytest.mark.parametrize("size", [20_000, 60_000, 65_536])
def test_pipelined_requests_with_bodies_are_all_read(buffering: str, size: int) -> None:
    count = 8
    with Upstream(echo) as upstream:
        route = {"path": "/*", "upstream": upstream.url, "request_buffering": buffering, "max_body": "1MB"}
        with Gateway({"routes": [route]}) as gateway, Client(gateway.port) as client:
            data = request("/", "POST", body=b"x" * size) * count
            sender = threading.Thread(target=client.send, args=(data,))
            sender.start()
            for _ in range(count):
                assert len(client.read_response("POST").body) == size
            sender.join(60)
