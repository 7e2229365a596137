"""The house rules that a reader relies on: who may import whom, where third parties live, no dumping grounds.

LAYERS is the table of docs/architecture.md, lowest first. A module may import what stands in a lower row, and
its own room, without a circle. SIDEWAYS lists the few edges between neighbours of one row, each with its
reason. Python is read with ast (so imports inside functions count too), Cython by its import and cimport
lines.
"""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "fastgate"

LAYERS: tuple[tuple[str, ...], ...] = (
    ("_core",),
    ("certificates", "checks", "errors", "http_cache", "plugin", "settings", "state"),
    ("upstream",),
    ("features", "ai", "auth", "caching"),
    ("features.registry",),
    ("config",),
    ("plan",),
    ("proxy",),
    ("server", "control", "asgi"),
    ("cli",),
    ("__main__",),
)

SIDEWAYS: dict[tuple[str, str], str] = {
    ("plugin", "errors"): "a plugin refuses with a row of REASONS",
    ("plugin", "settings"): "a plugin's config is a Settings Struct",
    ("plugin", "state"): "a builder is given the memory of the host: a type only",
}

# Rooms whose files and folders are neighbours, not one room: a feature never imports another feature.
APART = {"features": (), "ai": ("ai.schema",)}

# Third parties, each at one address (a module or a room). Whatever is not here may not be imported.
ADDRESSES: dict[str, tuple[str, ...]] = {
    "cel_expr_python": ("features.policy.language",),
    "backports": ("state.envelope",),
    "click": ("cli",),
    "compression": ("state.envelope",),  # the standard library from 3.14 on
    "cryptography": ("auth", "state.sealing"),
    "jsonschema_rs": ("features.validation.build",),
    "httptools": ("proxy.h1_client", "upstream.h1_stream", "cli.bench"),
    "jwt": ("auth.jwks",),
    "lmdb": ("caching.disk", "caching.disk_file"),
    "msgspec": (
        *("settings", "plugin", "state", "auth", "caching", "features", "upstream"),
        *("config", "plan", "proxy", "server", "control", "cli.explain"),
    ),
    "redis": ("state.fleet", "state.redis_url"),
    "rich": ("cli",),
    "starlette": ("control",),
    "uvicorn": ("control",),
    "uvloop": ("server.supervisor", "server.worker", "cli.bench"),
    "yaml": ("config",),
}

BAD_NAMES = re.compile(r"^_?(utils?|helpers?|common|misc|base|managers?)$")
CYTHON_OWN = {"libc", "posix", "cpython", "cython"}


class Edge(NamedTuple):
    source: str  # dotted, without the leading "fastgate.": "server.connection"
    line: int
    target: str  # as written: "fastgate.errors", "httptools", "os"


def sources() -> Iterator[Path]:
    for path in sorted(PACKAGE.rglob("*")):
        if path.suffix in {".py", ".pyx", ".pxd", ".pyi"} and "__pycache__" not in path.parts:
            yield path


def module_of(path: Path) -> str:
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def python_edges(path: Path, module: str) -> Iterator[Edge]:
    for node in ast.walk(ast.parse(path.read_text(), str(path))):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Edge(module, node.lineno, alias.name)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: import by the full name, not a relative one"
            # `from fastgate.server import worker` names a module only when there is such a module
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                yield Edge(module, node.lineno, whole if is_module(whole) else str(node.module))


def is_module(dotted: str) -> bool:
    place = ROOT.joinpath(*dotted.split("."))
    return place.is_dir() or any(place.with_suffix(end).exists() for end in (".py", ".pyx", ".pxd"))


CYTHON_IMPORT = re.compile(
    r"^[ \t]*(?:from[ \t]+(?P<origin>[\w.]+)[ \t]+c?import[ \t]+(?P<names>[^#\n]*)"
    r"|c?import[ \t]+(?P<plain>[\w., \t]+))",
    re.MULTILINE,
)


