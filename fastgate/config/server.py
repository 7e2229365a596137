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
    """A certificate and its key. Changed files are loaded without a restart."""

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
                "One certificate or several. The one that covers the client's server name (SNI) is "
                "used, else the first."
            ),
        ),
    ]
    min_version: Annotated[
        Literal["1.2", "1.3"],
        Meta(description="Minimum TLS version. Versions below 1.2 are insecure (RFC 8996)."),
    ] = "1.2"
    client_ca: Annotated[
        FileName | None,
        Meta(
            description="File with the CA certificates (PEM) that client certificates are verified against."
        ),
    ] = None
    client_certificate: Annotated[
        Literal["ignored", "optional", "required"],
        Meta(
            description=(
                "Whether clients must present a certificate (mutual TLS). `optional` and "
                "`required` need `client_ca`."
            )
        ),
    ] = "ignored"
    handshake_timeout_ns: Annotated[
        Duration,
        Meta(
            description=(
                "Maximum duration of a handshake; then the connection is closed, so that silent "
                "clients hold no resources."
            )
        ),
    ] = 10 * SECOND


class Address(NamedTuple):
    """A listening address: a host and port, or the path of a Unix socket. Host "" is every interface."""

    host: str
    port: int
    unix_path: str = ""

    def __str__(self) -> str:
        if self.unix_path:
            return f"unix:{self.unix_path}"
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def parse_address(text: str) -> Address:
    """The address in `host:port`, `[::1]:port`, `:port` or `unix:/path`. Raises ValueError with the text that
    was expected."""
    if text.startswith("unix:"):
        path = text[5:]
        # sun_path holds 108 bytes including the terminating NUL (unix(7))
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
    """A listener. A bare string is short for `{address: …}`, a bare number is a port on every interface:
    `8080` is `{address: ":8080"}`."""

    shorthand: ClassVar[str] = "address"
    short: ClassVar[dict[type, Any]] = {int: lambda port: {"address": f":{port}"}}

    address: Annotated[
        str,
        Meta(
            description=(
                "`host:port`, `[::1]:port`, `:port` (every interface) or `unix:/path`. Port 0: the "
                "system assigns one."
            )
        ),
    ]
    tls: Annotated[
        TlsConfig | None, Meta(description="TLS settings of the listener. Default: plain HTTP.")
    ] = None
    proxy_protocol: Annotated[
        bool,
        Meta(
            description=(
                "Require a PROXY protocol header (v1 or v2), which contains the client's address, "
                "on every connection. Only for listeners that nothing but your load balancer can "
                "reach."
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
                "`https` redirects every plain HTTP request with 308 to the same URL with https, "
                "without the port of the request; a number is the port to redirect to, if it is "
                "not 443. `X-Forwarded-Proto` from trusted proxies is taken into account, so "
                "behind a load balancer that terminates TLS only plain requests are redirected. "
                "Applied before routing."
            ),
        ),
    ] = 0
    backlog: Annotated[
        int,
        Meta(ge=1, le=65535, description="Connections that the kernel queues until a worker accepts them."),
    ] = 4096

    def endpoint(self) -> Address:
        """The parsed address. The config check has already validated it."""
        return parse_address(self.address)


