"""A State document over a config file: what it changes, what stays, and where errors are said to be."""

from __future__ import annotations

import json
from typing import Any

import pytest

from fastgate.config import Config, ConfigError, check

FILE = """
upstreams:
  api:
    targets: [http://127.0.0.1:1, {url: http://127.0.0.1:2, weight: 3}]
  single: {targets: http://127.0.0.1:3}
routes:
  - path: /orders/*
    upstream: api
  - name: users
    path: /users/*
    upstream: api
    timeouts: {connect: 1s}
  - path: /fixed
    respond: hello
"""


def merged(state: Any, text: str = FILE, form: str = "yaml") -> tuple[Config | None, list[ConfigError]]:
    return check(text, form, {}, name="fastgate.yaml", state=("state version 7", json.dumps(state)))


def good(state: Any, text: str = FILE) -> Config:
    config, errors = merged(state, text)
    assert config is not None, errors
    return config


def names(config: Config) -> list[str]:
    return [route.name for route in config.each_route()]


def test_an_empty_document_changes_nothing() -> None:
    plain, _ = check(FILE, "yaml", {}, name="fastgate.yaml")

    assert good({}) == plain
    assert good({"routes": [], "upstreams": {}}) == plain


def test_a_route_is_disabled_by_its_name_and_the_others_stay_as_they_are() -> None:
    plain, _ = check(FILE, "yaml", {}, name="fastgate.yaml")
    assert plain is not None

    config = good({"routes": [{"name": "users", "enabled": False}]})

    assert [route.enabled for route in config.each_route()] == [True, False, True]
    assert list(config.each_route())[1].timeouts is not None
    assert [config.routes[0], config.routes[2]] == [plain.routes[0], plain.routes[2]]


def test_a_route_without_a_name_in_the_file_goes_by_the_one_it_is_given() -> None:
    config = good({"routes": [{"name": "/orders/*", "path": "/other/*"}]})

    route = next(config.each_route())
    assert (route.name, route.path, route.upstream) == ("/orders/*", ("/other/*",), "api")


def test_routes_and_upstreams_are_added() -> None:
    config = good(
        {
            "upstreams": {"new": {"targets": "http://127.0.0.1:9"}},
            "routes": [{"name": "b", "path": "/b", "upstream": "new"}, {"name": "a", "respond": "x"}],
        }
    )

    assert names(config) == ["/orders/*", "users", "/fixed", "b", "a"]
    assert config.upstreams["new"].targets[0].url == "http://127.0.0.1:9"


def test_targets_are_merged_by_url() -> None:
    config = good(
        {
            "upstreams": {
                "api": {"targets": [{"url": "http://127.0.0.1:1", "weight": 0}, "http://127.0.0.1:5"]},
                "single": {"targets": {"url": "http://127.0.0.1:4"}},
            }
        }
    )

    told = {
        name: [(target.url[-1], target.weight) for target in upstream.targets]
        for name, upstream in config.upstreams.items()
    }
    assert told == {"api": [("1", 0), ("2", 3), ("5", 1)], "single": [("3", 1), ("4", 1)]}


def test_null_removes_and_an_object_is_merged() -> None:
    config = good({"routes": [{"name": "users", "timeouts": {"connect": None, "total": "9s"}}]})

    timeouts = list(config.each_route())[1].timeouts
    assert timeouts is not None
    assert (timeouts.connect_ns, timeouts.total_ns) == (None, 9_000_000_000)


def test_a_shorthand_of_the_file_is_merged_as_what_it_stands_for() -> None:
    config = good({"routes": [{"name": "/fixed", "respond": {"status": 418}}]})

    respond = list(config.each_route())[2].respond
    assert (respond.status, respond.body) == (418, "hello")


def test_the_parts_that_an_alias_shares_are_changed_in_one_place_only() -> None:
    text = """
routes:
  - {name: a, path: /a, respond: &same {status: 200, body: x}}
  - {name: b, path: /b, respond: *same}
"""
    config = good({"routes": [{"name": "a", "respond": {"status": 201}}]}, text)

    assert [route.respond.status for route in config.each_route()] == [201, 200]


