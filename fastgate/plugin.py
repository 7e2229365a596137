"""The interface for plugin authors, and the registry of plugins.

    from fastgate.plugin import Plugin, Settings

    class Greeter(Plugin):
        class Config(Settings, frozen=True, kw_only=True):
            greeting: str = "hello"

        def decide(self, ctx):
            ctx.add_response_header("X-Greeting", self.config.greeting)

A plugin is named in the config by the name of its entry point (group `fastgate.plugins`), or by its dotted
path `package.module:Class`. Its Config Struct is checked as strictly as the rest of the config, and so is the
class: a misspelled phase, a wrong signature or an `async def` where none is awaited is an error when the
config is loaded, not a request that passes unchecked.
"""

from __future__ import annotations

import difflib
import importlib
import inspect
import os
import re
import traceback
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import entry_points
from types import FunctionType
from typing import TYPE_CHECKING, Any, Final, Generic, NamedTuple, Protocol, TypeVar

from fastgate._core.http.headers import Headers
from fastgate._core.pipeline.context import CONTINUE, RESPOND, SUSPEND, Answer, RequestContext
from fastgate._core.pipeline.pipeline import Pipeline, Plugin, RequestHead, ResponseHead
from fastgate.errors import REASONS, Reason
from fastgate.settings import Settings

if TYPE_CHECKING:
    from fastgate._core.pipeline.wheel import TimerWheel
    from fastgate._core.shm.counters import Counters
    from fastgate.state.memory import HostMemory

__all__ = [
    "CONTINUE",
    "PLUGINS",
    "REASONS",
    "RESPOND",
    "SUSPEND",
    "Answer",
    "FeatureEnv",
    "Headers",
    "Pipeline",
    "PlanContext",
    "Plugin",
    "PluginClassError",
    "PluginEnv",
    "Reason",
    "Registry",
    "RequestContext",
    "RequestHead",
    "ResponseHead",
    "Settings",
]

T = TypeVar("T")

GROUP = "fastgate.plugins"

#: The phases of a plugin, with the arguments after `self`, and whether the result is awaited.
PHASES: Final[dict[str, tuple[tuple[str, ...], bool]]] = {
    "decide": (("ctx",), False),
    "request": (("ctx",), True),
    "upstream_request": (("ctx", "head"), False),
    "cache_key": (("ctx",), False),
    "upstream_response": (("ctx", "head"), False),
    "response": (("ctx", "head"), False),
    "request_chunk": (("ctx", "chunk", "last"), False),
    "response_chunk": (("ctx", "chunk", "last"), False),
    "log": (("ctx",), False),
    "start": ((), True),
    "close": ((), True),
}

#: Names of hooks in other gateways and frameworks, and the equivalent phase.
FOREIGN: Final[dict[str, str]] = {
    "access": "decide", "authenticate": "decide", "authorize": "decide", "before": "decide",
    "check": "decide", "dispatch": "decide", "filter": "decide", "handle": "decide", "intercept": "decide",
    "process": "decide", "run": "decide", "request_filter": "decide", "request_headers": "decide",
    "serve": "decide", "request_body": "request_chunk", "request_body_filter": "request_chunk",
    "upstream_request_filter": "upstream_request", "upstream_peer": "decide", "balancer": "decide",
    "response_filter": "response", "header_filter": "response", "response_headers": "response",
    "after": "response", "response_body": "response_chunk", "response_body_filter": "response_chunk",
    "body_filter": "response_chunk", "logging": "log", "fail_to_proxy": "log", "init": "build",
    "setup": "start", "startup": "start", "init_worker": "start", "lifespan": "start", "shutdown": "close",
    "stop": "close", "teardown": "close", "cleanup": "close", "aclose": "close",
}  # fmt: skip
_AFFIX: Final = re.compile(r"^(on|before|after|handle|process|do|pre|post)_|_(hook|phase|handler|filter)\Z")
"""Prefixes and suffixes of hook names in other frameworks."""


class PluginClassError(TypeError):
    """An invalid plugin class; `problems` has one sentence per error."""

    def __init__(self, problems: tuple[str, ...]) -> None:
        super().__init__("; ".join(problems))
        self.problems = problems


class PluginEnv(NamedTuple):
    """Context of build() in addition to the plugin's settings."""

    name: str  # the name of the plugin in the config
    route: str | None  # the route of the plugin; None for plugins of every route


