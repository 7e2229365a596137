"""The entry point: turns a file, text or tree into a checked `Config`, or raises every error at once. Also
encodes the config as one blob.

Order: parse (`source`), environment overrides, the root (`shape`), plugins against their own Structs, checks
across sections, then each route. A section that cannot be parsed does not prevent the checks of the others.
"""

from __future__ import annotations

import gc
import json
import os
import stat
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path as FilePath
from typing import Any, Final

import msgspec
from msgspec import inspect

from fastgate.checks import Path, Report
from fastgate.config.check import RouteCheck, check_root
from fastgate.config.files import PluginShapes, named_files
from fastgate.config.foreign import plugin_hint
from fastgate.config.merge import merge_state
from fastgate.config.root import Config, PluginUse, RouteConfig
from fastgate.config.server import AdminConfig
from fastgate.config.shape import INVALID, Shapes, found_text
from fastgate.config.source import FORMATS, MAX_FILE_BYTES, Document, Substituted, parse, path_text
from fastgate.features.registry import FEATURES
from fastgate.plugin import PLUGINS, PluginClassError
from fastgate.settings import ConfigError
from fastgate.upstream.check import check_credentials, check_health_rows, check_upstream, with_credentials
from fastgate.upstream.settings import TargetConfig, UpstreamConfig

__all__ = [
    "CheckedConfig",
    "InvalidConfig",
    "Source",
    "check",
    "decode",
    "encode",
    "load",
    "load_admin",
    "load_source",
    "read_source",
]

ENVIRONMENT_PREFIX: Final = "FASTGATE__"


class InvalidConfig(ExceptionGroup[ConfigError]):
    """All errors of a config; `exceptions` are ConfigErrors in the order of the file."""

    @property
    def errors(self) -> tuple[ConfigError, ...]:
        return tuple(error for error in self.exceptions if isinstance(error, ConfigError))


class Source(msgspec.Struct, frozen=True):
    """A config file as it was read."""

    name: str
    form: str
    text: str


def load(
    path: str | FilePath,
    environ: Mapping[str, str] | None = None,
    overrides: Mapping[str, str] | None = None,
) -> Config:
    """The checked config of this file. InvalidConfig holds every error.

    `overrides` are single values by their path in the file (`{"admin.listen": ":9901"}`), from the command
    line. They take precedence over the environment, which takes precedence over the file.
    """
    return load_source(read_source(path), environ, overrides)


def load_source(
    source: Source,
    environ: Mapping[str, str] | None = None,
    overrides: Mapping[str, str] | None = None,
    *,
    state: tuple[str, str] | None = None,
    plain: Config | None = None,
) -> Config:
    """The same for a file that was read before. `state` and `plain`: as in `check`."""
    config, errors = check(
        source.text,
        source.form,
        environ,
        name=source.name,
        overrides=overrides,
        state=state,
        plain=plain,
    )
    if config is None:
        raise InvalidConfig("config", errors)
    return config


def read_source(path: str | FilePath) -> Source:
    """The text of this file. InvalidConfig when it cannot be read."""
    file = FilePath(path)
    form = FORMATS.get(file.suffix.lower())
    try:
        if form is None:
            hint = "" if file.exists() else "no such file"
            raise ConfigError(
                "$", file.name, "a file that ends in .yaml, .yml, .toml or .json", hint, str(file)
            )
        with file.open("rb") as stream:
            status = os.fstat(stream.fileno())
            if stat.S_ISREG(status.st_mode) and status.st_size > MAX_FILE_BYTES:
                raise ConfigError(
                    "$", f"{status.st_size} bytes", f"at most {MAX_FILE_BYTES}", where=str(file)
                )
            content = stream.read(MAX_FILE_BYTES + 1)
        return Source(str(file), form, content.decode("utf-8-sig"))
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise InvalidConfig(
            "config", [ConfigError("$", f"cannot read it: {reason}", where=str(file))]
        ) from None
    except UnicodeDecodeError as error:
        problem = ConfigError(
            "$", f"byte {error.object[error.start]:#04x} at {error.start}", "UTF-8 text", where=str(file)
        )
        raise InvalidConfig("config", [problem]) from None
    except ConfigError as error:
        raise InvalidConfig("config", [error]) from None