def cython_edges(path: Path, module: str) -> Iterator[Edge]:
    text = re.sub(
        r'("""|\'\'\').*?\1', lambda quoted: "\n" * quoted[0].count("\n"), path.read_text(), flags=re.DOTALL
    )
    for found in CYTHON_IMPORT.finditer(text):
        line = text.count("\n", 0, found.start()) + 1
        if found["plain"]:
            for name in found["plain"].split(","):
                yield Edge(module, line, name.split()[0])
            continue
        origin = found["origin"]
        assert not origin.startswith("."), f"{path}:{line}: import by the full name, not a relative one"
        for name in re.findall(r"\w+", found["names"]) or [""]:
            whole = f"{origin}.{name}"
            yield Edge(module, line, whole if origin.startswith("fastgate") and is_module(whole) else origin)


@cache
def edges() -> tuple[Edge, ...]:
    found = []
    for path in sources():
        read = python_edges if path.suffix in {".py", ".pyi"} else cython_edges
        # Stubs are never run, and every type checker brings typing_extensions itself.
        found += [
            edge
            for edge in read(path, module_of(path))
            if path.suffix != ".pyi" or edge.target != "typing_extensions"
        ]
    return tuple(found)


ROOMS = frozenset(room for rooms in LAYERS for room in rooms)


def room_of(module: str) -> str:
    return module if module in ROOMS else module.split(".")[0]


def layer_of(room: str) -> int:
    for height, rooms in enumerate(LAYERS):
        if room in rooms:
            return height
    raise AssertionError(
        f"fastgate.{room} has no place in LAYERS: give it one here and in docs/architecture.md"
    )


def wrong(edge: Edge) -> str | None:
    """Why this edge may not be, or None."""
    if edge.target == "fastgate" or not edge.target.startswith("fastgate."):
        return None
    source, target = edge.source, edge.target.removeprefix("fastgate.")
    if not source and target == "_core":
        return None  # by name and when asked for: tests/core/test_names.py holds that it loads nothing
    if not source:
        return "the package itself imports nothing, so that any part of it can be imported alone"
    here, there = room_of(source), room_of(target)
    if here == there:
        inside = APART.get(here)
        same = source.split(".")[:2] == target.split(".")[:2]
        if inside is not None and not same and source != here and target not in inside:
            return f"what is in {here}/ does not import each other"
        return None
    if layer_of(there) < layer_of(here) or (here, there) in SIDEWAYS:
        return None
    return f"{here} (row {layer_of(here)}) may not import {there} (row {layer_of(there)})"


def test_imports_go_down_only() -> None:
    found = [f"fastgate.{e.source}:{e.line} imports {e.target}: {why}" for e in edges() if (why := wrong(e))]

    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    ("source", "target"),
    [
        ("_core.limits", "fastgate.errors"),
        ("errors", "fastgate.config"),
        ("features.cache", "fastgate.features.routing.build"),
        ("features.cors.build", "fastgate.features.registry"),
        ("features.cors.check", "fastgate.features.access.check"),
        ("config", "fastgate.plan.freeze"),
        ("server.worker", "fastgate.control.admin"),
        ("upstream.pool", "fastgate.proxy.exchange"),
        ("plan", "fastgate.cli.main"),
    ],
)
def test_an_edge_upward_or_sideways_is_refused(source: str, target: str) -> None:
    assert wrong(Edge(source, 1, target)) is not None


def circles(found: Iterable[Edge]) -> list[tuple[str, ...]]:
    """Modules that import each other, directly or by way of others; each group once. A package counts as its
    `__init__`, and importing one of its modules is not importing the package.
    """
    known = {module_of(path) for path in sources()}
    below: dict[str, set[str]] = {}
    for edge in found:
        target = edge.target.removeprefix("fastgate.")
        if target != edge.source and target in known:
            below.setdefault(edge.source, set()).add(target)

    def reached(start: str) -> set[str]:
        seen: set[str] = set()
        left = [start]
        while left:
            new = below.get(left.pop(), set()) - seen
            seen |= new
            left += new
        return seen

    reach = {module: reached(module) for module in below}
    groups = {
        tuple(sorted({other for other in reach[module] if module in reach.get(other, ())}))
        for module in below
        if module in reach[module]
    }
    return sorted(groups)


