"""HTTP message signatures (RFC 9421): a request proves its sender and the integrity of what it covers.

A request may carry several signatures under labels chosen by the sender; the first acceptable one identifies
the consumer. An acceptable signature has a known key, the algorithm of that key (never the request's), covers
the components required by the config, was made within `max_age`, has not expired, has the right tag and an
unused nonce, and verifies. Every other signature gets the same 401.

Implemented on `cryptography` rather than with the verifier of http-message-signatures, whose API takes one
algorithm per verifier and a requests-like message; the tests sign with that library.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, ClassVar, Final

from fastgate._core.pipeline.context import RequestContext
from fastgate._core.pipeline.identity import Identity
from fastgate.auth.consumers import Consumers
from fastgate.auth.nonces import NonceWindow
from fastgate.auth.scheme import REJECTED, CounterOf, Scheme
from fastgate.auth.secrets import secret_bytes
from fastgate.auth.signature_base import Message, coverage, signature_base
from fastgate.auth.signature_keys import VerifyingKey, public_verifier, secret_verifier
from fastgate.auth.signing_settings import SignatureKeyConfig, SignaturesConfig
from fastgate.auth.structured_fields import InnerList, Item, Token, dictionary
from fastgate.plugin import FeatureEnv
from fastgate.settings import SECOND

__all__ = ["Signatures", "load_key"]

# Signatures checked per request: the client's own, and one or two of proxies. Each may cost a public-key
# operation, so a request must not be able to demand any number of them.
MOST_SIGNATURES: Final = 4

# The components that a component covers in addition to itself (§2.2).
_IMPLIED: Final[dict[str, tuple[str, ...]]] = {
    "@target-uri": ("@scheme", "@authority", "@path", "@query", "@request-target"),
    "@request-target": ("@path", "@query"),
}


def load_key(key_id: str, config: SignatureKeyConfig) -> VerifyingKey:
    """The key. ValueError has the field and the expected text; OSError if its file cannot be read."""
    if config.algorithm == "hmac-sha256":
        if config.secret is None:
            raise ValueError("a secret, required by hmac-sha256")
        verify = secret_verifier(secret_bytes(config.secret))
        return VerifyingKey(key_id, config.algorithm, config.consumer, verify, 32)
    if (config.public_key is None) == (config.public_key_file is None) or config.secret is not None:
        raise ValueError("exactly one of public_key and public_key_file, and no secret")
    pem = (
        config.public_key.encode()
        if config.public_key is not None
        else Path(config.public_key_file or "").read_bytes()
    )
    verify, size = public_verifier(config.algorithm, pem)
    return VerifyingKey(key_id, config.algorithm, config.consumer, verify, size)


class _Rejected(Exception):
    """The signature is not acceptable; the text is one of `outcomes`."""


class Signatures(Scheme):
    """The scheme `signatures`."""

    name = "signatures"
    credential_headers = ()
    outcomes: ClassVar[tuple[str, ...]] = (
        *("ok", "malformed", "unknown_key", "algorithm", "coverage", "expired", "nonce", "replayed"),
        *("signature", "consumer", "digest"),
    )

    def __init__(
        self,
        config: SignaturesConfig,
        identify: Any,
        nonces: NonceWindow | None,
        counter: CounterOf | None = None,
        *,
        secrets: dict[str, str] | None = None,
        clock: Any = time.time,
    ) -> None:
        """identify: returns the Identity of a consumer, or None. secrets: those of consumers by their
        names."""
        super().__init__(counter)
        self.config = config
        self.keys = {
            name: load_key(name, SignatureKeyConfig(algorithm="hmac-sha256", consumer=name, secret=secret))
            for name, secret in (secrets or {}).items()
        }
        self.keys |= {key_id: load_key(key_id, key) for key_id, key in config.keys.items()}
        if not self.keys:
            raise ValueError("signatures: no keys")
        self.challenge = f'Signature realm="fastgate", components="{" ".join(config.required)}"'
        self._identify = identify
        self._nonces = nonces
        self._clock = clock

    @classmethod
    def build(cls, config: SignaturesConfig, env: FeatureEnv) -> Signatures:
        """The scheme of a worker, from the section `auth` and the consumers of the config."""
        memory = env.context.memory
        counter = memory.metrics.counter
        return cls(
            config,
            Consumers(env.config.consumers, memory.directory).identity,
            NonceWindow(memory.nonces, cls.name, cls.valid_ns(config), counter),
            counter,
            secrets={name: c.hmac_secret for name, c in env.config.consumers.items() if c.hmac_secret},
        )

    @staticmethod
    def valid_ns(config: SignaturesConfig) -> int:
        """Maximum time in which a signature is valid; nonces must be kept for as long."""
        return config.max_age_ns + 2 * config.clock_skew_ns

    def verify(self, ctx: RequestContext) -> Any:
        """See Scheme."""
        inputs = ctx.headers.get_all("signature-input")
        if not inputs:
            return None
        try:
            covered = dictionary(", ".join(inputs))
            signatures = dictionary(", ".join(ctx.headers.get_all("signature")))
        except ValueError:
            self.count("malformed")
            return REJECTED
        message = Message(
            ctx.method, ctx.client_scheme, ctx.host_field, ctx.request_target, ctx.headers.get_all
        )
        looked_at = 0
        for label, member in covered.items():
            if not isinstance(member, InnerList):
                continue
            if self.config.tag is not None and member.parameters.get("tag") != self.config.tag:
                continue
            looked_at += 1
            if looked_at > MOST_SIGNATURES:
                break
            try:
                found = self._acceptable(ctx, message, member, signatures.get(label))
            except _Rejected as why:
                self.count(str(why))
                continue
            self.count("ok")
            return found
        if looked_at == 0:
            # Signatures with another tag are not credentials for this gateway.
            return None
        return REJECTED

    @property
    def claims(self) -> tuple[str, ...]:
        return ("signature",)

    def unclaimed(self, ctx: RequestContext) -> str | None:
        alone = "signature" in ctx.headers and "signature-input" not in ctx.headers
        return "malformed" if alone else None

    def _acceptable(self, ctx: RequestContext, message: Message, covered: InnerList, given: Any) -> Identity:
        parameters = covered.parameters
        if not isinstance(given, Item) or not isinstance(given.value, bytes):
            raise _Rejected("malformed")
        signature = given.value
        key_id = _text(parameters, "keyid")
        nonce = _text(parameters, "nonce")
        algorithm = _text(parameters, "alg")
        key = self.keys.get(key_id) if key_id is not None else None
        try:
            base = signature_base(message, covered)
        except ValueError:
            raise _Rejected("coverage") from None
        # All checks follow the verification, so that every invalid signature costs the same. For an unknown
        # key, a key whose signatures have this size is used instead.
        fits = (key or self._decoy(signature)).verify(signature, base)
        if key is None:
            raise _Rejected("unknown_key")
        if not fits:
            raise _Rejected("signature")
        if algorithm is not None and algorithm != key.algorithm:
            raise _Rejected("algorithm")
        if not self._covers(ctx, covered):
            raise _Rejected("coverage")
        self._check_times(parameters)
        if self.config.nonce == "required" and not nonce:
            raise _Rejected("nonce")
        identity: Identity | None = self._identify(key.consumer, method=self.name, key_id=key.key_id)
        if identity is None:
            raise _Rejected("consumer")
        if (
            nonce
            and self._nonces is not None
            and self.config.nonce != "ignored"
            and not self._nonces.first_use(key.key_id, nonce, self._clock())
        ):
            raise _Rejected("replayed")
        return identity

    def _decoy(self, signature: bytes) -> VerifyingKey:
        known = list(self.keys.values())
        return next((key for key in known if key.signature_bytes == len(signature)), known[0])

    def _covers(self, ctx: RequestContext, covered: InnerList) -> bool:
        have: set[str] = set()
        for component in coverage(covered):
            if component.item.parameters.keys() <= {"sf", "bs"}:
                have.add(component.name)
                have.update(_IMPLIED.get(component.name, ()))
        for name in self.config.required:
            if name not in have and (name != "content-digest" or ctx.has_body):
                return False
        return all(name in have or name not in ctx.headers for name in self.config.required_if_present)

    def _check_times(self, parameters: dict[str, Any]) -> None:
        now = self._clock()
        skew = self.config.clock_skew_ns / SECOND
        created, expires = parameters.get("created"), parameters.get("expires")
        if type(created) is not int or (expires is not None and type(expires) is not int):
            raise _Rejected("malformed")
        if created > now + skew or created < now - self.config.max_age_ns / SECOND - skew:
            raise _Rejected("expired")
        if expires is not None and expires < now - skew:
            raise _Rejected("expired")


def _text(parameters: dict[str, Any], name: str) -> str | None:
    """A string parameter; None if it is missing. Raises _Rejected for another type."""
    value = parameters.get(name)
    if value is None:
        return None
    if not isinstance(value, str) or isinstance(value, Token):
        raise _Rejected("malformed")
    return value
