"""Templates, rewrites and header edits, as `explain` shows them on the bytes that would go upstream."""

from __future__ import annotations

import re
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastgate._core.http.edits import Rewrite, Template
from fastgate.cli.explain import Explanation, explain_request
from fastgate.config import check


def explained(route: dict[str, Any], url: str, *fields: tuple[str, str]) -> Explanation:
    """What becomes of a GET on a config of one route."""
    config = {"routes": [{"name": "one", "upstream": "http://origin.test", **route}]}
    loaded, errors = check(msgspec.json.encode(config).decode(), "json", {})
    assert loaded is not None, errors
    return explain_request(loaded, "GET", url, fields)


def sent_target(route: dict[str, Any], url: str) -> str:
    return explained(route, url).head.split()[1]


def sent_fields(
    edits: dict[str, Any], *fields: tuple[str, str], path: str = "/a/{b}"
) -> list[tuple[str, str]]:
    head = explained({"path": path, "request_headers": edits}, "http://shop.test/a/7?q=1", *fields).head
    lines = [line for line in head.replace("\r", "").split("\n")[1:] if line]
    pairs = [(name, value.strip()) for name, _, value in (line.partition(":") for line in lines)]
    gateways = ("host", "x-forwarded-", "forwarded", "via", "x-request-id")
    return [pair for pair in pairs if not pair[0].lower().startswith(gateways)]


@pytest.mark.parametrize(
    ("rewrite", "path", "url", "expected"),
    [
        ({"strip_prefix": "/api"}, "/{rest...}", "/api/a?q=1", "/a?q=1"),
        ({"strip_prefix": "/api"}, "/{rest...}", "/api", "/"),
        ({"strip_prefix": "/api"}, "/{rest...}", "/api/", "/"),
        ({"strip_prefix": "/api/"}, "/{rest...}", "/api/a", "/a"),
        ({"strip_prefix": "/api"}, "/{rest...}", "/apis/a", "/apis/a"),
        ({"strip_prefix": "/api"}, "/{rest...}", "/API/a", "/API/a"),
        ({"replace_prefix": {"from": "/v1", "to": "/v2/x"}}, "/{rest...}", "/v1/a", "/v2/x/a"),
        ({"replace_prefix": {"from": "/v1", "to": "/"}}, "/{rest...}", "/v1/a", "/a"),
        ({"path": "/fixed"}, "/{rest...}", "/a/b?q", "/fixed?q"),
        ({"path": "/items/{id}/of/{user}"}, "/u/{user}/{id}", "/u/ann/5", "/items/5/of/ann"),
        ({"path": "/x/{rest}"}, "/a/{rest...}", "/a/b/c", "/x/b/c"),
        ({"path": "/x/{id}"}, "/a/{id}", "/a/%2e%2e%2fb", "/x/..%2Fb"),
        ({"path": "/{method}/{host}"}, "/a", "http://shop.test:81/a", "/GET/shop.test:81"),
        ({"regex": "^/old/(.*)$", "to": r"/new/\1"}, "/{rest...}", "/old/a/b", "/new/a/b"),
        ({"regex": "o", "to": "0"}, "/{rest...}", "/foo", "/f0o"),
        ({"regex": "^/old", "to": ""}, "/{rest...}", "/old", "/"),
    ],
)
def test_rewrites(rewrite: dict[str, Any], path: str, url: str, expected: str) -> None:
    route = {"path": path, "rewrite": rewrite, "allow_encoded_slashes": True}
    assert sent_target(route, url) == expected


segments = st.lists(st.sampled_from(["a", "b", "api", "apis", "%41", ""]), max_size=4)


@given(segments)
def test_a_stripped_prefix_is_whole_segments_or_nothing(parts: list[str]) -> None:
    path = "/" + "/".join(parts)
    plain = re.sub("/+", "/", path.replace("%41", "A"))
    stripped = plain.removeprefix("/api") if (plain + "/").startswith("/api/") else plain
    expected = stripped if stripped.startswith("/") else "/" + stripped

    assert (
        sent_target({"path": "/{rest...}", "rewrite": {"strip_prefix": "/api"}}, f"http://h.test{path}")
        == expected
    )


def test_edits_run_in_the_order_rename_remove_set_add() -> None:
    edits = {
        "rename": {"X-Old": "X-New"},
        "remove": ["X-Gone", "X-New"],
        "set": {"X-Set": "one", "Accept": "a/b"},
        "add": {"X-Set": "two"},
    }
    given_fields = (("X-Old", "1"), ("x-gone", "2"), ("X-Set", "3"), ("accept", "c/d"), ("X-Kept", "4"))

    assert sent_fields(edits, *given_fields) == [
        ("X-Kept", "4"), ("X-Set", "one"), ("Accept", "a/b"), ("X-Set", "two"),
    ]  # fmt: skip


def test_values_are_templates() -> None:
    edits = {"set": {"X-All": "{method} {host} {path} {query} {scheme} {route} {client_ip} {b}!"}}

    assert sent_fields(edits) == [("X-All", "GET shop.test /a/7 q=1 http one 127.0.0.1 7!")]


@pytest.mark.parametrize("place", ["nothing", "Host", "b2"])
def test_an_unknown_place_is_named(place: str) -> None:
    with pytest.raises(ValueError, match=f"{{{place}}} is neither a path parameter"):
        Template(f"/a/{{{place}}}", ["b"])


def test_a_bad_pattern_is_refused_when_it_is_made() -> None:
    with pytest.raises(Exception, match="missing"):
        Rewrite.by_regex("(", "")