def load_admin(path: str | FilePath) -> AdminConfig:
    """The section `admin` of this file, whatever the errors in the others: a running gateway keeps the
    config that it loaded before, and commands must still find it. InvalidConfig if this section itself is
    invalid."""
    try:
        return load(path).admin
    except InvalidConfig as problem:
        file = FilePath(path)
        form = FORMATS.get(file.suffix.lower())
        try:
            document = parse(file.read_text("utf-8-sig"), form, os.environ)[0] if form else None
        except (OSError, ValueError):
            document = None
        if document is None:
            raise
        section = json.dumps(
            {"admin": document.tree.get("admin", {}), "routes": [{"respond": ""}]}, default=str
        )
        environ = {key: value for key, value in os.environ.items() if key.startswith("FASTGATE__ADMIN")}
        alone, _ = check(section, "json", environ)
        if alone is None:
            raise problem
        return alone.admin


def check(
    text: str,
    form: str,
    environ: Mapping[str, str] | None = None,
    *,
    name: str = "config",
    overrides: Mapping[str, str] | None = None,
    plugins: PluginShapes | None = None,
    state: tuple[str, str] | None = None,
    plain: Config | None = None,
) -> tuple[Config | None, list[ConfigError]]:
    """The config in this text (`yaml`, `toml` or `json`), or None and every error in it.

    `state` is the name and the JSON text of a State document (merge.py), which is put over the text. The text
    must be a good config without it: `plain`, where that is known already.

    `environ` defaults to the environment of the process. `plugins` finds the Struct of a plugin; by default,
    the plugin registry. Names of files are relative to the folder of `name`.
    """
    with _collector_paused():
        environ = os.environ if environ is None else environ
        folder = os.path.dirname(name)
        if state is None or plain is None:
            reading = _Reading(environ, plugins or registered, folder)
            plain, errors = reading.run(text, form, name, overrides or {})
            if state is None or plain is None:
                return plain, errors
        routes = [route.name for route in plain.each_route()]
        merging = _Reading(environ, plugins or registered, folder)
        return merging.run(text, form, name, overrides or {}, (*state, routes))


class CheckedConfig(Config, frozen=True, kw_only=True):
    """A config in the form sent between processes, with the digests of the files that it names."""

    files: dict[str, str] = msgspec.field(default_factory=dict)
    """Digest by file name. Equal configs with different digests are different configs."""


def encode(config: Config, *, plugins: PluginShapes | None = None) -> bytes:
    """The config as msgpack, for another process of this same version, with the digests of the files it
    names. Defaults are omitted."""
    fields = {name: getattr(config, name) for name in Config.__struct_fields__}
    return msgspec.msgpack.encode(CheckedConfig(**fields, files=named_files(config, plugins or registered)))


def decode(blob: bytes | bytearray | memoryview) -> CheckedConfig:
    """Decodes the result of `encode`. Routes stay encoded: `config.each_route()` decodes them one by one."""
    return msgspec.msgpack.decode(blob, type=CheckedConfig)


def registered(name: str) -> type | None:
    """The Config Struct of the plugin that the registry has under this name or dotted path."""
    return PLUGINS.load(name).Config


