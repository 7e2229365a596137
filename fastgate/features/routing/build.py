"""Actions of a route other than proxying: path rewrite, redirect, fixed response.

Matching (host, path, methods, headers, query) is part of `RouteConfig` in `fastgate.config`;
`_core/http/router` has the order of precedence. Templates refer to the parameters of the route's path:
`{id}`, `{rest}`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, ClassVar

import msgspec
from msgspec import Meta

from fastgate._core.http.edits import Rewrite, Template
from fastgate._core.pipeline.context import Answer
from fastgate._core.pipeline.plan import FixedResponse, Redirect
from fastgate.errors import REASONS
from fastgate.plugin import FeatureEnv
from fastgate.settings import RootedPath, Settings, Text

__all__ = [
    "RedirectConfig",
    "ReplacePrefix",
    "RespondConfig",
    "RewriteConfig",
    "RouteKeys",
    "build_redirect",
    "build_respond",
    "rewrite_of",
    "route_parts",
]


class ReplacePrefix(Settings, frozen=True, kw_only=True):
    """`/v1/orders/7` becomes `/orders/7` with `{from: /v1, to: /}`. A path without the prefix is
    unchanged."""

    from_: Annotated[
        str,
        Meta(
            pattern="^/",
            description="The prefix to remove; it matches whole segments: `/v1` does not match `/v10`.",
        ),
    ]
    to: Annotated[str, Meta(pattern="^/", description="The replacement.")]


class RewriteConfig(Settings, frozen=True, kw_only=True):
    """Changes the upstream path; the query is unchanged. Exactly one form: `strip_prefix`, `replace_prefix`,
    `path`, or `regex` + `to`."""

    strip_prefix: Annotated[
        RootedPath | None,
        Meta(description="Prefix to remove; it matches whole segments: with `/api`, `/api/x` becomes `/x`."),
    ] = None
    replace_prefix: Annotated[ReplacePrefix | None, Meta(description="Replaces one prefix with another.")] = (
        None
    )
    path: Annotated[
        RootedPath | None,
        Meta(
            extra={"places": True},
            description="The new path, with the parameters of the route: `/v2/orders/{id}`, `/{rest}`.",
        ),
    ] = None
    regex: Annotated[
        Text | None,
        Meta(
            description=(
                "Python regular expression searched in the path; the first match is replaced by `to`."
            )
        ),
    ] = None
    to: Annotated[
        str | None, Meta(description="Replacement for `regex`, with `\\1` or `\\g<name>` for groups.")
    ] = None


class RedirectConfig(Settings, frozen=True, kw_only=True):
    """Responds with a redirect. A bare string is short for `{to: …}`."""

    shorthand: ClassVar[str] = "to"

    to: Annotated[
        str,
        Meta(
            min_length=1,
            extra={"places": True},
            description=(
                "The Location: an absolute URL or a path, with the parameters of the route: "
                "`https://example.com/{rest}`. The request never chooses the host; a request that "
                "would is rejected with 400."
            ),
        ),
    ]
    status: Annotated[
        int,
        Meta(
            extra={"choices": (301, 302, 303, 307, 308)},
            description=(
                "301, 302, 303, 307 or 308. Default: 302, because browsers cache a 301 or 308 "
                "permanently, including a mistaken one. 307 and 308 keep the method and the body."
            ),
        ),
    ] = 302
    keep_query: Annotated[bool, Meta(description="Append the query of the request if `to` has none.")] = True


class RespondConfig(Settings, frozen=True, kw_only=True):
    """Responds with a fixed response, built once. A bare string is short for `{body: …}`, a bare number for
    `{status: …}`. At most one of `body` and `json`."""

    shorthand: ClassVar[str] = "body"
    short: ClassVar[dict[type, Any]] = {int: lambda status: {"status": status}}

    status: Annotated[int, Meta(ge=200, le=599, description="Status of the response.")] = 200
    headers: Annotated[
        dict[str, str],
        Meta(description="Header fields of the response. The gateway sets `Content-Length` and `Date`."),
    ] = msgspec.field(default_factory=dict)
    body: Annotated[
        str | None,
        Meta(
            description=(
                "Text, sent as UTF-8 with `Content-Type: text/plain; charset=utf-8` unless "
                "`headers` sets another."
            )
        ),
    ] = None
    json: Annotated[
        Any,
        Meta(
            description=(
                "Any value, sent as JSON with `Content-Type: application/json` unless `headers` sets another."
            )
        ),
    ] = None

    def payload(self) -> tuple[bytes, str]:
        """The bytes of the body and their default content type ("" if there is no body)."""
        if self.json is not None:
            return msgspec.json.encode(self.json), "application/json"
        if self.body is not None:
            return self.body.encode(), "text/plain; charset=utf-8"
        return b"", ""


class RouteKeys(Settings, frozen=True, kw_only=True):
    """The keys of this feature in a route."""

    manual_order: ClassVar[int] = 10

    rewrite: Annotated[
        RewriteConfig | None,
        Meta(
            extra={"needs_upstream": True},
            description="Changes the upstream path.",
        ),
    ] = None
    redirect: Annotated[
        RedirectConfig | None,
        Meta(
            extra={"action": True},
            description="Responds with a redirect.",
        ),
    ] = None
    respond: Annotated[
        RespondConfig | None,
        Meta(
            extra={"action": True},
            description="Responds with a fixed response.",
        ),
    ] = None


def build_redirect(_settings: Any, env: FeatureEnv) -> Redirect | None:
    """The plugin that responds with a redirect, or None if the route has none."""
    settings: RedirectConfig | None = env.route.redirect
    if settings is None:
        return None
    location = Template(settings.to, list(env.params))
    return Redirect(location, settings.status, settings.keep_query, REASONS["ambiguous_path"])


def build_respond(_settings: Any, env: FeatureEnv) -> FixedResponse | None:
    """The plugin that responds with fixed bytes, or None if the route has none."""
    settings: RespondConfig | None = env.route.respond
    if settings is None:
        return None
    body, content_type = settings.payload()
    headers = list(settings.headers.items())
    if content_type and not any(name.lower() == "content-type" for name, _ in headers):
        headers.append(("Content-Type", content_type))
    return FixedResponse(Answer(settings.status, body, headers))


def rewrite_of(settings: RewriteConfig | None, params: Sequence[str]) -> Rewrite | None:
    """The rewrite of the upstream path, or None if there is none."""
    if settings is None:
        return None
    if settings.strip_prefix is not None:
        return Rewrite.prefix_to(settings.strip_prefix, "")
    if settings.replace_prefix is not None:
        return Rewrite.prefix_to(settings.replace_prefix.from_, settings.replace_prefix.to)
    if settings.path is not None:
        return Rewrite.to_template(Template(settings.path, list(params), in_path=True))
    return Rewrite.by_regex(settings.regex or "", settings.to or "")


def route_parts(env: FeatureEnv) -> dict[str, Any]:
    """The rewrite of a route's paths."""
    return {"rewrite": rewrite_of(env.route.rewrite, env.params)}
