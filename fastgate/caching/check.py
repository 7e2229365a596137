"""Checks of `cache` of a route and of `cache_store` of the root."""

from __future__ import annotations

import re
from typing import Any, Final

import msgspec

from fastgate.caching.predictor import problems as predict_problems
from fastgate.caching.settings import CacheConfig, CacheStoreConfig
from fastgate.caching.strategy import StrategyConfig, make_strategy
from fastgate.checks import TOKEN, Path, Report, RouteSite
from fastgate.state.redis_url import check_url, masked

__all__ = ["check_root", "check_route"]

_TAG = re.compile(r"[!-+\--~]+", re.ASCII)  # printable, no comma: as in a Cache-Tag
_METHODS: Final = ("GET", "HEAD", "POST")
#: 1xx responses are never final; 206 and 304 are parts of other responses.
_NEVER_STATUSES: Final = (206, 304)


def check_root(config: Any, report: Report) -> None:
    """The store of all routes."""
    _check_store(config.cache_store, ("cache_store",), report)


def check_route(route: Any, site: RouteSite) -> None:
    """The cache of the route. Sharing of its responses depends on its authentication."""
    if route.cache is not None:
        _check_cache(
            route.cache,
            (*site.path, "cache"),
            site.report,
            guarded=route.auth is not None,
            unnamed=route.auth is not None and route.auth.lets_unnamed_pass(),
        )


def _check_cache(
    cache: CacheConfig,
    path: Path,
    report: Report,
    *,
    guarded: bool,
    unnamed: bool,
) -> None:
    """Reports every fault of the section. guarded: the route authenticates its clients. unnamed: it
    may pass clients without identifying them."""
    key = (*path, "key")
    for at, method in enumerate(cache.methods):
        if method not in _METHODS:
            report((*path, "methods", at), f'"{method}"', "GET, HEAD or POST", "")
    if "POST" in cache.methods and not cache.key.body:
        hint = "two POSTs with different bodies would share a response"
        report((*key, "body"), "false", "true, since methods has POST", hint)
    if cache.key.body and "POST" not in cache.methods:
        report((*key, "body"), "a setting without effect", "", "it is for POST, which methods does not have")
    for at, status in enumerate(cache.statuses):
        if status in _NEVER_STATUSES:
            report((*path, "statuses", at), str(status), "the status of a complete response", "")
    for section, names in (("headers", cache.key.headers), ("cookies", cache.key.cookies)):
        for at, name in enumerate(names):
            if not TOKEN.fullmatch(name):
                report((*key, section, at), f'"{name}"', "a name (letters, digits and -)", "")
            elif section == "headers" and name.lower() in ("x-request-id", "range", "if-none-match"):
                report((*key, section, at), f'"{name}"', "", "no two requests would share a response")
            elif section == "headers" and name.lower() == "cookie":
                hint = "every browser has different ones; list the relevant ones in key.cookies"
                report((*key, section, at), f'"{name}"', "", hint)
    if not isinstance(cache.key.query, str):
        for at, name in enumerate(cache.key.query):
            if not name.isascii() or not name.isprintable() or set(name) & set("&=%+[] "):
                report((*key, "query", at), f'"{name}"', "the unescaped name of a parameter", "")
    for at, name in enumerate(cache.targeted):
        if not TOKEN.fullmatch(name):
            report((*path, "targeted", at), f'"{name}"', "a header name (letters, digits and -)", "")
    for at, tag in enumerate(cache.tags):
        if not _TAG.fullmatch(tag):
            report((*path, "tags", at), f'"{tag}"', "printable ASCII without spaces and commas", "")
    if cache.min_size_bytes > cache.max_size_bytes:
        report((*path, "min_size"), "more than max_size", "a size below it", "")
    if cache.respect == "override" and cache.ttl_ns == 0:
        report((*path, "ttl"), "0s", "a duration, since respect is override", "")
    if cache.private == "consumer" and not guarded:
        hint = "the route has no auth, so no response belongs to a consumer"
        report((*path, "private"), '"consumer"', "never", hint)
    if cache.key.consumer == "private" and not guarded:
        hint = "the route has no auth, so nothing would be cached"
        report((*key, "consumer"), '"private"', "auto", hint)
    _check_sharing(cache, path, report, unnamed)
    for below, found, expected, hint in predict_problems(cache.predict) if cache.predict else ():
        report((*path, "predict", *below), found, expected, hint)
    if cache.strategy is not None:
        _check_strategy(cache.strategy, (*path, "strategy"), report)


def _check_strategy(strategy: StrategyConfig, path: Path, report: Report) -> None:
    try:
        make_strategy(strategy.use, strategy.options)
    except msgspec.ValidationError as error:
        report((*path, "options"), str(error), "", "")
    except (LookupError, TypeError) as error:
        report(path, f'"{strategy.use}"', "the name of a cache strategy, or package.module:Class", str(error))


def _check_sharing(cache: CacheConfig, path: Path, report: Report, unnamed: bool) -> None:
    """Settings that may send one client's response to another need a confirmation."""
    shares = [
        (name, value)
        for name, value, harmless in (
            ("key.consumer", cache.key.consumer, cache.key.consumer != "shared"),
            ("private", cache.private, cache.private != "share"),
            ("set_cookie", cache.set_cookie, cache.set_cookie == "never"),
        )
        if not harmless
    ]
    if shares and not cache.share_private:
        name, value = shares[0]
        report(
            (*path, *name.split(".")),
            f'"{value}"',
            "share_private: true in addition",
            "one client's response could be sent to others",
        )
    elif cache.share_private and not shares and not unnamed:
        report(
            (*path, "share_private"),
            "a setting without effect",
            "",
            "it confirms key.consumer: shared, private: share, set_cookie: strip or store, or an auth that "
            "may pass clients without identifying them",
        )


def _check_store(store: CacheStoreConfig, path: Path, report: Report) -> None:
    """Reports faults between the values of `cache_store`."""
    redis = store.redis
    if redis is None:
        return
    if wrong := check_url(redis.url):
        report((*path, "redis", "url"), f'"{masked(redis.url)}"', wrong, "")
    if bool(redis.certificate_file) != bool(redis.key_file):
        missing = "key_file" if redis.certificate_file else "certificate_file"
        report((*path, "redis", missing), "nothing", "both certificate_file and key_file, or neither", "")
    if redis.ca_file and not redis.url.startswith("rediss"):
        report((*path, "redis", "ca_file"), f'"{redis.ca_file}"', "a rediss:// URL", "")
