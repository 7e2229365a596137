"""The Python of README, manual and examples/: all of it passes mypy --strict, and what can run runs."""

from __future__ import annotations

import builtins
import importlib.util
import os
import re
import socket
import subprocess
import symtable
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.client import Client
from tests.gateway import Gateway
from tests.ports import reserved_port
from tests.strict import Message
from tests.upstream import Upstream, answer

ROOT = Path(__file__).resolve().parents[1]
EXAMPLES = sorted((ROOT / "examples").rglob("*.py"))
BOUND_S = 300  # of a subprocess: only ever ends a hang

#: Pages whose blocks other tests run, because they need a gateway or are many.
RUN_BY = {
    "docs/auth/hmac.md": "tests/auth/test_signed_requests.py",
    "docs/auth/signatures.md": "tests/auth/test_signed_requests.py",
    "docs/primitives.md": "tests/core/test_examples.py",
}


class Block(NamedTuple):
    page: str
    line: int  # of its first line of code, from 0
    code: str


def blocks_of(page: str, text: str) -> Iterator[Block]:
    for found in re.finditer(r"^( *)```(?:python|py)\n(.*?)^\1```$", text, re.M | re.S):
        yield Block(page, text.count("\n", 0, found.start(2)), textwrap.dedent(found[2]))


BLOCKS = [
    block
    for path in [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
    for block in blocks_of(str(path.relative_to(ROOT)), path.read_text())
]


def names(code: str) -> tuple[set[str], set[str]]:
    """What the code binds at its top, and what it needs from elsewhere."""
    top = symtable.symtable(code, "block", "exec")
    bound = {each.get_name() for each in top.get_symbols() if each.is_assigned() or each.is_imported()}
    used = {each.get_name() for each in top.get_symbols() if each.is_referenced()}
    tables = list(top.get_children())
    while tables:
        table = tables.pop()
        used |= {each.get_name() for each in table.get_symbols() if each.is_global()}
        tables += table.get_children()
    return bound, used - bound - set(dir(builtins))


def with_what_it_needs(block: Block, page: list[Block]) -> str:
    """The code at its lines of the page, under the earlier blocks that bind names it does not bind itself."""
    chosen = {block}
    _, needed = names(block.code)
    for earlier in reversed([each for each in page if each.line < block.line]):
        bound, needs = names(earlier.code)
        if bound & needed:
            chosen.add(earlier)
            needed = needed - bound | needs
    lines: list[str] = []
    for each in sorted(chosen, key=lambda each: each.line):
        lines += [""] * (each.line - len(lines)) + each.code.splitlines()
    return "\n".join(lines) + "\n"


def test_a_block_is_checked_with_the_earlier_ones_that_it_needs() -> None:
    page = "a\n```python\nx = 1\n```\nb\n```py\ny = 2\n```\n* c\n"
    page += "  ```python\n  def f():\n      return x\n  ```\n"
    one, two, three = blocks_of("a.md", page)

    assert with_what_it_needs(two, [one, two, three]) == "\n" * 6 + "y = 2\n"
    assert with_what_it_needs(three, [one, two, three]) == (
        "\n\nx = 1\n" + "\n" * 7 + "def f():\n    return x\n"
    )


def test_every_block_and_every_example_passes_mypy_strict(tmp_path: Path) -> None:
    for block in BLOCKS:
        # The name shows the page, and the line of an error is that of the page.
        name = re.sub(r"\W", "_", block.page.removesuffix(".md"))
        page = [each for each in BLOCKS if each.page == block.page]
        (tmp_path / f"{name}_at_{block.line}.py").write_text(with_what_it_needs(block, page))
    (tmp_path / "wrong.py").write_text("from fastgate import TokenBuckets\n\n\ndef untyped(): ...\n")
    files = [str(path) for path in [*sorted(tmp_path.glob("*.py")), *EXAMPLES]]

    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "--no-error-summary", "--hide-error-context", *files],
        cwd=ROOT, capture_output=True, text=True, timeout=BOUND_S, check=False,
    )  # fmt: skip

    # Without the folder: mypy repeats what it knows of an unchanged file as it was said for an earlier one.
    errors = [line for line in done.stdout.splitlines() if ": note: " not in line]
    found = [re.sub(r"^\S*/", "", line) for line in errors]
    expected = [line for line in found if line.startswith("wrong.py:")]
    assert [line for line in found if line not in expected] == [], done.stderr
    assert [line.rpartition("[")[2] for line in expected] == ["attr-defined]", "no-untyped-def]"]
    assert len(BLOCKS) > 25 and len(EXAMPLES) > 3


def test_pages_and_examples_import_public_names() -> None:
    code = [block.code for block in BLOCKS] + [path.read_text() for path in EXAMPLES]

    assert [
        line
        for text in code
        for line in text.splitlines()
        if re.search(r"import.*\b_core\b|_core.*import", line)
    ] == []


def test_the_blocks_that_are_not_run_here_are_run_elsewhere() -> None:
    assert set(RUN_BY) <= {block.page for block in BLOCKS}
    for page, test in RUN_BY.items():
        assert Path(page).name in (ROOT / test).read_text()


