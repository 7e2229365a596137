"""Every phase that decides or edits heads: what it may do, in which order, and what its exceptions mean."""

from __future__ import annotations

import json
import threading

import pytest

from tests.client import Client, request
from tests.plugins.conftest import Harness
from tests.server.gateway_harness import until
from tests.strict import Malformed
from tests.upstream import OK, Peer, answer

ALL = [["Root", "decide"], ["A", "decide"], ["B", "request"], ["C", "decide"], ["D", "request"]]


def walked(harness: Harness) -> list[list[str]]:
    return [note[:2] for note in harness.notes("decide", "request")]


def test_plugins_run_in_listed_order_root_first(harness: Harness) -> None:
    response = harness.ask("/order", body=b"hello", method="POST")

    assert (response.status, response.body) == (200, b"hello")
    assert walked(harness) == ALL


@pytest.mark.parametrize("stops", range(1, 5))
@pytest.mark.parametrize("action", ["refuse", "respond", "raise"])
def test_the_walk_ends_where_a_plugin_answers(harness: Harness, stops: int, action: str) -> None:
    label, phase = ALL[stops]

    response = harness.ask("/order", f"X-{label}: {phase}={action}")

    assert response.status == {"refuse": 403, "respond": 201, "raise": 500}[action]
    assert walked(harness) == ALL[: stops + 1]
    assert harness.upstream.requests == []
    if action == "refuse":
        document = json.loads(response.body)
        assert (document["error"], document["by"]) == ("Forbidden", label)
        assert document["request_id"].encode() == response.get("x-request-id")
        assert response.get("x-refused-by") == label.encode()
    elif action == "respond":
        assert response.body == f"made by {label}".encode()
        assert response.get("content-type") == b"text/plain"
    else:
        assert json.loads(response.body)["error"] == "Internal error"
        assert b"told to fail" not in response.raw
        kind = "Decider" if phase == "decide" else "Waiter"
        harness.complaint("plugin tests.plugins.probes:" + kind, f"failed in {phase}")


def test_a_plugin_of_every_route_answers_before_the_routes_own(harness: Harness) -> None:
    response = harness.ask("/order", "X-Root: decide=respond:299")

    assert response.status == 299
    assert walked(harness) == ALL[:1]


def test_the_connection_lives_on_after_a_plugin_failed(harness: Harness) -> None:
    with Client(harness.gateway.port) as client:
        for action, status in (("raise", 500), ("refuse", 403), ("respond", 201), ("continue", 200)):
            client.send(request("/order", "GET", f"X-A: decide={action}"))
            assert client.read_response().status == status


@pytest.mark.parametrize("where", ["X-A: decide", "X-D: request"])
@pytest.mark.parametrize(
    "action",
    [
        "number:7", "number:-1", "text", "answerless", "coroutine", "value:false", "value:true",
        "value:float", "value:list", "value:empty", "value:class",
    ],
)  # fmt: skip
def test_what_is_no_verdict_is_the_plugins_error(harness: Harness, where: str, action: str) -> None:
    response = harness.ask("/order", f"{where}={action}")

    assert response.status == 500
    assert harness.upstream.requests == []
    assert harness.noted(4, "log")[3][2]["reason"] == "plugin_error"
    harness.complaint("plugin tests.plugins.probes:", " of route /order failed in ")


@pytest.mark.parametrize("where", ["X-A: decide", "X-D: request"])
@pytest.mark.parametrize("action", ["forget", "overrule"])
def test_a_refusal_that_is_not_returned_refuses_all_the_same(
    harness: Harness, where: str, action: str
) -> None:
    assert harness.ask("/order", f"{where}={action}").status == 403
    assert harness.upstream.requests == []


def test_request_may_not_suspend(harness: Harness) -> None:
    assert harness.ask("/order", "X-B: request=suspend").status == 500


def test_a_plugin_without_request_that_suspends_has_failed(harness: Harness) -> None:
    assert harness.ask("/order", "X-A: decide=suspend").status == 500
    assert harness.upstream.requests == []


