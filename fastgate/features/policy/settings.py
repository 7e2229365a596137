"""The config Structs of policies."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from msgspec import Meta

from fastgate.settings import MINUTE, Duration, Settings, Text

__all__ = ["PolicyConfig", "PolicyLimit", "RootKeys", "RouteKeys"]


class PolicyLimit(Settings, frozen=True, kw_only=True):
    """The rate that the `limit` action allows, over a sliding window shared by all workers."""

    requests: Annotated[int, Meta(ge=1, le=1_000_000_000, description="Requests in any window of `per`.")]
    per_ns: Annotated[Duration, Meta(ge=1_000_000_000, description="Length of the window.")] = MINUTE
    by: Annotated[
        Literal["consumer", "client_ip", "route", "all"],
        Meta(
            description=(
                "Key of the counts. A request without a consumer is counted by its address; `all` "
                "is one count for the whole policy."
            )
        ),
    ] = "consumer"


class PolicyConfig(Settings, frozen=True, kw_only=True):
    """One rule: if its condition holds, its action is taken."""

    name: Annotated[
        str,
        Meta(
            pattern=r"^[A-Za-z0-9_]([A-Za-z0-9_.-]{0,62}[A-Za-z0-9_])?$(?!\n)",
            description="Name in metrics, in the list of violations and in routes; unique.",
        ),
    ]
    when: Annotated[
        str,
        Meta(
            min_length=1,
            max_length=10_000,
            description=(
                'The condition in CEL, for example `request.method == "DELETE" && consumer.tier != '
                '"internal"`. It is compiled when the config is read; docs/policies.md lists the '
                "variables."
            ),
        ),
    ]
    action: Annotated[
        Literal["allow", "deny", "tag", "route", "limit"],
        Meta(
            description=(
                "`deny` rejects the request; `allow` skips the rules of lower priority; `tag` adds "
                "`tags` to the request; `route` sends it to `upstream`; `limit` rejects requests "
                "above `limit`."
            )
        ),
    ] = "deny"
    priority: Annotated[
        int,
        Meta(
            ge=-1_000_000,
            le=1_000_000,
            description=(
                "Rules of higher priority are evaluated first. Equal priorities keep the order of "
                "the file, with the route's own rules last."
            ),
        ),
    ] = 0
    status: Annotated[int, Meta(ge=400, le=599, description="Response status of `deny`.")] = 403
    message: Annotated[
        str,
        Meta(max_length=200, description="Response message of `deny`. Default: Forbidden."),
    ] = ""
    tags: Annotated[
        tuple[Text, ...],
        Meta(
            extra={"one_or_many": True},
            description="Tags that `tag` adds to the request, for logs and plugins.",
        ),
    ] = ()
    upstream: Annotated[
        Text | None, Meta(description="The entry of `upstreams` that `route` sends the request to.")
    ] = None
    limit: Annotated[PolicyLimit | None, Meta(description="The rate that `limit` allows.")] = None
    on_error: Annotated[
        Literal["deny", "skip"],
        Meta(
            description=(
                "What to do if the condition cannot be evaluated, for example because a header "
                "that it reads is missing: reject the request, or continue with the next rule. "
                "Both are counted."
            )
        ),
    ] = "deny"
    routes: Annotated[
        tuple[Text, ...],
        Meta(
            extra={"one_or_many": True},
            description=(
                "For policies in the root: names of the routes to which it applies, in addition to "
                'the routes that name it; `*` matches any text. `"*"` is every route.'
            ),
        ),
    ] = ()
    enforce: Annotated[
        bool,
        Meta(description="`false` (shadow mode): count and list what would be rejected, and let it pass."),
    ] = True


class RouteKeys(Settings, frozen=True, kw_only=True):
    """The keys of this feature in a route."""

    manual_order: ClassVar[int] = 120

    policies: Annotated[
        tuple[str | PolicyConfig, ...],
        Meta(
            max_length=200,
            extra={"one_or_many": True},
            description="Policies of this route: names of root policies, or inline policies.",
        ),
    ] = ()


class RootKeys(Settings, frozen=True, kw_only=True):
    """The keys of this feature in the root."""

    manual_order: ClassVar[int] = 20

    policies: Annotated[
        tuple[PolicyConfig, ...],
        Meta(
            max_length=1000,
            description=(
                "Policies: rules with a condition in CEL. A policy applies to the routes that name "
                "it, and to those that it names in `routes`."
            ),
        ),
    ] = ()
