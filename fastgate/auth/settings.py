"""The config Structs of the methods of authentication, one class per method.

Shapes and defaults; what is wrong between values is found by `fastgate.auth.check`, what they mean at
run time is in the file of the method.
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
    "HmacConfig",
    "HmacKeyConfig",
    "IntrospectionConfig",
    "JwksConfig",
    "JwtConfig",
    "JwtIssuerConfig",
    "MtlsConfig",
    "SignatureKeyConfig",
    "SignaturesConfig",
]

SignatureAlgorithm = Literal[
    "hmac-sha256",
    "rsa-pss-sha512",
    "rsa-v1_5-sha256",
    "ecdsa-p256-sha256",
    "ecdsa-p384-sha384",
    "ed25519",
]
OnError = Literal["deny", "allow"]
_ON_ERROR = (
    "What becomes of a request whose credential cannot be checked because the server that knows does not "
    "answer: `deny` is 503 `auth_unavailable`, `allow` lets it pass as nobody. Both are counted."
)


class ClaimsConfig(Settings, frozen=True, kw_only=True):
    """Where in a token the gateway reads who it is and what it may do.

    A name stands for the claim of exactly this name, else for a path with dots: `realm_access.roles`.
    """

    consumer: Annotated[
        Text | None,
        Meta(
            description=(
                "Claim with the consumer's name. A token without it is refused. One of `consumers`, or "
                "anybody: then tier and limits are those of the token, or of `tier`. Default: `sub`; for "
                "introspection `client_id`, else `sub`."
            )
        ),
    ] = None
    tier: Annotated[
        Text | None,
        Meta(
            description=(
                "Claim with the tier. Default: the consumer's own. A tier that is not defined is ignored."
            )
        ),
    ] = None
    scopes: Annotated[
        Text, Meta(description=("Claim with the scopes: a text with spaces (RFC 8693) or a list."))
    ] = "scope"
    roles: Annotated[
        Text | None,
        Meta(
            description=(
                "Claim with the roles, text or list; they are added to the consumer's own. Default: none."
            )
        ),
    ] = None
    known_only: Annotated[
        bool, Meta(description=("Refuse consumers that neither `consumers` nor the store knows."))
    ] = False
    metadata: Annotated[
        tuple[str, ...],
        Meta(extra={"one_or_many": True}, description="Claims kept as metadata, for policies and logs."),
    ] = ()


class JwksConfig(Settings, frozen=True, kw_only=True):
    """How a key set is fetched and kept. Each worker fetches its own."""

    refresh_ns: Annotated[
        Duration,
        Meta(description=("How old a key set may get when its answer has no `Cache-Control: max-age`.")),
    ] = 10 * MINUTE
    min_refresh_ns: Annotated[
        Duration, Meta(description=("The least time between two regular fetches, whatever `max-age` says."))
    ] = MINUTE
    max_refresh_ns: Annotated[
        Duration,
        Meta(description=("The most. A key that its issuer has withdrawn is trusted no longer than this.")),
    ] = 6 * HOUR
    unknown_kid_ns: Annotated[
        Duration,
        Meta(
            description=(
                "A token with a key id that is not in the set makes the worker fetch the set again, at "
                "most once in this time, however many such tokens come: rotated keys work at once, and "
                "made-up ids cannot be used to hammer the issuer."
            )
        ),
    ] = 30 * SECOND
    max_stale_ns: Annotated[
        Duration,
        Meta(description=("How long the last good key set is used while its issuer does not answer.")),
    ] = DAY
    timeout_ns: Annotated[
        Duration, Meta(description="The whole fetch. Requests that wait for it wait no longer.")
    ] = 3 * SECOND
    max_bytes: Annotated[Size, Meta(ge=1024, le=16_000_000, description="The largest document read.")] = (
        1_000_000
    )


class JwtIssuerConfig(Settings, frozen=True, kw_only=True):
    """Whose tokens are believed, and by which key. Exactly one of `secret`, `public_key`, `jwks_file`,
    `jwks_url` and `discovery`.
    """

    issuer: Annotated[
        Text | None,
        Meta(
            description=(
                "The `iss` claim, compared exactly. It picks the entry whose keys are tried. One entry "
                "may leave it out and then takes the tokens that have no `iss`."
            )
        ),
    ] = None
    secret: Annotated[
        Text | None,
        Meta(
            description=(
                "Shared secret for HS256, HS384 or HS512: at least 32, 48 or 64 bytes. Better `${NAME}`."
            )
        ),
    ] = None
    public_key: Annotated[
        FileName | None,
        Meta(description=("File with a public key or certificate (PEM): RSA, EC or Ed25519.")),
    ] = None
    jwks_file: Annotated[FileName | None, Meta(description="File with a JSON Web Key Set (RFC 7517).")] = None
    jwks_url: Annotated[
        Text | None, Meta(description=("URL of a JSON Web Key Set. Only public keys are taken from it."))
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
    jwks: Annotated[JwksConfig, Meta(description="Fetching and keeping the key set.")] = JwksConfig()
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
                "What may sign. Default: what fits the key: HS256 for `secret`, RS256 for an RSA key "
                "that does not say, the curve's for EC, EdDSA with the name of "
                "the curve (RFC 9864). The token never has a choice beyond this, and `none` does not exist."
            ),
        ),
    ] = ()
    audience: Annotated[
        tuple[str, ...],
        Meta(
            extra={"one_or_many": True},
            description=(
                "The token's `aud` must have one of these. Without any, a token with `aud` is refused, "
                'since it is meant for somebody else (RFC 7519 §4.1.3); `"*"` takes every audience.'
            ),
        ),
    ] = ()
    types: Annotated[
        tuple[str, ...],
        Meta(
            extra={"one_or_many": True},
            description=(
                "Values of the header's `typ` that are taken, for instance `at+jwt` (RFC 9068), so that "
                "an ID token is no access token. Default: any."
            ),
        ),
    ] = ()
    leeway_ns: Annotated[
        Duration, Meta(description="How far clocks may be apart, for `exp`, `nbf` and `iat`.")
    ] = 30 * SECOND
    max_age_ns: Annotated[
        Duration, Meta(description=("Tokens issued (`iat`) longer ago are refused. 0 is no limit."))
    ] = 0
    require_exp: Annotated[
        bool,
        Meta(description=("Refuse tokens without `exp`. One without never ends, and cannot be called back.")),
    ] = True
    claims: Annotated[ClaimsConfig, Meta(description="What is read from the token.")] = ClaimsConfig()
    tier: Annotated[Text | None, Meta(description="Tier of consumers that have none.")] = None


class JwtConfig(Settings, frozen=True, kw_only=True):
    """JSON Web Tokens (RFC 7519, RFC 8725) in `Authorization: Bearer`."""

    issuers: Annotated[
        tuple[JwtIssuerConfig, ...], Meta(min_length=1, description="Whose tokens are believed.")
    ]
    header: Annotated[
        Text,
        Meta(
            description=(
                "Header with the token. In another one than Authorization it stands alone, or after "
                "`Bearer `."
            )
        ),
    ] = "Authorization"
    max_token_bytes: Annotated[
        Size, Meta(ge=256, le=65536, description="Longer tokens are refused unread.")
    ] = 8192
    max_cached_ns: Annotated[
        Duration,
        Meta(
            description=(
                "How long a verified token is believed without being verified again; its `exp` ends it "
                "in any case."
            )
        ),
    ] = 10 * MINUTE
    tls: Annotated[UpstreamTlsConfig, Meta(description="TLS to the issuers.")] = UpstreamTlsConfig()
    on_error: Annotated[OnError, Meta(description=_ON_ERROR)] = "deny"


class IntrospectionConfig(Settings, frozen=True, kw_only=True):
    """Opaque tokens, asked about at the authorization server (RFC 7662)."""

    url: Annotated[Text, Meta(description="The introspection endpoint.")]
    client_id: Annotated[Text, Meta(description="The gateway's own name there.")]
    client_secret: Annotated[Text, Meta(description="Its secret. Better `${NAME}`.")]
    client_auth: Annotated[
        Literal["basic", "post"],
        Meta(description=("`client_secret_basic` or `client_secret_post` (RFC 6749 §2.3.1).")),
    ] = "basic"
    issuer: Annotated[
        Text | None, Meta(description="If given, the answer's `iss` must be this when it has one.")
    ] = None
    audience: Annotated[
        tuple[str, ...],
        Meta(extra={"one_or_many": True}, description="If given, the answer's `aud` must have one of these."),
    ] = ()
    cache_ns: Annotated[
        Duration,
        Meta(
            description=(
                "How long an active token is believed, at most until its `exp`. A token that was revoked "
                "passes for this long. 0 asks every time."
            )
        ),
    ] = MINUTE
    negative_cache_ns: Annotated[
        Duration, Meta(description="How long an inactive token is refused without asking again.")
    ] = 10 * SECOND
    cache_entries: Annotated[
        int,
        Meta(ge=16, le=1_000_000, description="Tokens remembered, per worker; the least recently used go."),
    ] = 10_000
    max_waiting: Annotated[
        int,
        Meta(
            ge=1,
            le=65536,
            description=("Questions under way at once, per worker; more count as unavailable at once."),
        ),
    ] = 256
    timeout_ns: Annotated[Duration, Meta(description="One question, connecting included.")] = 2 * SECOND
    max_token_bytes: Annotated[
        Size, Meta(ge=16, le=65536, description="Longer tokens are refused unread.")
    ] = 4096
    claims: Annotated[ClaimsConfig, Meta(description="What is read from the answer.")] = ClaimsConfig()
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
                "Password hashes by user name, besides those of `consumers`. Made by `fastgate "
                "hash-password`: `scrypt$…` or `$argon2id$…`."
            )
        ),
    ] = msgspec.field(default_factory=dict)
    realm: Annotated[Text, Meta(description="Shown by browsers when they ask for the password.")] = "fastgate"
    cache_ns: Annotated[
        Duration,
        Meta(
            description=(
                "How long a verified password is believed. Hashing it takes tens of milliseconds by design."
            )
        ),
    ] = 5 * MINUTE
    max_waiting: Annotated[
        int,
        Meta(
            ge=1,
            le=4096,
            description=(
                "Passwords waiting to be hashed, per worker. More are answered 503 at once, so that "
                "guessing does not take the CPU from everybody else."
            ),
        ),
    ] = 16
    tier: Annotated[Text | None, Meta(description="Tier of users that have none.")] = None


class ForwardConfig(Settings, frozen=True, kw_only=True):
    """Ask another service about each request, as Traefik's ForwardAuth and nginx's auth_request do."""

    url: Annotated[
        Text, Meta(description=("Where a GET with the request's headers is sent; 2xx lets the request pass."))
    ]
    request_headers: Annotated[
        tuple[str, ...],
        Meta(
            extra={"one_or_many": True},
            description=(
                "Client headers that are sent along. Default: Authorization and Cookie. "
                "`X-Forwarded-Method`, `-Proto`, `-Host`, `-Uri` and `-For` are always sent."
            ),
        ),
    ] = ("Authorization", "Cookie")
    required_headers: Annotated[
        tuple[str, ...],
        Meta(
            extra={"one_or_many": True},
            description=(
                "A request that has none of these has no credential for this method, and nobody is "
                "asked. Default: ask about every request."
            ),
        ),
    ] = ()
    upstream_headers: Annotated[
        tuple[str, ...],
        Meta(
            extra={"one_or_many": True},
            description=(
                "Headers of its 2xx answer that go upstream. What the client sent under these names is "
                "always taken out."
            ),
        ),
    ] = ()
    consumer_header: Annotated[
        Text | None,
        Meta(
            description=(
                "Header of its answer with the consumer's name. Default: everybody it lets pass is "
                "`default_consumer`."
            )
        ),
    ] = None
    default_consumer: Annotated[Text, Meta(description="The consumer when the answer does not name one.")] = (
        "forward-auth"
    )
    tier_header: Annotated[Text | None, Meta(description="Header of its answer with the tier.")] = None
    scopes_header: Annotated[Text | None, Meta(description="Header of its answer with the scopes.")] = None
    roles_header: Annotated[Text | None, Meta(description="Header of its answer with the roles.")] = None
    tier: Annotated[Text | None, Meta(description="Tier of consumers that have none.")] = None
    relay_refusals: Annotated[
        bool,
        Meta(
            description=(
                "Give a 401, 403 or redirect of the service to the client as it is, with "
                "`WWW-Authenticate`, `Location` and `Set-Cookie`. False: the gateway's own 401."
            )
        ),
    ] = True
    timeout_ns: Annotated[Duration, Meta(description="One question, connecting included.")] = 2 * SECOND
    max_waiting: Annotated[
        int,
        Meta(
            ge=1,
            le=65536,
            description=("Questions under way at once, per worker; more count as unavailable at once."),
        ),
    ] = 256
    max_bytes: Annotated[Size, Meta(ge=0, le=1_000_000, description="The largest answer that is read.")] = (
        65536
    )
    tls: Annotated[UpstreamTlsConfig, Meta(description="TLS to the service.")] = UpstreamTlsConfig()
    on_error: Annotated[OnError, Meta(description=_ON_ERROR)] = "deny"


class MtlsConfig(Settings, frozen=True, kw_only=True):
    """Client certificates. The listener verifies them (`client_ca`); this says who they are."""

    identify_by: Annotated[
        tuple[Literal["fingerprint", "subject", "common_name", "san_dns", "san_uri", "san_email"], ...],
        Meta(
            extra={"one_or_many": True},
            min_length=1,
            description=(
                "What of a certificate names the consumer, tried in order. `fingerprint` and `subject` "
                "are looked up in the `certificate` of `consumers`, the others also as the consumer's "
                "name."
            ),
        ),
    ] = ("fingerprint", "subject", "san_uri", "san_dns", "common_name")
    certificates: Annotated[
        dict[str, str],
        Meta(
            description=(
                "Consumer by certificate: `sha256:` and the fingerprint in hex, the subject as RFC 4514 "
                "writes it (`CN=orders,O=Acme`), or `dns:`, `uri:`, `email:`, `cn:` and a name."
            )
        ),
    ] = msgspec.field(default_factory=dict)
    allow_unknown: Annotated[
        bool,
        Meta(
            description=(
                "Take every certificate that the listener accepts: one that is in no list is the "
                "consumer its name says. False: it is refused."
            )
        ),
    ] = False
    tier: Annotated[Text | None, Meta(description="Tier of consumers that have none.")] = None


class AnonymousConfig(Settings, frozen=True, kw_only=True):
    """Everybody without a credential. Put it last in a route's list."""

    shorthand: ClassVar[str] = "tier"

    tier: Annotated[
        Text, Meta(description=("The tier whose limits hold for each of them, by client address."))
    ] = "free"
    consumer: Annotated[Text, Meta(description="The name in logs and metrics.")] = "anonymous"
    scopes: Annotated[
        tuple[str, ...],
        Meta(extra={"one_or_many": True}, description="What they may do, for `scopes` of a route."),
    ] = ()
    roles: Annotated[
        tuple[str, ...], Meta(extra={"one_or_many": True}, description="Their roles, for `roles` of a route.")
    ] = ()