def test_a_plugin_that_cancels_itself_has_failed(harness: Harness) -> None:
    assert harness.ask("/order", "X-B: request=cancel").status == 500
    harness.complaint("plugin tests.plugins.probes:Waiter", "cancelled itself")


def test_a_plugin_that_really_awaits_is_resumed(harness: Harness) -> None:
    with Client(harness.gateway.port) as client:
        client.send(request("/order", "GET", "X-B: request=yield") * 3)
        assert [client.read_response().status for _ in range(3)] == [200, 200, 200]


@pytest.mark.parametrize("action", ["wait", "swallow"])
@pytest.mark.parametrize("how", ["close", "reset"])
def test_a_client_that_leaves_cancels_the_plugin(harness: Harness, action: str, how: str) -> None:
    client = Client(harness.gateway.port)
    client.send(request("/order", "GET", f"X-B: request={action}"))
    harness.noted(1, "request")

    if how == "close":
        client.close()
    else:
        client.reset()

    harness.noted(1, "cancelled")
    logged = harness.noted(4, "log")
    assert [note[0] for note in logged] == ["Root", "A", "C", "L"]
    assert logged[3][2]["reason"] == "client_closed"
    assert logged[3][2]["status"] == 0
    assert harness.upstream.requests == []


def test_header_fields_added_by_plugins_reach_every_answer(harness: Harness) -> None:
    assert harness.ask("/order", "X-A: decide=add").get("x-added-by") == b"A"
    both = harness.ask("/order", "X-A: decide=add", "X-C: decide=refuse")
    assert (both.get("x-added-by"), both.get("x-refused-by")) == (b"A", b"C")


def test_a_plugin_cannot_break_a_header_line(harness: Harness) -> None:
    response = harness.ask("/order", "X-A: decide=inject")

    assert response.status == 500
    assert b"evil" not in response.raw.lower()


def test_what_a_plugin_remembers_is_its_own_and_of_this_request(harness: Harness) -> None:
    harness.ask("/order", "X-A: decide=remember")
    first = harness.noted(4, "log")
    harness.ask("/order")
    second = harness.noted(8, "log")[4:]

    assert [note[2] for note in first[:3]] == ["nothing", ["A"], "nothing"]
    assert [note[2] for note in second[:3]] == ["nothing", "nothing", "nothing"]


# Shadow mode


@pytest.mark.parametrize("where", ["X-D: decide", "X-W: request"])
def test_a_plugin_in_shadow_mode_does_not_refuse(harness: Harness, where: str) -> None:
    response = harness.ask("/shadow", f"{where}=refuse", body=b"x", method="POST")

    assert (response.status, response.body) == (200, b"x")
    assert response.get("x-refused-by") is None
    assert [note[:2] for note in harness.notes("decide", "request")][1:] == [
        ["D", "decide"],
        ["W", "request"],
    ]


def test_shadow_mode_takes_back_only_what_the_refusal_brought(harness: Harness) -> None:
    response = harness.ask("/shadow", "X-Root: decide=add", "X-D: decide=refuse")

    assert response.status == 200
    assert response.get("x-added-by") == b"Root"
    assert response.get("x-refused-by") is None


def test_shadow_mode_leaves_answers_and_errors_as_they_are(harness: Harness) -> None:
    assert harness.ask("/shadow", "X-D: decide=respond").status == 201
    assert harness.ask("/shadow", "X-W: request=raise").status == 500


# The requests' heads on their way upstream


def test_upstream_request_edits_what_goes_upstream(harness: Harness) -> None:
    assert harness.ask("/up/a?b=c", "X-U: upstream_request=edit", "X-Secret: s").status == 200

    (sent,) = harness.upstream.requests
    assert sent.target == b"/edited?by=U"
    assert sent.get("x-edited") == b"U"
    assert sent.get("x-secret") is None
    assert harness.notes("upstream_request") == [
        ["U", "upstream_request", "GET", "/up/a?b=c", False],
        ["V", "upstream_request", "GET", "/edited?by=U", False],
    ]


