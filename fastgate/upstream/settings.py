"""The config Structs of the upstream side: targets, connection pool, TLS to them, time-outs.

Only shapes and defaults. What they mean at run time is in `upstream/pool.pyx` and `upstream/h1_stream.pyx`;
what is wrong between them (an unreadable certificate, an unknown name) is found by `fastgate.upstream.check`.
"""

from __future__ import annotations

import ipaddress
import re
from typing import Annotated, ClassVar, Literal, NamedTuple

from msgspec import Meta, field

from fastgate.settings import MINUTE, SECOND, Duration, FileName, Settings, Text

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
    """A target's URL, taken apart. `authority` is what Host gets: host and port as a URL writes them."""

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
    """The endpoint of `http://host:port`, `https://host:port` or `unix:/path`. ValueError says what was
    expected.

    IPv6 addresses stand in brackets in a URL and without them in `host`.
    """
    if url.startswith("unix:"):
        path = url[5:]
        # sun_path holds 108 bytes with its closing NUL (unix(7))
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
    """One server of an upstream. A bare URL is short for `{url: …}`."""

    shorthand: ClassVar[str] = "url"

    url: Annotated[
        str,
        Meta(
            extra={"number": "http://127.0.0.1:{}"},
            description=(
                "`http://host:port`, `https://host:port` or `unix:/path/to/socket`. Ports default to 80 "
                "and 443. No path: use the route's `rewrite`, so that one target can serve several routes."
            ),
        ),
    ]
    weight: Annotated[
        int,
        Meta(
            ge=0,
            le=1000,
            description=(
                "Share of the requests, relative to the other targets (smooth round robin). 0 takes the "
                "target out without deleting its line. At most 1000."
            ),
        ),
    ] = 1

    def endpoint(self) -> Endpoint:
        """The URL, taken apart. The config check has made sure that it can be."""
        return parse_target(self.url)


class PoolConfig(Settings, frozen=True, kw_only=True):
    """Connections kept to each target, per worker process. The most recently used idle connection is reused
    first.
    """

    max_connections: Annotated[
        int,
        Meta(
            ge=0,
            le=65536,
            description=(
                "Connections open to one target at once, per worker. Further requests wait in the queue. "
                "0, the default, sets no limit of its own, as in nginx and HAProxy: then only the process's "
                "file descriptor limit applies, three eighths of it for upstreams. Set it to protect a "
                "service that cannot take more."
            ),
        ),
    ] = 0
    reserve: Annotated[
        Annotated[int, Meta(ge=0, le=65535)] | None,
        Meta(
            description=(
                "Connections that no single route, listener or client may take: each alone gets at most "
                "`max_connections` less this many, while another route, listener or client can use the rest. "
                "A client is the consumer, or the address of a request without one. 0 lets one client take "
                "everything. Default: a tenth of `max_connections`, rounded down."
            ),
        ),
    ] = None
    max_idle: Annotated[
        int,
        Meta(
            ge=0,
            le=65536,
            description=(
                "Idle connections kept to one target, per worker. 0 closes after each request. The default "
                "lets a burst of requests reuse its connections."
            ),
        ),
    ] = 1024
    idle_timeout_ns: Annotated[
        Duration,
        Meta(
            description=(
                "An idle connection is closed after this long. Keep it below the upstream's own keep-alive "
                "time, or reused connections turn out dead (they are replayed once when it is safe). "
                "nginx's default is the same 60s."
            )
        ),
    ] = 60 * SECOND
    max_lifetime_ns: Annotated[
        Duration,
        Meta(
            description=(
                "A connection is not reused when it is older than this. 0 is no limit. Set it where a "
                "name's addresses change, so that traffic moves."
            )
        ),
    ] = 0
    max_requests: Annotated[
        int, Meta(ge=0, description="Requests sent over one connection before it is closed. 0 is no limit.")
    ] = 0
    max_queue: Annotated[
        int,
        Meta(
            ge=0,
            le=1_000_000,
            description=(
                "Requests that may wait for a connection to one target, per worker. More are refused at "
                "once with 503 `upstream_queue_full`. 0 never waits."
            ),
        ),
    ] = 1024
    queue_timeout_ns: Annotated[
        Duration,
        Meta(
            description=(
                "The longest wait in that queue; then 503 `upstream_queue_timeout`. 0 is no limit of its own."
            )
        ),
    ] = 5 * SECOND


