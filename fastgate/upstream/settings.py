"""The config Structs of the upstream side: targets, connection pool, TLS to them, time-outs.

Only shapes and defaults. Their run-time semantics are in `upstream/pool.pyx` and `upstream/h1_stream.pyx`;
mistakes across fields (an unreadable certificate, an unknown name) are found by `fastgate.upstream.check`.
"""

from __future__ import annotations

import ipaddress
import re
from typing import Annotated, ClassVar, Literal, NamedTuple

from msgspec import Meta, field

from fastgate.settings import MINUTE, SECOND, Duration, FileName, Settings, Text
from fastgate.upstream.balance_settings import BalanceConfig, BreakerConfig, EjectionConfig

__all__ = [
    "CredentialConfig",
    "Endpoint",
    "OauthConfig",
    "PoolConfig",
    "SecretSource",
    "TargetConfig",
    "TimeoutOverrides",
    "TimeoutsConfig",
    "UpstreamConfig",
    "UpstreamTlsConfig",
    "parse_target",
]


class Endpoint(NamedTuple):
    """A parsed URL of a target. `authority` is the value of Host: host and port in URL syntax."""

    secure: bool
    host: str
    port: int
    unix_path: str
    authority: str


_TARGET = re.compile(
    r"(https?)://(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9_](?:[A-Za-z0-9._-]*[A-Za-z0-9_.])?)(?::([0-9]{1,5}))?/?",
    re.ASCII,
)


def parse_target(url: str) -> Endpoint:
    """The endpoint of `http://host:port`, `https://host:port` or `unix:/path`. Raises ValueError with the
    expected form.

    IPv6 addresses have brackets in a URL and none in `host`.
    """
    if url.startswith("unix:"):
        path = url[5:]
        # sun_path holds 108 bytes with its terminating NUL (unix(7))
        if not path.startswith("/") or len(path.encode()) > 107 or "\0" in path:
            raise ValueError("unix:/path, absolute and of at most 107 bytes")
        return Endpoint(False, "", 0, path, "localhost")
    match = _TARGET.fullmatch(url)
    if match is None:
        raise ValueError("http://host:port, https://host:port or unix:/path, without a path or query")
    scheme, host, port_text = match.groups()
    port = int(port_text) if port_text else (443 if scheme == "https" else 80)
    if not 1 <= port <= 65535:
        raise ValueError("a port from 1 to 65535")
    if host.startswith("["):
        try:
            ipaddress.IPv6Address(host[1:-1])
        except ValueError:
            raise ValueError("an IPv6 address in the brackets") from None
    authority = f"{host}:{port_text}" if port_text and port != (443 if scheme == "https" else 80) else host
    return Endpoint(scheme == "https", host.strip("[]"), port, "", authority)


class TargetConfig(Settings, frozen=True, kw_only=True):
    """A server of an upstream. A bare URL is short for `{url: …}`."""

    shorthand: ClassVar[str] = "url"

    url: Annotated[
        str,
        Meta(
            extra={"number": "http://127.0.0.1:{}"},
            description=(
                "`http://host:port`, `https://host:port` or `unix:/path/to/socket`. Default ports are 80 "
                "and 443. Paths are not allowed: use the route's `rewrite`, so that one target can serve "
                "several routes."
            ),
        ),
    ]
    weight: Annotated[
        int,
        Meta(
            ge=0,
            le=1000,
            description=(
                "Share of the requests relative to the other targets. 0 disables the target. At most 1000."
            ),
        ),
    ] = 1
    priority: Annotated[
        int,
        Meta(
            ge=0,
            le=100,
            description=(
                "Targets of the lowest number get all requests while five sevenths of their weight are "
                "usable; below that, the rest goes to the next number."
            ),
        ),
    ] = 0
    zone: Annotated[
        Text | None, Meta(description="Zone of the target. Those in the gateway's own zone are preferred.")
    ] = None
    region: Annotated[
        Text | None,
        Meta(description="Region of the target. Those in the gateway's own region are preferred."),
    ] = None
    cost: Annotated[
        float,
        Meta(
            ge=0,
            le=1e12,
            description="Cost of a request, in any unit, for the strategies `cost` and `intelligent`.",
        ),
    ] = 0.0
    quality: Annotated[
        float, Meta(ge=0, le=1, description="Quality of the responses, for the strategy `intelligent`.")
    ] = 1.0

    def endpoint(self) -> Endpoint:
        """The parsed URL. The config check has verified that it is valid."""
        return parse_target(self.url)


