"""freeze: Config → Plan, the only module that sees every feature.

Freezing happens on the worker's loop, in slices of a tenth of a millisecond with pauses in between, so that a
reload of thousands of routes does not hold up the requests that are under way. What has not changed is taken
over from the plan in force: upstreams with their warm connections, plugins with what they hold, and the
routes themselves.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import msgspec

from fastgate._core.http.cidr import CidrSet
from fastgate._core.http.edits import PLACE, Template
from fastgate._core.http.router import Router
from fastgate._core.pipeline.pipeline import Pipeline, Plugin
from fastgate._core.pipeline.plan import Destination, Plan, Redirect, RoutePlan
from fastgate.caching import build as caching
from fastgate.config import TRUSTED_UNIX, Changes, Config, PluginUse, RouteConfig, decode_route
from fastgate.config.root import ROUTE_DEFAULTS
from fastgate.errors import REASONS
from fastgate.features.registry import FEATURES
from fastgate.features.routing.build import rewrite_of
from fastgate.features.transform.build import edits_of
from fastgate.plugin import PLUGINS, PluginEnv, Surroundings
from fastgate.settings import ConfigError
from fastgate.upstream.pool import Target, Upstream
from fastgate.upstream.settings import CredentialConfig, UpstreamConfig
from fastgate.upstream.tls import upstream_context

__all__ = ["freeze", "freeze_now"]

SLICE_NS = 100_000  # work without a look at the loop: about what a request takes
PAUSE_S = 0.001  # what the requests under way get in between


class _Env(NamedTuple):
    """A FeatureEnv."""

    route: RouteConfig
    params: Sequence[str]
    config: Config
    around: Surroundings
    service: Callable[[str, Any, Callable[[], Any]], Any]


PLACES = sum(len(feature.build) for feature in FEATURES)
"""Plugins of a route that features make, at most: each has a place of its own."""


async def freeze(config: Config, around: Surroundings, previous: Plan | None = None) -> Plan:
    """The plan of a checked config. Yields to the loop; ValueError, OSError or a plugin's own error if a part
    of it cannot be built, and then nothing that the previous plan uses was touched."""
    steps = _steps(config, around, previous)
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


def freeze_now(config: Config, around: Surroundings) -> Plan:
    """The same without a loop."""
    for plan in _steps(config, around, None):
        if plan is not None:
            return plan
    raise AssertionError("the last step is the plan")


def _steps(config: Config, around: Surroundings, previous: Plan | None) -> Iterator[Plan | None]:
    before: Mapping[str, str] = getattr(previous.config, "files", {}) if previous is not None else {}
    changes = Changes(before, getattr(config, "files", {}))
    services = _Services(previous, changes)
    upstreams: dict[str, Upstream] = {}
    for name, settings in config.upstreams.items():
        known = previous.upstreams.get(name) if previous is not None else None
        if (
            known is not None
            and known.config == settings
            and not changes.concern(msgspec.msgpack.encode(settings))
        ):
            upstreams[name] = known
        else:
            upstreams[name] = _upstream(name, settings, around)
        if settings.credentials is not None:
            keeper = services.get(
                "credentials",
                (name, settings.credentials),
                partial(_keeper, name, settings.credentials, around),
            )
            upstreams[name].credential = keeper.credential
        yield None
    services.settle()
    plugins = _Plugins(previous, changes)
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
            env = _Env(route, _params(route), config, around, services.get)
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
    yield Plan(
        router,
        routes,
        upstreams,
        config,
        [*services.used, *plugins.used],
        [*services.fresh, *plugins.fresh],
        trusted,
        around.counters,
        around.slot,
        {
            listener.redirect: _https_redirect(listener.redirect, around)
            for listener in config.listen
            if listener.redirect
        },
        trusts_unix=TRUSTED_UNIX in config.trusted_proxies,
        make_destination=Destinations(config, around, upstreams, services.get),
    )


def _https_redirect(port: int, around: Surroundings) -> RoutePlan:
    """The route of a listener that redirects to https."""
    location = Template("https://{hostname}" + (f":{port}" if port != 443 else "") + "{path}", [])
    return RoutePlan(
        "(https redirect)",
        pipeline=Pipeline([Redirect(location, 308, True, REASONS["ambiguous_path"])]),
        counters=around.counters,
        slot=around.slot,
    )


def _predicates(route: RouteConfig) -> int:
    return (1 if route.methods else 0) + len(route.headers) + len(route.query)


def _kept_routes(
    previous: Plan | None, shared: list[Plugin], config: Config, changes: Changes
) -> dict[bytes, RoutePlan]:
    """The routes of the plan in force that may be taken over if their own lines have not changed."""
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


class _Plugins:
    """The plugins of a plan: those of the plan in force where nothing about them changed, new ones else."""

    def __init__(self, previous: Plan | None, changes: Changes) -> None:
        known = [
            plugin
            for plugin in (previous.plugins if previous is not None else ())
            if isinstance(plugin, Plugin)
        ]
        self._known: dict[tuple[Any, ...], Plugin] = {
            plugin.key: plugin for plugin in known if not changes.concern(plugin.key[3])
        }
        # A plugin keeps its place while requests that know it are under way; a new one takes a free place.
        self._taken = {plugin.place for plugin in known}
        self.used: list[Plugin] = []
        self.fresh: list[Plugin] = []

    def get(self, route: str | None, index: int, use: PluginUse) -> Plugin:
        key = (route, index, use.use, bytes(use.config))
        plugin = self._known.get(key)
        if plugin is None:
            plugin, settings = _built(use, route, index)
            plugin.name = use.use
            plugin.key = key
            if not getattr(settings, "enforce", True):
                plugin.enforce = False
            self.fresh.append(plugin)
            first = PLACES  # the places before belong to the features, one each
            plugin.place = next(p for p in range(first, first + len(self._taken) + 1) if p not in self._taken)
            self._taken.add(plugin.place)
        self.used.append(plugin)
        return plugin


def _built(use: PluginUse, route: str | None, index: int) -> tuple[Plugin, Any]:
    """A new plugin and its settings. ConfigError names the plugin and the route when its code fails."""
    try:
        found = PLUGINS.load(use.use)
        settings = None if found.Config is None else use.read(found.Config)
        plugin = found.build(settings, PluginEnv(use.use, route))
        if not isinstance(plugin, Plugin):
            raise TypeError(f"build() returned a {type(plugin).__name__}, expected a Plugin")
    except ConfigError:
        raise
    except Exception as error:
        where = "every route" if route is None else f"route {route}"
        path = f"$.plugins[{index}]" if route is None else f"$.routes[{route!r}].plugins[{index}]"
        problem = f"plugin {use.use} of {where} cannot be built: {type(error).__name__}: {error}"
        raise ConfigError(path, problem) from error
    return plugin, settings


class _Services:
    """What the features of several routes share: that of the plan in force where its settings are the
    same.
    """

    def __init__(self, previous: Plan | None, changes: Changes) -> None:
        self._known = {
            service.key: service
            for service in (previous.plugins if previous is not None else ())
            if isinstance(service, Service) and not changes.concern(service.key[1])
        }
        self._noted: list[Service] = []
        self.used: list[Service] = []
        self.fresh: list[Service] = []

    def get(self, kind: str, settings: Any, make: Callable[[], Any]) -> Any:
        key = (kind, msgspec.msgpack.encode(settings))
        for service in self.used:
            if service.key == key:
                break
        else:
            if key in self._known:
                service = self._known[key]
            else:
                service = Service(key, make())
                self.fresh.append(service)
            self.used.append(service)
        self._noted.append(service)
        return service.made

    def settle(self) -> None:
        """What was asked for since the last call is no route's own."""
        self._noted.clear()

    def note(self, plan: RoutePlan) -> None:
        """The services asked for since the last call are those of this route."""
        plan.services = tuple(self._noted)
        self._noted.clear()

    def keep(self, plan: RoutePlan) -> None:
        """A route that is taken over brings its services along."""
        self.used += [service for service in plan.services if service not in self.used]