@contextmanager
def _collector_paused() -> Iterator[None]:
    """Pauses the cyclic collector, which would traverse the growing tree repeatedly: 4/5 of the time at 5 000
    routes."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


class _Reading:
    """One pass over one config."""

    def __init__(self, environ: Mapping[str, str], plugins: PluginShapes, folder: str) -> None:
        self._environ = environ
        self._plugins = plugins
        self._shapes = Shapes({PluginUse: self._read_plugin}, folder)
        unread = msgspec.Raw(b"\xc0")
        self._root_shapes = Shapes(
            {PluginUse: self._read_plugin, RouteConfig: lambda value, path, report: unread}, folder
        )
        self._plugin_shapes: dict[str, Any] = {}
        self._document: Document | None = None
        self._errors: list[ConfigError] = []

    def run(
        self,
        text: str,
        form: str,
        name: str,
        overrides: Mapping[str, str],
        state: tuple[str, str, list[str]] | None = None,
    ) -> tuple[Config | None, list[ConfigError]]:
        """`state`: name and text of the State document, and the names of the file's routes."""
        document, self._errors = parse(text, form, self._environ, name)
        if document is None:
            return None, self._errors
        self._document = document
        self._override(document, overrides)
        if state is not None:
            merged, errors = merge_state(document, state[1], name=state[0], routes=state[2], expand=_expanded)
            if merged is None:
                return None, errors
            self._document = document = merged
        config = self._read(document.tree)
        if config is not None and not self._errors:
            return config, []
        return None, sorted(self._errors, key=_line_number)

    def _report(self, path: Path, found: str, expected: str = "", hint: str = "") -> None:
        assert self._document is not None
        if path in self._document.unset:
            return
        value = _value_at(self._document.tree, path)
        if isinstance(value, Substituted):
            found, hint = _without(found, value, True), _without(hint, value, True)
            expected = _without(expected, value, False)
        where = self._document.where(path)
        self._errors.append(ConfigError(path_text(path), found, expected, hint, where))

    # environment and command line

    def _override(self, document: Document, overrides: Mapping[str, str]) -> None:
        for variable, value in sorted(self._environ.items()):
            if variable.startswith(ENVIRONMENT_PREFIX):
                steps = variable[len(ENVIRONMENT_PREFIX) :].split("__")
                self._set(document, steps, Substituted(value, f"${variable}"), variable)
        for place, value in overrides.items():
            label = "--" + place.replace(".", "-").replace("_", "-")
            self._set(document, place.split("."), Substituted(value, value), label)

    def _set(self, document: Document, steps: Sequence[str], value: Substituted, label: str) -> None:
        """Sets one value in the tree, creating the mappings on its path."""
        here: Any = document.tree
        shape: Any = Config
        path: list[str | int] = []
        for index, step in enumerate(steps):
            last = index == len(steps) - 1
            key: Any
            if isinstance(here, list):
                if not (step.isascii() and step.isdigit() and len(step) < 8) or int(step) >= len(here):
                    document.overridden[tuple(path)] = label
                    self._report(tuple(path), f'"{step}"', f"an index below {len(here)}", "")
                    return
                key = int(step)
            else:
                key = _existing_key(here, step)
            shape = _shape_at(shape, key)
            path.append(key)
            if last:
                here[key] = value
                document.overridden[tuple(path)] = label
                return
            below = here.get(key) if isinstance(here, dict) else here[key]
            if not isinstance(below, dict | list):
                shorthand = getattr(shape, "shorthand", None)
                below = here[key] = {} if below is None or shorthand is None else {shorthand: below}
            here = below

    # the tree

    def _read(self, tree: dict[str, Any]) -> Config | None:
        report = self._report
        tree.pop("$schema", None)  # for editors
        rest = {
            **tree,
            "routes": [None],
        }  # routes are read separately, so that an invalid one does not hide the errors of the others
        config = self._root_shapes.struct(Config)(rest, (), report)
        upstreams = tree.get("upstreams")
        names = upstreams.keys() if isinstance(upstreams, dict) else ()
        routes = self._read_routes(tree, names)
        if config is INVALID:
            self._check_good_sections(tree)
            return None
        check_root(config, report)
        for name, upstream in config.upstreams.items():
            check_upstream(name, upstream, ("upstreams", name), report)
        check_credentials(config.credentials, config.upstreams, report)
        if routes is None:
            return None
        if len(routes) == len(tree["routes"]):  # otherwise the numbers differ from those in the file
            named = list(_named(routes))
            for feature in FEATURES:
                if feature.check_together is not None:
                    feature.check_together(config, named, report)
        added = {
            route.upstream: UpstreamConfig(targets=(TargetConfig(url=route.upstream),))
            for route in routes
            if route.upstream is not None and route.upstream not in config.upstreams
        }
        check_health_rows([*config.upstreams.values(), *added.values()], config.memory.health_rows, report)
        if self._errors:
            return None
        encoded = []
        encoder = msgspec.msgpack.Encoder()
        for index, route in enumerate(_named(routes)):
            try:
                encoded.append(msgspec.Raw(encoder.encode(route)))
            except OverflowError:
                report(("routes", index), "a number beyond 64 bits")
        upstreams = {**with_credentials(config.credentials, config.upstreams), **added}
        config = msgspec.structs.replace(config, upstreams=upstreams)
        checked: Config = msgspec.structs.replace(config, routes=tuple(encoded))
        return checked

    def _check_good_sections(self, tree: dict[str, Any]) -> None:
        """Checks the valid sections of a root that is invalid as a whole."""
        read = self._root_shapes.struct(Config)
        placeholder = {"routes": [None]}
        good = {
            key: value
            for key, value in tree.items()
            if key != "routes" and read({key: value} | placeholder, (), _silent) is not INVALID
        }
        check_root(read(good | placeholder, (), _silent), self._report)
        upstreams = tree.get("upstreams")
        for name, value in upstreams.items() if isinstance(upstreams, dict) else ():
            upstream = self._shapes.struct(UpstreamConfig)(value, ("upstreams", name), _silent)
            if upstream is not INVALID:
                check_upstream(name, upstream, ("upstreams", name), self._report)

    def _read_routes(self, tree: dict[str, Any], upstreams: Any) -> list[RouteConfig] | None:
        if "routes" not in tree:
            hint = "a gateway needs at least one, such as {path: /*, upstream: http://127.0.0.1:9000}"
            self._report(("routes",), "missing key", "a list of routes", hint)
            return None
        found = tree["routes"]
        if type(found) is not list or not found:
            hint = "write - path: /* for each route" if isinstance(found, dict) else ""
            shown = "an empty list" if found == [] else found_text(found)
            self._report(("routes",), shown, "a list of routes", hint)
            return None
        reader = self._shapes.struct(RouteConfig)
        admin = tree.get("admin")
        is_off = (admin.get("listen") if isinstance(admin, dict) else admin) == "off"
        server = tree.get("server")
        merges = not isinstance(server, dict) or server.get("merge_slashes") is not False
        checker = RouteCheck(upstreams, self._report, has_controller=not is_off, merges_slashes=merges)
        routes = []
        for index, item in enumerate(found):
            route = reader(item, ("routes", index), self._report)
            if route is not INVALID:
                checker.check(route, ("routes", index), index)
                routes.append(route)
        return routes

    # plugins

    def _read_plugin(self, value: Any, path: Path, report: Report) -> Any:
        """`name`, `{name: {…}}` or `{use: "package.module:Class", …}`."""
        settings: Any = {}
        at = path
        if isinstance(value, str):
            name = str(value)
        elif type(value) is dict and isinstance(value.get("use"), str):
            name = str(value["use"])
            settings = {key: item for key, item in value.items() if key != "use"}
        elif type(value) is dict and len(value) == 1:
            name, settings = next(iter(value.items()))
            at = (*path, name)
            settings = {} if settings is None else settings
        else:
            wanted = "a plugin's name, {name: {settings}}, or {use: package.module:Class, settings}"
            report(path, found_text(value), wanted, "")
            return INVALID
        shape = self._plugin_shape(name, path, report)
        if shape is INVALID:
            return INVALID
        if shape is None:
            if settings:
                report(at, found_text(settings), f"nothing: {name} has no settings", "")
                return INVALID
            return PluginUse(use=name)
        read = self._shapes.struct(shape)(settings, at, report)
        if read is INVALID:
            return INVALID
        try:
            return PluginUse(use=name, config=msgspec.Raw(msgspec.msgpack.encode(read)))
        except OverflowError:
            report(at, "a number beyond 64 bits", "", "")
            return INVALID

    def _plugin_shape(self, name: str, path: Path, report: Report) -> Any:
        known = self._plugin_shapes.get(name, self)
        if known is not self:
            return known
        try:
            shape = self._plugins(name)
        except ConfigError as error:
            report(path, error.found, error.expected, error.hint)
            return INVALID
        except PluginClassError as error:
            for problem in error.problems:
                report(path, f"plugin {name}: {problem}", "", "")
            return INVALID
        except (LookupError, ImportError, AttributeError, TypeError, ValueError) as error:
            problem = error.args[0] if error.args else type(error).__name__
            hint = plugin_hint(name) or str(problem)
            report(path, f'"{name}"', "the name of a plugin, or package.module:Class", hint)
            return INVALID
        self._plugin_shapes[name] = shape
        return shape


