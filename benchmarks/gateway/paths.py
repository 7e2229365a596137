"""The paths that instructions.py counts and compare.py compares: a config and a load for each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

from benchmarks.gateway import load, servers
from benchmarks.gateway.both_ends import BothEnds
from benchmarks.gateway.caching import cached, numbered
from benchmarks.gateway.connections import CLOSING, Handshakes, fixed
from benchmarks.gateway.guarded import KEY, guarded
from benchmarks.gateway.load import Load, Origin, Traffic
from benchmarks.gateway.servers import Server
from benchmarks.gateway.streams import BODIES, Events, Messages, proxied

__all__ = ["PATHS", "Path"]


@dataclass(frozen=True)
class Path:
    """One path. `config` gets the port of the upstream. `first` is sent once, before the load."""

    config: Callable[[int], dict[str, Any]]
    load: Load = field(default_factory=Traffic)
    origin: Callable[[], AbstractContextManager[Origin]] = numbered
    is_tls: bool = False
    first: Load | None = None

    def start(self, origin: Origin, routes: Sequence[dict[str, Any]] = (), **how: Any) -> Server:
        """The gateway with this config, `routes` before its own, and a key; `how` as for servers.fastgate."""
        config = self.config(origin.port)
        config["routes"] = [*routes, *config["routes"]]
        server = servers.fastgate(config, keys=[KEY], is_tls=self.is_tls, **how)
        if self.first is not None:
            load.prove(server, self.first, origin)
        load.prove(server, self.load, origin)
        return server


def _fixed(_: int) -> dict[str, Any]:
    return fixed()


def _refusing(origin: int) -> dict[str, Any]:
    return {**guarded(origin), "tiers": {"bench": {"per_minute": 2}}}


def _hit(origin: int) -> dict[str, Any]:
    return guarded(origin, cache={"ttl": "1h"})


def _on_disk(origin: int) -> dict[str, Any]:
    return cached(origin, memory="0", disk={"path": "{directory}/answers", "size": "256MB"})


WITH_KEY = {"X-API-Key": KEY}
GET = Traffic("GET")

PATHS: dict[str, Path] = {
    "proxy": Path(proxied),
    "respond": Path(_fixed, GET),
    "connect": Path(_fixed, CLOSING),
    "tls": Path(_fixed, GET, is_tls=True),
    "tls-handshake": Path(_fixed, Handshakes(), is_tls=True),
    "tls-resumed": Path(_fixed, Handshakes(is_resumed=True), is_tls=True),
    **{name: Path(proxied, load, BothEnds) for name, (_, load) in BODIES.items()},
    "events": Path(proxied, Events(), BothEnds),
    "websocket": Path(proxied, Messages(), BothEnds),
    "guarded": Path(guarded, Traffic(headers=WITH_KEY)),
    "refusal": Path(
        _refusing,
        Traffic("GET", headers=WITH_KEY, status=429, body_bytes=0),
        first=Traffic("GET", headers=WITH_KEY),
    ),
    "unauthorized": Path(guarded, Traffic("GET", status=401, body_bytes=0)),
    "hit": Path(_hit, Traffic("GET", headers=WITH_KEY)),
    "hit-unguarded": Path(cached, GET),
    "hit-l2": Path(_on_disk, GET),
}
