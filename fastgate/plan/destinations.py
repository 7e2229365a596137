"""Builds upstreams with their targets, and destinations: a route at an upstream."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import msgspec

from fastgate._core.http.edits import PLACE
from fastgate._core.pipeline.pipeline import Plugin
from fastgate._core.pipeline.plan import Destination, RoutePlan
from fastgate.config import Config, RouteConfig, decode_route
from fastgate.features.registry import FEATURES
from fastgate.plugin import PlanContext
from fastgate.upstream.balance_settings import Locality
from fastgate.upstream.balancing import make_target_set
from fastgate.upstream.pool import Target, Upstream
from fastgate.upstream.settings import CredentialConfig, UpstreamConfig
from fastgate.upstream.tls import upstream_context

__all__ = [
    "Destinations",
    "Env",
    "make_destination",
    "make_provider",
    "make_upstream",
    "params_of",
]


class Env(NamedTuple):
    """A FeatureEnv."""

    route: RouteConfig
    params: Sequence[str]
    config: Config
    context: PlanContext
    service: Callable[[str, Any, Callable[[], Any]], Any]


def make_provider(upstream: str, settings: CredentialConfig | str, context: PlanContext) -> Any:
    assert not isinstance(settings, str), "the config check replaces the name by the settings"
    from fastgate.upstream.credentials import CredentialProvider  # imports an HTTP client, so only if needed

    return CredentialProvider(upstream, settings, context)


def make_upstream(name: str, config: UpstreamConfig, here: Locality, context: PlanContext) -> Upstream:
    """here: where the gateway runs."""
    upstream = Upstream(name, config, context.loop, context.wheel, context.counters, context.slot)
    targets = [target for target in config.targets if target.weight > 0]
    tls = None
    if any(target.url.startswith("https://") for target in targets):
        tls = upstream_context(config.tls)
    built = []
    for target in targets:
        if target.url.startswith("unix:"):
            built.append(Target(upstream, target.url, "", 0, target.url[5:], None, None, b"localhost"))
            continue
        parts = urlsplit(target.url)
        host = parts.hostname or ""
        secure = parts.scheme == "https"
        port = parts.port or (443 if secure else 80)
        authority = f"[{host}]" if ":" in host else host
        if port != (443 if secure else 80):
            authority += f":{port}"
        server_name = (config.tls.server_name or host) if secure else None
        built.append(
            Target(
                upstream,
                target.url,
                host,
                port,
                None,
                tls if secure else None,
                server_name,
                authority.encode(),
            )
        )
    made, key = make_target_set(name, config, targets, here, context.memory.health, context.slot)
    upstream.set_targets(built, made, key)
    return upstream


class Destinations:
    """Builds the destination of a route at an upstream other than its own, for requests that a policy or a
    plugin sends there.
    """

    def __init__(
        self, config: Config, context: PlanContext, upstreams: Mapping[str, Upstream], service: Any
    ) -> None:
        self._config = config
        self._context = context
        self._upstreams = upstreams
        self._service = service

    def __call__(self, plan: RoutePlan, name: str) -> Destination:
        """KeyError if there is no such upstream."""
        upstream = self._upstreams[name]
        upstream.tell_routes_apart()
        route = msgspec.structs.replace(decode_route(plan.source), upstream=name)
        env = Env(route, params_of(route), self._config, self._context, self._service)
        return make_destination(upstream, env, plan.pipeline.plugins)


def make_destination(upstream: Upstream, env: Env, gates: Sequence[Plugin]) -> Destination:
    route = env.route
    owned = {name for gate in gates for name in getattr(gate, "owned", ())}
    parts: dict[str, Any] = {}
    for feature in FEATURES:
        if feature.owned_headers is not None:
            owned.update(feature.owned_headers(env))
        if feature.destination_parts is not None:
            parts |= feature.destination_parts(env, gates)
    return Destination(
        upstream,
        upstream.config.timeouts.overridden(route.timeouts),
        preserve_host=(upstream.config.preserve_host if route.preserve_host is None else route.preserve_host),
        owned=owned,
        **parts,
    )


def params_of(route: RouteConfig) -> list[str]:
    return sorted({name for path in route.path for name in _param_names(path)})


def _param_names(path: str) -> list[str]:
    if path.startswith("~"):
        return list(re.compile(path[1:]).groupindex)
    return [found[1] for found in PLACE.finditer(path) if found[1]]
