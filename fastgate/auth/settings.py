"""The config Structs of the methods of authentication, one class per method. Those of signed requests are in
`signing_settings.py`.

Types and defaults; `fastgate.auth.check` has the checks across values, and the file of each method its
run-time behavior.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

import msgspec
from msgspec import Meta

from fastgate.settings import DAY, HOUR, MINUTE, SECOND, Duration, FileName, Settings, Size, Text
from fastgate.upstream.settings import UpstreamTlsConfig

__all__ = [
    "AnonymousConfig",
    "BasicConfig",
    "ClaimsConfig",
    "ForwardConfig",
    "IntrospectionConfig",
    "JwksConfig",
    "JwtConfig",
    "JwtIssuerConfig",
    "MtlsConfig",
]

OnError = Literal["deny", "allow"]
_ON_ERROR = (
    "What to do when the authorization server is unreachable: `deny` rejects the request with"
    " 503 `auth_unavailable`, `allow` lets it pass without a consumer. Both are counted."
)


class ClaimsConfig(Settings, frozen=True, kw_only=True):
    """The claims of a token that identify the consumer and its rights. A name is the claim of exactly this
    name, or otherwise a path with dots: `realm_access.roles`.
    """

    consumer: Annotated[
        Text | None,
        Meta(
            description=(
                "Claim with the consumer's name. A token without it is rejected. A consumer that is not "
                "in `consumers` has the tier and limits of the token, or of `tier`. Default: `sub`; for "
                "introspection `client_id`, or `sub` without it."
            )
        ),
    ] = None
    tier: Annotated[
        Text | None,
        Meta(description=("Claim with the tier. Default: the consumer's own. An undefined tier is ignored.")),
    ] = None
    scopes: Annotated[
        Text, Meta(description=("Claim with the scopes: a space-separated text (RFC 8693) or a list."))
    ] = "scope"
    roles: Annotated[
        Text | None,
        Meta(
            description=(
                "Claim with the roles, a text or a list, added to the consumer's own. Default: none."
            )
        ),
    ] = None
    known_only: Annotated[
        bool, Meta(description=("Reject consumers that are neither in `consumers` nor in the store."))
    ] = False
    metadata: Annotated[
        tuple[str, ...],
        Meta(extra={"one_or_many": True}, description="Claims kept as metadata, for policies and logs."),
    ] = ()


class JwksConfig(Settings, frozen=True, kw_only=True):
    """Fetching and caching of a key set. Each worker fetches its own."""

    refresh_ns: Annotated[
        Duration,
        Meta(description=("Maximum age of a key set whose response has no `Cache-Control: max-age`.")),
    ] = 10 * MINUTE
    min_refresh_ns: Annotated[
        Duration, Meta(description=("Minimum time between two regular fetches, regardless of `max-age`."))
    ] = MINUTE
    max_refresh_ns: Annotated[
        Duration,
        Meta(
            description=(
                "Maximum time between two fetches. A key withdrawn by its issuer is trusted no longer "
                "than this."
            )
        ),
    ] = 6 * HOUR
    unknown_kid_ns: Annotated[
        Duration,
        Meta(
            description=(
                "A token with an unknown key id triggers a fetch, at most once in this time regardless of"
                " the number of such tokens: rotated keys work at once, and invented ids cannot overload "
                "the issuer."
            )
        ),
    ] = 30 * SECOND
    max_stale_ns: Annotated[
        Duration,
        Meta(description=("Time for which the last valid key set is used while the issuer is unreachable.")),
    ] = DAY
    timeout_ns: Annotated[
        Duration, Meta(description="Time limit of a fetch, and of requests that wait for it.")
    ] = 3 * SECOND
    max_bytes: Annotated[
        Size, Meta(ge=1024, le=16_000_000, description="Maximum size of the key set document.")
    ] = 1_000_000


class JwtIssuerConfig(Settings, frozen=True, kw_only=True):
    """A trusted issuer and its keys. Exactly one of `secret`, `public_key`, `jwks_file`, `jwks_url` and
    `discovery`.
    """

    issuer: Annotated[
        Text | None,
        Meta(
            description=(
                "The `iss` claim, compared exactly. It selects the entry whose keys are used. One entry "
                "may omit it; it accepts tokens without `iss`."
            )
        ),
    ] = None
    secret: Annotated[
        Text | None,
        Meta(
            description=(
                "Shared secret for HS256, HS384 or HS512: at least 32, 48 or 64 bytes. Prefer `${NAME}`."
            )
        ),
    ] = None
    public_key: Annotated[
        FileName | None,
        Meta(description=("File with a public key or certificate (PEM): RSA, EC or Ed25519.")),
    ] = None
    jwks_file: Annotated[FileName | None, Meta(description="File with a JSON Web Key Set (RFC 7517).")] = None
    jwks_url: Annotated[
        Text | None, Meta(description=("URL of a JSON Web Key Set. Only public keys are used."))
    ] = None
    discovery: Annotated[
        bool,
        Meta(
            description=(
                "Find `jwks_uri` by OpenID Connect Discovery, under `issuer` + "
                "`/.well-known/openid-configuration`. The document must name the same issuer."
            )
        ),
    ] = False
    jwks: Annotated[JwksConfig, Meta(description="Fetching and caching of the key set.")] = JwksConfig()
    algorithms: Annotated[
        tuple[
            Literal[
                "HS256",
                "HS384",
                "HS512",
                "RS256",
                "RS384",
                "RS512",
                "PS256",
                "PS384",
                "PS512",
                "ES256",
                "ES384",
                "ES512",
                "EdDSA",
                "Ed25519",
                "Ed448",
            ],
            ...,
        ],
        Meta(
            extra={"one_or_many": True},
            description=(
                "Accepted signature algorithms. Default: the algorithm of the key: HS256 for `secret`, "
                "RS256 for an RSA key without `alg`, that of the curve for EC, EdDSA and the name of the "
                "curve (RFC 9864). The token cannot select another one, and `none` is not supported."
            ),
        ),
    ] = ()
    audience: Annotated[
        tuple[str, ...],
        Meta(
            extra={"one_or_many": True},
            description=(
                "Accepted values of the token's `aud`. Without any, a token with `aud` is rejected, "
                'because it is intended for another recipient (RFC 7519 §4.1.3); `"*"` accepts every '
                "audience."
            ),
        ),
    ] = ()
    types: Annotated[
        tuple[str, ...],
        Meta(
            extra={"one_or_many": True},
            description=(
                "Accepted values of the header's `typ`, for example `at+jwt` (RFC 9068), so that an ID "
                "token is not accepted as an access token. Default: any."
            ),
        ),
    ] = ()
    leeway_ns: Annotated[
        Duration, Meta(description="Tolerated clock difference for `exp`, `nbf` and `iat`.")
    ] = 30 * SECOND
    max_age_ns: Annotated[
        Duration, Meta(description=("Reject tokens issued (`iat`) longer ago. 0 is unlimited."))
    ] = 0
    require_exp: Annotated[
        bool,
        Meta(description=("Reject tokens without `exp`, which never expire and cannot be revoked.")),
    ] = True
    claims: Annotated[ClaimsConfig, Meta(description="Mapping of claims to the consumer.")] = ClaimsConfig()
    tier: Annotated[Text | None, Meta(description="Tier of consumers that have none.")] = None


class JwtConfig(Settings, frozen=True, kw_only=True):
    """JSON Web Tokens (RFC 7519, RFC 8725) in `Authorization: Bearer`."""

    issuers: Annotated[tuple[JwtIssuerConfig, ...], Meta(min_length=1, description="The trusted issuers.")]
    header: Annotated[
        Text,
        Meta(
            description=(
                "Header with the token. Headers other than Authorization have the token alone, or after "
                "`Bearer `."
            )
        ),
    ] = "Authorization"
    max_token_bytes: Annotated[
        Size, Meta(ge=256, le=65536, description="Longer tokens are rejected without parsing.")
    ] = 8192
    max_cached_ns: Annotated[
        Duration,
        Meta(description=("Time for which a verified token is cached, at most until its `exp`.")),
    ] = 10 * MINUTE
    tls: Annotated[UpstreamTlsConfig, Meta(description="TLS to the issuers.")] = UpstreamTlsConfig()
    on_error: Annotated[OnError, Meta(description=_ON_ERROR)] = "deny"


class IntrospectionConfig(Settings, frozen=True, kw_only=True):
    """Opaque tokens, validated by the authorization server (RFC 7662)."""

    url: Annotated[Text, Meta(description="The introspection endpoint.")]
    client_id: Annotated[Text, Meta(description="Client id of the gateway.")]
    client_secret: Annotated[Text, Meta(description="Client secret of the gateway. Prefer `${NAME}`.")]
    client_auth: Annotated[
        Literal["basic", "post"],
        Meta(description=("`client_secret_basic` or `client_secret_post` (RFC 6749 §2.3.1).")),
    ] = "basic"
    issuer: Annotated[
        Text | None, Meta(description="If set, `iss` of the response must equal this if present.")
    ] = None
    audience: Annotated[
        tuple[str, ...],
        Meta(
            extra={"one_or_many": True}, description="If set, `aud` of the response must have one of these."
        ),
    ] = ()
    cache_ns: Annotated[
        Duration,
        Meta(
            description=(
                "Time for which an active token is cached, at most until its `exp`. A revoked token is "
                "still accepted for this time. 0 disables the cache."
            )
        ),
    ] = MINUTE
    negative_cache_ns: Annotated[
        Duration, Meta(description="Time for which an inactive token is rejected without another call.")
    ] = 10 * SECOND
    cache_entries: Annotated[
        int,
        Meta(
            ge=16, le=1_000_000, description="Cached tokens per worker; the least recently used are evicted."
        ),
    ] = 10_000
    max_waiting: Annotated[
        int,
        Meta(
            ge=1,
            le=65536,
            description=("Calls in flight per worker; above that, the server counts as unavailable."),
        ),
    ] = 256
    timeout_ns: Annotated[Duration, Meta(description="Time limit of a call, connecting included.")] = (
        2 * SECOND
    )
    max_token_bytes: Annotated[
        Size, Meta(ge=16, le=65536, description="Longer tokens are rejected without a call.")
    ] = 4096
    claims: Annotated[ClaimsConfig, Meta(description="Mapping of the response to the consumer.")] = (
        ClaimsConfig()
    )
    tier: Annotated[Text | None, Meta(description="Tier of consumers that have none.")] = None
    tls: Annotated[UpstreamTlsConfig, Meta(description="TLS to the server.")] = UpstreamTlsConfig()
    on_error: Annotated[OnError, Meta(description=_ON_ERROR)] = "deny"


class BasicConfig(Settings, frozen=True, kw_only=True):
    """User name and password (RFC 7617). The user is a consumer with a `basic_password_hash`, or one of
    `users`.
    """

    users: Annotated[
        dict[str, str],
        Meta(
            description=(
                "Password hashes by user name, in addition to those of `consumers`. Created by `fastgate "
                "hash-password`: `scrypt$…` or `$argon2id$…`."
            )
        ),
    ] = msgspec.field(default_factory=dict)
    realm: Annotated[Text, Meta(description="Realm shown by browsers in the password prompt.")] = "fastgate"
    cache_ns: Annotated[
        Duration,
        Meta(
            description=(
                "Time for which a verified password is cached. Hashing takes tens of milliseconds by design."
            )
        ),
    ] = 5 * MINUTE
    max_waiting: Annotated[
        int,
        Meta(
            ge=1,
            le=4096,
            description=(
                "Passwords in the hashing queue, per worker. Above that, requests get 503 at once, so "
                "that password guessing cannot use up the CPU."
            ),
        ),
    ] = 16
    tier: Annotated[Text | None, Meta(description="Tier of users that have none.")] = None


class ForwardConfig(Settings, frozen=True, kw_only=True):
    """Delegate authentication to another service, like Traefik's ForwardAuth and nginx's auth_request."""

    url: Annotated[
        Text,
        Meta(
            description=(
                "URL of the service. It receives a GET with the request's headers; a 2xx response lets "
                "the request pass."
            )
        ),
    ]
    request_headers: Annotated[
        tuple[str, ...],
        Meta(
            extra={"one_or_many": True},
            description=(
                "Client headers sent to the service. Default: Authorization and Cookie. "
                "`X-Forwarded-Method`, `-Proto`, `-Host`, `-Uri` and `-For` are always sent."
            ),
        ),
    ] = ("Authorization", "Cookie")
    required_headers: Annotated[
        tuple[str, ...],
        Meta(
            extra={"one_or_many": True},
            description=(
                "Call the service only if the request has one of these; otherwise the request has no "
                "credential for this method. Default: call it for every request."
            ),
        ),
    ] = ()
    upstream_headers: Annotated[
        tuple[str, ...],
        Meta(
            extra={"one_or_many": True},
            description=(
                "Headers of the 2xx response that are sent upstream. Client values of these headers are "
                "always removed."
            ),
        ),
    ] = ()
    consumer_header: Annotated[
        Text | None,
        Meta(
            description=(
                "Response header with the consumer's name. Default: every accepted request is from "
                "`default_consumer`."
            )
        ),
    ] = None
    default_consumer: Annotated[Text, Meta(description="The consumer if the response does not name one.")] = (
        "forward-auth"
    )
    tier_header: Annotated[Text | None, Meta(description="Response header with the tier.")] = None
    scopes_header: Annotated[Text | None, Meta(description="Response header with the scopes.")] = None
    roles_header: Annotated[Text | None, Meta(description="Response header with the roles.")] = None
    tier: Annotated[Text | None, Meta(description="Tier of consumers that have none.")] = None
    relay_refusals: Annotated[
        bool,
        Meta(
            description=(
                "Send a 401, 403 or redirect of the service to the client, with `WWW-Authenticate`, "
                "`Location` and `Set-Cookie`. False: the gateway's own 401."
            )
        ),
    ] = True
    timeout_ns: Annotated[Duration, Meta(description="Time limit of a call, connecting included.")] = (
        2 * SECOND
    )
    max_waiting: Annotated[
        int,
        Meta(
            ge=1,
            le=65536,
            description=("Calls in flight per worker; above that, the service counts as unavailable."),
        ),
    ] = 256
    max_bytes: Annotated[
        Size, Meta(ge=0, le=1_000_000, description="Maximum size of a response of the service.")
    ] = 65536
    tls: Annotated[UpstreamTlsConfig, Meta(description="TLS to the service.")] = UpstreamTlsConfig()
    on_error: Annotated[OnError, Meta(description=_ON_ERROR)] = "deny"


class MtlsConfig(Settings, frozen=True, kw_only=True):
    """Mapping of client certificates to consumers. The listener verifies the certificates (`client_ca`)."""

    identify_by: Annotated[
        tuple[Literal["fingerprint", "subject", "common_name", "san_dns", "san_uri", "san_email"], ...],
        Meta(
            extra={"one_or_many": True},
            min_length=1,
            description=(
                "Parts of the certificate that identify the consumer, tried in order. `fingerprint` and "
                "`subject` are looked up in the `certificate` of `consumers`, the others also as the "
                "consumer's name."
            ),
        ),
    ] = ("fingerprint", "subject", "san_uri", "san_dns", "common_name")
    certificates: Annotated[
        dict[str, str],
        Meta(
            description=(
                "Consumer by certificate: `sha256:` and the fingerprint in hex, the subject in RFC 4514 "
                "form (`CN=orders,O=Acme`), or `dns:`, `uri:`, `email:`, `cn:` and a name."
            )
        ),
    ] = msgspec.field(default_factory=dict)
    allow_unknown: Annotated[
        bool,
        Meta(
            description=(
                "Accept every certificate that the listener accepts: an unlisted certificate identifies a"
                " consumer by its name. False: it is rejected."
            )
        ),
    ] = False
    tier: Annotated[Text | None, Meta(description="Tier of consumers that have none.")] = None


class AnonymousConfig(Settings, frozen=True, kw_only=True):
    """Requests without a credential. Must be the last method in a route's list."""

    shorthand: ClassVar[str] = "tier"

    tier: Annotated[Text, Meta(description=("Tier whose limits apply to each client address."))] = "free"
    consumer: Annotated[Text, Meta(description="Consumer name in logs and metrics.")] = "anonymous"
    scopes: Annotated[
        tuple[str, ...],
        Meta(extra={"one_or_many": True}, description="Granted scopes, for `scopes` of a route."),
    ] = ()
    roles: Annotated[
        tuple[str, ...],
        Meta(extra={"one_or_many": True}, description="Granted roles, for `roles` of a route."),
    ] = ()