class PoolConfig(Settings, frozen=True, kw_only=True):
    """Connection pool of each target, per worker process. The most recently used idle connection is reused
    first.
    """

    max_connections: Annotated[
        int,
        Meta(
            ge=0,
            le=65536,
            description=(
                "Maximum number of open connections to one target, per worker. Further requests wait in "
                "the queue. Default 0: no limit, as in nginx and HAProxy, other than three eighths of the"
                " process's file descriptors. Set it to protect an upstream with limited capacity."
            ),
        ),
    ] = 0
    reserve: Annotated[
        Annotated[int, Meta(ge=0, le=65535)] | None,
        Meta(
            description=(
                "Connections kept free for other routes, listeners and clients: each single one gets at "
                "most `max_connections` minus this number. A client is the consumer, or the address of a "
                "request without one. 0 lets one client take everything. Default: a tenth of "
                "`max_connections`, rounded down."
            ),
        ),
    ] = None
    max_idle: Annotated[
        int,
        Meta(
            ge=0,
            le=65536,
            description=(
                "Maximum number of idle connections to one target, per worker. 0 closes the connection "
                "after each request. The default lets a burst of requests reuse its connections."
            ),
        ),
    ] = 1024
    idle_timeout_ns: Annotated[
        Duration,
        Meta(
            description=(
                "Idle connections are closed after this time. Keep it below the upstream's keep-alive "
                "time; otherwise reused connections may be closed by the upstream (requests are replayed "
                "once if that is safe). Same default as nginx."
            )
        ),
    ] = 60 * SECOND
    max_lifetime_ns: Annotated[
        Duration,
        Meta(
            description=(
                "Maximum age of a reused connection. 0 is unlimited. Set it if the addresses of a name "
                "change, so that traffic follows."
            )
        ),
    ] = 0
    max_requests: Annotated[
        int, Meta(ge=0, description="Maximum number of requests per connection. 0 is unlimited.")
    ] = 0
    max_queue: Annotated[
        int,
        Meta(
            ge=0,
            le=1_000_000,
            description=(
                "Maximum number of requests that wait for a connection to one target, per worker. Further"
                " requests get 503 `upstream_queue_full` at once. 0 disables the queue."
            ),
        ),
    ] = 1024
    queue_timeout_ns: Annotated[
        Duration,
        Meta(description=("Maximum wait in the queue; then 503 `upstream_queue_timeout`. 0 is unlimited.")),
    ] = 5 * SECOND


class UpstreamTlsConfig(Settings, frozen=True, kw_only=True):
    """TLS to `https://` targets."""

    verify: Annotated[
        bool,
        Meta(
            description=(
                "Verify the certificate chain and the name. Disable it only for a service on the same host."
            )
        ),
    ] = True
    server_name: Annotated[
        Text | None,
        Meta(
            description=(
                "Name sent as SNI and verified in the certificate. Default: the host of the target's URL."
            )
        ),
    ] = None
    ca: Annotated[
        FileName | None,
        Meta(description="File with the trusted CA certificates (PEM). Default: the system's."),
    ] = None
    certificate: Annotated[
        FileName | None,
        Meta(description="File with the client certificate chain of the gateway (PEM), for mutual TLS."),
    ] = None
    key: Annotated[FileName | None, Meta(description="File with the private key of `certificate` (PEM).")] = (
        None
    )