def test_upstream_request_may_change_the_method(harness: Harness) -> None:
    assert harness.ask("/up/a", "X-U: upstream_request=method:PUT", method="POST", body=b"x").body == b"x"
    assert harness.upstream.requests[0].method == b"PUT"


@pytest.mark.parametrize(
    "action",
    [
        "raise",
        "target:nowhere",
        "target:",
        "target:/a b",
        "target:/a\xe9b",
        "method:",
        "method:GE T",
        "method:HEAD",
        "method:CONNECT",
        "body:x",
    ],
)
def test_what_cannot_be_sent_is_the_plugins_error(harness: Harness, action: str) -> None:
    response = harness.ask("/up/a", f"X-V: upstream_request={action}")

    assert response.status == 500 if action != "body:x" else response.status in (200, 500)
    if response.status == 500:
        assert harness.upstream.requests == []
        harness.complaint("plugin tests.plugins.probes:Upstreamer", "failed in upstream_request")


@pytest.mark.parametrize("action", ["refuse", "forget", "false"])
def test_a_hook_that_edits_may_not_decide(harness: Harness, action: str) -> None:
    assert harness.ask("/up/a", f"X-U: upstream_request={action}").status == 500
    assert harness.upstream.requests == []
    assert harness.logged()["reason"] == "plugin_error"

    harness.record.write_text("")
    assert harness.ask("/up/a", f"X-U: upstream_response={action}").status == 502
    assert harness.logged()["reason"] == "plugin_response_error"

    harness.record.write_text("")
    assert harness.ask("/up/a", f"X-R: response={action}").status == 200
    assert harness.logged()["reason"] is None
    harness.complaint("plugin tests.plugins.probes:Responder of route /up", "failed in response")


@pytest.mark.parametrize("where", ["A: decide", "U: upstream_request", "U: upstream_response"])
def test_a_plugin_that_blocks_is_named_and_the_upstream_is_not_blamed(harness: Harness, where: str) -> None:
    def script(peer: Peer) -> None:  # answers while the worker sleeps
        peer.read_request()
        peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nha")
        peer.send(b"lf")

    harness.upstream.script = script
    with Client(harness.gateway.port) as other:
        other.send(request("/block"))
        response = harness.ask("/block", f"X-{where}=block:3.5")  # the upstream may take 3 s
        assert other.read_response().status == 200

    assert response.status == 200
    phase = where.partition(": ")[2]
    harness.complaint("of route /block blocked its worker for", f"in {phase}")


def test_two_blocks_in_a_row_are_not_held_against_the_upstream_either(harness: Harness) -> None:
    go = threading.Event()

    def script(peer: Peer) -> None:
        if peer.read_request().get("x-slow") is None:
            peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
            return
        peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nha")
        go.wait(60)
        peer.send(b"lf")

    harness.upstream.script = script
    port = harness.gateway.port
    with Client(port) as other, Client(port) as first, Client(port) as second:
        other.send(request("/block", "GET", "X-Slow: yes"))
        other.read_until(b"\r\n\r\nha")
        first.send(request("/block", "GET", "X-A: decide=block:1"))
        harness.noted(4, "decide")  # Root and A of two requests
        second.send(request("/block", "GET", "X-A: decide=block:6"))  # the upstream may take 3 s
        harness.noted(6, "decide")
        go.set()
        assert first.read_response().status == 200
        assert second.read_response().status == 200
        assert other.read_exactly(2) == b"lf"


def test_a_total_that_a_plugin_used_up_is_told_as_the_plugins(harness: Harness) -> None:
    assert harness.ask("/patience", "X-W: request=wait").status == 504
    harness.noted(1, "cancelled")
    assert harness.logged()["reason"] == "plugin_timeout"


def test_framing_and_forwarding_are_not_a_plugins_business(harness: Harness) -> None:
    assert harness.ask("/up/a", "X-U: upstream_request=hostile", method="POST", body=b"four").body == b"four"

    (sent,) = harness.upstream.requests  # strictly parsed: one framing
    assert sent.get("content-length") == b"4"
    assert sent.get("host") == b"gateway.test"
    assert sent.get("upgrade") is None
    assert sent.get("x-forwarded-for") == b"127.0.0.1"


