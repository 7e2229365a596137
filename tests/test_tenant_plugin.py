"""The example plugin through every phase, in a real gateway."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.client import Client
from tests.gateway import Gateway
from tests.strict import Message
from tests.upstream import Upstream, answer

ROOT = Path(__file__).resolve().parent.parent
ANSWER = b"HTTP/1.1 200 OK\r\nX-Powered-By: secret\r\nContent-Length: 5\r\n\r\nhello"


class Setup(NamedTuple):
    gateway: Gateway
    upstream: Upstream
    directory: Path

    def ask(self, token: str | None, body: bytes = b"") -> Message:
        authorization = f"Authorization: Bearer {token}\r\n" if token else ""
        head = f"POST /a HTTP/1.1\r\nHost: x\r\n{authorization}Content-Length: {len(body)}\r\n\r\n"
        with Client(self.gateway.port) as client:
            client.send(head.encode() + body)
            return client.read_response("POST")

    def add_token(self, token: str, tenant: str) -> None:
        tokens = self.directory / "tokens.json"
        known = json.loads(tokens.read_text())
        tokens.write_text(json.dumps({**known, token: tenant}))

    def usage(self) -> dict[str, Any]:
        """What the plugin counted. Ends the gateway: it writes on close."""
        self.gateway.stop()
        (written,) = self.directory.glob("usage.json.*")
        usage: dict[str, Any] = json.loads(written.read_text())
        return usage


@pytest.fixture
def settings() -> dict[str, Any]:
    return {}


@pytest.fixture
def setup(tmp_path: Path, settings: dict[str, Any]) -> Iterator[Setup]:
    (tmp_path / "tokens.json").write_text(json.dumps({"t-1": "alice"}))
    plugin = {
        "use": "tenant_plugin:Tenant",
        "tokens": str(tmp_path / "tokens.json"),
        "usage": str(tmp_path / "usage.json"),
        **settings,
    }
    with Upstream(answer(ANSWER)) as upstream:
        config = {"routes": [{"path": "/*", "upstream": upstream.url, "plugins": [plugin]}]}
        environ = {"PYTHONPATH": f"{ROOT}:{ROOT / 'examples'}"}
        with Gateway(config, environ=environ) as gateway:
            yield Setup(gateway, upstream, tmp_path)


def test_a_known_token_goes_through_every_phase_without_waiting(setup: Setup) -> None:
    answered = setup.ask("t-1", b"four")

    assert (answered.status, answered.body) == (200, b"hello")
    assert answered.get("x-served-for") == b"alice"
    assert answered.get("x-powered-by") is None
    sent = setup.upstream.requests[0]
    assert (sent.get("x-tenant"), sent.get("authorization"), sent.body) == (b"alice", None, b"four")
    assert setup.usage() == {"alice": {"requests": 1, "bytes": 4}}


def test_no_token_is_refused_on_the_spot_and_still_logged(setup: Setup) -> None:
    answered = setup.ask(None)

    assert answered.status == 401
    assert answered.get("www-authenticate") == b"Bearer"
    assert answered.get("x-served-for") == b"nobody"
    assert not setup.upstream.requests
    assert setup.usage() == {"nobody": {"requests": 1, "bytes": 0}}


def test_an_unknown_token_waits_for_the_file_and_is_refused(setup: Setup) -> None:
    answered = setup.ask("t-2")

    assert answered.status == 403
    assert json.loads(answered.body)["hint"] == "this token is not known"


def test_a_token_that_was_added_meanwhile_is_found(setup: Setup) -> None:
    setup.add_token("t-2", "bob")

    assert setup.ask("t-2").get("x-served-for") == b"bob"


@pytest.mark.parametrize("settings", [{"shout": True}])
def test_an_answer_is_changed_piece_by_piece(setup: Setup) -> None:
    assert setup.ask("t-1").body == b"HELLO"


@pytest.mark.parametrize("settings", [{"enforce": False}])
def test_in_shadow_mode_nothing_is_refused(setup: Setup) -> None:
    assert setup.ask(None).status == 200
    assert setup.ask("t-2").status == 200
    assert [request.get("x-tenant") for request in setup.upstream.requests] == [b"nobody", b"nobody"]