def test_no_modules_import_each_other_in_a_circle() -> None:
    # Also where one of the imports stands in a function: that only hides the circle.
    found = circles(edges())

    assert not found, "\n".join(" <-> ".join(circle) for circle in found)


def test_a_circle_is_found() -> None:
    made = [
        Edge("proxy.responses", 1, "fastgate.proxy.exchange"),
        Edge("proxy.exchange", 1, "fastgate.proxy.accesslog"),
        Edge("proxy.accesslog", 1, "fastgate.proxy.responses"),
        Edge("proxy.accesslog", 2, "fastgate.errors"),
    ]

    assert circles(made) == [("proxy.accesslog", "proxy.exchange", "proxy.responses")]


def test_imports_are_found_in_python_and_cython(tmp_path: Path) -> None:
    python = tmp_path / "a.py"
    python.write_text("import os\ndef f():\n    from fastgate import errors\n    import httptools, json\n")
    cython = tmp_path / "b.pyx"
    cython.write_text(
        '"""a doc\nfrom fastgate.nowhere import x\n"""\nfrom fastgate._core cimport clock\ncimport cython\n'
        "from libc.stdint cimport (\n    int64_t)\nif True:\n    import httptools\n"
    )

    assert sorted(edge[1:] for edge in python_edges(python, "a")) == [
        (1, "os"),
        (3, "fastgate.errors"),
        (4, "httptools"),
        (4, "json"),
    ]
    assert [edge[1:] for edge in cython_edges(cython, "b")] == [
        (4, "fastgate._core.clock"),
        (5, "cython"),
        (6, "libc.stdint"),
        (9, "httptools"),
    ]


def test_third_parties_live_at_one_address_each() -> None:
    found = []
    for edge in edges():
        top = edge.target.split(".")[0]
        if top in {"fastgate", "__future__", *CYTHON_OWN} or top in sys.stdlib_module_names:
            continue
        homes = ADDRESSES.get(top, ())
        if not any(edge.source == home or edge.source.startswith(f"{home}.") for home in homes):
            found.append(f"fastgate.{edge.source}:{edge.line} imports {top}, which lives in {list(homes)}")

    assert not found, "\n".join(found)


def test_core_needs_nothing_but_libc_cpython_and_itself() -> None:
    found = [
        f"fastgate.{e.source}:{e.line} imports {e.target}"
        for e in edges()
        if room_of(e.source) == "_core"
        and not e.target.startswith("fastgate._core")
        and e.target.split(".")[0] not in {"fastgate", *CYTHON_OWN}
        and e.target.split(".")[0] not in sys.stdlib_module_names
    ]

    assert not found, "\n".join(found)


def test_no_file_is_a_dumping_ground() -> None:
    named = [
        str(path.relative_to(ROOT))
        for folder in ("fastgate", "tests", "benchmarks", "examples")
        for path in (ROOT / folder).rglob("*")
        if BAD_NAMES.match(path.stem) and "__pycache__" not in path.parts
    ]

    assert not named, f"say what they hold: {named}"


IMPORT_ALONE = """
import contextlib, json, os, sys, traceback
given, names = json.load(sys.stdin)
for name in given:
    with contextlib.suppress(ImportError):
        __import__(name)
failed = {}
for name in names:
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.dup2(write, 1)
        os.dup2(write, 2)
        os.close(read)
        try:
            __import__(name)
            sys.stdout.flush()
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            sys.stderr.flush()
            os._exit(1)
    os.close(write)
    with open(read, "rb") as pipe:
        said = pipe.read().decode()
    _, status = os.waitpid(child, 0)
    if status or said:
        failed[name] = said or f"exit status {status}"
json.dump(failed, sys.stdout)
"""


def test_every_module_imports_alone_in_silence() -> None:
    # One interpreter that has imported only what is not of fastgate, forked once per module: as fresh as a
    # new process, in a fraction of the time.
    given = sorted({e.target for e in edges() if e.target.split(".")[0] not in {"fastgate", *CYTHON_OWN}})
    names = sorted(
        {f"fastgate.{module_of(path)}" for path in sources() if path.suffix in {".py", ".pyx"}}
        - {"fastgate.__main__"}
    )
    names = [name.removesuffix(".") for name in names]

    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", IMPORT_ALONE],
        input=json.dumps([given, names]),
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=True,
    )

    failed = json.loads(done.stdout)
    assert not failed, "\n".join(f"--- {name}\n{said}" for name, said in failed.items())


