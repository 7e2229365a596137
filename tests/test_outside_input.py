"""What comes from outside: no pattern that a final line feed passes, no traceback for odd numbers."""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path
from typing import Any

import pytest
from starlette.datastructures import Headers

from fastgate.config import check
from fastgate.control.guard import refusal_of
from fastgate.settings import parse_duration, parse_size

ROOT = Path(__file__).parents[1]
LONG = "9" * 5000  # Python converts at most 4 300 digits


def patterns(tree: ast.AST) -> list[tuple[int, str]]:
    """Every constant that is compiled or matched as a regular expression, or declared as a pattern."""
    found = []
    for node in ast.walk(tree):
        texts: list[ast.expr] = []
        if isinstance(node, ast.Call):
            name = node.func.attr if isinstance(node.func, ast.Attribute) else ""
            if (
                name in {"compile", "match", "search", "fullmatch", "sub", "finditer", "findall"}
                and node.args
            ):
                texts.append(node.args[0])
            texts += [keyword.value for keyword in node.keywords if keyword.arg == "pattern"]
        elif isinstance(node, ast.Assign | ast.AnnAssign) and node.value is not None:
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            if any(isinstance(target, ast.Name) and "PATTERN" in target.id for target in targets):
                texts.append(node.value)
        for text in texts:
            parts = text.values if isinstance(text, ast.JoinedStr) else [text]
            for part in parts:
                if isinstance(part, ast.Constant) and isinstance(part.value, str | bytes):
                    value = part.value.decode("latin-1") if isinstance(part.value, bytes) else part.value
                    found.append((part.lineno, value))
    return found


def loose(pattern: str) -> bool:
    """True when it has a $ that also matches before a final line feed."""
    strict = pattern.replace(r"$(?!\n)", "")
    return "$" in re.sub(r"\\.|\[\^?\]?(?:\\.|[^\]\\])*\]", "", strict)


def test_the_search_for_loose_patterns_finds_them() -> None:
    assert loose(r"^[a-z]+$")
    assert loose(r"(?:^|,)x(?:$|,)")
    assert not loose(r"^[a-z]+$(?!\n)")
    assert not loose(r"\$\{[$a-z]+\}\Z")


def test_no_pattern_ends_in_a_bare_dollar() -> None:
    """`$` matches before a final line feed, which then stands in a header, a log line or a name. `\\Z` and
    fullmatch do not; in a Struct, whose pattern goes into the JSON Schema too, `$(?!\\n)` does not.
    """
    wrong = []
    for file in sorted((ROOT / "fastgate").rglob("*.py")):
        for line, pattern in patterns(ast.parse(file.read_text())):
            if loose(pattern):
                wrong.append(f"{file.relative_to(ROOT)}:{line}: {pattern}")
    assert not wrong, "\n".join(wrong)


def config(**root: Any) -> str:
    return json.dumps(
        {"routes": [{"name": "r", "path": "/*", "respond": "ok", **root.pop("route", {})}], **root}
    )


@pytest.mark.parametrize(
    ("root", "path"),
    [
        ({"route": {"name": "r\n"}}, "$.routes[0].name"),
        ({"route": {"limits": {"per_minute": 1, "name": "x\n"}}}, "$.routes[0].limits.name"),
        (
            {"route": {"limits": {"rules": [{"per_minute": 1, "name": "x\n"}]}}},
            "$.routes[0].limits.rules[0].name",
        ),
        ({"policies": [{"name": "p\n", "when": "true", "action": "deny"}]}, "$.policies[0].name"),
        ({"consumers": {"a\n": {}}}, '$.consumers["a\\n"]'),
        ({"tiers": {"t\n": {"per_minute": 1}}}, '$.tiers["t\\n"]'),
        ({"route": {"cache": {"key": {"cookies": ["c\n"]}}}}, "$.routes[0].cache.key.cookies[0]"),
        ({"route": {"cache": {"purge_header": "X\n"}}}, "$.routes[0].cache.purge_header"),
    ],
)
def test_a_final_line_feed_is_refused(root: dict[str, Any], path: str) -> None:
    checked, errors = check(config(**root), "json")

    assert checked is None
    assert path in {error.path for error in errors}


@pytest.mark.parametrize(
    ("text", "form", "path"),
    [
        (f'{{"workers": {LONG}}}', "json", "$.workers"),
        (f'{{"consumers": {{"a": {{"metadata": {{"x": {LONG}}}}}}}}}', "json", "$.consumers.a.metadata.x"),
        (
            '{"consumers": {"a": {"metadata": {"x": [18446744073709551616]}}}}',
            "json",
            "$.consumers.a.metadata.x[0]",
        ),
        ('{"consumers": {"a": {"metadata": {"x": 1e999}}}}', "json", "$.consumers.a.metadata.x"),
        (f"workers: {LONG}", "yaml", "$.workers"),
        (f"workers: 0x{'f' * 5000}", "yaml", "$.workers"),
        (f"workers = {LONG}", "toml", "$"),
        ("[consumers.a.metadata]\nx = nan", "toml", "$.consumers.a.metadata.x"),
        (f'{{"listen": "127.0.0.1:{LONG}"}}', "json", "$.listen[0]"),
        (f'{{"cache_store": {{"redis": {{"url": "redis://a:{LONG}"}}}}}}', "json", "$.cache_store.redis.url"),
        ('{"cache_store": {"redis": {"url": "redis://["}}}', "json", "$.cache_store.redis.url"),
        (f'{{"cache_store": {{"redis": {{"url": "redis://a/{LONG}"}}}}}}', "json", "$.cache_store.redis.url"),
        ('{"auth": {"forward": {"url": "http://["}}}', "json", "$.auth.forward.url"),
        (
            '{"routes": [{"path": "/*", "upstream": "http://a", "rewrite": {"regex": "^/(a)", "to": "/\\\\g<²>"}}]}',  # noqa: E501
            "json",
            "$.routes[0].rewrite.to",
        ),
    ],
)
def test_odd_numbers_and_addresses_are_errors_with_their_path(text: str, form: str, path: str) -> None:
    checked, errors = check(text, form)

    assert checked is None
    found = {error.path: str(error) for error in errors}
    assert path in found, found
    assert "Exceeds the limit" not in found[path]
    assert "Invalid IPv6" not in found[path]


def test_not_a_number_from_the_environment_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    text = config(route={"limits": {"cost_per_hour": "${COST}"}})

    assert check(text, "json", environ={"COST": "7.5"})[0] is not None
    for odd in ("nan", "inf", "-inf", "1e999"):
        assert check(text, "json", environ={"COST": odd})[0] is None


@pytest.mark.parametrize("parse", [parse_duration, parse_size])
def test_long_durations_and_sizes_say_what_was_expected(parse: Any) -> None:
    for text in (LONG + "s", LONG + "B", "1s\n", "1B\n", "²s"):
        with pytest.raises(ValueError, match="such as"):
            parse(text)


def test_an_origin_that_is_no_address_is_another_web_page() -> None:
    headers = Headers({"host": "localhost", "origin": "http://["})

    assert refusal_of("/api/keys", headers, None, frozenset({"localhost"})) == (
        403,
        "Requests from other web pages are refused",
    )