class TimeoutsConfig(Settings, frozen=True, kw_only=True):
    """Time-outs of an upstream. Each has its own 504 or 502 reason."""

    connect_ns: Annotated[
        Duration,
        Meta(
            description=(
                "Time-out for opening a connection, TLS handshake included; then 504 "
                "`upstream_connect_timeout`. 5s is HAProxy's usual value: a local network responds in "
                "milliseconds, and one lost SYN costs 1s."
            )
        ),
    ] = 5 * SECOND
    first_byte_ns: Annotated[
        Duration,
        Meta(
            description=(
                "Time-out from the end of the request to the first byte of the response; then 504 "
                "`upstream_first_byte_timeout`. 0 is unlimited. Same default as nginx's "
                "`proxy_read_timeout`."
            )
        ),
    ] = MINUTE
    between_bytes_ns: Annotated[
        Duration,
        Meta(
            description=(
                "Inactivity time-out within a response and within a tunnel; then the connection is closed"
                " (`upstream_between_bytes_timeout`). 0 is unlimited."
            )
        ),
    ] = MINUTE
    total_ns: Annotated[
        Duration,
        Meta(
            description=(
                "Time-out of the whole request, queue and replays included, until the last byte of the "
                "response; then 504 `total_timeout`. 0 is unlimited, because a long download is not an "
                "error."
            )
        ),
    ] = 0
    deadline_header: Annotated[
        Text | None,
        Meta(
            description=(
                "Request header that tells the upstream the remaining milliseconds of `total`, for "
                "example `X-Request-Deadline-Ms`. Sent only if `total` is not 0. Default: none."
            ),
        ),
    ] = None

    def overridden(self, by: TimeoutOverrides | None) -> TimeoutsConfig:
        """These time-outs with what a route sets in their place."""
        if by is None:
            return self
        return TimeoutsConfig(
            connect_ns=self.connect_ns if by.connect_ns is None else by.connect_ns,
            first_byte_ns=self.first_byte_ns if by.first_byte_ns is None else by.first_byte_ns,
            between_bytes_ns=self.between_bytes_ns if by.between_bytes_ns is None else by.between_bytes_ns,
            total_ns=self.total_ns if by.total_ns is None else by.total_ns,
            deadline_header=self.deadline_header if by.deadline_header is None else by.deadline_header,
        )


class TimeoutOverrides(Settings, frozen=True, kw_only=True):
    """Time-outs of a route. Omitted values are those of the upstream."""

    connect_ns: Annotated[
        Duration | None, Meta(description="Overrides the upstream's `timeouts.connect`.")
    ] = None
    first_byte_ns: Annotated[
        Duration | None, Meta(description="Overrides the upstream's `timeouts.first_byte`.")
    ] = None
    between_bytes_ns: Annotated[
        Duration | None, Meta(description="Overrides the upstream's `timeouts.between_bytes`.")
    ] = None
    total_ns: Annotated[Duration | None, Meta(description="Overrides the upstream's `timeouts.total`.")] = (
        None
    )
    deadline_header: Annotated[
        Text | None, Meta(description="Overrides the upstream's `timeouts.deadline_header`.")
    ] = None


class SecretSource(Settings, frozen=True, kw_only=True):
    """The source of a secret, exactly one of these. The config never contains the secret itself."""

    env: Annotated[
        Text | None,
        Meta(description="An environment variable of the gateway. A change requires a restart."),
    ] = None
    file: Annotated[
        FileName | None,
        Meta(
            description="A file that contains only the secret; checked every second and read when it changes."
        ),
    ] = None
    command: Annotated[
        tuple[Text, ...],
        Meta(
            description="Program and arguments that print the secret. Each worker runs it, without a shell."
        ),
    ] = ()
    store: Annotated[
        Text | None,
        Meta(description="The name of a secret in the gateway's store, where it is encrypted."),
    ] = None


class OauthConfig(SecretSource, frozen=True, kw_only=True):
    """A token by the OAuth 2.0 client credentials grant (RFC 6749 section 4.4). The sources (`env`,
    `file`, `command`, `store`) are those of the client secret.
    """

    token_url: Annotated[Text, Meta(description="The token endpoint.")]
    client_id: Annotated[Text, Meta(description="Client id of the gateway.")]
    scopes: Annotated[
        tuple[Text, ...], Meta(extra={"one_or_many": True}, description="Requested scopes.")
    ] = ()
    parameters: Annotated[
        dict[str, str], Meta(description="Additional fields of the token request, such as `audience`.")
    ] = field(default_factory=dict)
    client_auth: Annotated[
        Literal["basic", "body"],
        Meta(
            description="Location of the client id and secret in the token request (RFC 6749 section 2.3.1)."
        ),
    ] = "basic"
    tls: Annotated[UpstreamTlsConfig, Meta(description="TLS to an https:// token endpoint.")] = (
        UpstreamTlsConfig()
    )


