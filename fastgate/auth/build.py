"""Builds the compiled gate of a route's `auth`: the list of schemes and their builders."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from functools import partial
from typing import Any

import msgspec

from fastgate._core.gates.auth import AuthGate
from fastgate._core.gates.credentials import CredentialCache
from fastgate.auth.anonymous import AnonymousScheme
from fastgate.auth.api_key import ApiKeyScheme
from fastgate.auth.consumers import Consumers
from fastgate.auth.digests import BodyDigest
from fastgate.auth.hmac import Hmac
from fastgate.auth.scheme import LATER, REASON_OF, REJECTED, RESPONDED, Scheme, Unavailable
from fastgate.auth.section import AuthUse
from fastgate.auth.signatures import Signatures
from fastgate.errors import REASONS
from fastgate.plugin import FeatureEnv
from fastgate.upstream.fetch import Fetcher

__all__ = ["SCHEMES", "build", "build_digest"]

MakeScheme = Callable[[Any, Any], Scheme]


def _jwt(settings: Any, env: FeatureEnv) -> Scheme:
    from fastgate.auth.jwt import JwtScheme  # PyJWT and cryptography take 60 ms to import

    return JwtScheme(
        settings,
        _consumers(env).identity,
        env.config.tiers,
        fetcher=lambda: Fetcher(env.context, settings.tls),
        counter=env.context.memory.metrics.counter,
    )


def _introspection(settings: Any, env: FeatureEnv) -> Scheme:
    from fastgate.auth.introspection import IntrospectionScheme

    return IntrospectionScheme(
        settings,
        _consumers(env).identity,
        Fetcher(env.context, settings.tls),
        env.config.tiers,
        env.context.memory.metrics.counter,
    )


def _basic(settings: Any, env: FeatureEnv) -> Scheme:
    from fastgate.auth.basic import BasicScheme

    hashes = {
        name: consumer.basic_password_hash
        for name, consumer in env.config.consumers.items()
        if consumer.basic_password_hash is not None
    }
    return BasicScheme(settings, hashes, _consumers(env).identity, env.context.memory.metrics.counter)


def _forward(settings: Any, env: FeatureEnv) -> Scheme:
    from fastgate.auth.forward import ForwardScheme

    return ForwardScheme(
        settings,
        _consumers(env).identity,
        Fetcher(env.context, settings.tls),
        env.config.tiers,
        env.context.memory.metrics.counter,
    )


def _mtls(settings: Any, env: FeatureEnv) -> Scheme:
    from fastgate.auth.mtls import MtlsScheme

    listed = {name: consumer.certificate for name, consumer in env.config.consumers.items()}
    return MtlsScheme(settings, listed, _consumers(env).identity, env.context.memory.metrics.counter)


def _anonymous(settings: Any, env: FeatureEnv) -> Scheme:
    return AnonymousScheme(settings, env.context.memory.metrics.counter)


def _consumers(env: FeatureEnv) -> Consumers:
    return Consumers(env.config.consumers, env.context.memory.directory)


SCHEMES: dict[str, MakeScheme] = {
    "api_key": lambda settings, env: ApiKeyScheme(
        settings,
        env.context.memory.directory,
        env.context.memory.metrics.counter,
        expects_store=env.config.admin.listen != "off",
    ),
    "hmac": Hmac.build,
    "signatures": Signatures.build,
    "jwt": _jwt,
    "introspection": _introspection,
    "basic": _basic,
    "forward": _forward,
    "mtls": _mtls,
    "anonymous": _anonymous,
}
"""By name, which is also the key of its settings in the section `auth`: (settings, FeatureEnv) → Scheme."""


def build(use: AuthUse | None, env: FeatureEnv) -> AuthGate | None:
    """The gate of a route, or None without authentication."""
    if use is None:
        return None
    schemes = []
    for name in use.schemes:
        settings = getattr(env.config.auth, name)
        key = (settings, _digest_of_context(env.config))
        schemes.append(env.service(f"auth.{name}", key, partial(SCHEMES[name], settings, env)))
    digest = hashlib.sha256(
        msgspec.msgpack.encode((use.schemes, env.config.auth, _digest_of_context(env.config)))
    ).digest()
    gate = AuthGate(
        schemes,
        cache=env.service(
            "auth.credentials",
            None,
            lambda: CredentialCache(metrics=env.context.memory.metrics, worker=str(env.context.slot)),
        ),
        directory=env.context.memory.directory,
        family=int.from_bytes(digest[:8], "little"),
        forward=use.forward,
        rejected=REJECTED,
        later=LATER,
        responded=RESPONDED,
        unavailable_error=Unavailable,
        reasons={outcome: REASONS[label] for outcome, label in REASON_OF.items()},
        unavailable=REASONS["auth_unavailable"],
        waits=env.config.admin.listen != "off",
    )
    gate.enforce = use.enforce
    return gate


_seen: tuple[Any, bytes] = (None, b"")


def _digest_of_context(config: Any) -> bytes:
    """A digest of the config that schemes depend on, in addition to their settings. A change rebuilds them.

    Computed once per config rather than per route, as there may be thousands of consumers and routes.
    """
    global _seen
    if _seen[0] is not config:
        seen = (config.consumers, config.tiers, config.admin.listen == "off")
        _seen = config, hashlib.sha256(msgspec.msgpack.encode(seen)).digest()
    return _seen[1]


def build_digest(use: AuthUse | None, env: FeatureEnv) -> BodyDigest | None:
    """The plugin after the gate that verifies signed bodies, or None if no method signs them."""
    signing = {name: getattr(env.config.auth, name) for name in ("hmac", "signatures")}
    methods = frozenset(use.schemes if use is not None else ()) & signing.keys()
    if use is None or not methods:
        return None
    step = BodyDigest(methods, min(signing[name].max_body_bytes for name in methods), env.context.memory)
    step.enforce = use.enforce
    return step
