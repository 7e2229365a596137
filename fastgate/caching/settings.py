"""The `cache:` section of a route.

The semantics of these settings are in `fastgate._core.cache.http_cache`; docs/cache.md describes both.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from msgspec import Meta

from fastgate._core.cache.http_cache import Rules
from fastgate.caching.predictor import PredictConfig
from fastgate.caching.strategy import StrategyConfig
from fastgate.settings import DAY, SECOND, Duration, Settings, Size, Text

__all__ = [
    "CacheConfig",
    "CacheKeyConfig",
    "CacheStoreConfig",
    "DiskStoreConfig",
    "MemoryStoreConfig",
    "RedisStoreConfig",
    "RootKeys",
    "RouteKeys",
    "build_rules",
    "explain",
]


class CacheKeyConfig(Settings, frozen=True, kw_only=True):
    """Additional parts of the cache key, after scheme, host and path."""

    query: Annotated[
        Literal["all", "none"] | tuple[Text, ...],
        Meta(
            description=(
                "`all` parameters of the query, sorted by name; `none`; or the list of the relevant ones."
                " A request that could hide a listed parameter in another one (`;`) is not cached."
            )
        ),
    ] = "all"
    headers: Annotated[
        tuple[Text, ...],
        Meta(description="Relevant request fields, in addition to the origin's `Vary`."),
    ] = ()
    cookies: Annotated[tuple[Text, ...], Meta(description="Relevant cookies.")] = ()
    consumer: Annotated[
        Literal["auto", "private", "shared"],
        Meta(
            description=(
                "`auto`: responses to an authenticated consumer are stored for that consumer only. "
                "`private`: and no others are stored. `shared`: all consumers share them, regardless of "
                "their credentials; requires `share_private`."
            )
        ),
    ] = "auto"
    body: Annotated[
        bool, Meta(description="A digest of the request body. Required to cache POST; buffers the body.")
    ] = False


class CacheConfig(Settings, frozen=True, kw_only=True):
    """HTTP cache of this route (RFC 9111). A bare duration is short for `{ttl: …}`; `true` uses the
    defaults, `false` is `{enabled: false}`.
    """

    example: ClassVar[str] = "{ttl: 60s}"
    shorthand: ClassVar[str] = "ttl"
    short: ClassVar[dict[type, Any]] = {bool: lambda on: {} if on else {"enabled": False}}

    enabled: Annotated[bool, Meta(description="`false` disables the cache of this route.")] = True
    enforce: Annotated[
        bool,
        Meta(
            description=(
                "`false`: decide, store and count, but serve every response from the origin. Shows the "
                "hit rate before the cache is enabled."
            )
        ),
    ] = True
    ttl_ns: Annotated[
        Duration,
        Meta(
            description=(
                "Freshness lifetime of responses without freshness information. `0s`: a tenth of the time"
                " since `Last-Modified`, or none without it."
            )
        ),
    ] = 0
    respect: Annotated[
        Literal["origin", "override"],
        Meta(
            description=(
                "`override`: `ttl` applies to the statuses listed, regardless of the origin's directives;"
                " `private`, `Set-Cookie` and `Authorization` are still respected."
            )
        ),
    ] = "origin"
    methods: Annotated[
        tuple[str, ...],
        Meta(
            min_length=1,
            extra={"one_or_many": True},
            description="`GET` (includes `HEAD`) and `POST` (with `key.body`).",
        ),
    ] = ("GET",)
    statuses: Annotated[
        tuple[Annotated[int, Meta(ge=200, le=999)], ...],
        Meta(
            min_length=1,
            extra={"one_or_many": True},
            description="Statuses to which `ttl` applies. Others are cached if the origin sets a lifetime.",
        ),
    ] = (200, 203, 204, 300, 301, 308, 404, 410)
    key: Annotated[CacheKeyConfig, Meta(description="Additional parts of the cache key.")] = CacheKeyConfig()
    tags: Annotated[
        tuple[Text, ...],
        Meta(
            extra={"one_or_many": True},
            description=(
                "Purge tags of every response of the route; the origin adds its own in `Surrogate-Key` or"
                " `Cache-Tag`."
            ),
        ),
    ] = ()
    purge_header: Annotated[
        Annotated[str, Meta(pattern=r"^[A-Za-z0-9-]{1,64}$(?!\n)")] | None,
        Meta(
            description=(
                "Response field with which an upstream purges: a list of tags, paths of its host (`/a`, "
                "`/a/*`), or `*` for everything. It is not sent to clients. Default: upstreams cannot "
                "purge."
            )
        ),
    ] = None
    min_size_bytes: Annotated[Size, Meta(description="Smaller bodies are not stored.")] = 0
    max_size_bytes: Annotated[
        Size,
        Meta(
            ge=1,
            le=1_000_000_000,
            description="Larger bodies are not stored; they stream as without a cache.",
        ),
    ] = 16_000_000
    stale_while_revalidate_ns: Annotated[
        Duration,
        Meta(
            description=(
                "Time after expiry in which a response is still served while it is revalidated, if the "
                "origin sends no value of its own (RFC 5861)."
            )
        ),
    ] = 0
    stale_if_error_ns: Annotated[
        Duration,
        Meta(
            description=(
                "Time after expiry in which a response is still served if the origin fails (no "
                "connection, 500, 502, 503, 504), if the origin sends no value of its own (RFC 5861)."
            )
        ),
    ] = 0
    heuristic_max_ns: Annotated[
        Duration,
        Meta(description="Maximum of the heuristic lifetime from `Last-Modified`; `0s` disables it."),
    ] = DAY
    private: Annotated[
        Literal["never", "consumer", "share"],
        Meta(
            description=(
                "Responses with `Cache-Control: private`: `never` stored, or stored for the authenticated"
                " `consumer` only, or shared; the last requires `share_private`."
            )
        ),
    ] = "never"
    set_cookie: Annotated[
        Literal["never", "strip", "store"],
        Meta(
            description=(
                "Responses with `Set-Cookie`: `never` stored, stored without the cookie (`strip`), or "
                "with it (`store`). The last two require `share_private`."
            )
        ),
    ] = "never"
    share_private: Annotated[
        bool,
        Meta(
            description=(
                "Confirms settings that may send one client's response to another: `key.consumer: "
                "shared`, `private: share`, `set_cookie: strip` or `store`, or an `auth` that may pass "
                "clients without identifying them (`forward`, `enforce: false`, `on_error: allow`), for "
                "which nothing is stored otherwise. Rejected without one of them."
            )
        ),
    ] = False
    max_variants: Annotated[
        int,
        Meta(
            ge=1,
            le=10_000,
            description="Maximum number of responses per key that differ by `Vary`; the oldest is evicted.",
        ),
    ] = 64
    max_vary: Annotated[
        int,
        Meta(
            ge=1, le=32, description="Maximum number of fields in `Vary`; responses with more are not stored."
        ),
    ] = 8
    targeted: Annotated[
        tuple[Text, ...],
        Meta(
            description=(
                "Fields that replace `Cache-Control` for this gateway; the first valid one counts (RFC 9213)."
            )
        ),
    ] = ("CDN-Cache-Control",)
    client_control: Annotated[
        bool,
        Meta(
            description=(
                "Honor `no-cache`, `max-age`, `min-fresh` and `max-stale` of requests. `false` ignores "
                "them, so that clients cannot force requests to the origin; `no-store` and "
                "`only-if-cached` are always honored."
            )
        ),
    ] = True
    coalesce: Annotated[
        bool,
        Meta(
            description=(
                "Requests for a response that is being fetched wait for it, so that one request reaches "
                "the origin. Across workers this requires a shared tier, `cache_store.disk` or "
                "`cache_store.redis`."
            )
        ),
    ] = True
    coalesce_wait_ns: Annotated[
        Duration,
        Meta(
            ge=1_000_000,
            description=(
                "Maximum wait for such a response; then the request goes to the origin (nginx: "
                "`proxy_cache_lock_timeout`)."
            ),
        ),
    ] = 5 * SECOND
    strategy: Annotated[
        StrategyConfig | None,
        Meta(description="Custom code for key, storage and lifetime."),
    ] = None
    predict: Annotated[
        PredictConfig | None,
        Meta(description="Cache prediction, off by default. See cache-predict.md."),
    ] = None
    cache_status: Annotated[
        str,
        Meta(
            pattern=r"^([A-Za-z][A-Za-z0-9_.-]{0,19})?$(?!\n)",
            description='Name of this cache in `Cache-Status` (RFC 9211); `""` disables the field.',
        ),
    ] = "fastgate"


def build_rules(
    cache: CacheConfig,
    route: Any = None,
    *,
    identity: bytes = b"",
    shown: tuple[str, ...] = (),
    secrets: tuple[str, ...] = (),
    never_vary: tuple[str, ...] = (),
) -> Rules:
    """The compiled rules of a checked section of `route`. identity, shown, secrets, never_vary: parts of the
    key that are not settings of the section, as in Rules."""
    query = cache.key.query
    if query != "all" and route is not None:
        # Parameters that select the route distinguish its requests, unless they have a fixed value.
        chosen = [name for name, value in route.query.items() if value == "*" or value.startswith("~")]
        query = tuple({*(() if isinstance(query, str) else query), *chosen}) or "none"
    return Rules(
        route=identity,
        shown=shown,
        secrets=secrets,
        never_vary=never_vary,
        ttl_ns=cache.ttl_ns,
        respect=cache.respect,
        methods=cache.methods,
        statuses=cache.statuses,
        query=query,
        headers=cache.key.headers,
        cookies=cache.key.cookies,
        consumer=cache.key.consumer,
        body=cache.key.body,
        tags=cache.tags,
        min_size=cache.min_size_bytes,
        max_size=cache.max_size_bytes,
        stale_while_revalidate_ns=cache.stale_while_revalidate_ns,
        stale_if_error_ns=cache.stale_if_error_ns,
        heuristic_max_ns=cache.heuristic_max_ns,
        private=cache.private,
        set_cookie=cache.set_cookie,
        share_private=cache.share_private,
        max_variants=cache.max_variants,
        max_vary=cache.max_vary,
        targeted=cache.targeted,
        client_control=cache.client_control,
        enforce=cache.enforce,
        status_name=cache.cache_status,
    )


class MemoryStoreConfig(Settings, frozen=True, kw_only=True):
    """The memory tier of each worker. A bare size is short for `{size: …}`."""

    shorthand: ClassVar[str] = "size"

    size_bytes: Annotated[
        Size,
        Meta(
            ge=0,
            le=1_000_000_000_000,
            description="Size of responses, keys and index, in each worker. 0 disables the tier.",
        ),
    ] = 64_000_000
    policy: Annotated[
        Literal["s3fifo", "lru"],
        Meta(description=("Eviction policy. `s3fifo` is resistant to scans.")),
    ] = "s3fifo"


class DiskStoreConfig(Settings, frozen=True, kw_only=True):
    """The disk tier: a directory shared by all workers of the machine, which survives a restart. It is for
    one gateway: a second one on the same directory runs without the tier. After an unclean stop of the
    machine the contents are dropped. A damaged file is replaced by an empty one, counted and logged.
    """

    path: Annotated[
        Text, Meta(description="The directory, created if absent. It must be on a local disk, not on NFS.")
    ]
    size_bytes: Annotated[
        Size,
        Meta(
            ge=16 << 20,
            le=1 << 44,
            description=(
                "Maximum size, index included; eviction is first in, first out. At least 16MiB. A "
                "response larger than a 32nd of it, or than 64MiB, is not stored."
            ),
        ),
    ] = 1_000_000_000
    compress_above_bytes: Annotated[
        Size,
        Meta(
            ge=1024,
            le=1 << 30,
            description=(
                "Larger responses are compressed (zstd) if that saves a tenth. Smaller ones are not, so "
                "that hits are cheap."
            ),
        ),
    ] = 32 << 10


class RedisStoreConfig(Settings, frozen=True, kw_only=True):
    """The Redis or Valkey tier: responses and purges shared by several machines. If it is down, slow or
    flushed, requests continue without it.
    """

    url: Annotated[
        Text,
        Meta(
            description=(
                "`redis://host:6379/0`, `rediss://` for TLS, `unix:///path.sock`, "
                "`redis+sentinel://host:26379,host:26379/name`, `redis+cluster://host:6379`, each with "
                "`user:password@`. Write the password as `${REDIS_PASSWORD}`; it is never printed."
            )
        ),
    ]
    timeout_ns: Annotated[
        Duration,
        Meta(
            ge=100_000,
            le=10_000_000_000,
            description=(
                "Maximum time a request waits for Redis. After three consecutive failures requests skip "
                "Redis until a ping succeeds."
            ),
        ),
    ] = 5_000_000
    prefix: Annotated[
        Annotated[str, Meta(pattern=r"^[!-z|~]{1,64}$(?!\n)")],
        Meta(description="Prefix of all keys. Gateways that share responses use the same prefix."),
    ] = "fastgate:"
    compress_above_bytes: Annotated[
        Size, Meta(ge=1024, le=1 << 30, description="Larger responses are compressed (zstd).")
    ] = 32 << 10
    largest_bytes: Annotated[
        Size, Meta(ge=1024, le=64 << 20, description="Larger responses are not stored in Redis.")
    ] = 8 << 20
    machine: Annotated[
        str,
        Meta(
            max_length=200,
            description=(
                "Name of this gateway, constant across restarts, so that it receives the purges it has "
                "missed. Default: the host name and the path of `disk`."
            ),
        ),
    ] = ""
    secret: Annotated[
        str,
        Meta(
            max_length=1000,
            description=(
                "Key of a checksum of every stored response, the same on all gateways; responses without "
                "it are not used. Write it as `${CACHE_SECRET}`. Default: none, so that any party with "
                "write access to Redis can plant responses."
            ),
        ),
    ] = ""
    ca_file: Annotated[
        str,
        Meta(extra={"file": True}, description="Trusted CA certificates for a `rediss://` server."),
    ] = ""
    certificate_file: Annotated[
        str, Meta(extra={"file": True}, description="Client certificate for Redis.")
    ] = ""
    key_file: Annotated[
        str, Meta(extra={"file": True}, description="Private key of the client certificate.")
    ] = ""


class CacheStoreConfig(Settings, frozen=True, kw_only=True):
    """The cache tiers: memory of the worker, disk of the machine, Redis."""

    memory: Annotated[MemoryStoreConfig, Meta(description="The first tier, looked up for every request.")] = (
        MemoryStoreConfig()
    )
    disk: Annotated[
        DiskStoreConfig | None,
        Meta(description="The second tier, shared by the workers. Default: none."),
    ] = None
    redis: Annotated[
        RedisStoreConfig | None,
        Meta(description="The third tier, shared by the machines. Default: none."),
    ] = None


class RouteKeys(Settings, frozen=True, kw_only=True):
    """The keys of this feature in a route."""

    manual_order: ClassVar[int] = 20

    cache: Annotated[
        CacheConfig | None,
        Meta(
            extra={"needs_upstream": True},
            description="Response cache (RFC 9111). Default: no response is stored.",
        ),
    ] = None


class RootKeys(Settings, frozen=True, kw_only=True):
    """The keys of this feature in the root."""

    manual_order: ClassVar[int] = 40

    cache_store: Annotated[
        CacheStoreConfig, Meta(description="Storage of cached responses, for all routes.")
    ] = CacheStoreConfig()


def explain(route: Any) -> dict[str, str]:
    """Whether the route caches."""
    return {} if route.cache is None else {"cache": "yes"}