class UpstreamTlsConfig(Settings, frozen=True, kw_only=True):
    """TLS to `https://` targets."""

    verify: Annotated[
        bool,
        Meta(
            description="Check the certificate and its name. Turn it off only for a service on the same host."
        ),
    ] = True
    server_name: Annotated[
        Text | None,
        Meta(
            description=(
                "Name sent as SNI and checked in the certificate. Default: the host of the target's URL."
            )
        ),
    ] = None
    ca: Annotated[
        FileName | None,
        Meta(description="File with the CA certificates to trust (PEM). Default: the system's."),
    ] = None
    certificate: Annotated[
        FileName | None, Meta(description="File with our client certificate chain (PEM), for mutual TLS.")
    ] = None
    key: Annotated[
        FileName | None, Meta(description="File with the key of `certificate` (PEM). Needed with it.")
    ] = None


class TimeoutsConfig(Settings, frozen=True, kw_only=True):
    """How long the upstream may take. Each ends the request with its own 504 or 502 reason."""

    connect_ns: Annotated[
        Duration,
        Meta(
            description=(
                "Opening a connection, TLS handshake included; then 504 `upstream_connect_timeout`. 5s is "
                "HAProxy's usual value: a local network answers in milliseconds, and one lost SYN costs "
                "1s."
            )
        ),
    ] = 5 * SECOND
    first_byte_ns: Annotated[
        Duration,
        Meta(
            description=(
                "From the end of the request to the first byte of the answer; then 504 "
                "`upstream_first_byte_timeout`. 0 is no limit. nginx's `proxy_read_timeout` is the same "
                "60s."
            )
        ),
    ] = MINUTE
    between_bytes_ns: Annotated[
        Duration,
        Meta(
            description=(
                "The longest silence inside an answer, and inside a tunnel; then the connection is cut "
                "(`upstream_between_bytes_timeout`). 0 is no limit."
            )
        ),
    ] = MINUTE
    total_ns: Annotated[
        Duration,
        Meta(
            description=(
                "The whole request, queue and replays included, until the answer's last byte; then 504 "
                "`total_timeout`. 0 is no limit, because a long download is not a fault."
            )
        ),
    ] = 0
    deadline_header: Annotated[
        Text | None,
        Meta(
            description=(
                "Name of a request header that tells the upstream how many milliseconds of `total` are "
                "left, for instance `X-Request-Deadline-Ms`. Sent only when `total` is not 0. Default: "
                "none."
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
    """A route's own time-outs. What is left out is the upstream's."""

    connect_ns: Annotated[
        Duration | None, Meta(description="In place of the upstream's `timeouts.connect`.")
    ] = None
    first_byte_ns: Annotated[
        Duration | None, Meta(description="In place of the upstream's `timeouts.first_byte`.")
    ] = None
    between_bytes_ns: Annotated[
        Duration | None, Meta(description="In place of the upstream's `timeouts.between_bytes`.")
    ] = None
    total_ns: Annotated[Duration | None, Meta(description="In place of the upstream's `timeouts.total`.")] = (
        None
    )
    deadline_header: Annotated[
        Text | None, Meta(description="In place of the upstream's `timeouts.deadline_header`.")
    ] = None


class SecretSource(Settings, frozen=True, kw_only=True):
    """Where a secret comes from; exactly one of these. The secret itself never stands in the config."""

    env: Annotated[
        Text | None,
        Meta(description="An environment variable of the gateway. It changes with a restart only."),
    ] = None
    file: Annotated[
        FileName | None,
        Meta(description="A file with nothing else in it; looked at every second, read when it changed."),
    ] = None
    command: Annotated[
        tuple[Text, ...],
        Meta(
            description="A program and its arguments, which prints the secret; run by each worker, "
            "without a shell."
        ),
    ] = ()
    store: Annotated[
        Text | None,
        Meta(description="A secret of the gateway's own store, where it is encrypted."),
    ] = None


class OauthConfig(SecretSource, frozen=True, kw_only=True):
    """A token by the OAuth 2.0 client credentials grant (RFC 6749 section 4.4). The sources (`env`,
    `file`, `command`,
    `store`) are those of the client's secret.
    """

    token_url: Annotated[Text, Meta(description="The token endpoint.")]
    client_id: Annotated[Text, Meta(description="Who the gateway is there.")]
    scopes: Annotated[
        tuple[Text, ...], Meta(extra={"one_or_many": True}, description="Scopes to ask for.")
    ] = ()
    parameters: Annotated[
        dict[str, str], Meta(description="More fields of the token request, such as `audience`.")
    ] = field(default_factory=dict)
    client_auth: Annotated[
        Literal["basic", "body"],
        Meta(
            description="Where the client's id and secret stand in the token request (RFC 6749 "
            "section 2.3.1)."
        ),
    ] = "basic"
    tls: Annotated[UpstreamTlsConfig, Meta(description="TLS to an https:// token endpoint.")] = (
        UpstreamTlsConfig()
    )


class CredentialConfig(SecretSource, frozen=True, kw_only=True):
    """What every request to an upstream shows: a secret of exactly one source, or an OAuth token."""

    oauth: Annotated[OauthConfig | None, Meta(description="A token that the gateway gets by itself.")] = None
    send: Annotated[
        Literal["bearer", "basic", "header", "query"],
        Meta(
            description=(
                "How it is shown: `Authorization: Bearer …`, `Authorization: Basic …` (with "
                "`username`, or a secret "
                "of the form user:password), the field or the query parameter called `name`. The "
                "client's own is "
                "replaced."
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
        Text | None, Meta(description="With `send: basic`: the user; the secret is the password.")
    ] = None
    refresh_ns: Annotated[
        Duration,
        Meta(ge=1_000_000_000, description="How often a command is run again."),
    ] = 5 * MINUTE
    timeout_ns: Annotated[
        Duration,
        Meta(ge=1_000_000, description="The longest that a command or a token endpoint may take."),
    ] = 10 * SECOND
    keep_ns: Annotated[
        Duration,
        Meta(
            description=(
                "How long the last good value is used when its source fails (a token: never beyond "
                "its expiry). "
                "Then, and as long as there never was one: 503 `credential_unavailable`."
            )
        ),
    ] = 10 * MINUTE


class UpstreamConfig(Settings, frozen=True, kw_only=True):
    """One service: where it runs and how to talk to it."""

    example: ClassVar[str] = "{targets: [http://host:port]}"

    targets: Annotated[
        tuple[TargetConfig, ...],
        Meta(
            min_length=1,
            extra={"one_or_many": True},
            description="The servers of this service: one URL, or a list of URLs and `{url, weight}`.",
        ),
    ]
    balance: Annotated[
        Literal["round_robin"],
        Meta(
            description=(
                "How a target is chosen. `round_robin` is smooth and weighted (the algorithm of nginx)."
            )
        ),
    ] = "round_robin"
    pool: Annotated[PoolConfig, Meta(description="Connections kept to each target.")] = PoolConfig()
    tls: Annotated[UpstreamTlsConfig, Meta(description="TLS to `https://` targets.")] = UpstreamTlsConfig()
    timeouts: Annotated[TimeoutsConfig, Meta(description="How long this upstream may take.")] = (
        TimeoutsConfig()
    )
    credentials: Annotated[
        str | CredentialConfig | None,
        Meta(
            description=(
                "What requests to this upstream show: `{env: NAME}` and so on, or the name of an entry of "
                "`credentials`."
            )
        ),
    ] = None
    preserve_host: Annotated[
        bool,
        Meta(
            description=(
                "Send the client's Host upstream. By default it is the target's own, which is what virtual "
                "hosts on the other side expect; the client's is in `X-Forwarded-Host` either way."
            )
        ),
    ] = False