@pytest.mark.parametrize(
    ("state", "path", "problem", "where"),
    [
        ({"workers": 4}, "$.workers", "a section that State cannot change", "state version 7"),
        ({"routes": {"a": 1}}, "$.routes", "expected a list of objects with a name", "state version 7"),
        ({"routes": [{"path": "/a"}]}, "$.routes[0].name", "missing key, expected a name", "state version 7"),
        (
            {"routes": [{"name": "a", "respond": "x"}, {"name": "a", "respond": "y"}]},
            "$.routes[1].name",
            "expected a name of its own",
            "state version 7",
        ),
        (
            {"upstreams": {"api": {"targets": [{"weight": 1}]}}},
            "$.upstreams.api.targets[0].url",
            "missing key, expected a url",
            "state version 7",
        ),
        (
            {"routes": [{"name": "new", "path": "/n", "upstream": "nowhere"}]},
            "$.routes[3].upstream",
            '"nowhere"',
            "state version 7 $.routes[0].upstream",
        ),
        (
            {"routes": [{"name": "x", "respond": "x"}, {"name": "users", "timeouts": {"conect": "1s"}}]},
            "$.routes[1].timeouts.conect",
            "unknown key",
            "state version 7 $.routes[1].timeouts.conect",
        ),
        (
            {"upstreams": {"api": {"targets": [{"url": "http://127.0.0.1:2", "weight": -1}]}}},
            "$.upstreams.api.targets[1].weight",
            "expected",
            "state version 7 $.upstreams.api.targets[0].weight",
        ),
        ({"upstreams": {"api": None}}, "$.routes[0].upstream", '"api"', "fastgate.yaml:8"),
        ({"upstreams": 5}, "$.upstreams", "expected", "state version 7 $.upstreams"),
        ({"routes": None}, "$.routes", "missing key", "state version 7 $.routes"),
    ],
)
def test_an_error_has_the_path_of_the_merged_config_and_its_place_in_the_document(
    state: Any, path: str, problem: str, where: str
) -> None:
    config, errors = merged(state)

    assert config is None
    assert path in [error.path for error in errors], errors
    error = next(error for error in errors if error.path == path)
    assert problem in str(error)
    assert error.where == where


def test_text_that_is_no_json_is_an_error_of_the_document() -> None:
    config, errors = check(FILE, "yaml", {}, state=("state version 7", "{"))
    assert config is None and "not valid JSON" in str(errors[0])
    assert errors[0].where.startswith("state version 7")


def test_a_file_that_is_bad_is_told_of_without_the_document() -> None:
    config, errors = merged({"workers": 5}, "routes: [{path: nope, respond: x}]")

    assert config is None
    assert {error.where for error in errors} == {"fastgate.yaml:1"}


@pytest.mark.parametrize("text", ["${SECRET}", "a ${SECRET:-default}", "${", "$${a} ${SECRET}"])
def test_a_document_cannot_read_the_environment(text: str) -> None:
    document = {
        "routes": [{"name": "users", "enabled": False}, {"name": "/fixed", "respond": {"body": text}}]
    }
    state = ("state version 7", json.dumps(document))

    config, errors = check(FILE, "yaml", {"SECRET": "hidden"}, name="fastgate.yaml", state=state)

    assert config is None
    expected = f"$.routes[1].respond.body: expected text without ${{…}}, got {json.dumps(text)}"
    hint = "this document cannot read the environment of the gateway; write $${ for a literal ${"
    assert [str(error) for error in errors] == [f"state version 7: {expected} ({hint})"]


def test_a_document_writes_a_literal_as_the_file_does_and_leaves_the_variables_of_the_file() -> None:
    document = {"routes": [{"name": "/fixed", "respond": {"body": "$${SECRET}"}}]}
    text = FILE.replace("users/*", "${SECRET}")
    state = ("state version 7", json.dumps(document))

    config, errors = check(text, "yaml", {"SECRET": "hidden"}, name="fastgate.yaml", state=state)

    assert config is not None, errors
    routes = list(config.each_route())
    assert routes[1].path == ("/hidden",)
    assert routes[2].respond is not None
    assert routes[2].respond.body == "${SECRET}"


@pytest.mark.parametrize("levels", [65, 900])
@pytest.mark.parametrize("form", ["list", "object"])
def test_a_document_that_is_nested_too_deeply_is_refused(levels: int, form: str) -> None:
    value: Any = 1
    for _ in range(levels):
        value = [value] if form == "list" else {"a": value}

    config, errors = merged({"routes": value})

    assert config is None
    assert ["at most 64 levels" in str(error) for error in errors] == [True]


def test_a_file_that_is_nested_too_deeply_is_refused() -> None:
    config, errors = check('{"routes": ' + "[" * 900 + "]" * 900 + "}", "json", {})

    assert config is None
    assert ["at most 64 levels" in str(error) for error in errors] == [True]