class CredentialConfig(SecretSource, frozen=True, kw_only=True):
    """A credential sent with every request to an upstream: a secret of exactly one source, or an OAuth
    token.
    """

    oauth: Annotated[
        OauthConfig | None, Meta(description="A token that the gateway requests and renews.")
    ] = None
    send: Annotated[
        Literal["bearer", "basic", "header", "query"],
        Meta(
            description=(
                "How it is sent: `Authorization: Bearer …`, `Authorization: Basic …` (with `username`, or"
                " a secret of the form user:password), the header field or the query parameter `name`. A "
                "client value is replaced."
            )
        ),
    ] = "bearer"
    name: Annotated[Text | None, Meta(description="Name of the header field or of the query parameter.")] = (
        None
    )
    prefix: Annotated[
        str, Meta(description="With `send: header`: text before the secret, such as `Token `.")
    ] = ""
    username: Annotated[
        Text | None, Meta(description="With `send: basic`: the user name; the secret is the password.")
    ] = None
    refresh_ns: Annotated[
        Duration,
        Meta(ge=1_000_000_000, description="Interval at which a command is run again."),
    ] = 5 * MINUTE
    timeout_ns: Annotated[
        Duration,
        Meta(ge=1_000_000, description="Time limit of a command or of a call to a token endpoint."),
    ] = 10 * SECOND
    keep_ns: Annotated[
        Duration,
        Meta(
            description=(
                "Time for which the last valid value is used if its source fails (a token at most until "
                "its expiry). After that, and if there has never been a value: 503 "
                "`credential_unavailable`."
            )
        ),
    ] = 10 * MINUTE


class UpstreamConfig(Settings, frozen=True, kw_only=True):
    """An upstream service: its targets and connection settings."""

    example: ClassVar[str] = "{targets: [http://host:port]}"

    targets: Annotated[
        tuple[TargetConfig, ...],
        Meta(
            min_length=1,
            max_length=20_000,
            extra={"one_or_many": True},
            description="The servers of the upstream: one URL, or a list of URLs and `{url, weight}`.",
        ),
    ]
    balance: Annotated[BalanceConfig, Meta(description="How a target is chosen for a request.")] = (
        BalanceConfig()
    )
    ejection: Annotated[
        EjectionConfig | None,
        Meta(description="Passive health: targets that fail get no requests for a while. Default: off."),
    ] = None
    breaker: Annotated[
        BreakerConfig | None, Meta(description="Circuit breaker of each target. Default: none.")
    ] = None
    failure_statuses: Annotated[
        tuple[Annotated[int, Meta(ge=400, le=599)], ...],
        Meta(description="Statuses of a response that count as a failure of the target."),
    ] = (500, 502, 503, 504)
    pool: Annotated[PoolConfig, Meta(description="Connection pool of each target.")] = PoolConfig()
    tls: Annotated[UpstreamTlsConfig, Meta(description="TLS to `https://` targets.")] = UpstreamTlsConfig()
    timeouts: Annotated[TimeoutsConfig, Meta(description="Time-outs of this upstream.")] = TimeoutsConfig()
    credentials: Annotated[
        str | CredentialConfig | None,
        Meta(
            description=(
                "Credential sent to this upstream: `{env: NAME}` and so on, or the name of an entry of "
                "`credentials`."
            )
        ),
    ] = None
    preserve_host: Annotated[
        bool,
        Meta(
            description=(
                "Send the client's Host upstream. Default: the Host of the target, as virtual hosts "
                "expect. `X-Forwarded-Host` has the client's Host in both cases."
            )
        ),
    ] = False