class HmacKeyConfig(Settings, frozen=True, kw_only=True):
    """One secret. A consumer may have several, which is how a secret is changed without a pause."""

    consumer: Annotated[Text, Meta(description="The consumer that a request signed with it is from.")]
    secret: Annotated[
        Text,
        Meta(description="The shared secret, at least 16 bytes, as text, `base64:…` or `hex:…`."),
    ]


class HmacConfig(Settings, frozen=True, kw_only=True):
    """Requests signed with HMAC-SHA256."""

    keys: Annotated[
        dict[str, HmacKeyConfig],
        Meta(
            description=(
                "Secrets by key id. A consumer with `hmac_secret` needs no entry: its key id is its name."
            )
        ),
    ] = msgspec.field(default_factory=dict)
    clock_skew_ns: Annotated[
        Duration,
        Meta(
            ge=SECOND,
            description=(
                "How far `ts` may be from the gateway's clock, before or after. A nonce is remembered for "
                "twice as long."
            ),
        ),
    ] = MINUTE
    query: Annotated[
        Literal["raw", "sorted"],
        Meta(
            description=(
                "`raw`: the query is signed as sent. `sorted`: its parts are first sorted by name, "
                "for clients "
                "whose HTTP library reorders them; equal names keep their order."
            )
        ),
    ] = "raw"
    body: Annotated[
        Literal["required", "optional"],
        Meta(
            description=(
                "`required`: a request with a body must have a Content-Digest. `optional`: one without it "
                "passes, and its body is not protected."
            )
        ),
    ] = "required"
    required_headers: Annotated[
        tuple[Text, ...],
        Meta(
            extra={"one_or_many": True},
            description="Fields that `headers` must list when the request has them, such as `content-type`.",
        ),
    ] = ()
    max_body_bytes: Annotated[
        Size,
        Meta(ge=1, description="The largest body that is held to check its Content-Digest; more is 413."),
    ] = 1_000_000