def _value_at(tree: Any, path: Path) -> Any:
    """The value at this path, or the single value that is short for a list or a mapping there."""
    for step in path:
        if isinstance(tree, dict):
            tree = tree.get(step)
        elif isinstance(tree, list) and isinstance(step, int) and step < len(tree):
            tree = tree[step]
    return tree


# Shorter pieces of a value occur in messages by chance, because messages are made of words.
TELLING_CHARACTERS: Final = 4


def _without(message: str, value: Substituted, parts: bool) -> str:
    """The message with the value replaced by its template: a value from the environment may be a secret."""
    # as it is, as messages escape it, and without the ~ of a regular expression
    for shown in (str(value), value.encode("unicode_escape").decode(), value.removeprefix("~")):
        if len(shown) > 1:
            message = message.replace(shown, value.template)
    rest = message.replace(value.template, "") if parts else ""
    for text in (str(value), value.encode("unicode_escape").decode()):
        for at in range(len(text) - TELLING_CHARACTERS + 1):
            piece = text[at : at + TELLING_CHARACTERS]
            if piece in rest and piece not in value.template:  # a part of it
                return f"the value of {value.template}"
    return message


def _line_number(error: ConfigError) -> int:
    line = error.where.rpartition(":")[2]
    return int(line) if line.isdigit() else 0


