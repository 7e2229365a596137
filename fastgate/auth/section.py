"""The `auth` section of the config, and what a route says of it.

Each method's own settings are in `settings.py`; a route lists methods by the names they have here.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

import msgspec
from msgspec import Meta

from fastgate.auth.settings import (
    AnonymousConfig,
    BasicConfig,
    ForwardConfig,
    HmacConfig,
    IntrospectionConfig,
    JwtConfig,
    MtlsConfig,
    SignaturesConfig,
)
from fastgate.settings import Settings, Text

__all__ = ["ApiKeyConfig", "AuthConfig", "AuthUse", "ConsumerConfig"]


class ApiKeyConfig(Settings, frozen=True, kw_only=True):
    """API keys made with `fastgate keys create` or the admin API."""

    header: Annotated[Text | None, Meta(description="Header field that carries the key.")] = "X-API-Key"
    bearer: Annotated[bool, Meta(description="Also take it from `Authorization: Bearer …`.")] = True
    query: Annotated[
        Text | None,
        Meta(
            description=(
                "Also take it from this query parameter. URLs end up in logs and histories: only for "
                "clients that cannot "
                "do otherwise."
            )
        ),
    ] = None
    hide: Annotated[
        bool, Meta(description="Take the key away before the request goes upstream, which has no use for it.")
    ] = True


class AuthConfig(Settings, frozen=True, kw_only=True):
    """How clients may say who they are. A route's `auth` lists methods by their names here."""

    api_key: Annotated[ApiKeyConfig, Meta(description="Keys that the gateway made.")] = ApiKeyConfig()
    hmac: Annotated[HmacConfig, Meta(description="Requests signed with HMAC-SHA256.")] = HmacConfig()
    signatures: Annotated[SignaturesConfig, Meta(description="HTTP message signatures (RFC 9421).")] = (
        SignaturesConfig()
    )
    jwt: Annotated[JwtConfig | None, Meta(description="Signed tokens of issuers that are trusted.")] = None
    introspection: Annotated[
        IntrospectionConfig | None,
        Meta(description="Opaque tokens that an authorization server knows (RFC 7662)."),
    ] = None
    basic: Annotated[BasicConfig, Meta(description="User name and password (RFC 7617).")] = BasicConfig()
    forward: Annotated[
        ForwardConfig | None, Meta(description="Another service that is asked about each request.")
    ] = None
    mtls: Annotated[MtlsConfig, Meta(description="Client certificates.")] = MtlsConfig()
    anonymous: Annotated[AnonymousConfig, Meta(description="Everybody without a credential.")] = (
        AnonymousConfig()
    )


class ConsumerConfig(Settings, frozen=True, kw_only=True):
    """A consumer: a person, a service or a customer that sends requests."""

    tier: Annotated[Text | None, Meta(description="Its tier, one of `tiers`, which says its limits.")] = None
    scopes: Annotated[
        tuple[str, ...],
        Meta(
            extra={"one_or_many": True},
            description=(
                "What it may do, for routes with `scopes`. A key or token with scopes of its own has those "
                "instead."
            ),
        ),
    ] = ()
    roles: Annotated[
        tuple[str, ...],
        Meta(extra={"one_or_many": True}, description="Its roles, for routes with `roles`."),
    ] = ()
    limits: Annotated[
        dict[str, Any],
        Meta(description="In place of the tier's limits, one by one: `{per_minute: 600}`."),
    ] = msgspec.field(default_factory=dict)
    metadata: Annotated[
        dict[str, Any], Meta(description="Anything else about it, for policies, plugins and logs.")
    ] = msgspec.field(default_factory=dict)
    disabled: Annotated[bool, Meta(description="A disabled consumer is refused, whatever it shows.")] = False
    certificate: Annotated[
        tuple[str, ...],
        Meta(
            extra={"one_or_many": True},
            description=(
                "Client certificates that are this consumer's (`mtls`): `sha256:` and the fingerprint in "
                "hex, or the subject as RFC 4514 writes it (`CN=orders,O=Acme`)."
            ),
        ),
    ] = ()
    basic_password_hash: Annotated[
        Text | None,
        Meta(description="Password for `basic`, as `fastgate hash-password` prints it."),
    ] = None
    hmac_secret: Annotated[
        Text | None,
        Meta(description="Secret for `hmac` and `signatures`. Better `${NAME}` than the secret itself."),
    ] = None


class AuthUse(Settings, frozen=True, kw_only=True):
    """Who may use a route. A list of methods is short for `{schemes: […]}`."""

    shorthand: ClassVar[str] = "schemes"

    schemes: Annotated[
        tuple[str, ...],
        Meta(
            min_length=1,
            max_length=16,
            extra={"one_or_many": True},
            description=(
                "Methods in the order in which they are tried: `api_key`, `jwt`, `hmac`, `signatures`, "
                "`introspection`, "
                "`basic`, `forward`, `mtls`, `anonymous`. The first that finds its credential good decides; "
                "when none does "
                "the answer is 401 and says what would do."
            ),
        ),
    ]
    forward: Annotated[
        bool,
        Meta(
            description=(
                "Tell the upstream who it is: `X-Consumer-Id`, `X-Consumer-Tier`, `X-Consumer-Key-Id`, "
                "`X-Consumer-Scopes`, `X-Consumer-Roles`, `X-Consumer-Method`. What a client says in such "
                "fields never "
                "passes."
            )
        ),
    ] = True
    enforce: Annotated[
        bool, Meta(description="False only counts and logs who would be refused, and lets them pass.")
    ] = True

    def lets_unnamed_pass(self) -> bool:
        """Whether a request may pass without the gateway knowing who of many it is from: in shadow mode,
        where another service answers for it, or where such a service may be passed over (`on_error: allow`).
        """
        return not self.enforce or not {"forward", "introspection", "jwt"}.isdisjoint(self.schemes)