def test_a_get_made_a_post_is_not_sent_twice(harness: Harness) -> None:
    def script(peer: Peer) -> None:
        peer.read_request()
        peer.close()

    harness.upstream.script = script

    assert harness.ask("/up/a", "X-U: upstream_request=method:POST").status == 502
    assert len(harness.upstream.requests) == 1


# The answers' heads


def test_upstream_response_and_response_edit_the_answer(harness: Harness) -> None:
    harness.upstream.script = answer(b"HTTP/1.1 200 OK\r\nServer: secret\r\nContent-Length: 2\r\n\r\nok")

    response = harness.ask(
        "/up/a", "X-U: upstream_response=edit", "X-V: upstream_response=status:203", "X-R: response=edit"
    )

    assert (response.status, response.phrase, response.body) == (203, b"Non-Authoritative Information", b"ok")
    assert response.get("x-edited") == b"R"
    assert response.get("server") is None
    assert response.get("x-route") == b"edited"
    assert harness.notes("upstream_response", "response") == [
        ["U", "upstream_response", 200],
        ["V", "upstream_response", 200],
        ["R", "response", 203, None],
    ]
    assert harness.logged() == {
        "status": 203, "upstream_status": 200, "reason": None, "path": "/up/a", "finished": True,
    }  # fmt: skip


@pytest.mark.parametrize("action", ["raise", "status:99", "status:600", "status:204", "body:x", "bodytext"])
def test_a_failing_upstream_response_is_a_bad_gateway(harness: Harness, action: str) -> None:
    harness.upstream.script = answer(OK)

    response = harness.ask("/up/a", f"X-U: upstream_response={action}")

    assert response.status == 502
    assert json.loads(response.body)["error"] == "A plugin failed on the upstream's response"
    assert harness.logged()["reason"] == "plugin_response_error"
    harness.complaint("plugin tests.plugins.probes:Upstreamer", "failed in upstream_response")


@pytest.mark.parametrize(
    "action", ["raise", "half", "status:99", "status:600", "status:204", "body:x", "bodytext"]
)
def test_a_failing_response_hook_leaves_the_answer_as_it_was(harness: Harness, action: str) -> None:
    harness.upstream.script = answer(b"HTTP/1.1 200 Fine\r\nServer: s\r\nContent-Length: 2\r\n\r\nok")

    response = harness.ask("/up/a", f"X-R: response={action}")

    assert (response.status, response.phrase, response.body) == (200, b"Fine", b"ok")
    assert response.get("server") == b"s"
    assert response.get("x-edited") is None
    harness.complaint("plugin tests.plugins.probes:Responder", "failed in response ")


@pytest.mark.parametrize("hook", ["X-U: upstream_response", "X-R: response"])
def test_framing_of_the_answer_is_not_a_plugins_business(harness: Harness, hook: str) -> None:
    harness.upstream.script = answer(OK)

    with Client(harness.gateway.port) as client:
        for _ in range(2):
            client.send(request("/up/a", "GET", f"{hook}=hostile"))
            assert client.read_response().body == b"ok"


@pytest.mark.parametrize("status", [204, 304])
def test_an_answer_without_body_keeps_its_status(harness: Harness, status: int) -> None:
    harness.upstream.script = answer(b"HTTP/1.1 %d X\r\n\r\n" % status)

    with Client(harness.gateway.port) as client:
        for _ in range(2):
            client.send(request("/up/a", "GET", "X-R: response=status:200"))
            assert client.read_response().status == status


def test_head_is_edited_like_get(harness: Harness) -> None:
    response = harness.ask("/up/a", "X-R: response=status:404", "X-U: upstream_response=edit", method="HEAD")

    assert (response.status, response.get("x-edited"), response.body) == (404, b"U", b"")


# Local answers


