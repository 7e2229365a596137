"""CORS: which other sites' scripts may call a route from a browser, and read what it answers.

Settings, their reading, and the gate's building; what happens to a request is in `_core/gates/cors.pyx`. The
gateway answers preflights by itself and is the only one to speak of CORS: what the upstream says of it is
taken away, because a browser that is told two things believes neither.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, ClassVar, Final, NamedTuple

from msgspec import Meta

from fastgate._core.gates.cors import CorsGate
from fastgate.errors import REASONS
from fastgate.plugin import FeatureEnv
from fastgate.settings import MINUTE, SECOND, Duration, Settings

__all__ = ["CorsConfig", "RootKeys", "RouteKeys", "Wildcard", "build", "read_origin"]

_METHODS: Final = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE")

# What a browser writes (RFC 6454 §6.2): lower case, no path, no slash at the end, no default port.
_ORIGIN = re.compile(
    r"(?P<scheme>[a-z][a-z0-9+.-]*://)(?P<wild>\*\.)?(?P<host>\[[0-9a-f:.]+\]|[a-z0-9_-]+(?:\.[a-z0-9_-]+)*)"
    r"(?P<port>:[1-9][0-9]{0,4})?",
    re.ASCII,
)


class CorsConfig(Settings, frozen=True, kw_only=True):
    """Which other origins' scripts may use a route. A list of origins is short for `{origins: […]}`,
    `true` for every origin; `false` switches it off."""

    shorthand: ClassVar[str] = "origins"
    short: ClassVar[dict[type, Any]] = {bool: lambda on: {"origins": "*", "enabled": on}}

    enabled: Annotated[bool, Meta(description="`false` switches the root's `cors` off for this route.")] = (
        True
    )
    origins: Annotated[
        tuple[str, ...],
        Meta(
            min_length=1,
            extra={"one_or_many": True},
            description=(
                "`https://app.example.com` exactly, `https://*.example.com` for every name below, "
                "`~regex` for "
                "a regular expression that the whole origin must match, `null`, or `*` for every origin."
            ),
        ),
    ]
    methods: Annotated[
        tuple[str, ...] | None,
        Meta(
            extra={"one_or_many": True},
            description=(
                "What preflights are told to be allowed; `*` says yes to what is asked for. Default: the "
                "route's `methods`, else GET, HEAD, POST, PUT, PATCH and DELETE."
            ),
        ),
    ] = None
    headers: Annotated[
        tuple[str, ...],
        Meta(
            extra={"one_or_many": True},
            description="Request fields that scripts may set; `*` says yes to those that are asked for.",
        ),
    ] = ("*",)
    expose: Annotated[
        tuple[str, ...],
        Meta(
            extra={"one_or_many": True},
            description="Fields of the answer that scripts may read, beside the few that they always may.",
        ),
    ] = ()
    credentials: Annotated[
        bool,
        Meta(
            description=(
                "Whether scripts may send cookies and client certificates. Not beside `*`: every site could "
                "act as its visitor."
            )
        ),
    ] = False
    max_age_ns: Annotated[
        Duration,
        Meta(
            le=86_400 * SECOND,
            description="How long a browser may remember a preflight. Chrome keeps none for longer than 2h.",
        ),
    ] = 10 * MINUTE
    private_network: Annotated[
        bool, Meta(description="Whether public sites may reach this gateway in a private network.")
    ] = False
    refuse_others: Annotated[
        bool,
        Meta(
            description=(
                "Refuse requests from other origins with 403 `cors_refused` too. By default they are "
                "answered "
                "and the browser keeps the answer from the script. Preflights are refused in any case."
            )
        ),
    ] = False
    enforce: Annotated[
        bool, Meta(description="False only counts and logs what would be refused, and lets it pass.")
    ] = True


class RouteKeys(Settings, frozen=True, kw_only=True):
    """Its keys in a route."""

    manual_order: ClassVar[int] = 60

    cors: Annotated[
        CorsConfig | None,
        Meta(description="Which other origins' scripts may use this route. Default: the root's `cors`."),
    ] = None


class RootKeys(Settings, frozen=True, kw_only=True):
    """Its keys in the root."""

    manual_order: ClassVar[int] = 90

    cors: Annotated[
        CorsConfig | None, Meta(description="For every route that has no `cors` of its own. Default: none.")
    ] = None


class Wildcard(NamedTuple):
    """`https://*.example.com:8443`, taken apart."""

    scheme: str  # with "://"
    suffix: str  # ".example.com"
    port: str  # ":8443", or ""


def read_origin(text: str) -> str | Wildcard | re.Pattern[bytes]:
    """An entry of `origins` other than `*`. ValueError says what was expected."""
    if text == "null":
        return text
    if text.startswith("~"):
        try:
            return re.compile(text[1:].encode("ascii"))
        except (re.error, UnicodeEncodeError) as error:
            raise ValueError(f"a regular expression: {error}") from None
    match = _ORIGIN.fullmatch(text)
    if match is None:
        raise ValueError("scheme://host or scheme://host:port in lower case, without a path")
    if (match["scheme"], match["port"]) in (("https://", ":443"), ("http://", ":80")):
        raise ValueError("an origin without the scheme's own port, which browsers leave out")
    if not match["wild"]:
        return text
    if "." not in match["host"]:
        raise ValueError("a wildcard below a name with a dot, as *.com would be anybody")
    return Wildcard(match["scheme"], "." + match["host"], match["port"] or "")


def build(settings: CorsConfig | None, env: FeatureEnv) -> CorsGate | None:
    """The gate of a route; None where the config says nothing of CORS."""
    settings = settings if settings is not None else env.config.cors
    if settings is None or not settings.enabled:
        return None
    read = [read_origin(origin) for origin in settings.origins if origin != "*"]
    methods = settings.methods or env.route.methods or _METHODS
    if "GET" in methods and "HEAD" not in methods:
        methods = (*methods, "HEAD")
    gate = CorsGate(
        exact=[origin for origin in read if isinstance(origin, str)],
        suffixes=[origin for origin in read if isinstance(origin, Wildcard)],
        patterns=[origin for origin in read if isinstance(origin, re.Pattern)],
        any_origin="*" in settings.origins,
        methods=None if "*" in methods else methods,
        headers=None if "*" in settings.headers else settings.headers,
        expose=settings.expose,
        credentials=settings.credentials,
        max_age_s=settings.max_age_ns // SECOND,
        private_network=settings.private_network,
        refuse_others=settings.refuse_others,
        refused=REASONS["cors_refused"],
    )
    gate.enforce = settings.enforce
    return gate
