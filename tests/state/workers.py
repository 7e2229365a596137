"""A gateway whose responses name the worker that gave them, so that a test can ask every worker."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.client import get
from tests.control.admin_client import call
from tests.gateway import ROOT, Gateway

__all__ = ["ask_every_worker", "gateway_with", "named", "serving"]

PLUGIN = """
import os

from fastgate.plugin import Plugin


class Named(Plugin):
    def response(self, ctx, head):
        head.headers.set("X-Worker", str(os.getpid()))
"""

DEADLINE_S = 120


def named(route: Mapping[str, Any]) -> dict[str, Any]:
    """The route with the plugin that names the worker."""
    return {**route, "plugins": [*route.get("plugins", ()), "worker_name:Named"]}


def gateway_with(
    folder: Path,
    config: Mapping[str, Any],
    workers: int,
    *,
    allow: str | None = None,
    arguments: Sequence[str] = (),
) -> Gateway:
    """A gateway with its store in this folder; routes that are `named` find their plugin."""
    (folder / "worker_name.py").write_text(PLUGIN)
    return Gateway(
        {"store": {"path": str(folder / "fastgate.db")}, **config},
        workers=workers,
        arguments=arguments,
        environ={"PYTHONPATH": f"{ROOT}:{folder}"},
        allow=allow,
        check_descriptors=False,
    )


def ask_every_worker(
    gateway: Gateway, target: str = "/", *fields: str, method: str = "GET"
) -> dict[int, tuple[int, bytes]]:
    """Status and body (empty for an error) from each worker that serves now, by its pid. A worker whose
    responses differ from one request to the next fails the test.
    """
    deadline = time.monotonic() + DEADLINE_S
    told: dict[int, tuple[int, bytes]] = {}
    while True:
        response = get(gateway.port, target, *fields, method=method)
        pid = int(response.get("X-Worker") or 0)
        # The body of an error has the id of its request.
        seen = (response.status, response.body if response.status < 400 else b"")
        assert told.setdefault(pid, seen) == seen, f"worker {pid} responded differently"
        if told.keys() >= serving(gateway):
            return told
        assert time.monotonic() < deadline, f"{told.keys()} of {serving(gateway)}"


def serving(gateway: Gateway) -> set[int]:
    """The workers that accept connections: not those that still build their plan, or drain."""
    workers = call(gateway.admin, "/api/gateway/status").json["workers"]
    return {worker["pid"] for worker in workers if worker["state"] == "ready"}
