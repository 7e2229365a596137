"""Header edits, both ways.

Order on one message: rename, remove, set, add. Names compare without case; values are sent as written. Hop-
by-hop fields and framing (`Content-Length`, `Transfer-Encoding`, `Connection`, `Host`…) belong to the gateway
and cannot be edited here. Values are templates: `{client_ip}` and the like; `{{}` is a brace.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, ClassVar

from msgspec import Meta, field

from fastgate._core.http.edits import HeaderEdits
from fastgate.settings import Places, Settings

__all__ = ["HeaderEditsConfig", "RouteKeys", "edits_of"]


class HeaderEditsConfig(Settings, frozen=True, kw_only=True):
    """Edits to the header fields of a request or an answer. Order: rename, remove, set, add."""

    set: Annotated[
        dict[str, Places],
        Meta(description="Fields to set: all fields of that name are replaced by this one."),
    ] = field(default_factory=dict)
    add: Annotated[
        dict[str, Places],
        Meta(description="Fields to add beside those of the same name that are already there."),
    ] = field(default_factory=dict)
    remove: Annotated[
        tuple[str, ...], Meta(extra={"one_or_many": True}, description="Names of fields to take away.")
    ] = ()
    rename: Annotated[dict[str, str], Meta(description="Old name to new name; the value stays.")] = field(
        default_factory=dict
    )


class RouteKeys(Settings, frozen=True, kw_only=True):
    """Its keys in a route."""

    manual_order: ClassVar[int] = 100

    request_headers: Annotated[
        HeaderEditsConfig | None,
        Meta(
            extra={"needs_upstream": True},
            description="Edits to the request before it goes upstream.",
        ),
    ] = None
    response_headers: Annotated[
        HeaderEditsConfig | None, Meta(description="Edits to the answer before it goes to the client.")
    ] = None


def edits_of(
    settings: HeaderEditsConfig | None, params: Sequence[str], *, owns: bool = False
) -> HeaderEdits | None:
    """The edits with their templates; None for nothing. owns: clients cannot set these fields."""
    if settings is None or settings == HeaderEditsConfig():
        return None
    return HeaderEdits(settings.rename, settings.remove, settings.set, settings.add, list(params), owns)
