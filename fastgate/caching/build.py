"""Builds a route's `cache` for the exchange: its rules, and the worker's store shared by all routes."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final

import msgspec

from fastgate._core.cache.cache import Cache
from fastgate._core.cache.worker_cache import RouteCache, WorkerCache
from fastgate._core.http.edits import PLACE, Template
from fastgate._core.http.field_names import CLIENT_PREFIXES, REQUEST_FIELDS
from fastgate._core.pipeline.pipeline import overrides
from fastgate.caching.predictor import build_predictor
from fastgate.caching.settings import CacheConfig, CacheStoreConfig, build_rules
from fastgate.caching.strategy import make_strategy
from fastgate.plugin import FeatureEnv

__all__ = ["build", "destination_parts", "route_identity", "worker_cache"]


def build(cache: CacheConfig | None, env: FeatureEnv, gates: Sequence[Any] = ()) -> Any:
    """The cache of a route, or None. gates: its gates and plugins."""
    if cache is None or not cache.enabled:
        return None
    settings = env.config.cache_store
    route = env.route
    # Requested by every route, so that each keeps a reference across a reload.
    tiers = _tiers(settings, env)
    places, unique = _places(route, cache, env.params)
    secrets = tuple(sorted(_credentials(gates)))
    written = {*_written(route, env), *unique}
    rules = build_rules(
        cache,
        route,
        identity=route_identity(route, env.config, [gate for gate in gates if _edits_requests(gate)]),
        shown=_shown(route, env.config),
        secrets=secrets,
        never_vary=(*unique, *_deadline(route, env.config)),
    )
    keyed = {name.lower() for name in (*cache.key.headers, *_shown(route, env.config), *secrets)}
    if cache.key.cookies:
        keyed.add("cookie")
    return RouteCache(
        rules,
        env.service("cache", settings, lambda: worker_cache(settings, env, tiers)),
        coalesce=cache.coalesce,
        wait_ns=cache.coalesce_wait_ns,
        counter=env.context.memory.metrics.counter,
        route=route.name,
        purge_header=cache.purge_header,
        strategy=make_strategy(cache.strategy.use, cache.strategy.options) if cache.strategy else None,
        # Learned data is kept as long as these settings are unchanged.
        predict=env.service(
            "cache.predict", (route.name, cache.predict), lambda: build_predictor(cache.predict)
        )
        if cache.predict
        else None,
        guarded=route.auth is not None,
        places=places,
        plugins=[gate for gate in gates if _edits_requests(gate)],
        written=[name.encode() for name in written],
        sends=any(
            name in written or name in REQUEST_FIELDS or name.startswith(CLIENT_PREFIXES) for name in keyed
        ),
    )


_IN_KEY: Final = frozenset(("host", "scheme", "method", "path", "route"))
"""Properties available in templates that are part of every key."""


def _templates(route: Any) -> Iterator[tuple[str, str]]:
    """The templates with which the route edits its requests: the field that each sets, lower case ("" for the
    path), and its text."""
    edits = route.request_headers
    if edits is not None:
        for name, text in (*edits.set.items(), *edits.add.items()):
            yield name.lower(), text
    if route.rewrite is not None and route.rewrite.path is not None:
        yield "", route.rewrite.path


def _places(route: Any, cache: CacheConfig, params: Sequence[str]) -> tuple[Template | None, tuple[str, ...]]:
    """Request data that the route's edits send upstream and that is not otherwise in the key, as a template;
    and the fields that these edits make unique for every request."""
    wanted = set()
    unique = []
    if cache.strategy is not None:
        known = _IN_KEY - {
            "path"
        }  # the strategy, not the edits, decides which part of the path is in the key
    else:
        known = _IN_KEY | set(params) | ({"query"} if cache.key.query == "all" else set())
    for field, text in _templates(route):
        names = {found[1] for found in PLACE.finditer(text) if found[1]}
        if "request_id" in names:
            unique.append(field)
        wanted |= names - known - {"request_id"}
    if not wanted:
        return None, tuple(unique)
    return Template("\n".join(f"{{{name}}}" for name in sorted(wanted)), list(params)), tuple(unique)


def _written(route: Any, env: FeatureEnv) -> Iterator[str]:
    """Lower-case names of the fields that the route sets or removes."""
    edits = route.request_headers
    if edits is not None:
        for names in (edits.rename, edits.rename.values(), edits.remove, edits.set, edits.add):
            yield from (name.lower() for name in names)
    upstream = env.config.upstreams.get(route.upstream)
    if upstream is not None:
        if upstream.credentials is not None:
            yield "authorization"
            name = getattr(upstream.credentials, "name", None)
            if name:
                yield name.lower()
        yield from _deadline(route, env.config)


def _deadline(route: Any, config: Any) -> Iterator[str]:
    """The field that tells the upstream the remaining time, if it is sent."""
    upstream = config.upstreams.get(route.upstream)
    name = None if upstream is None else upstream.timeouts.overridden(route.timeouts).deadline_header
    if name:
        yield name.lower()


def _shown(route: Any, config: Any) -> tuple[str, ...]:
    """Fields in the key of the route: those that select it, unless by a fixed value, and those set by a
    forward-auth service."""
    names = [name for name, value in route.headers.items() if value == "*" or value.startswith("~")]
    if route.auth is not None and "forward" in route.auth.schemes and config.auth.forward is not None:
        names += config.auth.forward.upstream_headers
    return tuple(sorted({name.lower() for name in names}))


def _credentials(gates: Iterable[Any]) -> Iterator[str]:
    """Names of the fields whose credential is forwarded to the upstream, which may derive more from it than a
    name. `Authorization` is in the key anyway."""
    for gate in gates:
        for scheme in getattr(gate, "schemes", ()):
            if scheme.cacheable and not getattr(scheme, "hide", False):
                for name in getattr(scheme, "credential_headers", None) or (scheme.credential_header,):
                    if name.lower() != "authorization":
                        yield name.lower()


def _edits_requests(gate: Any) -> bool:
    return overrides(gate, "upstream_request") or overrides(gate, "request_chunk")


def route_identity(route: Any, config: Any, plugins: Sequence[Any]) -> bytes:
    """Separates this route's responses from those of another one for the same URL: a digest of all settings
    that select its requests, change them for the upstream, or control storage. Equal settings have an equal
    digest after a reload, after a restart and on another machine; a change of one of them starts the route
    with an empty cache. Settings that only restrict access (limits, access lists, policies) or edit responses
    are not part of it, nor are the targets of the upstream.
    """
    cache = route.cache
    upstream = config.upstreams.get(route.upstream)
    seen = (
        (route.name, route.host, route.path, route.methods, route.headers, route.query),
        (route.upstream, route.rewrite, route.request_headers),
        route.preserve_host,
        None
        if upstream is None
        else (upstream.preserve_host, upstream.credentials is not None, *_deadline(route, config)),
        None if route.auth is None else (route.auth.schemes, route.auth.forward, route.auth.enforce),
        (cache.key, cache.methods, cache.private, cache.set_cookie, cache.share_private, cache.strategy),
        [(plugin.name, repr(plugin.key)) for plugin in plugins],
    )
    return hashlib.blake2b(msgspec.msgpack.encode(seen), digest_size=8).hexdigest().encode()


def _tiers(settings: CacheStoreConfig, env: FeatureEnv) -> Any:
    """The disk and Redis tiers, or None; their modules are imported only if configured."""
    if settings.disk is None and settings.redis is None:
        return None
    from fastgate.caching.tiers import Tiers

    shared = env.context.memory
    return env.service(
        "cache tiers",
        (settings.disk, settings.redis),
        lambda: Tiers.of(settings, shared.epochs, shared.metrics),
    )


def worker_cache(settings: CacheStoreConfig, env: FeatureEnv, tiers: Any) -> WorkerCache:
    """The store of a worker with the tiers of the config."""
    memory = None
    if settings.memory.size_bytes:
        memory = Cache(settings.memory.size_bytes, settings.memory.policy)
    shared = env.context.memory
    return WorkerCache(memory, shared.epochs, tiers, shared.metrics.counter)


def destination_parts(env: FeatureEnv, gates: Sequence[Any]) -> dict[str, Any]:
    """The cache of a route's destination."""
    return {"cache": build(env.route.cache, env, gates)}
