"""The `cache:` section: what is taken, and what is refused with its path."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from fastgate.caching.settings import CacheConfig, build_rules
from fastgate.config import check


def read(cache: dict[str, Any], **route: Any) -> tuple[CacheConfig | None, list[str]]:
    config = {"routes": [{"name": "one", "upstream": "http://origin.test", **route, "cache": cache}]}
    loaded, errors = check(msgspec.json.encode(config).decode(), "json", {})
    section = None if loaded is None else next(iter(loaded.each_route())).cache
    return section, [str(error).partition("$.routes[0].")[2] for error in errors]


@pytest.mark.parametrize(
    "cache",
    [
        {},
        {"ttl": "300s", "respect": "override", "statuses": 200, "tags": "a"},
        {"key": {"query": "none", "headers": ["X-A"], "cookies": ["lang"]}},
        {"key": {"query": ["a", "b"]}},
        {"methods": ["GET", "POST"], "key": {"body": True}},
        {"set_cookie": "store", "share_private": True},
        {"private": "share", "share_private": True},
        {"key": {"consumer": "shared"}, "share_private": True},
        {"cache_status": ""},
    ],
)
def test_a_good_section_makes_rules(cache: dict[str, Any]) -> None:
    section, errors = read(cache)

    assert errors == []
    assert section is not None
    build_rules(section)


@pytest.mark.parametrize(
    ("cache", "error"),
    [
        ({"key": {"consumer": "shared"}}, "cache.key.consumer: expected share_private: true in addition"),
        ({"private": "share"}, "cache.private: expected share_private: true in addition"),
        ({"set_cookie": "store"}, "cache.set_cookie: expected share_private: true in addition"),
        (
            {"respect": "override", "ttl": "1s", "set_cookie": "strip"},
            "cache.set_cookie: expected share_private: true in addition",
        ),
        ({"share_private": True}, "cache.share_private: a setting without effect"),
        ({"methods": "PUT"}, "cache.methods[0]: expected GET, HEAD or POST"),
        ({"methods": "POST"}, "cache.key.body: expected true, since methods has POST"),
        ({"key": {"body": True}}, "cache.key.body: a setting without effect"),
        ({"respect": "override"}, "cache.ttl: expected a duration, since respect is override"),
        ({"private": "consumer"}, "cache.private: expected never"),
        ({"key": {"consumer": "private"}}, "cache.key.consumer: expected auto"),
        ({"key": {"headers": ["a b"]}}, "cache.key.headers[0]: expected a name"),
        ({"key": {"headers": ["Cookie"]}}, 'cache.key.headers[0]: "Cookie"'),
        ({"key": {"query": ["a&b"]}}, "cache.key.query[0]: expected the unescaped name of a parameter"),
        ({"key": {"query": "some"}}, "cache.key.query: expected one of all, none or a list"),
        ({"tags": "a b"}, "cache.tags[0]: expected printable ASCII"),
        ({"statuses": [206]}, "cache.statuses[0]: expected the status of a complete response"),
        ({"min_size": "2KB", "max_size": "1KB"}, "cache.min_size: expected a size below it"),
        ({"targeted": ["a b"]}, "cache.targeted[0]: expected a header name"),
        ({"cache_status": "a b"}, "cache.cache_status: expected"),
        ({"tll": "1s"}, "cache.tll: unknown key (did you mean ttl?)"),
    ],
)
def test_a_bad_section_is_refused_with_its_path(cache: dict[str, Any], error: str) -> None:
    _, errors = read(cache)

    assert len(errors) == 1
    assert errors[0].startswith(error)


def test_a_route_without_upstream_has_nothing_to_cache() -> None:
    _, errors = read({}, upstream=None, respond={"status": 200})

    assert errors[0].startswith("cache: a setting without effect with respond")
