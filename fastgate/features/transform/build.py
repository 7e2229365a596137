"""The config Structs of header edits, both ways.

Order on one message: rename, remove, set, add. Names compare without case; values are sent as written. Hop-
by-hop fields and framing (`Content-Length`, `Transfer-Encoding`, `Connection`, `Host`…) belong to the gateway
and cannot be edited here. Values are templates: `{client_ip}` and the like; `{{}` is a brace.
"""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta, field

from fastgate.settings import Places, Settings

__all__ = ["HeaderEditsConfig"]


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
