"""A plugin class that cannot work is refused when the config is loaded, with what is wrong and where."""

from __future__ import annotations

import functools
import logging
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fastgate.config import check
from fastgate.plugin import CONTINUE, FOREIGN, PHASES, Plugin, Settings, class_problems
from tests.client import get
from tests.gateway import Gateway
from tests.server.gateway_harness import until


def plugin_class(**members: Any) -> type[Plugin]:
    return type("Made", (Plugin,), members)


def sync(self: Any, ctx: Any) -> int:
    return CONTINUE


async def waiting(self: Any, ctx: Any) -> int:
    return CONTINUE


def editing(self: Any, ctx: Any, head: Any) -> None:
    """Edits nothing."""


def walking(self: Any, ctx: Any) -> Any:
    yield CONTINUE


@pytest.mark.parametrize(
    ("members", "said"),
    [
        ({"decide": waiting}, "decide must not be async"),
        ({"log": waiting}, "log must not be async"),
        ({"request": sync}, "request must be `async def`"),
        ({"start": lambda self: None}, "start must be `async def`"),
        ({"close": lambda self: None}, "close must be `async def`"),
        ({"decide": walking}, "decide must not `yield`"),
        ({"decide": editing}, "decide must take (self, ctx), not (self, ctx, head)"),
        ({"response": sync}, "response must take (self, ctx, head)"),
        ({"response_chunk": editing}, "response_chunk must take (self, ctx, chunk, last)"),
        ({"decide": lambda self, *, ctx: 0}, "decide must take (self, ctx)"),
        ({"decide": staticmethod(sync)}, "decide must be a plain method, not a staticmethod"),
        ({"decide": classmethod(sync)}, "decide must be a plain method, not a classmethod"),
        ({"log": logging.getLogger()}, "log is a phase and must be a method, not a RootLogger"),
        ({"request": None}, "request is a phase and must be a method, not a NoneType"),
        ({"build": editing, "decide": sync}, "build must be a class method"),
        ({"build": classmethod(waiting), "decide": sync}, "build must not be async"),
        ({"build": classmethod(sync), "decide": sync}, "build must take (cls, config, env)"),
        ({"__init__": sync, "decide": sync}, "__init__ takes arguments"),
        ({"Config": dict, "decide": sync}, "Config must be a subclass of fastgate.plugin.Settings"),
        ({"config": Settings, "decide": sync}, "call the class of the settings Config"),
        ({"on_request": sync}, "on_request is never called: did you mean decide?"),
        ({"on_request": waiting}, "on_request is never called: did you mean request?"),
        ({"decide": sync, "on_response": editing}, "on_response is never called: did you mean response?"),
        ({"decide": sync, "handle_log": sync}, "did you mean log?"),
        ({"decide": sync, "upstream_reponse": editing}, "did you mean upstream_response?"),
        ({"decide": sync, "upstreamRequest": editing}, "did you mean upstream_request?"),
        ({"Decide": sync}, "did you mean decide?"),
        ({"access": sync}, "access is never called: did you mean decide?"),
        ({"header_filter": editing}, "did you mean response?"),
        ({"guard": sync}, "the class has guard, but none of the phases decide, request,"),
    ],
)
def test_a_class_that_cannot_work_is_refused(members: dict[str, Any], said: str) -> None:
    problems = list(class_problems(plugin_class(**members)))

    assert any(said in problem for problem in problems), problems


