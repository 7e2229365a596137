"""freeze: Config → Plan.

Freezing runs on the worker's loop, in slices of a tenth of a millisecond with pauses in between, so that a
reload of thousands of routes does not delay requests in flight. Unchanged parts of the active plan are
reused: upstreams with their warm connections, plugins with their state, and routes.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import msgspec

from fastgate._core.http.cidr import CidrSet
from fastgate._core.http.edits import Template
from fastgate._core.http.router import Router
from fastgate._core.pipeline.pipeline import Pipeline, Plugin
from fastgate._core.pipeline.plan import Plan, Redirect, RoutePlan
from fastgate.config import TRUSTED_UNIX, Changes, Config, RouteConfig
from fastgate.config.root import ROUTE_DEFAULTS
from fastgate.errors import REASONS
from fastgate.features.registry import FEATURES
from fastgate.plan.destinations import (
    Destinations,
    Env,
    make_destination,
    make_provider,
    make_upstream,
    params_of,
)
from fastgate.plan.services import Plugins, Services
from fastgate.plugin import PlanContext
from fastgate.upstream.pool import Upstream

__all__ = ["freeze", "freeze_now"]

SLICE_NS = 100_000  # work between two pauses: about the time of one request
PAUSE_S = 0.001  # time for the requests in flight


async def freeze(config: Config, context: PlanContext, previous: Plan | None = None) -> Plan:
    """The plan of a checked config. Yields to the loop. Raises ValueError, OSError or a plugin's own error if
    a part of it cannot be built; the previous plan is then unaffected."""
    steps = _steps(config, context, previous)
    while True:
        until_ns = time.monotonic_ns() + SLICE_NS
        for plan in steps:
            if plan is not None:
                return plan
            if previous is not None and time.monotonic_ns() >= until_ns:
                break
        else:
            raise AssertionError("the last step is the plan")
        await asyncio.sleep(PAUSE_S)


def freeze_now(config: Config, context: PlanContext) -> Plan:
    """Like `freeze`, without a loop."""
    for plan in _steps(config, context, None):
        if plan is not None:
            return plan
    raise AssertionError("the last step is the plan")


def _steps(config: Config, context: PlanContext, previous: Plan | None) -> Iterator[Plan | None]:
    before: Mapping[str, str] = getattr(previous.config, "files", {}) if previous is not None else {}
    changes = Changes(before, getattr(config, "files", {}))
    services = Services(previous, changes)
    upstreams: dict[str, Upstream] = {}
    for name, settings in config.upstreams.items():
        known = previous.upstreams.get(name) if previous is not None else None
        if (
            known is not None
            and known.config == settings
            and (previous is None or previous.config.locality == config.locality)
            and not changes.concern(msgspec.msgpack.encode(settings))
        ):
            upstreams[name] = known
        else:
            upstreams[name] = make_upstream(name, settings, config.locality, context)
        if settings.credentials is not None:
            provider = services.get(
                "credentials",
                (name, settings.credentials),
                partial(make_provider, name, settings.credentials, context),
            )
            upstreams[name].credential = provider.credential
        yield None
    services.settle()
    plugins = Plugins(previous, changes)
    shared = [plugins.get(None, index, use) for index, use in enumerate(config.plugins)]
    kept = _kept_routes(previous, shared, config, changes)
    routes: list[RoutePlan] = []
    router = Router()
    for raw, route in zip(config.routes, config.each_route(), strict=True):
        if not route.enabled:
            continue
        upstream = upstreams[route.upstream] if route.upstream is not None else None
        plan = kept.get(bytes(raw))
        own = [plugins.get(route.name, index, use) for index, use in enumerate(route.plugins)]
        if plan is None or _upstream_of(plan) is not upstream:
            env = Env(route, params_of(route), config, context, services.get)
            plan = _route(route, bytes(raw), config, upstream, [*shared, *own], env)
            services.note(plan)
        else:
            services.keep(plan)
        routes.append(plan)
        for host in route.host or (None,):
            for path in route.path:
                router.add(path, plan, host=host, predicates=_predicates(route))
        yield None
    for _ in router.freezing(every=16):
        yield None
    networks = [each for each in config.trusted_proxies if each != TRUSTED_UNIX]
    trusted = CidrSet(networks) if networks else None
    services.seal()
    yield Plan(
        router,
        routes,
        upstreams,
        config,
        [*services.used, *plugins.used],
        [*services.fresh, *plugins.fresh],
        trusted,
        context.counters,
        context.slot,
        {
            listener.redirect: _https_redirect(listener.redirect, context)
            for listener in config.listen
            if listener.redirect
        },
        trusts_unix=TRUSTED_UNIX in config.trusted_proxies,
        make_destination=Destinations(config, context, upstreams, services.get),
    )


def _https_redirect(port: int, context: PlanContext) -> RoutePlan:
    """The route of a listener that redirects to https."""
    location = Template("https://{hostname}" + (f":{port}" if port != 443 else "") + "{path}", [])
    return RoutePlan(
        "(https redirect)",
        pipeline=Pipeline([Redirect(location, 308, True, REASONS["ambiguous_path"])]),
        counters=context.counters,
        slot=context.slot,
    )


def _predicates(route: RouteConfig) -> int:
    return (1 if route.methods else 0) + len(route.headers) + len(route.query)


def _kept_routes(
    previous: Plan | None, shared: list[Plugin], config: Config, changes: Changes
) -> dict[bytes, RoutePlan]:
    """The routes of the active plan that may be reused if their own settings have not changed."""
    if previous is None or changes.concern(
        msgspec.msgpack.encode([getattr(config, name) for name in ROUTE_DEFAULTS])
    ):
        return {}
    before = previous.config
    same = (
        all(getattr(before, name) == getattr(config, name) for name in ROUTE_DEFAULTS)
        and len(before.plugins) == len(shared)
        and all(plugin in previous.plugins for plugin in shared)
        and before.plugins == config.plugins
    )
    if not same:
        return {}
    return {route.source: route for route in previous.routes if not changes.concern(route.source)}


def _route(
    route: RouteConfig,
    source: bytes,
    config: Config,
    upstream: Upstream | None,
    plugins: list[Plugin],
    env: Env,
) -> RoutePlan:
    context = env.context
    gates = [*_made(env, "guard"), *plugins, *_made(env, "action")]
    parts: dict[str, Any] = {}
    for feature in FEATURES:
        if feature.route_parts is not None:
            parts |= feature.route_parts(env)
    return RoutePlan(
        route.name,
        pipeline=Pipeline(gates),
        counters=context.counters,
        slot=context.slot,
        source=source,
        destination=None if upstream is None else make_destination(upstream, env, gates),
        max_body_bytes=config.server.max_body_bytes if route.max_body_bytes is None else route.max_body_bytes,
        request_buffering_bytes=(
            config.server.request_buffering_bytes
            if route.request_buffering_bytes is None
            else route.request_buffering_bytes
        ),
        methods=route.methods,
        allow_encoded_slashes=route.allow_encoded_slashes,
        accepts_preflight=any(getattr(gate, "accepts_preflight", False) for gate in gates),
        header_tests=[
            (name.lower().encode("latin-1"), _test(value)) for name, value in route.headers.items()
        ],
        query_tests=[(name.encode(), _test(value, "utf-8")) for name, value in route.query.items()],
        **parts,
    )


def _made(env: Env, scope: str) -> Iterator[Plugin]:
    """The plugins that the features of this scope build for the route, in order."""
    place = 0
    for feature in FEATURES:
        for build in feature.build:
            plugin = build(getattr(env.route, feature.name, None), env) if feature.scope == scope else None
            if plugin is not None:
                plugin.place = place
                yield plugin
            place += 1


def _upstream_of(plan: RoutePlan) -> Upstream | None:
    return None if plan.destination is None else plan.destination.upstream


def _test(expected: str, encoding: str = "latin-1") -> Callable[[bytes], bool]:
    """The test for a header's or a query parameter's value: exact, `~regex`, or `*` for any."""
    if expected == "*":
        return lambda value: True
    if expected.startswith("~") and encoding == "utf-8":
        text = re.compile(expected[1:])
        return lambda value: text.search(value.decode("utf-8", "replace")) is not None
    if expected.startswith("~"):
        pattern = re.compile(expected[1:].encode(encoding))
        return lambda value: pattern.search(value) is not None
    raw = expected.encode(encoding)
    return raw.__eq__
