"""The root of the config and its routes, put together from what every gateway has and what features add.

Shapes and defaults only. `source.py` turns a file into plain values, `shape.py` reads those into Structs,
`check.py` finds what is wrong between them, `load.py` is the door. Routes are kept encoded (`msgspec.Raw`),
so that five thousand of them travel to the workers as one blob, compare by bytes and are decoded one by one.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Final, TypeVar

import msgspec
import msgspec.inspect
from msgspec import Meta

from fastgate.config.server import (
    AccessLogConfig,
    AdminConfig,
    ListenerConfig,
    MemoryConfig,
    ServerConfig,
    StoreConfig,
)
from fastgate.features.registry import FEATURES
from fastgate.settings import Settings, Size, Text
from fastgate.upstream.settings import CredentialConfig, TimeoutOverrides, UpstreamConfig

__all__ = [
    "ACTIONS",
    "NEEDS_UPSTREAM",
    "ROUTE_DEFAULTS",
    "Config",
    "PluginUse",
    "RouteConfig",
]

T = TypeVar("T")

TRUSTED_UNIX = "unix"
"""In `trusted_proxies`: whoever connects to a Unix socket."""


class PluginUse(Settings, frozen=True, kw_only=True):
    """One plugin of a list, with its config. In the file: `name`, `{name: {…}}`, or `{use:
    "package.module:Class", …}`.
    """

    use: Annotated[
        str,
        Meta(
            min_length=1,
            description="Name of a built-in or installed plugin, or the dotted path of its class.",
        ),
    ]
    config: Annotated[
        msgspec.Raw,
        Meta(description="The plugin's own settings, checked against its Config Struct, as msgpack."),
    ] = msgspec.Raw(b"\x80")  # an empty map

    def read(self, shape: type[T]) -> T:
        """The settings as the plugin's own Struct. They were checked on loading, so this does not fail on
        user input.
        """
        return msgspec.msgpack.decode(self.config, type=shape)


# Routes and the root are put together from parts: those below, which every gateway has, and the keys of each
# feature (`RouteKeys`, `RootKeys` in its folder). `manual_order` is the place of a part in the manual.


class RouteMatching(Settings, frozen=True, kw_only=True):
    """Which requests, and where they go."""

    manual_order: ClassVar[int] = 0

    name: Annotated[
        str,
        Meta(
            pattern=r"^[!-~]([ -~]{0,126}[!-~])?$(?!\n)",
            description=(
                "Label in metrics, logs and `explain`; unique. Default: the first host and path, so only "
                "routes that differ by something else need one."
            ),
        ),
    ] = ""
    enabled: Annotated[bool, Meta(description="A disabled route is checked, but does not match.")] = True
    host: Annotated[
        tuple[str, ...],
        Meta(
            extra={"one_or_many": True},
            description=(
                "Names without port: `api.example.com`, or `*.example.com` for any name below. Default: "
                "any host. An exact name wins over the longest wildcard, that over any."
            ),
        ),
    ] = ()
    path: Annotated[
        tuple[str, ...],
        Meta(
            min_length=1,
            extra={"one_or_many": True},
            description=(
                "`/a/b` exactly, `/orders/{id}` with one segment as a parameter, `/files/{rest...}` with "
                "the whole tail, `/static/*` as a prefix, `~^/v[0-9]+/` a Python regular expression. "
                "Literal wins over `{param}`, that over regular expressions in their order, those over the "
                "longest prefix. Default: every path."
            ),
        ),
    ] = ("/*",)
    methods: Annotated[
        tuple[str, ...],
        Meta(
            extra={"one_or_many": True},
            description=(
                "Methods that match; GET brings HEAD with it. Others get 405 with `Allow` when no other "
                "route takes them. Default: any."
            ),
        ),
    ] = ()
    headers: Annotated[
        dict[str, str],
        Meta(
            description=(
                'Fields that must be there: an exact value, `"~regex"` to search, or `"*"` for any value.'
            )
        ),
    ] = msgspec.field(default_factory=dict)
    query: Annotated[
        dict[str, str],
        Meta(
            description=(
                'Query parameters that must be there: an exact value, `"~regex"` to search, or `"*"` for '
                "any value."
            )
        ),
    ] = msgspec.field(default_factory=dict)
    upstream: Annotated[
        Text | None,
        Meta(
            extra={"number": "http://127.0.0.1:{}", "action": True},
            description="Name of an entry of `upstreams`, or a URL, which makes one with default settings.",
        ),
    ] = None
    allow_encoded_slashes: Annotated[
        bool,
        Meta(
            description=(
                "The upstream takes `%2F` and `%5C` in a segment as data and not as a slash. Without it, a "
                "path that would belong to another route, or to none, once they are decoded is refused (400 "
                "`ambiguous_path`)."
            )
        ),
    ] = False


class RouteForwarding(Settings, frozen=True, kw_only=True):
    """How requests go to the upstream."""

    manual_order: ClassVar[int] = 90

    max_body_bytes: Annotated[
        Size | None, Meta(description="Request body; more is 413. 0 is no limit. Default: `server.max_body`.")
    ] = None
    request_buffering_bytes: Annotated[
        Annotated[Size, Meta(le=16_777_216)] | None,
        Meta(
            description=(
                "Collect a request body up to this size before a connection to the upstream is taken; 0 "
                "streams it as it arrives. Default: `server.request_buffering`."
            ),
        ),
    ] = None
    timeouts: Annotated[
        TimeoutOverrides | None,
        Meta(
            extra={"needs_upstream": True},
            description="In place of the upstream's, one by one.",
        ),
    ] = None
    preserve_host: Annotated[
        bool | None,
        Meta(
            extra={"needs_upstream": True},
            description="In place of the upstream's `preserve_host`.",
        ),
    ] = None


class RoutePlugins(Settings, frozen=True, kw_only=True):
    """Plugins of a route."""

    manual_order: ClassVar[int] = 900

    plugins: Annotated[
        tuple[PluginUse, ...],
        Meta(
            max_length=30, description="Plugins of this route, in order, after those of the root. At most 30."
        ),
    ] = ()


class ServerSide(Settings, frozen=True, kw_only=True):
    """Listeners, processes, and what all of them share."""

    manual_order: ClassVar[int] = 0

    listen: Annotated[
        tuple[ListenerConfig, ...],
        Meta(
            min_length=1,
            extra={"one_or_many": True},
            description=(
                "Where clients connect: an address, `{address, tls, …}`, or a list of these. Loopback by "
                "default, so that a first try is not on the internet."
            ),
        ),
    ] = (ListenerConfig(address="127.0.0.1:8080"),)
    workers: Annotated[
        int,
        Meta(
            ge=0,
            le=1024,
            extra={"words": {"auto": 0}},
            description=(
                "Worker processes. `auto` is one per CPU this process may run on, and no more than the CPU "
                "quota of its control group (the `cpus` of a container), rounded up."
            ),
        ),
    ] = 0
    admin: Annotated[AdminConfig, Meta(description="Health, metrics, status and reload.")] = AdminConfig()
    server: Annotated[ServerConfig, Meta(description="Limits on the client side.")] = ServerConfig()
    trusted_proxies: Annotated[
        tuple[str, ...],
        Meta(
            extra={"one_or_many": True},
            description=(
                "Addresses and ranges (CIDR) whose `X-Forwarded-*`, `Forwarded` and request id are "
                "believed; `unix` is whoever connects to a Unix socket. From anyone else they are replaced. "
                "`Forwarded` counts only where a proxy sends no `X-Forwarded-For`, `-Proto` or `-Host`. "
                "Default: none."
            ),
        ),
    ] = ()
    memory: Annotated[MemoryConfig, Meta(description="Sizes of what all processes of a host share.")] = (
        MemoryConfig()
    )
    store: Annotated[StoreConfig, Meta(description="Where API keys and consumers are kept.")] = StoreConfig()
    access_log: Annotated[AccessLogConfig, Meta(description="One line per request.")] = AccessLogConfig()
    watch_config: Annotated[
        bool,
        Meta(
            description=(
                "Take up the config file by itself when it changes (looked at every second), as a reload "
                "would. A bad file changes nothing and is reported."
            )
        ),
    ] = True


class RootPlugins(Settings, frozen=True, kw_only=True):
    """Plugins of every route."""

    manual_order: ClassVar[int] = 30

    plugins: Annotated[
        tuple[PluginUse, ...],
        Meta(
            max_length=30, description="Plugins of every route, in order, before the route's own. At most 30."
        ),
    ] = ()


class Credentials(Settings, frozen=True, kw_only=True):
    """What upstreams are shown."""

    manual_order: ClassVar[int] = 80

    credentials: Annotated[
        dict[str, CredentialConfig],
        Meta(description="Credentials for upstreams by name, for several upstreams that show the same."),
    ] = msgspec.field(default_factory=dict)


def _composed(name: str, doc: str, parts: Iterable[type[Settings]], **methods: Any) -> Any:
    """The Struct with the keys of all parts, in the order of the manual. No two may have the same key."""
    fields: list[tuple[str, Any, Any]] = []
    elsewhere: dict[str, str] = {}
    for part in sorted(parts, key=lambda part: part.manual_order):
        for field in msgspec.structs.fields(part):
            if any(field.name == known for known, _, _ in fields):
                raise ValueError(f"two features have the key {field.name}")
            made = {"default": field.default, "default_factory": field.default_factory}
            fields.append((field.name, field.type, msgspec.field(**made)))
        elsewhere |= part.elsewhere
    namespace = {"__doc__": doc, "elsewhere": elsewhere, **methods}
    return msgspec.defstruct(
        name, fields, bases=(Settings,), namespace=namespace, module=__name__, frozen=True, kw_only=True
    )


def _parts(scope: str) -> Iterator[type[Settings]]:
    """What the features add to a route or to the root."""
    return (keys for feature in FEATURES if (keys := getattr(feature, scope)) is not None)


if TYPE_CHECKING:

    class RouteConfig(RouteMatching, RouteForwarding, RoutePlugins, frozen=True, kw_only=True):
        def __getattr__(self, key: str) -> Any:
            """A key of a feature."""
else:
    RouteConfig = _composed(
        "RouteConfig",
        "The requests it takes and what handles them. Exactly one of `upstream`, `redirect` and `respond`.",
        [RouteMatching, RouteForwarding, RoutePlugins, *_parts("route")],
    )


def _marked(mark: str) -> tuple[str, ...]:
    """The keys of a route with this mark in their `Meta(extra=…)`."""
    return tuple(
        field.name
        for field in msgspec.structs.fields(RouteConfig)
        if mark in (getattr(msgspec.inspect.type_info(field.type), "extra", None) or {})
    )


ACTIONS: Final = _marked("action")
"""Keys that say who responds: a route has one of them."""
NEEDS_UPSTREAM: Final = _marked("needs_upstream")
"""Keys without effect on a route that has no upstream."""


class Services(Settings, frozen=True, kw_only=True):
    """Upstreams and routes."""

    manual_order: ClassVar[int] = 900

    upstreams: Annotated[
        dict[str, UpstreamConfig],
        Meta(description="Services by name. A URL given to a route directly is added here under itself."),
    ] = msgspec.field(default_factory=dict)
    routes: Annotated[
        tuple[msgspec.Raw, ...],
        Meta(
            min_length=1,
            extra={"shape": RouteConfig},
            description="What is served. The most specific match wins.",
        ),
    ]

    def each_route(self) -> Iterator[RouteConfig]:
        """The routes, decoded one by one, in the order of the file."""
        return map(decode_route, self.routes)


if TYPE_CHECKING:

    class Config(ServerSide, RootPlugins, Credentials, Services, frozen=True, kw_only=True):
        def __getattr__(self, key: str) -> Any:
            """A key of a feature."""
else:
    Config = _composed(
        "Config",
        "Everything in a config file.",
        [ServerSide, RootPlugins, Credentials, Services, *_parts("root")],
        each_route=Services.each_route,
    )

ROUTE_DEFAULTS: Final = (
    "server",
    "store",
    "credentials",
    *(name for part in _parts("root") for name in part.__struct_fields__),
)
"""The root sections that what is built for a route may depend on."""


_route_decoder = msgspec.msgpack.Decoder(RouteConfig)


def decode_route(raw: Any) -> RouteConfig:
    """A route of `Config.routes`, from its bytes."""
    return _route_decoder.decode(raw)
