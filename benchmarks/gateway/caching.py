"""What an answer from the cache costs: a guarded hit beside the caches of nginx, Varnish and nginx with Lua.

The upstream numbers its answers (X-Made), and every peer must give the same number twice before it is
measured. nginx and Varnish check no key and count nothing here; nginx with Lua checks a key and one limit, as
in `guarded`. nginx reads its hits from files; with `open_file_cache` it keeps them open, which is not its
default.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import asdict
from typing import Any

from benchmarks.gateway import load, servers
from benchmarks.gateway.guarded import (
    DRAW_NUMBER,
    KEY,
    LUA_GUARD,
    LUA_HTTP,
    NGINX_PROXY,
    drawing,
    fill,
    guarded,
)
from benchmarks.gateway.ladder import Ladder, Options, Peer, Peers, Result
from benchmarks.gateway.load import MARK, Traffic
from benchmarks.gateway.servers import BODY, Server

__all__ = ["CACHES", "CACHE_SINGLES", "cached", "numbered"]

FEW_KEYS, MANY_KEYS = 1_000, 1_000_000
BIG_BYTES = 1_000_000
BIG_ANSWERS = 1_000

NUMBERED = f"add_header Cache-Control max-age=3600; add_header X-Made $request_id; return 200 '{BODY}';"
NGINX_CACHE = (
    "access_log off; proxy_cache_path {directory}/cache levels=1:2 keys_zone=answers:64m max_size=1g "
    "inactive=1h;"
)
WITH_KEY = Traffic("GET", headers={"X-API-Key": KEY})


def numbered() -> AbstractContextManager[Server]:
    """The upstream that numbers its responses."""
    return servers.upstream(NUMBERED)


def _nginx(origin: int, more: str = "") -> Server:
    return servers.nginx(
        f"{NGINX_PROXY} proxy_cache answers; proxy_cache_valid 200 1h;",
        http=NGINX_CACHE + more,
        origin=origin,
    )


def _nginx_lua(origin: int) -> Server:
    hit = f"""
        content_by_lua_block {{
            {LUA_GUARD}
            local target = ngx.var.request_uri
            local body = ngx.shared.answers:get(target)
            if not body then
                body = ngx.location.capture("/upstream" .. target).body
                ngx.shared.answers:set(target, body, 3600)
            end
            ngx.header["Content-Type"] = "application/json"
            ngx.header["Content-Length"] = #body
            ngx.print(body)
        }}
    """
    inner = f"location /upstream/ {{ internal; {NGINX_PROXY} }}"
    return servers.nginx(hit, http=LUA_HTTP, origin=origin, lua=True, more=inner)


def cached(origin: int, **stores: Any) -> dict[str, Any]:
    """A route with a cache and nothing else; `stores` are its tiers."""
    return {
        "cache_store": stores,
        "routes": [{"path": "/{rest...}", "upstream": f"http://127.0.0.1:{origin}", "cache": {"ttl": "1h"}}],
    }


def _hits(origin: int) -> Peers:
    return {
        "nginx": lambda: _nginx(origin),
        "nginx open_file_cache": lambda: _nginx(origin, "open_file_cache max=10000 inactive=1h;"),
        "varnish": lambda: servers.varnish(origin),
        "nginx + lua": lambda: _nginx_lua(origin),
        "fastgate no guard": lambda: servers.fastgate(cached(origin)),
        "fastgate": lambda: servers.fastgate(guarded(origin, cache={"ttl": "1h"}), keys=[KEY]),
    }


def _tiers(origin: int) -> Peers:
    disk = {"path": "{directory}/answers", "size": "256MB"}
    return {
        "fastgate memory": lambda: servers.fastgate(cached(origin)),
        "fastgate disk": lambda: servers.fastgate(cached(origin, memory="0", disk=disk)),
    }


def _many(origin: int) -> Peers:
    def peer(count: int) -> Peer:
        config = cached(origin, memory="1500MB")
        path = f"/orders/{MARK}"
        return Peer(
            lambda: servers.fastgate(config),
            traffic=Traffic("GET", path, varying=drawing(DRAW_NUMBER, count=count)),
            prepare=fill(Traffic("GET", path), count),
        )

    return {f"fastgate {FEW_KEYS} keys": peer(FEW_KEYS), f"fastgate {MANY_KEYS} keys": peer(MANY_KEYS)}


CACHES: dict[str, Ladder] = {
    "hit": Ladder(
        "answer from the cache, ours behind a key and limits",
        _hits,
        WITH_KEY,
        is_paced=True,
        origin=numbered,
        is_hit=True,
    ),
    "hit-l2": Ladder(
        "answer from the disk tier beside one from memory",
        _tiers,
        Traffic("GET"),
        origin=numbered,
        is_hit=True,
    ),
    "hit-keys": Ladder("answer from the cache, among few and many", _many, Traffic("GET"), origin=numbered),
}


def _store_big(options: Options, progress: Callable[[str], None]) -> Result:
    """The waits of small hits while a gigabyte of other answers passes, once stored and once only relayed."""
    if not load.is_paced_available():
        return {"what": "waits while much is stored", "missing": ["h2load"]}
    big = "location /big/ { root {directory}; rewrite ^ /big.bin break; add_header Cache-Control $age; }"
    found: Result = {
        "what": f"waits of small hits while {BIG_ANSWERS} answers of {BIG_BYTES} bytes pass",
        "stored": [],
        "relayed": [],
    }
    with servers.upstream(
        NUMBERED, more=big.replace("$age", "max-age=3600"), files={"big.bin": BIG_BYTES}
    ) as origin:
        target = f"http://127.0.0.1:{origin.port}"
        for number in range(max(1, options.rounds)):
            for name in ("relayed", "stored") if number % 2 else ("stored", "relayed"):
                routes: list[dict[str, Any]] = [
                    {"path": "/orders/{id}", "upstream": target, "cache": {"ttl": "1h"}},
                    {"path": "/big/{id}", "upstream": target},
                ]
                if name == "stored":
                    routes[1]["cache"] = {"ttl": "1h"}
                disk = {"path": "{directory}/answers", "size": "2GB"}
                config = {"cache_store": {"memory": "2GB", "disk": disk}, "routes": routes}
                progress(f"round {number + 1}: {name}")
                with _stopping(servers.fastgate(config)) as server:
                    small = Traffic("GET", "/orders/1")
                    load.ask(server, small)
                    run = load.start_paced(server, small, 8.0, options.rate_per_s / 4)
                    time.sleep(1.5)  # the generator's warm-up
                    began = time.monotonic()
                    passed = _pass_big(server, run)
                    took_s = time.monotonic() - began
                    figures = {**asdict(run.finish()), "big_bytes": passed, "big_seconds": took_s}
                    found[name].append(figures)
    return found


def _pass_big(server: Server, run: load.PacedRun) -> int:
    """Asks for every big answer once, a little at a time, as long as the small ones are asked for."""
    passed = 0
    for number in range(BIG_ANSWERS):
        if not run.is_running:
            break
        passed += len(load.ask(server, Traffic("GET", f"/big/{number}"))[2])
    return passed


@contextlib.contextmanager
def _stopping(server: Server) -> Iterator[Server]:
    try:
        yield server
    finally:
        server.stop()


CACHE_SINGLES: dict[str, Callable[[Options, Callable[[str], None]], Result]] = {"store-big": _store_big}
