"""Text to plain values: the rules of YAML 1.2, lines, and files made to hurt."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from fastgate.config.source import MAX_FILE_BYTES, Substituted, parse, path_text
from fastgate.settings import ConfigError


def read(text: str, form: str = "yaml", **environ: str) -> Any:
    document, errors = parse(text, form, environ)
    assert document is not None and errors == []
    return document.tree


def refuse(text: str, form: str = "yaml") -> str:
    document, errors = parse(text, form, {})
    assert document is None and len(errors) == 1
    return str(errors[0])


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("off", "off"),
        ("no", "no"),
        ("yes", "yes"),
        ("true", True),
        ("False", False),
        ("null", None),
        ("~", None),
        ("", None),
        ("1:30", "1:30"),
        ("010", 10),
        ("0x1F", 31),
        ("0o17", 15),
        ("-7", -7),
        ("1.5", 1.5),
        ("1e3", 1000.0),
        ("1_000", "1_000"),
        ("2024-01-01", "2024-01-01"),
        ("'12'", "12"),
        ('"true"', "true"),
        ("30s", "30s"),
        ("=", "="),
        ("9" * 400, "9" * 400),
    ],
)
def test_yaml_scalars_follow_version_1_2(text: str, value: object) -> None:
    found = read(f"a: {text}")["a"]

    assert found == value and type(found) is type(value)


def test_yaml_keys_are_text() -> None:
    assert read("{1: a, true: b, ~: c}") == {"1": "a", "true": "b", "~": "c"}


def test_merge_keys_and_anchors_work_and_own_keys_win() -> None:
    text = "base: &base {a: 1, b: 2}\nx: {<<: *base, b: 3}\ny: {<<: [*base, {c: 4}]}"

    tree = read(text)

    assert tree["x"] == {"a": 1, "b": 3}
    assert tree["y"] == {"a": 1, "b": 2, "c": 4}


def test_values_behind_an_alias_are_not_shared() -> None:
    tree = read("a: &a {x: '${V}'}\nb: *a", V="1")

    assert tree["a"] == tree["b"] and tree["a"] is not tree["b"]


@pytest.mark.parametrize(("form", "opening"), [("yaml", ""), ("json", ""), ("toml", "a = ")])
@pytest.mark.parametrize("bracket", ["[", '{"a":'])
def test_deep_nesting_is_refused(form: str, opening: str, bracket: str) -> None:
    document, errors = parse(opening + bracket * 100_000, form, {})

    assert document is None and errors


def test_deep_block_nesting_is_refused() -> None:
    assert "nesting" in refuse("a:\n" + "- " * 5000 + "x")


def test_a_small_file_cannot_grow_through_aliases() -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 10)]

    assert "aliases" in refuse("\n".join(lines))


def test_an_alias_to_itself_is_refused() -> None:
    assert "nesting" in refuse("a: &a [*a]")


def test_a_large_file_is_refused_before_parsing() -> None:
    assert str(MAX_FILE_BYTES) in refuse("#" * (MAX_FILE_BYTES + 1))


@pytest.mark.parametrize("text", ["a: !!python/object:os.system x", "a: !custom {b: c}", "a: !!set {b}"])
def test_tags_are_refused(text: str) -> None:
    document, errors = parse(text, "yaml", {})

    assert document is not None
    assert "the tag" in str(errors[0])


@pytest.mark.parametrize(("text", "value"), [("a: ! {b: 1}", {"b": 1}), ("a: ! [x]", ["x"]), ("a: ! x", "x")])
def test_a_lone_exclamation_mark_is_no_tag(text: str, value: object) -> None:
    assert read(text) == {"a": value}


def test_a_second_document_is_refused() -> None:
    assert "not valid YAML" in refuse("a: 1\n---\nb: 2")


def test_control_characters_are_refused() -> None:
    assert "not valid YAML" in refuse("a: \x07")


@pytest.mark.parametrize("form", ["yaml", "json"])
def test_every_value_knows_its_line(form: str) -> None:
    text = '{"a": 1,\n "b": {"c": [1,\n  2,\n  {"d": 3}]}}'
    document, _ = parse(text, form, {}, "f")
    assert document is not None

    assert document.where(("a",)) == "f:1"
    assert document.where(("b", "c", 1)) == "f:3"
    assert document.where(("b", "c", 2, "d")) == "f:4"
    assert document.where(("b", "nothing")) == "f:2"


def test_a_merged_value_has_the_line_it_was_written_on() -> None:
    document, _ = parse("base: &b\n  a: 1\nx:\n  <<: *b", "yaml", {}, "f")
    assert document is not None

    assert document.where(("x", "a")) == "f:2"


def test_variables_are_put_in_after_parsing() -> None:
    tree = read("a: ${V}", V="1\nb: 2")

    assert tree == {"a": "1\nb: 2"}


def test_a_value_from_the_environment_shows_only_its_template() -> None:
    value = read("a: x-${SECRET}", SECRET="hunter2")["a"]

    assert isinstance(value, Substituted)
    assert value == "x-hunter2" and value.template == "x-${SECRET}"


@pytest.mark.parametrize(
    ("template", "value"),
    [
        ("${A}", "1"),
        ("${A}${B}", "12"),
        ("${C:-d}", "d"),
        ("${EMPTY:-d}", "d"),
        ("${EMPTY}", ""),
        ("${C:-}", ""),
        ("$${A}", "${A}"),
        ("$A", "$A"),
        ("{A}", "{A}"),
        ("${C:-a:-b}", "a:-b"),
    ],
)
def test_the_notation_of_variables(template: str, value: str) -> None:
    assert read(f'a: "{template}"', A="1", B="2", EMPTY="") == {"a": value}


@pytest.mark.parametrize("template", ["${", "${}", "${1}", "${A", "${A-b}", "${A:b}"])
def test_malformed_variables_are_errors(template: str) -> None:
    _, errors = parse(f'a: ["{template}"]', "yaml", {"A": "1"})

    assert [error.path for error in errors] == ["$.a[0]"]


@pytest.mark.parametrize("text", ['{"a": {"\\ud800": "${"}}', '{"a": ["\\udfff"]}', '{"a": {"b": NaN}}'])
def test_json_that_is_no_text_or_number_is_refused(text: str) -> None:
    _, errors = parse(text, "json", {})

    assert len(errors) == 1
    str(errors[0]).encode()


def test_an_environment_that_is_not_utf_8_is_refused() -> None:
    _, errors = parse("a: ${V}", "yaml", {"V": "\udcff"})

    assert [str(error) for error in errors] == ["config:1: $.a: bytes that are not UTF-8 in ${V}"]


def test_paths_are_readable() -> None:
    assert path_text(("routes", 2, "headers", "X-A")) == "$.routes[2].headers.X-A"
    assert path_text(("a", "b c", 'd"')) == '$.a["b c"]["d\\""]'
    assert path_text(()) == "$"


@pytest.mark.parametrize("form", ["yaml", "json", "toml"])
def test_an_empty_file_has_no_settings(form: str) -> None:
    document, errors = parse("{}" if form == "json" else "", form, {})

    assert document is not None and document.tree == {} and errors == []


def test_an_error_is_equal_to_another_with_the_same_words() -> None:
    assert ConfigError("$", "a") == ConfigError("$", "a") != ConfigError("$", "b")


def test_no_file_of_the_examples_is_broken() -> None:
    for path in Path(__file__).parents[2].glob("examples/*.yaml"):
        assert read(path.read_text())["routes"]
