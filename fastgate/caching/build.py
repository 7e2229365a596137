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
    return RouteCache(
        build_rules(cache),
        env.service("cache", settings, lambda: worker_cache(settings, env)),
        coalesce=cache.coalesce,
        wait_ns=cache.coalesce_wait_ns,
        counter=env.around.memory.metrics.counter,
        route=env.route.name,
        strategy=make_strategy(cache.strategy.use, cache.strategy.options) if cache.strategy else None,
        # What was learned stays with the route as long as these settings do.
        predict=env.service(
            "cache.predict", (env.route.name, cache.predict), lambda: build_predictor(cache.predict)
        )
        if cache.predict
        else None,
    )


def worker_cache(settings: CacheStoreConfig, env: Any) -> WorkerCache:
    """The store of a worker with the tiers of the config."""
    memory = None
    if settings.memory.size_bytes:
        memory = Cache(settings.memory.size_bytes, settings.memory.policy)
    return WorkerCache(memory, env.around.memory.epochs, None, env.around.memory.metrics.counter)