@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_response_hooks_edit_local_answers(harness: Harness, method: str) -> None:
    with Client(harness.gateway.port) as client:
        client.send(request("/fixed", method, "X-R: response=edit") * 2)
        for _ in range(2):
            response = client.read_response(method)
            assert (response.status, response.get("x-edited")) == (200, b"R")
            assert response.body == (b"" if method == "HEAD" else b"fixed")


@pytest.mark.parametrize(
    ("action", "status", "body"),
    [
        ("status:202", 202, b"fixed"),
        ("body:more than before", 200, b"more than before"),
        ("upper", 200, b"FIXED!"),
    ],
)
def test_response_hooks_change_status_and_body_of_local_answers(
    harness: Harness, action: str, status: int, body: bytes
) -> None:
    response = harness.ask("/fixed", f"X-R: response={action}")

    assert (response.status, response.body) == (status, body)
    assert harness.logged()["status"] == status


@pytest.mark.parametrize("action", ["raise", "half", "bodytext", "bodynone", "status:999", "status:304"])
def test_a_failing_response_hook_leaves_local_answers_as_they_were(harness: Harness, action: str) -> None:
    response = harness.ask("/fixed", f"X-R: response={action}")

    assert (response.status, response.body, response.get("x-edited")) == (200, b"fixed", None)


def test_response_hooks_see_refusals(harness: Harness) -> None:
    refused = harness.ask("/fixed-decide", "X-A: decide=refuse", "X-R: response=edit")
    unreachable = harness.ask("/gone", "X-R: response=edit")

    assert (refused.status, refused.get("x-edited"), refused.get("x-refused-by")) == (403, b"R", b"A")
    assert refused.get("x-route") == b"edited"
    assert (unreachable.status, unreachable.get("x-edited")) == (502, b"R")
    assert json.loads(unreachable.body)["error"] == "Could not connect to upstream"


@pytest.mark.parametrize(
    ("path", "instruction", "status"),
    [
        ("/fixed-decide", "X-A: decide=continue", 200),
        ("/fixed-decide", "X-A: decide=respond", 201),
        ("/moved", "X-W: request=yield", 307),
        ("/moved", "X-W: request=refuse", 403),
        ("/moved", "X-W: request=raise", 500),
    ],
)
def test_gates_take_their_turn_behind_the_plugins(
    harness: Harness, path: str, instruction: str, status: int
) -> None:
    response = harness.ask(path, instruction)

    assert response.status == status
    assert (response.get("location") is not None) == (status == 307)
    assert len(harness.notes("response")) == 1


# What is counted


def metric(harness: Harness, name: str) -> int:
    host, _, port = harness.gateway.admin.rpartition(":")
    with Client(int(port)) as client:
        client.send(request("/metrics", host=host))
        text = client.read_response().body.decode()
    return sum(
        int(line.split()[-1]) for line in text.splitlines() if line.startswith((name + " ", name + "{"))
    )


def test_exceptions_and_shadow_refusals_are_counted(harness: Harness) -> None:
    names = ("fastgate_plugin_errors_total", "fastgate_shadow_refusals_total")
    seen: list[list[int]] = []

    def settled() -> list[int] | None:
        seen.append([metric(harness, name) for name in names])
        return seen[-1] if len(seen) > 1 and seen[-1] == seen[-2] else None

    before = until(settled, "two equal scrapes")
    for _ in range(3):
        harness.ask("/order", "X-A: decide=raise")
    harness.ask("/up/a", "X-R: response=raise", "X-L: log=raise")
    for _ in range(2):
        harness.ask("/shadow", "X-D: decide=refuse", "X-W: request=refuse")

    until(
        lambda: [metric(harness, name) for name in names] == [before[0] + 5, before[1] + 4],
        f"5 errors and 4 shadow refusals more than {before}",
    )


def test_an_answer_that_is_cut_looks_cut(harness: Harness) -> None:
    def script(peer: Peer) -> None:
        peer.read_request()
        peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf")
        peer.close()

    harness.upstream.script = script

    with pytest.raises(Malformed):
        harness.ask("/up/a", "X-R: response=edit")
    assert harness.logged()["reason"] == "upstream_truncated"
