"""What is wrong with `cors`, `security_headers` and `validation` is said with its path."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from fastgate.config import InvalidConfig, load


def errors(tmp_path: Path, root: dict[str, Any] | None = None, **route: Any) -> str:
    """The errors of a config with these settings, as one text; empty when there are none."""
    file = tmp_path / "gateway.json"
    config = {"routes": [{"path": "/a", "respond": "x", **route}], **(root or {})}
    file.write_text(json.dumps(config))
    try:
        load(str(file))
    except InvalidConfig as error:
        return "\n".join(map(str, error.exceptions))
    return ""


@pytest.mark.parametrize(
    "cors",
    [
        "*", "https://a.test", ["https://a.test", "null"],
        {"origins": ["~https://.*\\.test"], "credentials": True},
        {"origins": "*", "methods": "*", "headers": ["X-A"], "expose": "*", "max_age": "2h"},
    ],
)  # fmt: skip
def test_good_cors_is_taken_on_a_route_and_at_the_root(tmp_path: Path, cors: Any) -> None:
    assert errors(tmp_path, cors=cors) == ""
    assert errors(tmp_path, {"cors": cors}) == ""


@pytest.mark.parametrize(
    ("cors", "found"),
    [
        (
            {"origins": "*", "credentials": True},
            ('$.routes[0].cors.origins: "*" with credentials', "on behalf of its"),
        ),
        (["*", "https://a.test"], ("$.routes[0].cors.origins[0]",)),
        (["https://a.test/"], ('"https://a.test/"', "without a path")),
        (["https://a.test", "https://b.test:443"], ("$.routes[0].cors.origins[1]", "default port")),
        (["~("], ("regular expression",)),
        ("https://*.com", ("every site",)),
        ({"origins": "https://a.test", "methods": ["get"]}, ("write GET",)),
        ({"origins": "https://a.test", "headers": ["a b"]}, ("$.routes[0].cors.headers[0]",)),
        ({"origins": "https://a.test", "expose": "*", "credentials": True}, ("Fetch",)),
        ({"origins": "https://a.test", "max_age": "2d"}, ("$.routes[0].cors.max_age",)),
        ({"origins": []}, ("$.routes[0].cors.origins",)),
        ({"origin": "x"}, ("$.routes[0].cors", "origins")),
    ],
)
def test_bad_cors_is_named_with_its_path(tmp_path: Path, cors: Any, found: tuple[str, ...]) -> None:
    text = errors(tmp_path, cors=cors)

    assert all(part in text for part in found), text


def test_cors_cannot_allow_methods_that_its_route_does_not_take(tmp_path: Path) -> None:
    text = errors(tmp_path, methods=["GET"], cors={"origins": "https://a.test", "methods": ["GET", "PUT"]})

    assert "the route accepts only GET" in text


@pytest.mark.parametrize(
    ("settings", "found"),
    [
        ("strikt", "strict"),
        ({"content_security_policy": "default-src 'self'\r\nX: y"}, "content_security_policy"),
        ({"referrer_policy": "none"}, "no-referrer"),
        ({"remove": ["Content-Length"]}, "security_headers.remove[0]"),
        ({"hsts": {"preload": True}}, "hstspreload.org"),
        ({"hsts": "20y"}, "hsts"),
    ],
)
def test_bad_security_headers_are_named_with_their_path(tmp_path: Path, settings: Any, found: str) -> None:
    for text in (
        errors(tmp_path, security_headers=settings),
        errors(tmp_path, {"security_headers": settings}),
    ):
        assert "security_headers" in text
        assert found in text


@pytest.mark.parametrize(
    "settings", ["api", {"hsts": "365d"}, {"preset": "strict", "permissions_policy": ""}]
)
def test_good_security_headers_are_taken(tmp_path: Path, settings: Any) -> None:
    assert errors(tmp_path, security_headers=settings) == ""


@pytest.mark.parametrize(
    ("settings", "found"),
    [
        ({"content_types": ["json"]}, "validation.content_types"),
        ({"content_types": ["*/*/*"]}, "media type"),
        ({"schema": {"type": "strin"}}, "$.routes[0].validation.schema"),
        ({"schema": {"$ref": "https://schemas.test/a"}}, "$.routes[0].validation.schema"),
        ({"schema_file": "/nowhere/schema.json"}, "a file that can be read"),
        ({"schema": {}, "schema_file": "x"}, "one of them"),
        ({"json": {"max_depth": 0}}, "max_depth"),
        ({"json": {"duplicate_keys": "ok"}}, "allowed"),
        ({"max_body": 100}, "add the unit"),
    ],
)
def test_bad_validation_is_named_with_its_path(tmp_path: Path, settings: Any, found: str) -> None:
    assert found in errors(tmp_path, validation=settings)


@pytest.mark.parametrize(
    "settings",
    [{}, {"json": True}, {"json": {"max_depth": 5}}, {"schema": {"type": "object"}, "required": True}],
)
def test_good_validation_is_taken(tmp_path: Path, settings: Any) -> None:
    assert errors(tmp_path, validation=settings) == ""
