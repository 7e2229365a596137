"""The config Structs of the server side: listeners, TLS, limits of the client side, admin, memory, store,
access log.
"""

from __future__ import annotations

import ipaddress
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, NamedTuple

from msgspec import Meta

from fastgate.settings import HOUR, SECOND, Duration, FileName, Settings, Size

__all__ = [
    "AccessLogConfig",
    "Address",
    "AdminConfig",
    "CertificateConfig",
    "ListenerConfig",
    "MemoryConfig",
    "ServerConfig",
    "StoreConfig",
    "TlsConfig",
    "parse_address",
]

_HOST_NAME = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9._-]*[A-Za-z0-9_.])?", re.ASCII)


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
    runtime_slots: Annotated[
        int,
        Meta(
            ge=64,
            le=1 << 24,
            description=(
                "Numbers and switches that can be changed at run time without a reload: one for each policy. "
                "A config that needs more is rejected."
            ),
        ),
    ] = 65_536


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

    def file(self, environ: Mapping[str, str] = os.environ) -> Path:
        """The file: the one that is named, or the default ($STATE_DIRECTORY: systemd.exec(5))."""
        if self.path:
            return Path(self.path)
        return Path(environ.get("STATE_DIRECTORY", "").partition(":")[0] or ".") / "fastgate.db"


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
                "`stdout`, `off`, or a file's path. A file is reopened on SIGUSR1, so that logrotate "
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
