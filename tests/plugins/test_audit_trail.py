"""The example plugin at work: a line for every change, whoever answers, and none for reading."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fastgate.config import check
from tests.client import get
from tests.gateway import Gateway
from tests.server.gateway_harness import until
from tests.upstream import Upstream, echo

AUDIT = "examples.plugins.audit_trail:AuditTrail"


@pytest.fixture(scope="module")
def audited(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Gateway, Path]]:
    file = tmp_path_factory.mktemp("audit") / "audit.jsonl"
    with Upstream(echo) as upstream:
        config = {
            "upstreams": {"origin": {"targets": [upstream.url]}},
            "routes": [
                {
                    "path": "/orders/{id}",
                    "upstream": "origin",
                    "max_body": "1KB",
                    "plugins": [{"use": AUDIT, "file": str(file), "actor_header": "X-User"}],
                }
            ],
        }
        with Gateway(config, workers=2) as gateway:
            yield gateway, file


def trail(file: Path, count: int) -> list[dict[str, Any]]:
    lines = until(lambda: len(at := file.read_text().splitlines()) >= count and at, f"{count} lines")
    assert len(lines) == count
    return sorted((json.loads(line) for line in lines), key=lambda line: str(line["path"]))


def test_changes_are_noted_and_reading_is_not(audited: tuple[Gateway, Path]) -> None:
    gateway, file = audited
    body = b"x" * 1000

    get(gateway.port, "/orders/1")
    changed = get(gateway.port, "/orders/2", "X-User: d\xe4nne", "X-User: other", method="PUT", body=body)
    removed = get(gateway.port, "/orders/3", method="DELETE")
    refused = get(gateway.port, "/orders/4", method="POST", body=body * 2)

    assert [changed.status, removed.status, refused.status] == [200, 200, 413]
    assert changed.body == body
    lines = trail(file, 3)
    assert [line.pop("time")[:2] for line in lines] == ["20"] * 3
    assert [line.pop("request_id").encode() for line in lines] == [
        message.get("x-request-id") for message in (changed, removed, refused)
    ]
    empty = hashlib.sha256().hexdigest()
    common = {"client": "127.0.0.1", "actor": None, "status": 200, "reason": None}
    assert lines == [
        {**common, "method": "PUT", "path": "/orders/2", "params": {"id": "2"}, "actor": "d\xe4nne",
         "body_sha256": hashlib.sha256(body).hexdigest()},
        {**common, "method": "DELETE", "path": "/orders/3", "params": {"id": "3"}, "body_sha256": empty},
        {**common, "method": "POST", "path": "/orders/4", "params": {"id": "4"}, "body_sha256": None,
         "status": 413, "reason": "body_too_large"},
    ]  # fmt: skip


def test_its_settings_are_checked_like_all_others() -> None:
    text = f"""
        routes:
          - path: /
            respond: x
            plugins:
              - {{use: "{AUDIT}", fil: /x, methods: GET}}
              - {{use: "{AUDIT}", file: ""}}
              - "{AUDIT}"
    """

    _, errors = check(text, "yaml", {})

    paths = [error.path for error in errors]
    assert [path for path in paths if path.startswith("$.routes[0].plugins[0]")]
    assert "$.routes[0].plugins[1].file" in paths
    assert [path for path in paths if path.startswith("$.routes[0].plugins[2]")]


def test_a_file_that_cannot_be_written_refuses_the_start(tmp_path: Path) -> None:
    gateway = Gateway(
        {"routes": [{"path": "/", "respond": "x", "plugins": [{"use": AUDIT, "file": str(tmp_path)}]}]},
        allow=".",
    )

    with pytest.raises(AssertionError, match="Is a directory"):
        gateway.start()
