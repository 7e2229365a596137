"""The config Structs of signed requests: HMAC and HTTP message signatures.

What is wrong between values is found by `fastgate.auth.check_signing`.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from fastgate.settings import MINUTE, SECOND, Duration, FileName, Settings, Size, Text

__all__ = ["HmacConfig", "HmacKeyConfig", "SignatureAlgorithm", "SignatureKeyConfig", "SignaturesConfig"]

SignatureAlgorithm = Literal[
    "hmac-sha256",
    "rsa-pss-sha512",
    "rsa-v1_5-sha256",
    "ecdsa-p256-sha256",
    "ecdsa-p384-sha384",
    "ed25519",
]


class HmacKeyConfig(Settings, frozen=True, kw_only=True):
    """One secret. A consumer may have several, which allows rotation without interruption."""

    consumer: Annotated[Text, Meta(description="The consumer of requests signed with this key.")]
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
                "Maximum difference between `ts` and the gateway's clock, in either direction. A nonce is"
                " remembered for twice as long."
            ),
        ),
    ] = MINUTE
    query: Annotated[
        Literal["raw", "sorted"],
        Meta(
            description=(
                "`raw`: the query is signed as sent. `sorted`: its parts are sorted by name first, for "
                "clients whose HTTP library reorders them; equal names keep their order."
            )
        ),
    ] = "raw"
    body: Annotated[
        Literal["required", "optional"],
        Meta(
            description=(
                "`required`: a request with a body must have a Content-Digest. `optional`: a request "
                "without one is accepted, and its body is not protected."
            )
        ),
    ] = "required"
    required_headers: Annotated[
        tuple[Text, ...],
        Meta(
            extra={"one_or_many": True},
            description="Fields that `headers` must list if the request has them, such as `content-type`.",
        ),
    ] = ()
    max_body_bytes: Annotated[
        Size,
        Meta(
            ge=1, description="Maximum size of a body held to verify its Content-Digest; larger ones get 413."
        ),
    ] = 1_000_000


class SignatureKeyConfig(Settings, frozen=True, kw_only=True):
    """A key of a client. `hmac-sha256` uses a `secret`, every other algorithm a public key."""

    algorithm: Annotated[SignatureAlgorithm, Meta(description="The only algorithm accepted with this key.")]
    consumer: Annotated[Text, Meta(description="The consumer of requests signed with this key.")]
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
                "Keys by `keyid`. A consumer with `hmac_secret` needs no entry for `hmac-sha256`: its key"
                " id is its name."
            )
        ),
    ] = msgspec.field(default_factory=dict)
    required: Annotated[
        tuple[Text, ...],
        Meta(
            extra={"one_or_many": True},
            description=(
                "Components that a signature must cover: derived components (`@method`, `@authority`, "
                "`@path`, `@query`, …) and field names. `@target-uri` covers `@scheme`, `@authority`, "
                "`@path` and `@query`. `content-digest` is required only of requests with a body."
            ),
        ),
    ] = ("@method", "@authority", "@path", "@query", "content-digest")
    required_if_present: Annotated[
        tuple[Text, ...],
        Meta(
            extra={"one_or_many": True},
            description=(
                "Fields that a signature must cover if the request has them, such as `content-type`."
            ),
        ),
    ] = ()
    tag: Annotated[Text | None, Meta(description="Accept only signatures with this `tag`. Default: any.")] = (
        None
    )
    max_age_ns: Annotated[
        Duration,
        Meta(
            ge=SECOND,
            description=(
                "Maximum age of a signature by its `created`, which is required. Nonces are remembered "
                "for as long."
            ),
        ),
    ] = 5 * MINUTE
    clock_skew_ns: Annotated[
        Duration, Meta(description="Maximum clock difference between client and gateway.")
    ] = 30 * SECOND
    nonce: Annotated[
        Literal["required", "optional", "ignored"],
        Meta(
            description=(
                "`required`: each signature has a `nonce` and is accepted once. `optional`: the same for "
                "signatures with a `nonce`. `ignored`: a signature may be replayed until it is too old."
            )
        ),
    ] = "required"
    max_body_bytes: Annotated[
        Size,
        Meta(
            ge=1,
            description="Maximum size of a body held to verify its `Content-Digest`; larger ones get 413.",
        ),
    ] = 1_000_000
