"""`fastgate keys`, `consumers`, `limits` and `secrets` against a running gateway."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.auth.test_api_keys import ROUTE, use
from tests.gateway import ROOT, Gateway

CONFIG: dict[str, Any] = {
    "routes": [ROUTE],
    "tiers": {"small": {"per_minute": 5}},
    "consumers": {"acme": {"tier": "small"}},
}


def fastgate(
    gateway: Gateway, *arguments: str, stdin: str = "", token: str | None = None
) -> subprocess.CompletedProcess[str]:
    environ = {**os.environ, "PYTHONPATH": str(ROOT), **({"FASTGATE_ADMIN_TOKEN": token} if token else {})}
    return subprocess.run(
        [sys.executable, "-m", "fastgate", *arguments, "--admin", gateway.admin],
        input=stdin,
        capture_output=True,
        text=True,
        timeout=60,
        env=environ,
        check=False,
    )


def good(gateway: Gateway, *arguments: str, stdin: str = "") -> str:
    done = fastgate(gateway, *arguments, stdin=stdin)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_key_from_the_first_to_the_last_command() -> None:
    with Gateway(CONFIG) as gateway:
        made = fastgate(
            gateway,
            "keys",
            "create",
            "acme",
            "--scope",
            "a:read",
            "--expires-in",
            "90d",
            "--metadata",
            "plan=b",
        )
        key = made.stdout.strip()
        assert made.returncode == 0
        assert re.fullmatch(r"fg_[0-9A-Za-z]{43}", key)
        assert use(gateway, key) == 200

        listed = good(gateway, "keys", "list")
        (key_id,) = re.findall(r"key_\w+", listed)
        assert "acme" in listed and key not in listed
        rows = json.loads(good(gateway, "keys", "list", "--json", "--consumer", "acme", "--state", "active"))
        assert (rows[0]["scopes"], rows[0]["metadata"], rows[0]["used"]) == (["a:read"], {"plan": "b"}, 1)
        assert "scopes: a:read" in good(gateway, "keys", "show", key_id)

        rotated = fastgate(gateway, "keys", "rotate", key_id, "--overlap", "1h")
        new = rotated.stdout.strip()
        assert (use(gateway, key), use(gateway, new)) == (200, 200)
        assert f"{key_id} is valid until 20" in rotated.stderr

        assert good(gateway, "keys", "revoke", key_id) == f"revoked {key_id} of acme\n"
        assert (use(gateway, key), use(gateway, new)) == (401, 200)


def test_consumers_and_their_limits() -> None:
    with Gateway(CONFIG) as gateway:
        assert "name: bob" in good(gateway, "consumers", "create", "bob", "--tier", "small", "--role", "r")
        assert "tier: basic" in good(gateway, "consumers", "set", "bob", "--tier", "basic")
        listed = good(gateway, "consumers", "list").splitlines()
        assert [line.split()[:3] for line in listed[1:]] == [
            ["acme", "small", "config"],
            ["bob", "basic", "store"],
        ]

        key = good(gateway, "keys", "create", "acme").strip()
        assert [use(gateway, key) for _ in range(6)].count(200) == 5
        shown = good(gateway, "limits", "show", "--consumer", "acme")
        assert good(gateway, "limits", "show", "acme").splitlines()[0] == shown.splitlines()[0]
        assert re.search(r"tier +per_minute +5 +0", shown), shown
        assert good(gateway, "limits", "reset", "--consumer", "acme") == "reset 1 rule\n"
        assert use(gateway, key) == 200
        assert "own_limits: per_minute=9" in good(gateway, "limits", "set", "acme", "per_minute=9")
        assert [use(gateway, key) for _ in range(20)].count(200) == 8
        assert "own_limits" not in good(gateway, "limits", "set", "acme")

        assert "pardoned: no" in good(gateway, "limits", "pardon", "--ip", "10.0.0.1")
        assert good(gateway, "consumers", "remove", "bob") == "removed bob\n"
        good(gateway, "consumers", "set", "acme", "--tier", "basic")
        assert good(gateway, "consumers", "remove", "acme") == "acme has the values of the config again\n"
        listed = good(gateway, "consumers", "list").splitlines()
        assert [line.split()[:3] for line in listed[1:]] == [["acme", "small", "config"]]


def test_a_secret_comes_from_stdin_and_is_never_shown(tmp_path: Path) -> None:
    with Gateway({**CONFIG, "store": {"path": str(tmp_path / "a.db")}}) as gateway:
        said = good(gateway, "secrets", "set", "openai", stdin="sk-0123456789abcdefghijWXYZ\n")
        said += good(gateway, "secrets", "list")

        assert "…WXYZ" in said
        assert "0123456789" not in said
        assert good(gateway, "secrets", "remove", "openai") == "removed openai\n"


@pytest.mark.parametrize(
    ("arguments", "status", "text"),
    [
        (["keys", "create", "acme", "--tier", "gold"], 1, "tier: expected one of"),
        (["keys", "create", "acme", "--limit", "per_minute=many"], 2, "expected a number or none"),
        (["keys", "create", "acme", "--metadata", "plan"], 2, "expected NAME=VALUE"),
        (["keys", "revoke", "key_unknown"], 1, "There is no key 'key_unknown'"),
        (["consumers", "show", "nobody"], 1, "There is no consumer 'nobody'"),
        (["limits", "show"], 2, "name one client: CONSUMER, --key KEY_ID or --ip ADDRESS"),
        (["limits", "show", "acme", "--ip", "10.0.0.1"], 2, "name one client"),
        (["cache", "purge"], 2, "or purge everything with --all"),
        (["cache", "purge", "/a"], 2, "a path on every host is --pattern '/a'"),
        (["limits", "set", "acme", "per_minute=0"], 1, ">= 1"),
    ],
)
def test_what_is_wrong_is_one_line(arguments: list[str], status: int, text: str, gateway: Gateway) -> None:
    done = fastgate(gateway, *arguments)

    assert done.returncode == status, done.stderr
    assert text in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


@pytest.fixture(scope="module")
def gateway() -> Any:
    with Gateway(CONFIG) as running:
        yield running


def test_the_token_is_taken_from_the_environment() -> None:
    with Gateway({**CONFIG, "admin": {"listen": "127.0.0.1:0", "token": "a long token"}}) as gateway:
        refused = fastgate(gateway, "keys", "list")
        assert (refused.returncode, "FASTGATE_ADMIN_TOKEN" in refused.stderr) == (1, True)
        assert fastgate(gateway, "keys", "list", token="a long token").returncode == 0
