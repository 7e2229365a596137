"""Hooks that raise what is no Exception: CancelledError, SystemExit, KeyboardInterrupt. The request ends as
with any other exception of a plugin, its lease is free again, and the worker goes on.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.client import Client, request
from tests.gateway import Gateway
from tests.plugins.conftest import Harness, use
from tests.server.gateway_harness import until
from tests.strict import Malformed
from tests.upstream import Upstream, echo

KINDS = ["cancelled", "exit", "interrupt", "generator"]
kinds = pytest.mark.parametrize("kind", KINDS)


@kinds
@pytest.mark.parametrize(
    ("label", "phase"), [("A", "decide"), ("B", "request"), ("C", "decide"), ("D", "request")]
)
def test_hooks_that_decide_end_in_500(harness: Harness, label: str, phase: str, kind: str) -> None:
    """C decides in the task that awaited B."""
    response = harness.ask("/order", f"X-{label}: {phase}=raise:{kind}")

    assert response.status == 500
    assert json.loads(response.body)["error"] == "Internal error"
    assert harness.logged()["reason"] == "plugin_error"
    assert harness.upstream.requests == []


def test_request_hook_that_cancels_its_own_task_ends_in_500(harness: Harness) -> None:
    assert harness.ask("/order", "X-B: request=canceltask").status == 500
    assert harness.logged()["reason"] == "plugin_error"


@kinds
@pytest.mark.parametrize(
    ("phase", "status"), [("upstream_request", 500), ("upstream_response", 502), ("response", 200)]
)
def test_hooks_that_edit_end_as_with_any_exception(
    harness: Harness, phase: str, status: int, kind: str
) -> None:
    label = "R" if phase == "response" else "U"

    assert (
        harness.ask("/up/a", f"X-{label}: {phase}=raise:{kind}", method="POST", body=b"hello").status
        == status
    )
    assert harness.logged()["status"] == status


@kinds
def test_request_chunk_hook_ends_in_500(harness: Harness, kind: str) -> None:
    assert (
        harness.ask("/chunks", f"X-K: request_chunk=raise:{kind}", method="POST", body=b"hello").status == 500
    )
    assert harness.logged()["reason"] == "plugin_error"


@kinds
def test_response_chunk_hook_cuts_the_response(harness: Harness, kind: str) -> None:
    with pytest.raises(Malformed):
        harness.ask("/chunks", f"X-K: response_chunk=raise:{kind}", method="POST", body=b"hello")
    assert harness.logged()["reason"] == "plugin_error"


@kinds
def test_log_hook_is_swallowed(harness: Harness, kind: str) -> None:
    with Client(harness.gateway.port) as client:
        for _ in range(2):  # on one connection: it goes on
            client.send(request("/fixed", "GET", f"X-L: log=raise:{kind}"))
            assert client.read_response().status == 200


@pytest.mark.parametrize("label", ["exit-build", "exit-start", "cancel-start"])
def test_plugin_that_exits_while_a_plan_is_made_refuses_the_config(tmp_path: Path, label: str) -> None:
    record = tmp_path / "record"
    with Upstream(echo) as upstream:
        routes: list[dict[str, Any]] = [{"path": "/*", "upstream": upstream.url}]
        config = {"routes": routes}
        with Gateway(config, allow=".") as gateway, Client(gateway.port) as client:
            workers = gateway.worker_pids()
            gateway.write_config({**config, "plugins": [use("Starter", label, record)]})
            host, _, port = gateway.admin.rpartition(":")
            with Client(int(port)) as admin:
                admin.send(request("/api/gateway/reload", "POST", host=host))
                assert admin.read_response().status == 422
            client.send(request("/"))
            assert client.read_response().status == 200
            # One that was to build the plan may still be ending.
            until(lambda: gateway.worker_pids() == workers, "the workers of before, and no other")
