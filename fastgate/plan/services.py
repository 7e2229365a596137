"""Plugins, and services shared by features, which a plan reuses from the previous one.

Both are identified by their settings, and rebuilt only if those have changed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from fastgate._core.pipeline.pipeline import Plugin
from fastgate._core.pipeline.plan import Plan, RoutePlan
from fastgate.config import Changes, PluginUse
from fastgate.features.registry import FEATURES
from fastgate.plugin import PLUGINS, PluginEnv
from fastgate.settings import ConfigError

__all__ = ["Plugins", "Service", "Services"]

PLACES = sum(len(feature.build) for feature in FEATURES)
"""Maximum number of plugins that features build for a route; each has a separate place."""


class Plugins:
    """The plugins of a plan: those of the active plan if they are unchanged, else new ones."""

    def __init__(self, previous: Plan | None, changes: Changes) -> None:
        known = [
            plugin
            for plugin in (previous.plugins if previous is not None else ())
            if isinstance(plugin, Plugin)
        ]
        self._known: dict[tuple[Any, ...], Plugin] = {
            plugin.key: plugin for plugin in known if not changes.concern(plugin.key[3])
        }
        # A plugin keeps its place while requests that use it are in flight; a new one takes a free place.
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
            first = PLACES  # lower places belong to the features, one each
            plugin.place = next(p for p in range(first, first + len(self._taken) + 1) if p not in self._taken)
            self._taken.add(plugin.place)
        self.used.append(plugin)
        return plugin


def _built(use: PluginUse, route: str | None, index: int) -> tuple[Plugin, Any]:
    """A new plugin and its settings. ConfigError names the plugin and the route if its code fails."""
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


class Services:
    """Objects shared by the features of several routes: those of the active plan if their settings are the
    same, else new ones.
    """

    def __init__(self, previous: Plan | None, changes: Changes) -> None:
        self._known = {
            service.key: service
            for service in (previous.plugins if previous is not None else ())
            if isinstance(service, Service) and not changes.concern(service.key[1])
        }
        self._is_sealed = False
        self._noted: list[Service] = []
        self.used: list[Service] = []
        self.fresh: list[Service] = []

    def get(self, kind: str, settings: Any, make: Callable[[], Any]) -> Any:
        key = (kind, msgspec.msgpack.encode(settings))
        for service in self.used:
            if service.key == key:
                break
        else:
            if self._is_sealed:
                raise LookupError(f"service {kind}: the plan was made without it")
            if key in self._known:
                service = self._known[key]
            else:
                service = Service(key, make())
                self.fresh.append(service)
            self.used.append(service)
        if not self._is_sealed:
            self._noted.append(service)
        return service.made

    def seal(self) -> None:
        """Called when the plan is complete: from now on `get` returns only existing services. A service of
        the previous plan may be closed, and a new one would never be started.
        """
        self._is_sealed = True
        self._known.clear()
        self._noted.clear()

    def settle(self) -> None:
        """The services requested since the last call belong to no route."""
        self._noted.clear()

    def note(self, plan: RoutePlan) -> None:
        """The services requested since the last call belong to this route."""
        plan.services = tuple(self._noted)
        self._noted.clear()

    def keep(self, plan: RoutePlan) -> None:
        """Keeps the services of a reused route."""
        self.used += [service for service in plan.services if service not in self.used]


class Service:
    """An object shared by features, with the lifecycle of a plugin."""

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