class PlanContext(Protocol):
    """The objects of the worker that a plan uses; `fastgate explain` has a substitute."""

    @property
    def loop(self) -> Any: ...

    @property
    def wheel(self) -> TimerWheel: ...

    @property
    def counters(self) -> Counters: ...

    @property
    def memory(self) -> HostMemory: ...

    @property
    def slot(self) -> int: ...


class FeatureEnv(Protocol):
    """Context of the builder of a built-in feature in addition to its settings."""

    @property
    def route(self) -> Any:
        """The route's config."""

    @property
    def params(self) -> Sequence[str]:
        """The parameters of the route's path, sorted."""

    @property
    def config(self) -> Any:
        """The whole config. Its routes are encoded."""

    @property
    def context(self) -> PlanContext:
        """The objects of the worker."""

    @property
    def service(self) -> Callable[[str, Any, Callable[[], Any]], Any]:
        """`service(kind, settings, make)`: an object shared by routes, one per worker for each kind and
        settings. It is kept across reloads while the settings are equal. Its async `start` and `close`, if
        defined, are awaited."""


class Registry(Generic[T]):
    """Finds classes of one kind by the name of their entry point or by their dotted path."""

    def __init__(
        self,
        kind: str,
        group: str,
        base: type[T],
        place: str,
        check: Callable[[type[T]], None] | None = None,
    ) -> None:
        """kind: its name in messages. group: of the entry points. base, place: the base class, and where
        users import it from. check: raises if a class is invalid."""
        self._kind, self._group, self._base, self._place = kind, group, base, place
        self._check = check

    def load(self, name: str) -> type[T]:
        """The class. Raises LookupError if there is none, TypeError if it is of another kind; both state the
        reason."""
        if ":" in name:
            return self._checked(name, _by_path(name))
        for entry in entry_points(group=self._group, name=name):
            return self._checked(name, _imported(entry.value, entry.load))
        module, dot, attribute = name.rpartition(".")
        path = f"write {module}:{attribute}" if dot else "or give the dotted path package.module:Class"
        known = ", ".join(self.names()) or "none"
        raise LookupError(f"there is no {self._kind} named {name!r}; installed: {known}; {path}")

    def names(self) -> list[str]:
        """The names of all installed classes."""
        return sorted({entry.name for entry in entry_points(group=self._group)})

    def _checked(self, name: str, found: Any) -> type[T]:
        if isinstance(found, self._base):
            raise TypeError(f"{name!r} is an instance; name its class")
        if not isinstance(found, type) or not issubclass(found, self._base):
            raise TypeError(f"{name!r} is not a subclass of {self._place}")
        if self._check is not None:
            self._check(found)
        return found


def _by_path(path: str) -> Any:
    module, _, attribute = path.partition(":")
    found = _imported(module, lambda: importlib.import_module(module))
    for step in attribute.split("."):
        try:
            found = getattr(found, step)
        except AttributeError as error:
            raise LookupError(f"module {module!r} has no {attribute!r}") from error
    return found


def _imported(module: str, load: Callable[[], Any]) -> Any:
    """The result of `load`. LookupError has the exception of the imported code, and its line."""
    try:
        return load()
    except (Exception, SystemExit) as error:
        if isinstance(error, SyntaxError):
            at = f" at {os.path.basename(error.filename or '')}:{error.lineno}"
            error = SyntaxError(error.msg)  # without repeating the position
        else:
            last = traceback.extract_tb(error.__traceback__)[-1]
            at = (
                ""
                if last.filename.startswith("<frozen")
                else f" at {os.path.basename(last.filename)}:{last.lineno}"
            )
        text = str(error) if isinstance(error, ImportError) else f"{type(error).__name__}: {error}"
        hint = ""
        if (
            isinstance(error, ModuleNotFoundError)
            and error.name == module.partition(".")[0].partition(":")[0]
        ):
            hint = (
                "; install it where fastgate is installed, name its folder in PYTHONPATH, or use "
                "`fastgate run --dev`, which searches the config's folder"
            )
        raise LookupError(f"cannot import {module!r}: {text}{at}{hint}") from error


def _check_class(cls: type[Plugin]) -> None:
    problems = tuple(class_problems(cls))
    if problems:
        raise PluginClassError(problems)


PLUGINS: Final = Registry("plugin", GROUP, Plugin, "fastgate.plugin.Plugin", _check_class)
"""Plugin classes. Invalid ones are rejected with PluginClassError."""