class ServerConfig(Settings, frozen=True, kw_only=True):
    """Limits of the client side, for every listener. They protect all clients from a misbehaving one."""

    max_header_bytes: Annotated[
        Size,
        Meta(
            ge=1000,
            le=16_000_000,
            description=(
                "Maximum size of the header section (names, values and separators); larger ones "
                "are rejected with 431. nginx and HAProxy allow 32 kB or less."
            ),
        ),
    ] = 32_000
    max_headers: Annotated[
        int,
        Meta(
            ge=8,
            le=256,
            description=(
                "Maximum number of header fields; more are rejected with 431. At most 256, the "
                "size of the table for one request. Apache and HAProxy allow about 100."
            ),
        ),
    ] = 128
    max_target_bytes: Annotated[
        Size,
        Meta(
            ge=100,
            le=1_000_000,
            description=(
                "Maximum length of the request target (path and query); longer ones are rejected "
                "with 414. nginx also allows 8 kB."
            ),
        ),
    ] = 8_000
    merge_slashes: Annotated[
        bool,
        Meta(
            description=(
                "Remove empty segments from every path, for routing and for the upstream: "
                "`//admin` becomes `/admin`, as in nginx and Envoy. If false, a path that matches "
                "another route with its empty segments than without them is rejected (400 "
                "`ambiguous_path`)."
            )
        ),
    ] = True
    header_timeout_ns: Annotated[
        Duration,
        Meta(
            ge=1_000_000,
            description=(
                "Maximum time from the first byte of a request to the end of its header section; "
                "then 408. Protects against slow-header attacks."
            ),
        ),
    ] = 10 * SECOND
    body_timeout_ns: Annotated[
        Duration,
        Meta(
            ge=1_000_000,
            description=(
                "Maximum pause within a request body; then 408. The total time of a steady upload "
                "is not limited."
            ),
        ),
    ] = 30 * SECOND
    min_upload_rate_bytes: Annotated[
        Size,
        Meta(
            description=(
                "Minimum rate of a request body in bytes per second, on average and after the "
                "first `rate_grace`; below it, the request is rejected with 408 `body_too_slow`. "
                "Time in which the gateway does not read because the upstream is slower does not "
                "count. 0 disables the check. 500 is Apache's `MinRate`; a slow mobile network is "
                "a hundred times as fast."
            ),
        ),
    ] = 500
    min_download_rate_bytes: Annotated[
        Size,
        Meta(
            description=(
                "Minimum rate at which a client must receive a response in bytes per second, on "
                "average and after the first `rate_grace`, while the gateway waits for the client "
                "and not for the upstream; below it, the connection is closed (`client_too_slow`). "
                "0 disables the check."
            ),
        ),
    ] = 500
    rate_grace_ns: Annotated[
        Duration,
        Meta(
            ge=1_000_000,
            description="How long a client may stay below the minimum rates. Apache also allows 20s.",
        ),
    ] = 20 * SECOND
    request_buffering_bytes: Annotated[
        Size,
        Meta(
            le=16_777_216,
            description=(
                "Buffer a request body up to this size before taking an upstream connection, so "
                "that a slow client does not occupy one. A larger body streams once this much has "
                "arrived. 0 streams every body as it arrives (nginx: `proxy_request_buffering "
                "off`), for upstreams that respond while the client still sends. Requests with "
                "`Expect: 100-continue` are never buffered. Applies to routes without their own "
                "`request_buffering`."
            ),
        ),
    ] = 65_536
    idle_timeout_ns: Annotated[
        Duration,
        Meta(
            ge=1_000_000,
            description=(
                "Idle keep-alive connections are closed after this time. 75s as in nginx: above "
                "the 60s of common load balancers, so that they close first."
            ),
        ),
    ] = 75 * SECOND
    max_connections: Annotated[
        int,
        Meta(
            ge=1,
            le=10_000_000,
            description=(
                "Maximum number of client connections per worker; further ones get 503 and are closed."
            ),
        ),
    ] = 65_536
    max_requests_per_connection: Annotated[
        int, Meta(ge=0, description="Requests per connection before it is closed. 0 means unlimited.")
    ] = 0
    drain_timeout_ns: Annotated[
        Duration,
        Meta(
            description=(
                "How long requests in flight may continue after a stop, or after a reload that "
                "starts new workers; then they are aborted. Kubernetes also waits 30s."
            )
        ),
    ] = 30 * SECOND
    client_half_close: Annotated[
        Literal["abort", "allow"],
        Meta(
            description=(
                "What to do if a client closes its sending side (FIN) during its request: `abort` "
                "cancels the upstream request, as the client has most likely disconnected; `allow` "
                "still responds, for clients that shut down their sending side deliberately."
            )
        ),
    ] = "abort"
    max_body_bytes: Annotated[
        Size,
        Meta(
            description=(
                "Maximum size of a request body on routes without their own `max_body`; larger "
                "ones are rejected with 413. 0 means unlimited: bodies stream."
            )
        ),
    ] = 0


