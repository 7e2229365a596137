"""Runs every .case file below this folder; case.py describes the notation."""

from __future__ import annotations

import io
import shlex
from pathlib import Path

import pytest
from rich.console import Console

from fastgate.cli.explain import explain_request, print_explanation
from fastgate.config import check
from tests.cases.case import Case, Section, expect_head, read_case
from tests.client import Client
from tests.gateway import Gateway
from tests.upstream import OK, Peer, Upstream

FOLDER = Path(__file__).parent
CASES = sorted(FOLDER.rglob("*.case"))
PATHS = [str(path.relative_to(FOLDER).with_suffix("")) for path in CASES]
TRAFFIC_DEFAULTS = {
    "FASTGATE__LISTEN": "127.0.0.1:0",
    "FASTGATE__WORKERS": "1",
    "FASTGATE__ADMIN__LISTEN": "127.0.0.1:0",
    "FASTGATE__ACCESS_LOG__OUTPUT": "off",
}


@pytest.mark.parametrize("path", CASES, ids=PATHS)
def test_case(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    case = read_case(path)
    config = case.text("config")
    assert config is not None
    monkeypatch.chdir(FOLDER)

    if case.needs_gateway:
        run_traffic(case, config)
        return
    loaded, errors = check(config, case.form, case.environ, name=f"gateway.{case.form}")

    expected = case.text("errors")
    assert "\n".join(map(str, errors)) == (expected or "").strip()
    for section in case.sections:
        if section.kind == "explain":
            assert loaded is not None
            url, _, fields = section.argument.partition(" | ")
            method, address = url.split()
            pairs = [tuple(part.strip() for part in field.split(":", 1)) for field in shlex.split(fields)]
            shown = io.StringIO()
            console = Console(file=shown, highlight=False, soft_wrap=True)
            print_explanation(explain_request(loaded, method, address, pairs), console)  # type: ignore[arg-type]
            lines = [" ".join(line.split()) for line in shown.getvalue().splitlines()]
            for wanted in section.text.splitlines():
                assert " ".join(wanted.split()) in lines, shown.getvalue()


def run_traffic(case: Case, config: str) -> None:
    answer = OK

    def script(peer: Peer) -> None:
        while True:
            peer.read_request()
            peer.send(answer)

    with (
        Upstream(script) as upstream,
        Gateway(config, environ={**TRAFFIC_DEFAULTS, **case.environ, "UPSTREAM": upstream.url}) as gateway,
    ):
        received = None
        seen = 0
        method = "GET"
        client: Client | None = None
        try:
            for section in case.sections:
                if section.kind == "upstream":
                    answer = _wire(section)
                elif section.kind == "request":
                    if client is not None:
                        client.close()
                    method = section.text.split(" ", 1)[0]
                    client = Client(gateway.port)
                    client.send(_wire(section))
                    received = client.read_response(method)
                elif section.kind == "answer":
                    assert received is not None
                    expect_head(section, received, f"HTTP/1.1 {received.status}")
                elif section.kind == "upstream receives":
                    assert len(upstream.requests) > seen, f"line {section.line}: nothing reached the upstream"
                    message = upstream.requests[seen]
                    seen += 1
                    expect_head(
                        section, message, f"{message.method.decode()} {message.target.decode()} HTTP/1.1"
                    )
            assert len(upstream.requests) == seen, "more reached the upstream than the case says"
        finally:
            if client is not None:
                client.close()


def _wire(section: Section) -> bytes:
    """A message as written, with its line ends and a Content-Length for its body."""
    head, blank, body = section.text.partition("\n\n")
    lines = head.rstrip("\n").split("\n")
    content = body.rstrip("\n").encode() if blank else b""
    framed = any(line.lower().startswith(("content-length", "transfer-encoding")) for line in lines)
    if not framed and (content or lines[0].startswith("HTTP/")):
        lines.append(f"Content-Length: {len(content)}")
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + content