class SignatureKeyConfig(Settings, frozen=True, kw_only=True):
    """One key that clients sign with. `hmac-sha256` has a `secret`, every other algorithm a public key."""

    algorithm: Annotated[SignatureAlgorithm, Meta(description="The one algorithm this key is used with.")]
    consumer: Annotated[Text, Meta(description="The consumer that a request signed with it is from.")]
    secret: Annotated[
        Text | None,
        Meta(
            description=(
                "For `hmac-sha256`: the shared secret, at least 16 bytes, as text, `base64:…` or `hex:…`."
            )
        ),
    ] = None
    public_key: Annotated[
        Text | None, Meta(description="The public key, or a certificate with it (PEM).")
    ] = None
    public_key_file: Annotated[FileName | None, Meta(description="File with the public key (PEM).")] = None


class SignaturesConfig(Settings, frozen=True, kw_only=True):
    """HTTP message signatures (RFC 9421)."""

    keys: Annotated[
        dict[str, SignatureKeyConfig],
        Meta(
            description=(
                "The keys by their `keyid`. A consumer with `hmac_secret` needs no entry for "
                "`hmac-sha256`: its "
                "key id is its name."
            )
        ),
    ] = msgspec.field(default_factory=dict)
    required: Annotated[
        tuple[Text, ...],
        Meta(
            extra={"one_or_many": True},
            description=(
                "What a signature must cover: derived components (`@method`, `@authority`, `@path`, "
                "`@query`, …) and field names. `@target-uri` serves for `@scheme`, `@authority`, `@path` and "
                "`@query`. `content-digest` is required of requests with a body, and of those only."
            ),
        ),
    ] = ("@method", "@authority", "@path", "@query", "content-digest")
    required_if_present: Annotated[
        tuple[Text, ...],
        Meta(
            extra={"one_or_many": True},
            description=(
                "Fields that a signature must cover when the request has them, such as `content-type`."
            ),
        ),
    ] = ()
    tag: Annotated[
        Text | None, Meta(description="Only signatures with this `tag` are looked at. Default: any.")
    ] = None
    max_age_ns: Annotated[
        Duration,
        Meta(
            ge=SECOND,
            description=(
                "How old a signature may be, by its `created`, which is required. Nonces are kept as long."
            ),
        ),
    ] = 5 * MINUTE
    clock_skew_ns: Annotated[
        Duration, Meta(description="How far the clocks of client and gateway may differ.")
    ] = 30 * SECOND
    nonce: Annotated[
        Literal["required", "optional", "ignored"],
        Meta(
            description=(
                "`required`: each signature has a `nonce` and serves once. `optional`: the same for "
                "those that "
                "have one. `ignored`: a signature may be replayed until it is too old."
            )
        ),
    ] = "required"
    max_body_bytes: Annotated[
        Size,
        Meta(ge=1, description="The largest body that is held to check its `Content-Digest`; more is 413."),
    ] = 1_000_000