def class_problems(cls: type[Plugin]) -> Iterator[str]:
    """The errors of a plugin class, one sentence each. The compiler has already checked compiled classes."""
    yield from _config_problems(cls)
    own = _own_attributes(cls)
    for phase, (arguments, awaited) in PHASES.items():
        if phase in own:
            yield from _phase_problems(cls, phase, own[phase], arguments, awaited)
    build = own.get("build")
    if build is not None:
        if not isinstance(build, classmethod):
            yield "build must be a class method: write @classmethod above it"
        elif inspect.iscoroutinefunction(build.__func__):
            yield "build must not be async; asynchronous work belongs in start"
        else:
            yield from _signature_problems("build", build.__func__, ("cls", "config", "env"))
    elif "__init__" in own and list(_signature_problems("__init__", own["__init__"], ("self",))):
        yield "__init__ takes arguments, but build calls the class without any: override build"
    yield from _name_problems(cls, own)


def _own_attributes(cls: type[Plugin]) -> dict[str, Any]:
    """The attributes defined by Python classes below Plugin; the most derived definition of each."""
    own: dict[str, Any] = {}
    for base in cls.__mro__:
        if base is not object and "__pyx_vtable__" not in vars(base):
            for name, value in vars(base).items():
                own.setdefault(name, value)
    return own


def _config_problems(cls: type[Plugin]) -> Iterator[str]:
    if cls.Config is None:
        for name, value in vars(cls).items():
            if name in ("config", "Settings", "Configuration", "Options") and isinstance(value, type):
                yield f"{name} is not read: call the class of the settings Config"
    elif not (isinstance(cls.Config, type) and issubclass(cls.Config, Settings)):
        yield "Config must be a subclass of fastgate.plugin.Settings"


def _phase_problems(
    cls: type[Plugin], phase: str, value: Any, arguments: tuple[str, ...], awaited: bool
) -> Iterator[str]:
    if isinstance(value, staticmethod | classmethod):
        yield f"{phase} must be a plain method, not a {type(value).__name__}"
        return
    if not callable(value):
        yield f"{phase} is a phase and must be a method, not a {type(value).__name__}: use another name"
        return
    inner = inspect.unwrap(value)
    if inspect.isgeneratorfunction(inner) or inspect.isasyncgenfunction(inner):
        yield f"{phase} must not `yield`"
        return
    is_async = inspect.iscoroutinefunction(value) or inspect.iscoroutinefunction(inner)
    if is_async and not awaited:
        instead = "; decide synchronously in decide, and return SUSPEND to have `request` awaited"
        yield f"{phase} must not be async: it is not awaited{instead if phase == 'decide' else ''}"
    elif awaited and not is_async and isinstance(value, FunctionType):
        yield f"{phase} must be `async def`: it is awaited"
    yield from _signature_problems(phase, value, ("self", *arguments))


def _signature_problems(name: str, function: Any, arguments: tuple[str, ...]) -> Iterator[str]:
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):
        return  # compiled without a signature
    try:
        signature.bind(*arguments)
    except TypeError:
        yield f"{name} must take ({', '.join(arguments)}), not ({', '.join(signature.parameters)})"


def _name_problems(cls: type[Plugin], own: dict[str, Any]) -> Iterator[str]:
    """Methods that look like phases but are none and would never be called."""
    known = {*PHASES, "build"}
    methods = [
        name
        for name, value in own.items()
        if not name.startswith("_")
        and name not in known
        and isinstance(value, FunctionType | classmethod | staticmethod)
    ]
    idle = not any(phase in own for phase in PHASES)
    found = False
    for name in methods:
        bare = _AFFIX.sub("", name.lower())
        meant = bare if bare in known else ""
        if not meant and idle:
            meant = FOREIGN.get(name.lower()) or FOREIGN.get(bare) or ""
        if not meant:
            folded = {phase.replace("_", ""): phase for phase in known if len(phase) > 5}
            close = difflib.get_close_matches(name.lower().replace("_", ""), folded, 1, 0.85)
            meant = folded[close[0]] if close else ""
        if meant:
            found = True
            if meant == "request" and not inspect.iscoroutinefunction(getattr(cls, name)):
                meant = "decide"  # the synchronous one
            yield f"{name} is never called: did you mean {meant}? (begin the name of a helper with _)"
    compiled = any("__pyx_vtable__" in vars(base) for base in cls.__mro__ if base is not Plugin)
    if idle and methods and not found and not compiled:
        yield f"the class has {', '.join(methods)}, but none of the phases {', '.join(PHASES)}"
