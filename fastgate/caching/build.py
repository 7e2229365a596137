"""From a route's `cache` to what the exchange asks: the rules, and the worker's one store behind all
routes.
"""

from __future__ import annotations

from typing import Any

from fastgate._core.cache import Cache
from fastgate._core.worker_cache import RouteCache, WorkerCache
from fastgate.caching.predictor import build_predictor
from fastgate.caching.settings import CacheConfig, CacheStoreConfig, build_rules
from fastgate.caching.strategy import make_strategy

__all__ = ["build", "worker_cache"]


def build(cache: CacheConfig | None, env: Any) -> RouteCache | None:
    """What a route says of caching, or None where nothing is kept."""
    if cache is None or not cache.enabled:
        return None
    settings = env.config.cache_store
    # Asked for by every route, so that each holds on to it over a reload.
    tiers = _tiers(settings, env)
    return RouteCache(
        build_rules(cache),
        env.service("cache", settings, lambda: worker_cache(settings, env, tiers)),
        coalesce=cache.coalesce,
        wait_ns=cache.coalesce_wait_ns,
        counter=env.around.memory.metrics.counter,
        route=env.route.name,
        purge_header=cache.purge_header,
        strategy=make_strategy(cache.strategy.use, cache.strategy.options) if cache.strategy else None,
        # What was learned stays with the route as long as these settings do.
        predict=env.service(
            "cache.predict", (env.route.name, cache.predict), lambda: build_predictor(cache.predict)
        )
        if cache.predict
        else None,
    )


def _tiers(settings: CacheStoreConfig, env: Any) -> Any:
    """What lies behind the memory, or None; its modules are imported only where it is configured."""
    if settings.disk is None and settings.redis is None:
        return None
    from fastgate.caching.tiers import Tiers

    shared = env.around.memory
    return env.service(
        "cache tiers",
        (settings.disk, settings.redis),
        lambda: Tiers.of(settings, shared.epochs, shared.metrics),
    )


def worker_cache(settings: CacheStoreConfig, env: Any, tiers: Any) -> WorkerCache:
    """The store of a worker with the tiers of the config."""
    memory = None
    if settings.memory.size_bytes:
        memory = Cache(settings.memory.size_bytes, settings.memory.policy)
    shared = env.around.memory
    return WorkerCache(memory, shared.epochs, tiers, shared.metrics.counter)