class AdminConfig(Settings, frozen=True, kw_only=True):
    """The controller's listener: health, metrics, status, reload. A bare string is short for `{listen: …}`, a
    bare number is a port on the loopback address, `false` is `off`."""

    shorthand: ClassVar[str] = "listen"
    short: ClassVar[dict[type, Any]] = {
        int: lambda port: {"listen": f"127.0.0.1:{port}"},
        bool: lambda on: {} if on else {"listen": "off"},
    }

    listen: Annotated[
        str,
        Meta(
            description=(
                "`host:port` or `unix:/path`; `off` disables it. Default: loopback, because "
                "metrics and reload must not be public."
            )
        ),
    ] = "127.0.0.1:9901"
    token: Annotated[
        Annotated[str, Meta(min_length=8)] | None,
        Meta(
            description=(
                "Bearer token that all requests except health checks must carry as `Authorization: "
                "Bearer …`. Required if `listen` is not a loopback address or a Unix socket. Write "
                "`${FASTGATE_ADMIN_TOKEN}` rather than the secret."
            ),
        ),
    ] = None

    def endpoint(self) -> Address | None:
        """The parsed address, or None if the listener is off."""
        return None if self.listen == "off" else parse_address(self.listen)


class MemoryConfig(Settings, frozen=True, kw_only=True):
    """Sizes of the memory shared by all processes of a host. Mapped at start: a change needs a restart. The
    sizes are upper bounds, since untouched pages take no memory."""

    limiter_keys: Annotated[
        int,
        Meta(
            ge=1024,
            le=9_000_000,
            description=(
                "Maximum number of keys that limits count, about 240 bytes each. A new key "
                "replaces an idle one. A rule can use at most 7/8 of the table, and no network or "
                "consumer can take the room of the others; see limits.md."
            ),
        ),
    ] = 1_000_000
    inflight_keys: Annotated[
        int,
        Meta(
            ge=64,
            le=8_000_000,
            description="Maximum number of keys with requests in flight, for `concurrent`.",
        ),
    ] = 65_536
    directory_entries: Annotated[
        int,
        Meta(
            ge=64,
            le=50_000_000,
            description="Maximum number of API keys, consumers and other documents of the store.",
        ),
    ] = 250_000
    nonces: Annotated[
        int,
        Meta(
            ge=1024,
            le=9_000_000,
            description=(
                "Maximum number of nonces of signed requests (`hmac`, `signatures`), 64 bytes "
                "each: signed requests per second times the seconds that a signature is valid. If "
                "the table is full of unexpired nonces, signed requests are rejected with 503 and "
                "counted."
            ),
        ),
    ] = 1_000_000
    directory_bytes: Annotated[
        Size,
        Meta(ge=100_000, le=1 << 30, description="Memory for the contents of the directory's documents."),
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
    health_rows: Annotated[
        int,
        Meta(
            ge=64,
            le=1 << 20,
            description=(
                "Targets and upstreams whose load and health the workers share, about 1KB each. Twice as "
                "many as the config has are needed, for reloads; a config that needs more is rejected. A "
                "larger number requires a restart."
            ),
        ),
    ] = 65_536


class StoreConfig(Settings, frozen=True, kw_only=True):
    """Store of API keys, consumers and other run-time data. A bare string is short for `{path: …}`."""

    shorthand: ClassVar[str] = "path"

    path: Annotated[
        FileName | None,
        Meta(
            description=(
                "A SQLite file, created on the first write. `.lock` and, for secrets, `.key` are "
                "next to it. Default: `fastgate.db` in `$STATE_DIRECTORY` (set by systemd), else "
                "in the working directory. A reload with another file switches to the keys in that "
                "file."
            )
        ),
    ] = None
    usage_interval_ns: Annotated[
        Duration,
        Meta(
            ge=100_000_000,
            le=HOUR,
            description=(
                "Interval at which the usage of keys is written to the file. A power failure loses "
                "the counts since the last write; a stop, a reload or a dead process loses none."
            ),
        ),
    ] = 10 * SECOND

    def file(self, environ: Mapping[str, str] = os.environ) -> Path:
        """The file: the one that is named, or the default ($STATE_DIRECTORY: systemd.exec(5))."""
        if self.path:
            return Path(self.path)
        return Path(environ.get("STATE_DIRECTORY", "").partition(":")[0] or ".") / "fastgate.db"


class AccessLogConfig(Settings, frozen=True, kw_only=True):
    """Access log, one line per request. A bare string is short for `{output: …}`; `true` is `stdout`, `false`
    `off`."""

    shorthand: ClassVar[str] = "output"
    short: ClassVar[dict[type, Any]] = {bool: lambda on: {"output": "stdout" if on else "off"}}

    output: Annotated[
        str,
        Meta(
            min_length=1,
            extra={"file": ("stdout", "off")},
            description=(
                "`stdout`, `off`, or the path of a file. A file is reopened on SIGUSR1, so that "
                "logrotate can rotate it."
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
