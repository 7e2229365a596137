"""The `cache:` section of a route: what is cached, under which key, for how long.

The semantics behind these settings are in `fastgate._core.cache.http_cache`, docs/cache.md explains both.
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
    "build_rules",
]


class CacheKeyConfig(Settings, frozen=True, kw_only=True):
    """What tells two requests apart, besides scheme, host and path."""

    query: Annotated[
        Literal["all", "none"] | tuple[Text, ...],
        Meta(
            description=(
                "`all` of the query, sorted by name; `none` of it; or the list of the parameters that make a "
                "difference. A request that could hide a listed parameter in another one (`;`) is not cached."
            )
        ),
    ] = "all"
    headers: Annotated[
        tuple[Text, ...],
        Meta(description="Request fields that make a difference, beyond the origin's `Vary`."),
    ] = ()
    cookies: Annotated[tuple[Text, ...], Meta(description="Cookies that make a difference.")] = ()
    consumer: Annotated[
        Literal["auto", "private", "shared"],
        Meta(
            description=(
                "`auto`: answers to an authenticated consumer are kept for that consumer alone. "
                "`private`: and "
                "nobody else's are kept. `shared`: all consumers share them, whatever credential they show; "
                "needs `share_private`."
            )
        ),
    ] = "auto"
    body: Annotated[
        bool, Meta(description="A digest of the request body. Needed to cache POST, and buffers the body.")
    ] = False


class CacheConfig(Settings, frozen=True, kw_only=True):
    """Answers of this route are cached as HTTP says (RFC 9111), with these settings. A bare duration is short
    for `{ttl: …}`; `true` takes the defaults, `false` is `{enabled: false}`.
    """

    example: ClassVar[str] = "{ttl: 60s}"
    shorthand: ClassVar[str] = "ttl"
    short: ClassVar[dict[type, Any]] = {bool: lambda on: {} if on else {"enabled": False}}

    enabled: Annotated[bool, Meta(description="`false` switches the cache of this route off.")] = True
    enforce: Annotated[
        bool,
        Meta(
            description=(
                "`false`: decide, store and count, but answer every request from the origin. Shows the hit "
                "rate beforehand."
            )
        ),
    ] = True
    ttl_ns: Annotated[
        Duration,
        Meta(
            description=(
                "Freshness of answers that say nothing about it. `0s`: a tenth of the time since "
                "`Last-Modified`, else none."
            )
        ),
    ] = 0
    respect: Annotated[
        Literal["origin", "override"],
        Meta(
            description=(
                "`override`: `ttl` holds for the statuses listed, whatever the origin says; `private`, "
                "`Set-Cookie` and `Authorization` still count."
            )
        ),
    ] = "origin"
    methods: Annotated[
        tuple[str, ...],
        Meta(
            min_length=1,
            extra={"one_or_many": True},
            description="`GET` (brings `HEAD`) and `POST` (with `key.body`).",
        ),
    ] = ("GET",)
    statuses: Annotated[
        tuple[Annotated[int, Meta(ge=200, le=999)], ...],
        Meta(
            min_length=1,
            extra={"one_or_many": True},
            description="Statuses that `ttl` is for. Others are cached if the origin gives them a lifetime.",
        ),
    ] = (200, 203, 204, 300, 301, 308, 404, 410)
    key: Annotated[CacheKeyConfig, Meta(description="What tells two requests apart.")] = CacheKeyConfig()
    tags: Annotated[
        tuple[Text, ...],
        Meta(
            extra={"one_or_many": True},
            description=(
                "Tags to purge by, on every answer of the route; the origin adds its own in "
                "`Surrogate-Key` or "
                "`Cache-Tag`."
            ),
        ),
    ] = ()
    purge_header: Annotated[
        Annotated[str, Meta(pattern=r"^[A-Za-z0-9-]{1,64}$(?!\n)")] | None,
        Meta(
            description=(
                "Field of an upstream's answers by which it purges: a list of tags, paths of its host (`/a`, "
                "`/a/*`), or `*` for everything. Clients do not see it. Default: upstreams do not purge."
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
                "How long after its end an answer is still served while a new one is fetched, when "
                "the origin "
                "does not say (RFC 5861)."
            )
        ),
    ] = 0
    stale_if_error_ns: Annotated[
        Duration,
        Meta(
            description=(
                "How long after its end an answer is still served when the origin fails (no connection, 500, "
                "502, 503, 504) and does not say (RFC 5861)."
            )
        ),
    ] = 0
    heuristic_max_ns: Annotated[
        Duration,
        Meta(description="Bound on the freshness guessed from `Last-Modified`; `0s`: no guessing."),
    ] = DAY
    private: Annotated[
        Literal["never", "consumer", "share"],
        Meta(
            description=(
                "Answers marked `Cache-Control: private`: stored `never`, or for the authenticated "
                "`consumer` "
                "alone, or shared; the last needs `share_private`."
            )
        ),
    ] = "never"
    set_cookie: Annotated[
        Literal["never", "strip", "store"],
        Meta(
            description=(
                "Answers with `Set-Cookie`: stored `never`, without the cookie (`strip`), or with it "
                "(`store`). "
                "The last two need `share_private`."
            )
        ),
    ] = "never"
    share_private: Annotated[
        bool,
        Meta(
            description=(
                "Confirms settings by which one client's response may reach another: `key.consumer: "
                "shared`, `private: share`, `set_cookie: strip` or `store`, or an `auth` that lets clients "
                "pass without learning who they are (`forward`, `enforce: false`, `on_error: allow`): for "
                "them nothing is stored otherwise. Refused without one of them."
            )
        ),
    ] = False
    max_variants: Annotated[
        int,
        Meta(ge=1, le=10_000, description="Answers kept for one key that differ by `Vary`; the oldest goes."),
    ] = 64
    max_vary: Annotated[
        int, Meta(ge=1, le=32, description="Fields in `Vary`; answers that vary by more are not stored.")
    ] = 8
    targeted: Annotated[
        tuple[Text, ...],
        Meta(
            description=(
                "Fields that speak to this gateway in place of `Cache-Control`, the first valid one counts "
                "(RFC 9213)."
            )
        ),
    ] = ("CDN-Cache-Control",)
    client_control: Annotated[
        bool,
        Meta(
            description=(
                "Obey `no-cache`, `max-age`, `min-fresh` and `max-stale` of requests. `false` keeps "
                "clients from "
                "reaching the origin at will; `no-store` and `only-if-cached` always count."
            )
        ),
    ] = True
    coalesce: Annotated[
        bool,
        Meta(
            description=(
                "Requests for an answer that is being fetched wait for it, so that the origin is asked "
                "once. Between "
                "workers this needs a tier that they share, `cache_store.disk` or `cache_store.redis`."
            )
        ),
    ] = True
    coalesce_wait_ns: Annotated[
        Duration,
        Meta(
            ge=1_000_000,
            description=(
                "The longest such wait; then the request is sent on its own (nginx: "
                "`proxy_cache_lock_timeout`)."
            ),
        ),
    ] = 5 * SECOND
    strategy: Annotated[
        StrategyConfig | None,
        Meta(description="Code of yours that says what the key is, what is stored and for how long."),
    ] = None
    predict: Annotated[
        PredictConfig | None,
        Meta(description="What the cache does of its own accord: nothing by default. See cache-predict.md."),
    ] = None
    cache_status: Annotated[
        str,
        Meta(
            pattern=r"^([A-Za-z][A-Za-z0-9_.-]{0,19})?$(?!\n)",
            description='Name of this cache in `Cache-Status` (RFC 9211); `""` leaves the field out.',
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
    """The compiled rules of a checked section. route: whose it is. identity, shown, secrets, never_vary: what
    is in the key without being a setting of it, as in Rules."""
    query = cache.key.query
    if query != "all" and route is not None:
        # What the route chose by tells its requests apart, unless it is one value alone.
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
    """What each worker keeps in its own memory. A bare size is short for `{size: …}`."""

    shorthand: ClassVar[str] = "size"

    size_bytes: Annotated[
        Size,
        Meta(
            ge=0,
            le=1_000_000_000_000,
            description="Bytes of answers, keys and index, in each worker. 0 keeps nothing in memory.",
        ),
    ] = 64_000_000
    policy: Annotated[
        Literal["s3fifo", "lru"],
        Meta(
            description=(
                "What gives way when it is full. `s3fifo` keeps what is asked for often through scans."
            )
        ),
    ] = "s3fifo"


class DiskStoreConfig(Settings, frozen=True, kw_only=True):
    """A directory with the answers that all workers of the machine share, and that survives a restart.

    For one gateway alone: a second one on the same directory goes without. What an unclean stop of the
    machine left in it is dropped. A file that is damaged is replaced by an empty one, counted and logged.
    """

    path: Annotated[
        Text, Meta(description="The directory. Created when absent. On a local disk, not on NFS.")
    ]
    size_bytes: Annotated[
        Size,
        Meta(
            ge=16 << 20,
            le=1 << 44,
            description=(
                "Bytes in use, index included; the first in are the first out. At least 16MiB. An answer of "
                "more than a 32nd of it, or of more than 64MiB, is not kept."
            ),
        ),
    ] = 1_000_000_000
    compress_above_bytes: Annotated[
        Size,
        Meta(
            ge=1024,
            le=1 << 30,
            description=(
                "Answers above this size are compressed (zstd), where that saves a tenth. Small ones are "
                "not, so that a hit costs next to nothing."
            ),
        ),
    ] = 32 << 10


class RedisStoreConfig(Settings, frozen=True, kw_only=True):
    """Redis or Valkey: answers that the machines share, and the news of purges between them.

    Without it the gateway is right, too: when it is down, slow or flushed, requests go on without it.
    """

    url: Annotated[
        Text,
        Meta(
            description=(
                "`redis://host:6379/0`, `rediss://` for TLS, `unix:///path.sock`, "
                "`redis+sentinel://host:26379,host:26379/name`, `redis+cluster://host:6379`, each with "
                "`user:password@`. Write the password as `${REDIS_PASSWORD}`; it is never shown."
            )
        ),
    ]
    timeout_ns: Annotated[
        Duration,
        Meta(
            ge=100_000,
            le=10_000_000_000,
            description=(
                "The longest a request waits for it. After three failures in a row no request asks until it "
                "answers a ping in time again."
            ),
        ),
    ] = 5_000_000
    prefix: Annotated[
        Annotated[str, Meta(pattern=r"^[!-z|~]{1,64}$(?!\n)")],
        Meta(description="What all its keys begin with: the gateways that share answers have the same."),
    ] = "fastgate:"
    compress_above_bytes: Annotated[
        Size, Meta(ge=1024, le=1 << 30, description="Answers above this size are compressed (zstd).")
    ] = 32 << 10
    largest_bytes: Annotated[
        Size, Meta(ge=1024, le=64 << 20, description="Answers above this size are not sent to it.")
    ] = 8 << 20
    machine: Annotated[
        str,
        Meta(
            max_length=200,
            description=(
                "This gateway's name, the same after a restart, so that it hears the purges it has missed. "
                "Default: the host name and the path of `disk`."
            ),
        ),
    ] = ""
    secret: Annotated[
        str,
        Meta(
            max_length=1000,
            description=(
                "Key of a checksum that every stored response then carries, the same on all gateways: "
                "what was written by anybody else is not used. Write it as `${CACHE_SECRET}`. Default: "
                "none, and whoever can write to Redis decides what clients get."
            ),
        ),
    ] = ""
    ca_file: Annotated[
        str,
        Meta(extra={"file": True}, description="Certificates that may sign that of a `rediss://` server."),
    ] = ""
    certificate_file: Annotated[
        str, Meta(extra={"file": True}, description="The certificate to show to it.")
    ] = ""
    key_file: Annotated[str, Meta(extra={"file": True}, description="The key of that certificate.")] = ""


class CacheStoreConfig(Settings, frozen=True, kw_only=True):
    """The tiers of the cache: the worker's memory, then the disk of the machine, then Redis."""

    memory: Annotated[MemoryStoreConfig, Meta(description="The first tier, asked for every request.")] = (
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
