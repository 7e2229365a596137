"""The manual and the JSON Schema say what the reader does."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from fastgate.cli.docs import config_manual, plugin_reference
from fastgate.config.schema import json_schema, keys, sections
from fastgate.config.source import parse
from fastgate.settings import Duration, Settings

ROOT = Path(__file__).parents[2]


def accepts(schema: dict[str, Any], value: Any, root: dict[str, Any]) -> bool:
    """A small validator of the part of JSON Schema that ours uses; an unknown word is an error."""
    known = {"description", "default", "title", "$schema", "$defs"}
    for word, wanted in schema.items():
        match word:
            case "$ref":
                good = accepts(root["$defs"][wanted.rpartition("/")[2]], value, root)
            case "anyOf":
                good = any(accepts(option, value, root) for option in wanted)
            case "type":
                kinds = {
                    "object": dict,
                    "array": list,
                    "string": str,
                    "integer": int,
                    "number": (int, float),
                    "boolean": bool,
                    "null": type(None),
                }
                names = [wanted] if isinstance(wanted, str) else wanted
                if isinstance(value, bool):
                    good = "boolean" in names
                else:
                    good = any(isinstance(value, kinds[name]) for name in names)
            case "enum":
                good = value in wanted
            case "const":
                good = value == wanted and not isinstance(value, bool)
            case "pattern":
                good = not isinstance(value, str) or re.search(wanted, value) is not None
            case "minLength":
                good = not isinstance(value, str) or len(value) >= wanted
            case "minimum":
                good = value >= wanted
            case "maximum":
                good = value <= wanted
            case "minItems":
                good = not isinstance(value, list) or len(value) >= wanted
            case "minProperties":
                good = not isinstance(value, dict) or len(value) >= wanted
            case "maxProperties":
                good = not isinstance(value, dict) or len(value) <= wanted
            case "required":
                good = not isinstance(value, dict) or all(key in value for key in wanted)
            case "properties":
                good = not isinstance(value, dict) or all(
                    accepts(below, value[key], root) for key, below in wanted.items() if key in value
                )
            case "additionalProperties":
                others = (
                    [key for key in value if key not in schema.get("properties", {})]
                    if isinstance(value, dict)
                    else []
                )
                good = (
                    not others
                    if wanted is False
                    else all(accepts(wanted, value[key], root) for key in others)
                )
            case "items":
                good = not isinstance(value, list) or all(accepts(wanted, item, root) for item in value)
            case _:
                assert word in known, f"the test does not know {word}"
                good = True
        if not good:
            return False
    return True


def test_the_manual_in_the_tree_is_the_generated_one() -> None:
    assert (ROOT / "docs" / "config.md").read_text() == config_manual(), "run: make docs"
    assert (ROOT / "docs" / "plugin-reference.md").read_text() == plugin_reference(), "run: make docs"


def test_every_key_is_explained() -> None:
    for cls in sections():
        assert cls.__doc__, cls
        for key in keys(cls):
            assert len(key.description) > 15, f"{cls.__name__}.{key.name}"


def test_links_of_the_manual_lead_somewhere() -> None:
    text = config_manual()
    headings = {
        line.lstrip("# ").lower().replace(" ", "-") for line in text.splitlines() if line.startswith("#")
    }

    assert set(re.findall(r"\]\(#([^)]+)\)", text)) <= headings


def test_the_manual_shows_defaults_as_the_file_has_them() -> None:
    text = config_manual()

    assert "| `idle_timeout` | duration, at least 1ms | `75s` |" in text
    assert "| `max_header` | size, 1KB to 16MB | `32KB` |" in text
    assert "| `workers` | `auto` or whole number, 0 to 1 024 | `auto` |" in text
    assert "| `routes` | list of [route](#route) | required |" in text


@pytest.mark.parametrize(
    "text",
    [
        "routes: [{path: /, respond: x}]",
        "routes: [{path: [/, /a], host: a.test, upstream: a, timeouts: {total: 5s}, max_body: 0}]",
        "listen: [':80', {address: ':443', tls: {certificates: {certificate: a, key: b}}}]\n"
        "routes: [{redirect: /}]",
        "workers: ${W}\nserver: {idle_timeout: '${T:-5s}'}\nroutes: [{respond: {json: [1, {}]}}]",
        "workers: auto\nplugins: [a, {b: {c: 1}}, {use: 'd:e', f: 1}]\nroutes: [{path: /, respond: x}]",
        "upstreams: {a: {targets: [http://a, {url: http://b, weight: 2}]}}\nroutes: [{path: /, upstream: a}]",
    ],
)
def test_the_schema_accepts_good_configs(text: str) -> None:
    document, _ = parse(text, "yaml", {"W": "${W}"})
    schema = json_schema()
    assert document is not None

    assert accepts(schema, document.tree, schema)


@pytest.mark.parametrize(
    "text",
    [
        "{}",
        "routes: []",
        "lisen: x\nroutes: [{path: /, respond: x}]",
        "routes: [{path: /, respnd: x}]",
        "routes: [{path: /, respond: {status: 20}}]",
        "server: {idle_timeout: 5}\nroutes: [{path: /, respond: x}]",
        "server: {max_header: 32k}\nroutes: [{path: /, respond: x}]",
        "routes: [{path: /, redirect: {to: /, status: 200}}]",
        "plugins: [{a: 1, b: 2}]\nroutes: [{path: /, respond: x}]",
        "access_log: {format: xml}\nroutes: [{path: /, respond: x}]",
    ],
)
def test_the_schema_refuses_bad_configs(text: str) -> None:
    document, _ = parse(text, "yaml", {})
    schema = json_schema()
    assert document is not None

    assert not accepts(schema, document.tree, schema)


def test_settings_of_installed_plugins_join_the_schema() -> None:
    class Greeting(Settings, frozen=True, kw_only=True):
        """Greets."""

        every_ns: Duration
        text: str = "hello"

    schema = json_schema({"greet": Greeting, "bare": None})
    uses = schema["$defs"]["PluginUse"]

    for good in (
        "greet",
        "other",
        {"greet": {"every": "5s"}},
        {"bare": {}},
        {"other": {"a": 1}},
        {"use": "a:B", "c": 1},
    ):
        assert accepts(uses, good, schema), good
    for bad in (
        {"greet": {"every": 5}},
        {"greet": {}},
        {"greet": {"every": "5s", "txt": "x"}},
        {"bare": {"a": 1}},
        7,
    ):
        assert not accepts(uses, bad, schema), bad


def test_the_examples_fit_the_schema() -> None:
    schema = json_schema()
    for path in [*ROOT.glob("examples/*.yaml"), *ROOT.glob("fastgate/*.yaml")]:
        document, errors = parse(path.read_text(), "yaml", {})
        assert document is not None and not errors
        assert accepts(schema, document.tree, schema), path
