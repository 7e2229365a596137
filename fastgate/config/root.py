"""The root of the config and its routes, composed of the common keys and the keys of the features.

Types and defaults only. `source.py` parses a file into plain values, `shape.py` converts those into Structs,
`check.py` checks them against each other, `load.py` is the entry point. Routes are kept encoded
(`msgspec.Raw`): thousands of them are sent to the workers as one blob, compared by bytes and decoded one by
one.
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
from fastgate.upstream.balance_settings import Locality
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
"""In `trusted_proxies`: every client that connects to a Unix socket."""


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
        """The settings as the plugin's own Struct. They were checked when the config was loaded, so user
        input cannot make this fail."""
        return msgspec.msgpack.decode(self.config, type=shape)


# Routes and the root are composed of the parts below, which every config has, and the keys of the features
# (`RouteKeys`, `RootKeys` in their folders). `manual_order` is the position of a part in the manual.


class RouteMatching(Settings, frozen=True, kw_only=True):
    """Conditions for a request to match, and its target."""

    manual_order: ClassVar[int] = 0

    name: Annotated[
        str,
        Meta(
            pattern=r"^[!-~]([ -~]{0,126}[!-~])?$(?!\n)",
            description=(
                "Label in metrics, logs and `explain`; unique. Default: the first host and path, "
                "so only routes with the same host and path need a name."
            ),
        ),
    ] = ""
    enabled: Annotated[bool, Meta(description="A disabled route is checked, but never matches.")] = True
    host: Annotated[
        tuple[str, ...],
        Meta(
            extra={"one_or_many": True},
            description=(
                "Names without port: `api.example.com`, or `*.example.com` for every subdomain. "
                "Default: any host. An exact name takes precedence over the longest wildcard, a "
                "wildcard over any host."
            ),
        ),
    ] = ()
    path: Annotated[
        tuple[str, ...],
        Meta(
            min_length=1,
            extra={"one_or_many": True},
            description=(
                "`/a/b` exactly, `/orders/{id}` with one segment as a parameter, "
                "`/files/{rest...}` with the remaining path, `/static/*` as a prefix, "
                "`~^/v[0-9]+/` a Python regular expression. Precedence: literal, `{param}`, "
                "regular expressions in their order, the longest prefix. Default: every path."
            ),
        ),
    ] = ("/*",)
    methods: Annotated[
        tuple[str, ...],
        Meta(
            extra={"one_or_many": True},
            description=(
                "Methods that match; GET includes HEAD. Other methods are rejected with 405 and "
                "`Allow` if no other route accepts them. Default: any."
            ),
        ),
    ] = ()
    headers: Annotated[
        dict[str, str],
        Meta(
            description=(
                'Required header fields: an exact value, `"~regex"` to search, or `"*"` for any value.'
            )
        ),
    ] = msgspec.field(default_factory=dict)
    query: Annotated[
        dict[str, str],
        Meta(
            description=(
                'Required query parameters: an exact value, `"~regex"` to search, or `"*"` for any value.'
            )
        ),
    ] = msgspec.field(default_factory=dict)
    upstream: Annotated[
        Text | None,
        Meta(
            extra={"number": "http://127.0.0.1:{}", "action": True},
            description=(
                "Name of an entry of `upstreams`, or a URL, which defines an upstream with default settings."
            ),
        ),
    ] = None
    allow_encoded_slashes: Annotated[
        bool,
        Meta(
            description=(
                "The upstream treats `%2F` and `%5C` in a segment as data, not as a slash. If "
                "false, a path that would match another route, or none, after decoding them is "
                "rejected (400 `ambiguous_path`)."
            )
        ),
    ] = False


class RouteForwarding(Settings, frozen=True, kw_only=True):
    """Forwarding of requests to the upstream."""

    manual_order: ClassVar[int] = 90

    max_body_bytes: Annotated[
        Size | None,
        Meta(
            description=(
                "Maximum size of a request body; larger ones are rejected with 413. 0 means unlimited. "
                "Default: `server.max_body`."
            )
        ),
    ] = None
    request_buffering_bytes: Annotated[
        Annotated[Size, Meta(le=16_777_216)] | None,
        Meta(
            description=(
                "Buffer a request body up to this size before taking an upstream connection; 0 "
                "streams it as it arrives. Default: `server.request_buffering`."
            ),
        ),
    ] = None
    timeouts: Annotated[
        TimeoutOverrides | None,
        Meta(
            extra={"needs_upstream": True},
            description="Override the upstream's time-outs, each separately.",
        ),
    ] = None
    preserve_host: Annotated[
        bool | None,
        Meta(
            extra={"needs_upstream": True},
            description="Overrides the upstream's `preserve_host`.",
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
    """Listeners, processes, and the settings they share."""

    manual_order: ClassVar[int] = 0

    listen: Annotated[
        tuple[ListenerConfig, ...],
        Meta(
            min_length=1,
            extra={"one_or_many": True},
            description=(
                "Listening addresses: an address, `{address, tls, …}`, or a list of these. "
                "Default: loopback, so that a first try is not exposed to the internet."
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
                "Number of worker processes. `auto` is one per CPU this process may run on, "
                "limited to the CPU quota of its control group (the `cpus` of a container), "
                "rounded up."
            ),
        ),
    ] = 0
    admin: Annotated[AdminConfig, Meta(description="Health, metrics, status and reload.")] = AdminConfig()
    server: Annotated[ServerConfig, Meta(description="Limits on the client side.")] = ServerConfig()
    locality: Annotated[
        Locality, Meta(description="Where this gateway runs: targets nearby are preferred.")
    ] = Locality()
    trusted_proxies: Annotated[
        tuple[str, ...],
        Meta(
            extra={"one_or_many": True},
            description=(
                "Addresses and ranges (CIDR) whose `X-Forwarded-*`, `Forwarded` and request id "
                "fields are trusted; `unix` means every client on a Unix socket. Those of other "
                "clients are replaced. `Forwarded` is used only if a proxy sends no "
                "`X-Forwarded-For`, `-Proto` or `-Host`. Default: none."
            ),
        ),
    ] = ()
    memory: Annotated[
        MemoryConfig, Meta(description="Sizes of the memory shared by all processes of a host.")
    ] = MemoryConfig()
    store: Annotated[
        StoreConfig, Meta(description="File for API keys, consumers and other run-time data.")
    ] = StoreConfig()
    access_log: Annotated[AccessLogConfig, Meta(description="Access log: one line per request.")] = (
        AccessLogConfig()
    )
    watch_config: Annotated[
        bool,
        Meta(
            description=(
                "Reload automatically when the config file changes (checked every second). An "
                "invalid file changes nothing and is reported."
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
    """Credentials for upstreams."""

    manual_order: ClassVar[int] = 80

    credentials: Annotated[
        dict[str, CredentialConfig],
        Meta(description="Credentials for upstreams by name, to share one between several upstreams."),
    ] = msgspec.field(default_factory=dict)


def _composed(name: str, doc: str, parts: Iterable[type[Settings]], **methods: Any) -> Any:
    """The Struct with the keys of all parts, in the order of the manual. Each key must be unique."""
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
    """The keys that features add to a route or to the root."""
    return (keys for feature in FEATURES if (keys := getattr(feature, scope)) is not None)


if TYPE_CHECKING:

    class RouteConfig(RouteMatching, RouteForwarding, RoutePlugins, frozen=True, kw_only=True):
        def __getattr__(self, key: str) -> Any:
            """A key of a feature."""
else:
    RouteConfig = _composed(
        "RouteConfig",
        "The requests that a route matches and their handling. Exactly one of `upstream`, "
        "`redirect` and `respond`.",
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
"""Keys that determine who responds: a route has exactly one of them."""
NEEDS_UPSTREAM: Final = _marked("needs_upstream")
"""Keys without effect on a route that has no upstream."""


class Services(Settings, frozen=True, kw_only=True):
    """Upstreams and routes."""

    manual_order: ClassVar[int] = 900

    upstreams: Annotated[
        dict[str, UpstreamConfig],
        Meta(description="Upstreams by name. A URL used directly in a route is added here under the URL."),
    ] = msgspec.field(default_factory=dict)
    routes: Annotated[
        tuple[msgspec.Raw, ...],
        Meta(
            min_length=1,
            extra={"shape": RouteConfig},
            description="Routes. The most specific match wins.",
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
        "All settings of a config file.",
        [ServerSide, RootPlugins, Credentials, Services, *_parts("root")],
        each_route=Services.each_route,
    )

ROUTE_DEFAULTS: Final = (
    "server",
    "store",
    "credentials",
    *(name for part in _parts("root") for name in part.__struct_fields__),
)
"""The root sections that builders of route plugins may depend on."""


_route_decoder = msgspec.msgpack.Decoder(RouteConfig)


def decode_route(raw: Any) -> RouteConfig:
    """A route of `Config.routes`, decoded."""
    return _route_decoder.decode(raw)
