"""What a plugin author imports, and where plugins are found.

    from fastgate.plugin import Plugin, Settings

    class Greeter(Plugin):
        class Config(Settings, frozen=True, kw_only=True):
            greeting: str = "hello"

        def decide(self, ctx):
            ctx.add_response_header("X-Greeting", self.config.greeting)

A plugin is named in the config by the name of its entry point (group `fastgate.plugins`), or by its dotted
path `package.module:Class`. Its Config Struct is checked as strictly as the rest of the config.
"""

from __future__ import annotations

import importlib
from importlib.metadata import entry_points
from typing import Any, NamedTuple

from fastgate._core.context import CONTINUE, RESPOND, SUSPEND, Answer, RequestContext
from fastgate._core.headers import Headers
from fastgate._core.pipeline import Pipeline, Plugin, RequestHead, ResponseHead
from fastgate.errors import REASONS, Reason
from fastgate.settings import Settings

__all__ = [
    "CONTINUE",
    "REASONS",
    "RESPOND",
    "SUSPEND",
    "Answer",
    "Headers",
    "Pipeline",
    "Plugin",
    "PluginEnv",
    "Reason",
    "Registry",
    "RequestContext",
    "RequestHead",
    "ResponseHead",
    "Settings",
]

GROUP = "fastgate.plugins"


class PluginEnv(NamedTuple):
    """What build() is told besides its settings."""

    name: str  # as the config names the plugin
    route: str | None  # the route it is made for; None for the plugins of every route


class Registry:
    """Finds plugin classes by name or dotted path."""

    @staticmethod
    def load(name: str) -> type[Plugin]:
        """The class. LookupError when there is none, TypeError when it is no plugin; both say why."""
        if ":" in name:
            return _checked(name, _by_path(name))
        for entry in entry_points(group=GROUP, name=name):
            return _checked(name, entry.load())
        known = sorted({entry.name for entry in entry_points(group=GROUP)})
        raise LookupError(
            f"no plugin is called {name!r}; installed: {', '.join(known) or 'none'}; "
            "or give the dotted path package.module:Class"
        )

    @staticmethod
    def names() -> list[str]:
        """The names of all installed plugins."""
        return sorted({entry.name for entry in entry_points(group=GROUP)})


def _by_path(path: str) -> Any:
    module, _, attribute = path.partition(":")
    try:
        found: Any = importlib.import_module(module)
    except ImportError as error:
        raise LookupError(f"cannot import {module!r}: {error}") from error
    for step in attribute.split("."):
        try:
            found = getattr(found, step)
        except AttributeError as error:
            raise LookupError(f"module {module!r} has no {attribute!r}") from error
    return found


def _checked(name: str, found: Any) -> type[Plugin]:
    if not isinstance(found, type) or not issubclass(found, Plugin):
        raise TypeError(f"{name!r} is not a subclass of fastgate.plugin.Plugin")
    if found.Config is not None and not (
        isinstance(found.Config, type) and issubclass(found.Config, Settings)
    ):
        raise TypeError(f"{name!r}: Config must be a subclass of fastgate.plugin.Settings")
    return found
