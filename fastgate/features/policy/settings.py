"""The config Structs of policies."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from msgspec import Meta

from fastgate.settings import MINUTE, Duration, Settings, Text

__all__ = ["PolicyConfig", "PolicyLimit", "RootKeys", "RouteKeys"]


class PolicyLimit(Settings, frozen=True, kw_only=True):
    """How many requests the `limit` action lets through, over a sliding window, for all workers together."""

    requests: Annotated[int, Meta(ge=1, le=1_000_000_000, description="Requests in any window of `per`.")]
    per_ns: Annotated[Duration, Meta(ge=1_000_000_000, description="Length of the window.")] = MINUTE
    by: Annotated[
        Literal["consumer", "client_ip", "route", "all"],
        Meta(
            description=(
                "What has a count of its own. A request without a consumer counts for its address; "
                "`all` is one "
                "count for the policy."
            )
        ),
    ] = "consumer"


class PolicyConfig(Settings, frozen=True, kw_only=True):
    """One rule: when its condition holds, its action is taken."""

    name: Annotated[
        str,
        Meta(
            pattern=r"^[A-Za-z0-9_]([A-Za-z0-9_.-]{0,62}[A-Za-z0-9_])?$(?!\n)",
            description="Name in metrics, in the list of violations and on routes; unique.",
        ),
    ]
    when: Annotated[
        str,
        Meta(
            min_length=1,
            max_length=10_000,
            description=(
                'The condition in CEL, such as `request.method == "DELETE" && consumer.tier != "internal"`. '
                "It is compiled when the config is read; docs/policies.md has the variables."
            ),
        ),
    ]
    action: Annotated[
        Literal["allow", "deny", "tag", "route", "limit"],
        Meta(
            description=(
                "`deny` refuses; `allow` ends the walk, so that rules of lower priority are not asked; `tag` "
                "notes `tags` on the request; `route` sends it to `upstream`; `limit` refuses what "
                "is above `limit`."
            )
        ),
    ] = "deny"
    priority: Annotated[
        int,
        Meta(
            ge=-1_000_000,
            le=1_000_000,
            description="Higher is asked first. Equal ones: in the order of the file, the route's own last.",
        ),
    ] = 0
    status: Annotated[int, Meta(ge=400, le=599, description="Status of a `deny`.")] = 403
    message: Annotated[
        str,
        Meta(max_length=200, description="What the client of a `deny` reads. Default: Forbidden."),
    ] = ""
    tags: Annotated[
        tuple[Text, ...],
        Meta(extra={"one_or_many": True}, description="What a `tag` notes, for logs and plugins."),
    ] = ()
    upstream: Annotated[
        Text | None, Meta(description="The entry of `upstreams` that a `route` sends to.")
    ] = None
    limit: Annotated[PolicyLimit | None, Meta(description="What a `limit` lets through.")] = None
    on_error: Annotated[
        Literal["deny", "skip"],
        Meta(
            description=(
                "What an error in the condition does, such as a header that is asked for and not there: "
                "refuse, or go on to the next rule. Both are counted."
            )
        ),
    ] = "deny"
    routes: Annotated[
        tuple[Text, ...],
        Meta(
            extra={"one_or_many": True},
            description=(
                "Of a policy in the root: names of routes it belongs to, with `*` for any text, besides the "
                'routes that name it. `"*"` is every route.'
            ),
        ),
    ] = ()
    enforce: Annotated[
        bool,
        Meta(description="false: what it would refuse is counted and listed, and goes on."),
    ] = True


class RouteKeys(Settings, frozen=True, kw_only=True):
    """Its keys in a route."""

    manual_order: ClassVar[int] = 120

    policies: Annotated[
        tuple[str | PolicyConfig, ...],
        Meta(
            max_length=200,
            extra={"one_or_many": True},
            description="Policies of this route: names of those in the root, or policies in place.",
        ),
    ] = ()


class RootKeys(Settings, frozen=True, kw_only=True):
    """Its keys in the root."""

    manual_order: ClassVar[int] = 20

    policies: Annotated[
        tuple[PolicyConfig, ...],
        Meta(
            max_length=1000,
            description="Policies: rules with a condition in CEL. They are in force on the routes "
            "that name them, and on those they name.",
        ),
    ] = ()