class Service:
    """A shared part of features, with the life of a plugin."""

    def __init__(self, key: tuple[str, bytes], made: Any) -> None:
        self.key = key
        self.name = key[0]
        self.made = made

    async def start(self) -> None:
        start = getattr(self.made, "start", None)
        if start is not None:
            await start()

    async def close(self) -> None:
        close = getattr(self.made, "close", None)
        if close is not None:
            await close()


def _keeper(upstream: str, settings: CredentialConfig | str, around: Surroundings) -> Any:
    assert not isinstance(settings, str), "the config check puts the settings in place of their name"
    from fastgate.upstream.credentials import Keeper  # with its HTTP client: only where it is asked for

    return Keeper(upstream, settings, around)


def _upstream(name: str, config: UpstreamConfig, around: Surroundings) -> Upstream:
    upstream = Upstream(name, config, around.loop, around.wheel, around.counters, around.slot)
    targets = [target for target in config.targets if target.weight > 0]
    context = None
    if any(target.url.startswith("https://") for target in targets):
        context = upstream_context(config.tls)
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
                context if secure else None,
                server_name,
                authority.encode(),
            )
        )
    upstream.set_targets(built, [target.weight for target in targets])
    return upstream


def _route(
    route: RouteConfig,
    source: bytes,
    config: Config,
    upstream: Upstream | None,
    plugins: list[Plugin],
    env: _Env,
) -> RoutePlan:
    around = env.around
    gates = [*_made(env, "guard"), *plugins, *_made(env, "action")]
    return RoutePlan(
        route.name,
        pipeline=Pipeline(gates),
        counters=around.counters,
        slot=around.slot,
        source=source,
        destination=None if upstream is None else _destination(upstream, env, gates),
        max_body_bytes=config.server.max_body_bytes if route.max_body_bytes is None else route.max_body_bytes,
        request_buffering_bytes=(
            config.server.request_buffering_bytes
            if route.request_buffering_bytes is None
            else route.request_buffering_bytes
        ),
        rewrite=rewrite_of(route.rewrite, env.params),
        request_edits=edits_of(route.request_headers, env.params, owns=True),
        response_edits=edits_of(route.response_headers, env.params),
        methods=route.methods,
        allow_encoded_slashes=route.allow_encoded_slashes,
        answers_preflight=any(getattr(gate, "answers_preflight", False) for gate in gates),
        header_tests=[
            (name.lower().encode("latin-1"), _test(value)) for name, value in route.headers.items()
        ],
        query_tests=[(name.encode(), _test(value, "utf-8")) for name, value in route.query.items()],
    )


