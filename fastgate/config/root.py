"""The root of the config and the Structs of the server side: listeners, TLS, limits, admin, access log,
routes.

Shapes and defaults only. `source.py` turns a file into plain values, `shape.py` reads those into Structs,
`check.py` finds what is wrong between them, `load.py` is the door. Routes are kept encoded (`msgspec.Raw`),
so that five thousand of them travel to the workers as one blob, compare by bytes and are decoded one by one.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Final, Literal, NamedTuple, TypeVar

import msgspec
import msgspec.inspect
from msgspec import Meta

from fastgate.features.registry import FEATURES
from fastgate.settings import HOUR, SECOND, Duration, FileName, Settings, Size, Text
from fastgate.upstream.settings import CredentialConfig, TimeoutOverrides, UpstreamConfig

__all__ = [
    "ACTIONS",
    "NEEDS_UPSTREAM",
    "ROUTE_DEFAULTS",
    "AccessLogConfig",
    "Address",
    "AdminConfig",
    "CertificateConfig",
    "Config",
    "ListenerConfig",
    "MemoryConfig",
    "PluginUse",
    "RouteConfig",
    "ServerConfig",
    "StoreConfig",
    "TlsConfig",
    "parse_address",
]

T = TypeVar("T")

TRUSTED_UNIX = "unix"
"""In `trusted_proxies`: whoever connects to a Unix socket."""

_HOST_NAME = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9._-]*[A-Za-z0-9_.])?", re.ASCII)


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


class CertificateConfig(Settings, frozen=True, kw_only=True):
    """A certificate and its key. Changed files are taken up without a restart."""

    certificate: Annotated[FileName, Meta(description="File with the certificate chain, leaf first (PEM).")]
    key: Annotated[FileName, Meta(description="File with the private key (PEM, not encrypted).")]


class TlsConfig(Settings, frozen=True, kw_only=True):
    """TLS on a listener."""

    certificates: Annotated[
        tuple[CertificateConfig, ...],
        Meta(
            min_length=1,
            extra={"one_or_many": True},
            description=(
                "One certificate or several: the client's server name (SNI) picks the one that covers it, "
                "else the first."
            ),
        ),
    ]
    min_version: Annotated[
        Literal["1.2", "1.3"],
        Meta(description="Oldest TLS version accepted. Older ones are broken (RFC 8996)."),
    ] = "1.2"
    client_ca: Annotated[
        FileName | None,
        Meta(description="File with the CA certificates (PEM) that client certificates must be signed by."),
    ] = None
    client_certificate: Annotated[
        Literal["ignored", "optional", "required"],
        Meta(
            description="Whether clients must show a certificate (mutual TLS). The last two need `client_ca`."
        ),
    ] = "ignored"
    handshake_timeout_ns: Annotated[
        Duration,
        Meta(description="A handshake that takes longer is cut, so that silent clients hold nothing."),
    ] = 10 * SECOND


class Address(NamedTuple):
    """Where to listen: a host and port, or the path of a Unix socket. Host "" is every interface."""

    host: str
    port: int
    unix_path: str = ""

    def __str__(self) -> str:
        if self.unix_path:
            return f"unix:{self.unix_path}"
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def parse_address(text: str) -> Address:
    """The address in `host:port`, `[::1]:port`, `:port` or `unix:/path`. ValueError: what was expected."""
    if text.startswith("unix:"):
        path = text[5:]
        # sun_path holds 108 bytes with its closing NUL (unix(7))
        if not path.startswith("/") or len(path.encode()) > 107 or "\0" in path:
            raise ValueError("unix:/path, absolute and of at most 107 bytes")
        return Address("", 0, path)
    host, colon, port = text.rpartition(":")
    if not colon or not (port.isascii() and port.isdigit()) or len(port) > 5 or int(port) > 65535:
        raise ValueError("host:port with a port from 0 to 65535, or unix:/path")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
        try:
            ipaddress.IPv6Address(host)
        except ValueError:
            raise ValueError("an IPv6 address in the brackets") from None
    elif host == "*":
        host = ""
    elif host and not _HOST_NAME.fullmatch(host):
        raise ValueError("host:port, with an IPv6 address in brackets: [::1]:8080")
    return Address(host, int(port))


class ListenerConfig(Settings, frozen=True, kw_only=True):
    """Where clients connect. A bare string is short for `{address: …}`, a bare number is a port on every
    interface: `8080` is `{address: ":8080"}`.
    """

    shorthand: ClassVar[str] = "address"
    short: ClassVar[dict[type, Any]] = {int: lambda port: {"address": f":{port}"}}

    address: Annotated[
        str,
        Meta(
            description=(
                "`host:port`, `[::1]:port`, `:port` (every interface) or `unix:/path`. Port 0 lets the "
                "system choose."
            )
        ),
    ]
    tls: Annotated[TlsConfig | None, Meta(description="Serve TLS here. Default: plain HTTP.")] = None
    proxy_protocol: Annotated[
        bool,
        Meta(
            description=(
                "Every connection must begin with a PROXY protocol header (v1 or v2), which gives the "
                "client's address. Only for listeners that nothing but your load balancer can reach."
            )
        ),
    ] = False
    redirect: Annotated[
        int,
        Meta(
            ge=0,
            le=65535,
            extra={"words": {"off": 0, "https": 443}},
            description=(
                "`https` answers every request that the client sent over plain HTTP with 308 to the same "
                "URL with https, without the port of the request; a number is the port to redirect to, when "
                "it is not 443. What a trusted "
                "proxy says in `X-Forwarded-Proto` counts, so that behind a load balancer that ends TLS "
                "only plain requests are redirected. Decided before any route."
            ),
        ),
    ] = 0
    backlog: Annotated[
        int, Meta(ge=1, le=65535, description="Connections the kernel holds until a worker accepts them.")
    ] = 4096

    def endpoint(self) -> Address:
        """The address, taken apart. The config check has made sure that it can be."""
        return parse_address(self.address)


class ServerConfig(Settings, frozen=True, kw_only=True):
    """Limits on the client side, for every listener. They are what stands between one bad client and the
    rest.
    """

    max_header_bytes: Annotated[
        Size,
        Meta(
            ge=1000,
            le=16_000_000,
            description=(
                "The whole header section, names, values and separators; more is 431. nginx and HAProxy "
                "allow 32 kB or less."
            ),
        ),
    ] = 32_000
    max_headers: Annotated[
        int,
        Meta(
            ge=8,
            le=256,
            description=(
                "Number of header fields; more is 431. At most 256, which the table for one request holds. "
                "Apache and HAProxy stop near 100."
            ),
        ),
    ] = 128
    max_target_bytes: Annotated[
        Size,
        Meta(
            ge=100,
            le=1_000_000,
            description="The request target (path and query); more is 414. nginx: 8 kB too.",
        ),
    ] = 8_000
    merge_slashes: Annotated[
        bool,
        Meta(
            description=(
                "Take empty segments out of every path: `//admin` is `/admin`, for the routes and for the "
                "upstream, as in nginx and Envoy. When off, a path whose empty segments lead to another "
                "route than without them is refused (400 `ambiguous_path`)."
            )
        ),
    ] = True
    header_timeout_ns: Annotated[
        Duration,
        Meta(
            ge=1_000_000,
            description=(
                "From the first byte of a request to the end of its header section; then 408. Ends "
                "slow-header attacks."
            ),
        ),
    ] = 10 * SECOND
    body_timeout_ns: Annotated[
        Duration,
        Meta(
            ge=1_000_000,
            description=(
                "The longest silence inside a request body; then 408. A steady upload may take any time."
            ),
        ),
    ] = 30 * SECOND
    min_upload_rate_bytes: Annotated[
        Size,
        Meta(
            description=(
                "Bytes per second that a client must send of a request body, on average and after the first "
                "`rate_grace`; then 408 `body_too_slow`. Time in which the gateway does not read because the "
                "upstream is slower does not count. 0 is no minimum. 500 is Apache's `MinRate`; a slow "
                "mobile network sends a hundred times as much."
            ),
        ),
    ] = 500
    min_download_rate_bytes: Annotated[
        Size,
        Meta(
            description=(
                "Bytes per second that a client must take of a response, on average and after the first "
                "`rate_grace`, while the gateway waits for the client and not for the upstream; then the "
                "connection is closed (`client_too_slow`). 0 is no minimum."
            ),
        ),
    ] = 500
    rate_grace_ns: Annotated[
        Duration,
        Meta(
            ge=1_000_000,
            description="How long a client may be slower than the minimum rates. Apache grants 20s too.",
        ),
    ] = 20 * SECOND
    request_buffering_bytes: Annotated[
        Size,
        Meta(
            le=16_777_216,
            description=(
                "Collect a request body up to this size before the request takes a connection to the "
                "upstream, so that a slow client does not hold one. A larger body streams once this much has "
                "arrived. 0 streams every body as it arrives (nginx: `proxy_request_buffering off`), for "
                "upstreams that respond while the client still sends. Requests with `Expect: 100-continue` "
                "are never held back. For routes without their own `request_buffering`."
            ),
        ),
    ] = 65_536
    idle_timeout_ns: Annotated[
        Duration,
        Meta(
            ge=1_000_000,
            description=(
                "An idle keep-alive connection is closed after this long. 75s as nginx: above the 60s of "
                "common load balancers, so that they close first."
            ),
        ),
    ] = 75 * SECOND
    max_connections: Annotated[
        int,
        Meta(
            ge=1,
            le=10_000_000,
            description="Client connections open at once, per worker; more are answered 503 and closed.",
        ),
    ] = 65_536
    max_requests_per_connection: Annotated[
        int, Meta(ge=0, description="Requests on one connection before it is closed. 0 is no limit.")
    ] = 0
    drain_timeout_ns: Annotated[
        Duration,
        Meta(
            description=(
                "How long requests in flight may go on after a stop or a reload that starts new workers; "
                "then they are cut. Kubernetes waits 30s too."
            )
        ),
    ] = 30 * SECOND
    client_half_close: Annotated[
        Literal["abort", "allow"],
        Meta(
            description=(
                "What a client's FIN during its request means: `abort` gives up and cancels the upstream, "
                "as the client has most likely gone; `allow` still answers, for clients that shut down "
                "their sending side on purpose."
            )
        ),
    ] = "abort"
    max_body_bytes: Annotated[
        Size,
        Meta(
            description=(
                "Request body, for routes without their own `max_body`; more is 413. 0 is no limit: bodies "
                "stream."
            )
        ),
    ] = 0


class AdminConfig(Settings, frozen=True, kw_only=True):
    """The controller's listener: health, metrics, status, reload. A bare string is short for `{listen: …}`, a
    bare number is a port on the loopback address, `false` is `off`.
    """

    shorthand: ClassVar[str] = "listen"
    short: ClassVar[dict[type, Any]] = {
        int: lambda port: {"listen": f"127.0.0.1:{port}"},
        bool: lambda on: {} if on else {"listen": "off"},
    }

    listen: Annotated[
        str,
        Meta(
            description=(
                "`host:port` or `unix:/path`; `off` serves none. Loopback by default: metrics and reload "
                "are not for the public."
            )
        ),
    ] = "127.0.0.1:9901"
    token: Annotated[
        Annotated[str, Meta(min_length=8)] | None,
        Meta(
            description=(
                "Requests that show or change anything but health must carry it as `Authorization: Bearer "
                "…`. Needed when `listen` is not a loopback address or a Unix socket. Write "
                "`${FASTGATE_ADMIN_TOKEN}` rather than the secret."
            ),
        ),
    ] = None

    def endpoint(self) -> Address | None:
        """The address, taken apart; None when it is off."""
        return None if self.listen == "off" else parse_address(self.listen)


class MemoryConfig(Settings, frozen=True, kw_only=True):
    """Sizes of what all processes of a host share. Mapped when the gateway starts: a change needs a restart.
    They are
    bounds and not costs, as untouched pages take no memory.
    """

    limiter_keys: Annotated[
        int,
        Meta(
            ge=1024,
            le=9_000_000,
            description=(
                "Keys that limits can count at once, about 240 bytes each. An idle key makes room for a new "
                "one. A rule can fill 7/8 of the table, and no network or consumer can take the room of the "
                "others; see limits.md."
            ),
        ),
    ] = 1_000_000
    inflight_keys: Annotated[
        int,
        Meta(ge=64, le=8_000_000, description="Keys that have requests in flight at once, for `concurrent`."),
    ] = 65_536
    directory_entries: Annotated[
        int, Meta(ge=64, le=50_000_000, description="API keys, consumers and documents of the store.")
    ] = 250_000
    nonces: Annotated[
        int,
        Meta(
            ge=1024,
            le=9_000_000,
            description=(
                "Nonces of signed requests (`hmac`, `signatures`) that are remembered at once, 64 bytes "
                "each: signed requests per second times the seconds that a signature is valid. When none has "
                "expired a signed request is answered 503 and counted."
            ),
        ),
    ] = 1_000_000
    directory_bytes: Annotated[
        Size, Meta(ge=100_000, le=1 << 30, description="Room for what the directory says of them.")
    ] = 128_000_000


class StoreConfig(Settings, frozen=True, kw_only=True):
    """Where API keys, consumers and what else is made at run time are kept. A bare string is short for
    `{path: …}`.
    """

    shorthand: ClassVar[str] = "path"

    path: Annotated[
        FileName | None,
        Meta(
            description=(
                "A SQLite file, made when something is stored first. `.lock` and, for secrets, `.key` lie "
                "beside it. Default: `fastgate.db` in `$STATE_DIRECTORY` (systemd sets it), else in the "
                "working directory. After a reload with another file its keys count."
            )
        ),
    ] = None
    usage_interval_ns: Annotated[
        Duration,
        Meta(
            ge=100_000_000,
            le=HOUR,
            description=(
                "How often the use of each key is written to the file. A machine that loses power loses "
                "the counts since; a stop, a reload and a dead process lose none."
            ),
        ),
    ] = 10 * SECOND


class AccessLogConfig(Settings, frozen=True, kw_only=True):
    """One line per request. A bare string is short for `{output: …}`; `true` is `stdout`, `false` `off`."""

    shorthand: ClassVar[str] = "output"
    short: ClassVar[dict[type, Any]] = {bool: lambda on: {"output": "stdout" if on else "off"}}

    output: Annotated[
        str,
        Meta(
            min_length=1,
            extra={"file": ("stdout", "off")},
            description=(
                "`stdout`, `off`, or a file's path. A file is opened anew on SIGUSR1, so that logrotate "
                "can move it away."
            ),
        ),
    ] = "stdout"
    format: Annotated[
        Literal["json", "common"],
        Meta(
            description=(
                "`json`: one object per line with route, upstream, timings, bytes and reason. `common`: "
                "the format of Apache."
            )
        ),
    ] = "json"


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
        "Which requests, and what becomes of them. Exactly one of `upstream`, `redirect` and `respond`.",
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