def _silent(path: Path, found: str, expected: str, hint: str) -> None:
    """Discards the report: the error was reported before."""


def _existing_key(here: dict[str, Any], step: str) -> str:
    """The key of the mapping that an environment variable means: `ORDERS_API` is `orders-api` if that
    exists."""
    wanted = step.lower()
    for key in here:
        if key.lower().replace("-", "_").replace(".", "_") == wanted:
            return key
    return wanted


def _expanded(path: Path, value: Any) -> Any:
    """The mapping that a shorthand at this path is short for, or the value itself."""
    shape: Any = Config
    if path[:1] == ("routes",) and len(path) > 1:  # the Struct has them encoded
        shape, path = RouteConfig, path[2:]
    for step in path:
        shape = _shape_at(shape, step)
    shorthand = getattr(shape, "shorthand", None)
    return value if shorthand is None or value is None or isinstance(value, dict) else {shorthand: value}


def _shape_at(shape: Any, key: str | int) -> Any:
    """The Struct (or item type) below this key, if the types determine it, else None."""
    if isinstance(shape, type) and issubclass(shape, msgspec.Struct):
        for field in msgspec.structs.fields(shape):
            if field.encode_name == key:
                return _inner(inspect.type_info(field.type))
        return None
    if isinstance(shape, inspect.DictType):
        return _inner(shape.value_type)
    if isinstance(shape, inspect.VarTupleType | inspect.ListType):
        return _inner(shape.item_type)
    return None


def _inner(info: inspect.Type, extra: Mapping[str, Any] | None = None) -> Any:
    if isinstance(info, inspect.Metadata):
        return _inner(info.type, {**(extra or {}), **(info.extra or {})})
    if isinstance(info, inspect.UnionType):
        return next(
            (_inner(member) for member in info.types if not isinstance(member, inspect.NoneType)), None
        )
    return info.cls if isinstance(info, inspect.StructType) else info


def _named(routes: list[RouteConfig]) -> Iterator[RouteConfig]:
    """The routes, each with a name: its own, or one derived from its first host and path."""
    taken = {route.name for route in routes if route.name}
    for route in routes:
        if route.name:
            yield route
            continue
        stem = f"{route.host[0] if route.host else ''}{route.path[0]}"
        if not stem.isascii() or not stem.isprintable() or len(stem) > 120:
            stem = stem.encode("ascii", "replace").decode()[:120]
        name = stem
        if name in taken and route.methods:
            name = f"{','.join(route.methods)} {stem}"
        count = 2
        while name in taken:
            name = f"{stem} #{count}"
            count += 1
        taken.add(name)
        yield msgspec.structs.replace(route, name=name)