def decorated(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def around(*arguments: Any, **named: Any) -> Any:
        return function(*arguments, **named)

    return around


@pytest.mark.parametrize(
    "members",
    [
        {},
        {"decide": sync, "request": waiting, "response": editing},
        {"decide": lambda self, request: 0},  # the arguments' names are the author's
        {"decide": lambda self, ctx, limit=3: 0},
        {"decide": lambda *arguments: 0},
        {"decide": decorated(sync), "request": decorated(waiting)},
        {"decide": sync, "access": sync, "check": sync, "logs": sync, "restart": sync, "_on_request": sync},
        {"decide": sync, "closed": property(lambda self: True), "handle": 7},
    ],
)
def test_a_class_that_works_is_taken(members: dict[str, Any]) -> None:
    assert list(class_problems(plugin_class(**members))) == []


def test_a_derived_class_is_judged_with_what_it_inherits() -> None:
    parent = plugin_class(decide=waiting)

    assert list(class_problems(type("Child", (parent,), {})))
    assert not list(class_problems(type("Child", (parent,), {"decide": sync})))


def test_the_table_of_phases_is_the_interface() -> None:
    assert {*PHASES, "build"} == {
        name for name, value in vars(Plugin).items() if callable(value) or name == "build" if name[0] != "_"
    }
    assert not set(FOREIGN) & set(PHASES)
    assert set(FOREIGN.values()) <= {*PHASES, "build"}


ROUTE = """
routes:
  - path: /orders
    respond: ok
    plugins: ["{name}"]
"""


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("class Wrong(Plugin):\n    async def decide(self, ctx): ...", "decide must not be async"),
        ("class Wrong(Plugin):\n    def on_request(self, ctx): ...", "did you mean decide?"),
        ("Wrong = Plugin()", "is an instance; name its class"),
        ("class Wrong: ...", "is not a subclass of fastgate.plugin.Plugin"),
        ("class Wrong(Plugin)", "SyntaxError: expected ':' at wrong_"),
        ("import not_installed", "No module named 'not_installed' at wrong_"),
        ("1 / 0", "ZeroDivisionError: division by zero at wrong_"),
        ("raise SystemExit", "SystemExit"),
        ("other = 1", "has no 'Wrong'"),
    ],
)
def test_the_error_names_plugin_route_and_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str, said: str
) -> None:
    module = f"wrong_{abs(hash(code))}"
    (tmp_path / f"{module}.py").write_text(f"from fastgate.plugin import Plugin\n{code}\n")
    monkeypatch.syspath_prepend(str(tmp_path))

    config, errors = check(ROUTE.format(name=f"{module}:Wrong"), "yaml", {}, name="gateway.yaml")

    assert config is None
    (error,) = errors
    assert (error.path, error.where) == ("$.routes[0].plugins[0]", "gateway.yaml:5")
    assert said in str(error)
    assert f"{module}:Wrong" in str(error)


def test_a_class_is_told_all_that_is_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "many_wrongs.py").write_text(
        textwrap.dedent("""
            from fastgate.plugin import Plugin

            class Wrong(Plugin):
                async def decide(self, ctx): ...
                def response(self, ctx): ...
        """)
    )
    monkeypatch.syspath_prepend(str(tmp_path))

    _, errors = check(ROUTE.format(name="many_wrongs:Wrong"), "yaml", {})

    assert [str(error) for error in errors] == [
        "config:5: $.routes[0].plugins[0]: plugin many_wrongs:Wrong: decide must not be async: it is not "
        "awaited; decide synchronously in decide, and return SUSPEND to have `request` awaited",
        "config:5: $.routes[0].plugins[0]: plugin many_wrongs:Wrong: response must take (self, ctx, head), "
        "not (self, ctx)",
    ]


def test_check_finds_plugins_beside_the_config_with_dev(tmp_path: Path) -> None:
    (tmp_path / "beside_config.py").write_text(
        "from fastgate.plugin import Plugin\nclass Mine(Plugin):\n    def log(self, ctx): ...\n"
    )
    (tmp_path / "gateway.yaml").write_text(ROUTE.format(name="beside_config:Mine"))

    def run(*options: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "fastgate", "check", str(tmp_path / "gateway.yaml"), *options]
        return subprocess.run(command, capture_output=True, text=True, timeout=120)

    assert "fastgate run --dev" in run().stderr
    assert run("--dev").returncode == 0


CODE = """
from fastgate.plugin import Plugin
from own_words import WORD

class Greeter(Plugin):
    def decide(self, ctx):
        ctx.add_response_header("X-Greeting", WORD + "{tail}")
"""


def test_dev_takes_up_plugin_code_and_searches_the_folder_of_the_config() -> None:
    config = {"routes": [{"path": "/", "respond": "ok", "plugins": ["own_plugin:Greeter"]}]}
    gateway = Gateway(config, arguments=["--dev"], allow=".", workers=2)
    folder = gateway.path.parent
    (folder / "own_words.py").write_text("WORD = 'hi'\n")
    (folder / "own_plugin.py").write_text(CODE.format(tail=""))

    def greets() -> bytes | None:
        return get(gateway.port, "/").get("x-greeting")

    with gateway:
        assert greets() == b"hi"

        (folder / "own_plugin.py").write_text(CODE.format(tail="!"))
        until(lambda: greets() == b"hi!", "the changed plugin")

        (folder / "own_words.py").write_text("WORD = 'ho'\n")  # as long as before
        until(lambda: greets() == b"ho!", "the changed module that it imports")

        (folder / "own_plugin.py").write_text("class Greeter(Plugin)")
        until(lambda: "SyntaxError" in gateway.stderr_text, "the refusal")
        assert greets() == b"ho!"

        (folder / "own_plugin.py").write_text(CODE.format(tail="?"))
        until(lambda: greets() == b"ho?", "the mended plugin")
