"""The requests of docs/auth that can be pasted, pasted."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from fastgate.auth.passwords import password_checker
from tests.gateway import Gateway
from tests.upstream import Upstream

ROOT = Path(__file__).resolve().parent.parent.parent
SECRET = "0123456789abcdef0123456789abcdef"


def pasted(page: str, port: int) -> str:
    """What the last shell block of the page prints, with the gateway at this port."""
    text = (ROOT / "docs" / "auth" / page).read_text()
    script = re.findall(r"```sh\n(.*?)```", text, re.DOTALL)[-1]
    script = script.replace("127.0.0.1:8080", f"127.0.0.1:{port}").replace(
        "curl ", "curl -s -w '%{http_code}' "
    )
    return subprocess.run(["bash", "-c", script], capture_output=True, text=True, timeout=60).stdout


@pytest.mark.parametrize(
    ("page", "schemes", "said"),
    [
        ("jwt.md", ["jwt"], "ok200"),
        ("basic.md", ["basic"], "ok200"),
        ("anonymous.md", ["anonymous"], "ok200"),
        ("introspection.md", ["introspection"], "503"),
    ],
)
def test_the_example_does_what_the_page_says(page: str, schemes: list[str], said: str) -> None:
    made = subprocess.run(
        [sys.executable, "-m", "fastgate", "hash-password"],
        input="correct-horse\n",
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=True,
    )
    hashed = made.stdout.strip()
    assert password_checker(hashed)[1](b"correct-horse")
    with Upstream() as upstream:
        config = {
            "auth": {
                "jwt": {"issuers": [{"issuer": "billing", "secret": SECRET}]},
                "basic": {"users": {"alice": hashed}},
                "introspection": {"url": "http://127.0.0.1:1/", "client_id": "a", "client_secret": "b"},
            },
            "routes": [{"path": "/*", "upstream": upstream.url, "auth": schemes}],
        }
        with Gateway(config) as gateway:
            assert pasted(page, gateway.port).endswith(said)
