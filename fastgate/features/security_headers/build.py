"""Security headers of the responses of a route.

This module has the settings and presets; the gate is in `_core/gates/security.pyx`. A preset is a set of
values; a value that is set overrides the preset's, and an empty text removes the header.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Final, Literal

from msgspec import Meta

from fastgate._core.gates.security import SecurityHeadersGate
from fastgate.plugin import FeatureEnv
from fastgate.settings import DAY, SECOND, Duration, Settings, Text

__all__ = [
    "HEADERS",
    "PRESETS",
    "HstsConfig",
    "RootKeys",
    "RouteKeys",
    "SecurityHeadersConfig",
    "build",
    "header_fields",
]

# Setting and header.
HEADERS: Final = {
    "nosniff": "X-Content-Type-Options",
    "frame_options": "X-Frame-Options",
    "content_security_policy": "Content-Security-Policy",
    "content_security_policy_report_only": "Content-Security-Policy-Report-Only",
    "referrer_policy": "Referrer-Policy",
    "permissions_policy": "Permissions-Policy",
    "cross_origin_opener_policy": "Cross-Origin-Opener-Policy",
    "cross_origin_resource_policy": "Cross-Origin-Resource-Policy",
    "cross_origin_embedder_policy": "Cross-Origin-Embedder-Policy",
}

_NO_SENSORS: Final = "camera=(), geolocation=(), microphone=(), payment=(), usb=()"

PRESETS: Final[dict[str, dict[str, str]]] = {
    "none": {},
    # Safe for ordinary sites.
    "basic": {
        "nosniff": "nosniff",
        "frame_options": "SAMEORIGIN",
        "referrer_policy": "strict-origin-when-cross-origin",
    },
    # For sites that load everything from their own origin.
    "strict": {
        "nosniff": "nosniff",
        "frame_options": "DENY",
        "content_security_policy": (
            "default-src 'self'; base-uri 'self'; form-action 'self'; frame-ancestors 'none'; "
            "object-src 'none'"
        ),
        "referrer_policy": "no-referrer",
        "permissions_policy": _NO_SENSORS,
        "cross_origin_opener_policy": "same-origin",
        "cross_origin_resource_policy": "same-origin",
    },
    # For APIs: no part of a response is rendered or executed (OWASP REST Security Cheat Sheet).
    "api": {
        "nosniff": "nosniff",
        "frame_options": "DENY",
        "content_security_policy": "default-src 'none'; frame-ancestors 'none'",
        "referrer_policy": "no-referrer",
    },
}


class HstsConfig(Settings, frozen=True, kw_only=True):
    """Strict-Transport-Security (RFC 6797), sent over https only. A duration is short for `{max_age: …}`."""

    shorthand: ClassVar[str] = "max_age"

    max_age_ns: Annotated[
        Duration,
        Meta(
            le=3650 * DAY,
            description=(
                "How long browsers use only https for this host. Start with a day: it cannot be "
                "revoked for browsers that have received it. `0` makes browsers forget it."
            ),
        ),
    ] = 365 * DAY
    include_subdomains: Annotated[
        bool, Meta(description="Whether it applies to every subdomain of this host too.")
    ] = False
    preload: Annotated[
        bool,
        Meta(
            description=(
                "Consent to inclusion in the browsers' preload lists, which require "
                "`include_subdomains` and a year."
            )
        ),
    ] = False

    def value(self) -> str:
        """The value of the header field."""
        text = f"max-age={self.max_age_ns // SECOND}"
        if self.include_subdomains:
            text += "; includeSubDomains"
        return text + "; preload" if self.preload else text


class SecurityHeadersConfig(Settings, frozen=True, kw_only=True):
    """Security header fields. A preset name is short for `{preset: …}`; `true` is `basic`, `false` is
    `none`."""

    shorthand: ClassVar[str] = "preset"
    short: ClassVar[dict[type, Any]] = {bool: lambda on: {"preset": "basic" if on else "none"}}

    preset: Annotated[
        Literal["none", "basic", "strict", "api"],
        Meta(
            description=(
                "Source of the values that are not set here. `basic` is safe for ordinary sites, "
                "`strict` is for sites that load everything from their own origin, `api` for "
                "responses that are data."
            )
        ),
    ] = "basic"
    upstream: Annotated[
        Literal["replaced", "kept"],
        Meta(
            description=(
                "What to do if the upstream's response has the field: replace its value, or keep "
                "it. Fields that are not set here are always passed through."
            )
        ),
    ] = "replaced"
    nosniff: Annotated[
        bool | None, Meta(description="`X-Content-Type-Options: nosniff`: browsers do not guess types.")
    ] = None
    frame_options: Annotated[
        Literal["DENY", "SAMEORIGIN", ""] | None,
        Meta(description="`X-Frame-Options`: the sites that may embed the response in a frame."),
    ] = None
    hsts: Annotated[
        HstsConfig | None,
        Meta(description="`Strict-Transport-Security`, over https only. Not part of any preset."),
    ] = None
    content_security_policy: Annotated[str | None, Meta(description="`Content-Security-Policy`.")] = None
    content_security_policy_report_only: Annotated[
        str | None,
        Meta(
            description="`Content-Security-Policy-Report-Only`: browsers report what the policy would block."
        ),
    ] = None
    referrer_policy: Annotated[
        Literal[
            "",
            "no-referrer",
            "no-referrer-when-downgrade",
            "origin",
            "origin-when-cross-origin",
            "same-origin",
            "strict-origin",
            "strict-origin-when-cross-origin",
            "unsafe-url",
        ]
        | None,
        Meta(description="`Referrer-Policy`: how much of the referring URL is sent to other sites."),
    ] = None
    permissions_policy: Annotated[
        str | None, Meta(description="`Permissions-Policy`: the browser features that a page may use.")
    ] = None
    cross_origin_opener_policy: Annotated[
        Literal["", "unsafe-none", "same-origin-allow-popups", "same-origin", "noopener-allow-popups"] | None,
        Meta(description="`Cross-Origin-Opener-Policy`."),
    ] = None
    cross_origin_resource_policy: Annotated[
        Literal["", "same-site", "same-origin", "cross-origin"] | None,
        Meta(description="`Cross-Origin-Resource-Policy`."),
    ] = None
    cross_origin_embedder_policy: Annotated[
        Literal["", "unsafe-none", "require-corp", "credentialless"] | None,
        Meta(description="`Cross-Origin-Embedder-Policy`."),
    ] = None
    remove: Annotated[
        tuple[Text, ...],
        Meta(
            extra={"one_or_many": True},
            description="Fields removed from the upstream's response, such as `Server` and `X-Powered-By`.",
        ),
    ] = ()


class RouteKeys(Settings, frozen=True, kw_only=True):
    """The keys of this feature in a route."""

    manual_order: ClassVar[int] = 70

    security_headers: Annotated[
        SecurityHeadersConfig | None,
        Meta(description="Security header fields. Default: the root's `security_headers`."),
    ] = None


class RootKeys(Settings, frozen=True, kw_only=True):
    """The keys of this feature in the root."""

    manual_order: ClassVar[int] = 100

    security_headers: Annotated[
        SecurityHeadersConfig | None,
        Meta(
            description=(
                "Security header fields of every route without its own `security_headers`. Default: none."
            )
        ),
    ] = None


def header_fields(settings: SecurityHeadersConfig) -> list[tuple[str, str]]:
    """The fields of every response, without Strict-Transport-Security."""
    values: dict[str, str] = dict(PRESETS[settings.preset])
    for name in HEADERS:
        own: bool | str | None = getattr(settings, name)
        if own is not None:
            values[name] = ("nosniff" if own else "") if isinstance(own, bool) else own
    return [(header, values[name]) for name, header in HEADERS.items() if values.get(name)]


def build(settings: SecurityHeadersConfig | None, env: FeatureEnv) -> SecurityHeadersGate | None:
    """The gate of a route, or None if the config has no security headers for it."""
    settings = settings if settings is not None else env.config.security_headers
    if settings is None:
        return None
    fields = header_fields(settings)
    hsts = settings.hsts.value() if settings.hsts is not None else None
    if settings.upstream == "kept":
        return SecurityHeadersGate((), fields, hsts, settings.remove)
    return SecurityHeadersGate(fields, (), hsts, settings.remove)
