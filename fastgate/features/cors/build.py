"""CORS: the origins whose scripts may call a route from a browser and read its responses.

This module has the settings, their parsing and the builder of the gate; `_core/gates/cors.pyx` handles the
requests. The gateway responds to preflights itself. It removes the upstream's CORS fields from responses,
because browsers reject a response with two conflicting ones.
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

# The serialization that browsers send (RFC 6454 §6.2): lower case, no path, no trailing slash, no default
# port.
_ORIGIN = re.compile(
    r"(?P<scheme>[a-z][a-z0-9+.-]*://)(?P<wild>\*\.)?(?P<host>\[[0-9a-f:.]+\]|[a-z0-9_-]+(?:\.[a-z0-9_-]+)*)"
    r"(?P<port>:[1-9][0-9]{0,4})?",
    re.ASCII,
)


class CorsConfig(Settings, frozen=True, kw_only=True):
    """The origins whose scripts may use a route. A list of origins is short for `{origins: […]}`, `true`
    allows every origin, `false` turns CORS off."""

    shorthand: ClassVar[str] = "origins"
    short: ClassVar[dict[type, Any]] = {bool: lambda on: {"origins": "*", "enabled": on}}

    enabled: Annotated[bool, Meta(description="`false` turns the root's `cors` off for this route.")] = True
    origins: Annotated[
        tuple[str, ...],
        Meta(
            min_length=1,
            extra={"one_or_many": True},
            description=(
                "`https://app.example.com` exactly, `https://*.example.com` for every subdomain, "
                "`~regex` for a regular expression that must match the whole origin, `null`, or "
                "`*` for every origin."
            ),
        ),
    ]
    methods: Annotated[
        tuple[str, ...] | None,
        Meta(
            extra={"one_or_many": True},
            description=(
                "Methods that preflight responses allow; `*` allows whatever the browser requests. "
                "Default: the route's `methods`, else GET, HEAD, POST, PUT, PATCH and DELETE."
            ),
        ),
    ] = None
    headers: Annotated[
        tuple[str, ...],
        Meta(
            extra={"one_or_many": True},
            description=(
                "Request header fields that scripts may set; `*` allows whatever the browser requests."
            ),
        ),
    ] = ("*",)
    expose: Annotated[
        tuple[str, ...],
        Meta(
            extra={"one_or_many": True},
            description=(
                "Response header fields that scripts may read, in addition to the CORS-safelisted ones."
            ),
        ),
    ] = ()
    credentials: Annotated[
        bool,
        Meta(
            description=(
                "Whether scripts may send cookies and client certificates. Cannot be combined with "
                "`*`, which would let every site act on behalf of its visitors."
            )
        ),
    ] = False
    max_age_ns: Annotated[
        Duration,
        Meta(
            le=86_400 * SECOND,
            description="How long a browser may cache a preflight response. Chrome caps it at 2h.",
        ),
    ] = 10 * MINUTE
    private_network: Annotated[
        bool, Meta(description="Whether public sites may reach this gateway in a private network.")
    ] = False
    refuse_others: Annotated[
        bool,
        Meta(
            description=(
                "Also reject actual requests from other origins, with 403 `cors_refused`. Default: "
                "they are served, and the browser withholds the response from the script. "
                "Preflights from other origins are always rejected."
            )
        ),
    ] = False
    enforce: Annotated[
        bool,
        Meta(description="`false` (shadow mode): count and log what would be rejected, and let it pass."),
    ] = True


class RouteKeys(Settings, frozen=True, kw_only=True):
    """The keys of this feature in a route."""

    manual_order: ClassVar[int] = 60

    cors: Annotated[
        CorsConfig | None,
        Meta(description="The origins whose scripts may use this route. Default: the root's `cors`."),
    ] = None


class RootKeys(Settings, frozen=True, kw_only=True):
    """The keys of this feature in the root."""

    manual_order: ClassVar[int] = 90

    cors: Annotated[
        CorsConfig | None,
        Meta(description="CORS settings of every route without its own `cors`. Default: none."),
    ] = None


class Wildcard(NamedTuple):
    """The parts of `https://*.example.com:8443`."""

    scheme: str  # with "://"
    suffix: str  # ".example.com"
    port: str  # ":8443", or ""


def read_origin(text: str) -> str | Wildcard | re.Pattern[bytes]:
    """An entry of `origins` other than `*`, parsed. Raises ValueError with the text that was expected."""
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
        raise ValueError("an origin without the scheme's default port, which browsers omit")
    if not match["wild"]:
        return text
    if "." not in match["host"]:
        raise ValueError("a wildcard below a name with a dot; *.com would match every site")
    return Wildcard(match["scheme"], "." + match["host"], match["port"] or "")


def build(settings: CorsConfig | None, env: FeatureEnv) -> CorsGate | None:
    """The gate of a route, or None if the config has no CORS settings for it."""
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