def _made(env: _Env, scope: str) -> Iterator[Plugin]:
    """What the features of this scope make for the route, in their order."""
    place = 0
    for feature in FEATURES:
        for build in feature.build:
            plugin = build(getattr(env.route, feature.name, None), env) if feature.scope == scope else None
            if plugin is not None:
                plugin.place = place
                yield plugin
            place += 1


class Destinations:
    """Makes the destination of a route at another upstream than its own, when a policy or a plugin sends a
    request there.
    """

    def __init__(
        self, config: Config, around: Surroundings, upstreams: Mapping[str, Upstream], service: Any
    ) -> None:
        self._config = config
        self._around = around
        self._upstreams = upstreams
        self._service = service

    def __call__(self, plan: RoutePlan, name: str) -> Destination:
        """KeyError if there is no such upstream."""
        upstream = self._upstreams[name]
        upstream.tell_routes_apart()
        route = msgspec.structs.replace(decode_route(plan.source), upstream=name)
        env = _Env(route, _params(route), self._config, self._around, self._service)
        return _destination(upstream, env, plan.pipeline.plugins)


def _destination(upstream: Upstream, env: _Env, gates: Sequence[Plugin]) -> Destination:
    route = env.route
    edits = edits_of(route.request_headers, env.params, owns=True)
    owned = {name for gate in gates for name in getattr(gate, "owned", ())}
    return Destination(
        upstream,
        upstream.config.timeouts.overridden(route.timeouts),
        preserve_host=(upstream.config.preserve_host if route.preserve_host is None else route.preserve_host),
        cache=caching.build(route.cache, env, gates),
        owned=owned if edits is None else owned.union(edits.owned),
    )


def _upstream_of(plan: RoutePlan) -> Upstream | None:
    return None if plan.destination is None else plan.destination.upstream


def _params(route: RouteConfig) -> list[str]:
    return sorted({name for path in route.path for name in _param_names(path)})


def _param_names(path: str) -> list[str]:
    if path.startswith("~"):
        return list(re.compile(path[1:]).groupindex)
    return [found[1] for found in PLACE.finditer(path) if found[1]]


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