MOST_LINES = 600

#: Modules above MOST_LINES, each with its reason. Five at most: another one is split instead.
LONG: dict[str, str] = {
    "control.keyring": "the one writer of keys and consumers: each change needs both store and directory",
    "proxy.exchange": "the life of a request, readable in one file",
    "proxy.h1_client": "one connection: its parser callbacks, timers and writes share their state",
    "proxy.upstream_request": "the upstream half of a request: attempts, sending and receiving share state",
    "upstream.h1_stream": "one connection, as proxy.h1_client",
}


def test_no_module_is_longer_than_one_can_read() -> None:
    found = {
        module_of(path)
        for path in sources()
        if path.suffix in {".py", ".pyx"} and len(path.read_text().splitlines()) > MOST_LINES
    }

    assert len(LONG) <= 5
    assert not found - set(LONG), f"above {MOST_LINES} lines, split them by purpose: {found - set(LONG)}"
    assert not set(LONG) - found, f"take them off the list: {set(LONG) - found}"


#: Modules outside a feature that import its folder, each with its reason.
FEATURE_USERS: dict[tuple[str, str], str] = {
    ("control.limits", "ratelimit"): "the admin API of limits",
    ("control.policies", "policy"): "the admin API of policies",
}


def test_only_the_registry_imports_features() -> None:
    found = set()
    for edge in edges():
        parts = edge.target.removeprefix("fastgate.").split(".")
        if parts[0] != "features" or len(parts) < 2 or parts[1] == "registry":
            continue
        if edge.source.split(".")[:2] != parts[:2] and edge.source != "features.registry":
            found.add((edge.source, parts[1]))

    assert found == set(FEATURE_USERS)


def test_plan_and_explain_import_no_feature_package() -> None:
    large = {"auth", "caching", "ai", "delivery", "observe"}
    found = [
        f"fastgate.{edge.source}:{edge.line} imports {edge.target}"
        for edge in edges()
        if (edge.source.split(".")[0] == "plan" or edge.source == "cli.explain")
        and edge.target.removeprefix("fastgate.").split(".")[0] in large
    ]

    assert not found, "\n".join(found)


#: Keys of features that `config`, `plan` and `cli.explain` name, each with its reason. Without
#: `config.foreign`: it has what other gateways call things.
NAMED: dict[tuple[str, str], str] = {
    ("config.check", "access"): "os.access",
    ("config.check", "redirect"): "of a listener",
    ("config.load", "respond"): "the smallest route, for a config of which only the admin section is read",
    ("config.server", "redirect"): "of a listener",
    ("plan.freeze", "redirect"): "of a listener",
    ("cli.explain", "redirect"): "of a listener",
    ("cli.explain", "respond"): "RequestContext.respond",
    ("cli.explain", "limits"): "time limits and sizes of the explained route",
}


def test_config_plan_and_explain_know_no_feature_by_name() -> None:
    from fastgate.features.registry import FEATURES

    keys = {
        name
        for feature in FEATURES
        for part in (feature.route, feature.root)
        if part is not None
        for name in part.__struct_fields__
    }
    found = set()
    explain = PACKAGE / "cli" / "explain.py"
    for path in [*(PACKAGE / "config").glob("*.py"), *(PACKAGE / "plan").glob("*.py"), explain]:
        module = module_of(path)
        for node in ast.walk(ast.parse(path.read_text(), str(path))):
            if isinstance(node, ast.Attribute):
                name = node.attr
            elif isinstance(node, ast.Constant):
                name = str(node.value)
            else:
                name = (
                    node.target.id
                    if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)
                    else ""
                )
            if name in keys and module != "config.foreign":
                found.add((module, name))

    assert len(keys) > 20
    assert found == set(NAMED)
