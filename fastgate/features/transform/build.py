"""Header edits of requests and responses.

Order within one message: rename, remove, set, add. Names are case-insensitive; values are sent as written.
Hop-by-hop fields and framing (`Content-Length`, `Transfer-Encoding`, `Connection`, `Host`…) belong to the
gateway and cannot be edited here. Values are templates, for example `{client_ip}`; `{{}` is a literal brace.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, ClassVar

from msgspec import Meta, field

from fastgate._core.http.edits import HeaderEdits
from fastgate.plugin import FeatureEnv
from fastgate.settings import Places, Settings

__all__ = ["HeaderEditsConfig", "RouteKeys", "edits_of", "owned_headers", "route_parts"]


class HeaderEditsConfig(Settings, frozen=True, kw_only=True):
    """Edits of the header fields of a request or a response. Order: rename, remove, set, add."""

    set: Annotated[
        dict[str, Places],
        Meta(description="Fields to set; each replaces all fields of that name."),
    ] = field(default_factory=dict)
    add: Annotated[
        dict[str, Places],
        Meta(description="Fields to add; existing fields of that name are kept."),
    ] = field(default_factory=dict)
    remove: Annotated[
        tuple[str, ...], Meta(extra={"one_or_many": True}, description="Names of fields to remove.")
    ] = ()
    rename: Annotated[dict[str, str], Meta(description="Old name to new name; the value is unchanged.")] = (
        field(default_factory=dict)
    )


class RouteKeys(Settings, frozen=True, kw_only=True):
    """The keys of this feature in a route."""

    manual_order: ClassVar[int] = 100

    request_headers: Annotated[
        HeaderEditsConfig | None,
        Meta(
            extra={"needs_upstream": True},
            description="Edits of the request before it goes upstream.",
        ),
    ] = None
    response_headers: Annotated[
        HeaderEditsConfig | None, Meta(description="Edits of the response before it goes to the client.")
    ] = None


def edits_of(
    settings: HeaderEditsConfig | None, params: Sequence[str], *, owns: bool = False
) -> HeaderEdits | None:
    """The edits with compiled templates, or None if there are none. `owns`: clients cannot set these
    fields."""
    if settings is None or settings == HeaderEditsConfig():
        return None
    return HeaderEdits(settings.rename, settings.remove, settings.set, settings.add, list(params), owns)


def route_parts(env: FeatureEnv) -> dict[str, Any]:
    """The edits of a route's requests and responses."""
    return {
        "request_edits": _request_edits(env),
        "response_edits": edits_of(env.route.response_headers, env.params),
    }


def owned_headers(env: FeatureEnv) -> frozenset[bytes]:
    """The request fields that the edits set."""
    edits = _request_edits(env)
    return frozenset() if edits is None else frozenset(edits.owned)


def _request_edits(env: FeatureEnv) -> HeaderEdits | None:
    return edits_of(env.route.request_headers, env.params, owns=True)