@pytest.mark.parametrize(
    "block",
    [block for block in BLOCKS if block.page not in RUN_BY],
    ids=lambda block: f"{block.page}:{block.line + 1}",
)
def test_the_block_runs(block: Block) -> None:
    code = with_what_it_needs(block, [each for each in BLOCKS if each.page == block.page])

    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        cwd=ROOT, capture_output=True, text=True, timeout=BOUND_S, check=False,
    )  # fmt: skip

    assert (done.returncode, done.stderr) == (0, "")


def ask(port: int, target: str, *fields: str) -> Message:
    with Client(port) as client:
        client.send("\r\n".join([f"GET {target} HTTP/1.1", "Host: x", *fields, "", ""]).encode())
        return client.read_response("GET")


def config_and_module(page: str, use: str, folder: Path, upstream: Upstream) -> str:
    """The config of the page that names `use`, whose module is written into the folder: the page's class."""
    text = (ROOT / "docs" / page).read_text()
    (config,) = [each for each in re.findall(r"```yaml\n(.*?)```", text, re.S) if use in each]
    module, _, name = use.partition(":")
    (code,) = [block.code for block in blocks_of(page, text) if f"class {name}(" in block.code]
    file = folder / f"{module.replace('.', '/')}.py"
    file.parent.mkdir()
    file.write_text(code)
    tests = "listen: 127.0.0.1:0\nworkers: 1\nadmin: {listen: 127.0.0.1:0}\naccess_log: 'off'\n"
    return tests + config.replace("http://127.0.0.1:9000", upstream.url)


def test_the_plugin_of_the_page_lets_its_users_in_and_nobody_else(tmp_path: Path) -> None:
    with Upstream(answer()) as upstream:
        config = config_and_module("plugins.md", "my_company.gateway:Beta", tmp_path, upstream)
        with Gateway(config, environ={"PYTHONPATH": f"{ROOT}:{tmp_path}"}) as gateway:
            statuses = [ask(gateway.port, "/beta/x", f"X-User: {user}").status for user in ("alice", "eve")]

    assert statuses == [200, 403]


def test_the_cache_strategy_of_the_page_keeps_tenants_apart(tmp_path: Path) -> None:
    cacheable = b"HTTP/1.1 200 OK\r\nCache-Control: max-age=60\r\nContent-Length: 2\r\n\r\nok"
    with Upstream(answer(cacheable)) as upstream:
        config = config_and_module("cache-predict.md", "my_company.caching:ByTenant", tmp_path, upstream)
        with Gateway(config, environ={"PYTHONPATH": f"{ROOT}:{tmp_path}"}) as gateway:
            for tenant in ("a", "a", "b"):
                assert ask(gateway.port, "/catalogue/1", f"X-Tenant: {tenant}").status == 200
        asked = [request.get("x-tenant") for request in upstream.requests]

    assert asked == [b"a", b"b"]


def test_the_example_of_processes_spends_its_budget_and_no_more() -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", "examples/keyed_limiter_processes.py"],
        env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": ""},  # a line is one write
        cwd=ROOT, capture_output=True, text=True, timeout=BOUND_S, check=False,
    )  # fmt: skip

    assert (done.returncode, done.stderr) == (0, "")
    spent = re.findall(r"^worker \d spent (\d)\.(\d{6}) dollars; stopped by limit \d$", done.stdout, re.M)
    (left,) = re.findall(r"^left: (\d+) micro-dollars$", done.stdout, re.M)
    assert len(spent) == 4
    assert sum(int(dollars + micro) for dollars, micro in spent) + int(left) == 2_000_000


def wait_until_it_listens(port: int, server: subprocess.Popen[bytes]) -> None:
    # uvicorn has no line for it: what it logs comes before its workers listen.
    deadline = time.monotonic() + BOUND_S
    while True:
        assert server.poll() is None and time.monotonic() < deadline
        try:
            socket.create_connection(("127.0.0.1", port)).close()
            return
        except ConnectionRefusedError:
            time.sleep(0.05)


def test_the_example_with_starlette_has_one_limit_in_all_its_workers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LIMITS_FILE", str(tmp_path / "limits"))
    spec = importlib.util.spec_from_file_location(
        "keyed_limiter_starlette", ROOT / "examples/keyed_limiter_starlette.py"
    )
    assert spec is not None and spec.loader is not None
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    example.limiter.charge("alice", 20_000)  # two days' quota, taken by a process that is none of the workers

    with reserved_port() as port:
        options = ["--app-dir", "examples", "--workers", "2", "--port", str(port), "--log-level", "error"]
        options += ["--timeout-worker-healthcheck", str(BOUND_S)]
        server = subprocess.Popen(
            [sys.executable, "-m", "uvicorn", "keyed_limiter_starlette:app", *options],
            cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)},
        )  # fmt: skip
        try:
            wait_until_it_listens(port, server)
            alice = [ask(port, "/", "X-API-Key: alice", "Connection: close") for _ in range(8)]
            bob = ask(port, "/", "X-API-Key: bob", "Connection: close")
        finally:
            server.terminate()
            server.wait(timeout=BOUND_S)

    assert [response.status for response in alice] == [429] * 8
    assert int(alice[0].get("retry-after") or 0) > 60
    assert (bob.status, bob.body) == (200, b'{"hello":"world"}')
    assert bob.get("ratelimit-remaining") == b"19"
