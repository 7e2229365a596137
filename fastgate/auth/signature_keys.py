"""The keys of message signatures: the six algorithms of RFC 9421 (§3.3), on `cryptography`."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Callable
from typing import Any, Final, NamedTuple, get_args

from fastgate.auth.signing_settings import SignatureAlgorithm

__all__ = ["ALGORITHMS", "VerifyingKey", "public_verifier", "secret_verifier"]

ALGORITHMS: Final[tuple[str, ...]] = get_args(SignatureAlgorithm)

# Shorter RSA keys can be factored (NIST SP 800-131A rev. 2).
LEAST_RSA_BITS: Final = 2048

Verify = Callable[[bytes, bytes], bool]


class VerifyingKey(NamedTuple):
    """A key with its permitted use."""

    key_id: str
    algorithm: str
    consumer: str
    verify: Verify  # (signature, message) → whether it is valid; never raises for an invalid signature
    signature_bytes: int


def secret_verifier(secret: bytes) -> Verify:
    """The verifier of hmac-sha256."""

    def verify(signature: bytes, message: bytes) -> bool:
        return hmac.compare_digest(hmac.digest(secret, message, hashlib.sha256), signature)

    return verify


def public_verifier(algorithm: str, pem: bytes) -> tuple[Verify, int]:
    """The verifier of a public key (PEM, or a certificate in PEM) and the size of its signatures in bytes.
    Raises ValueError if the key does not belong to this algorithm."""
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
    from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

    key = _public_key(pem)
    check: Callable[[bytes, bytes], Any]
    if algorithm in ("rsa-pss-sha512", "rsa-v1_5-sha256"):
        if not isinstance(key, rsa.RSAPublicKey):
            raise ValueError("an RSA public key")
        if key.key_size < LEAST_RSA_BITS:
            raise ValueError(f"an RSA key of at least {LEAST_RSA_BITS} bits")
        rsa_key = key
        size = (key.key_size + 7) // 8
        if algorithm == "rsa-pss-sha512":
            pss = padding.PSS(mgf=padding.MGF1(hashes.SHA512()), salt_length=64)
            sha512 = hashes.SHA512()
            check = lambda signature, message: rsa_key.verify(signature, message, pss, sha512)  # noqa: E731
        else:
            pkcs, sha256 = padding.PKCS1v15(), hashes.SHA256()
            check = lambda signature, message: rsa_key.verify(signature, message, pkcs, sha256)  # noqa: E731
    elif algorithm in ("ecdsa-p256-sha256", "ecdsa-p384-sha384"):
        small = algorithm == "ecdsa-p256-sha256"
        if not isinstance(key, ec.EllipticCurvePublicKey) or key.curve.name != (
            "secp256r1" if small else "secp384r1"
        ):
            raise ValueError(f"a public key on the curve {'P-256' if small else 'P-384'}")
        ec_key = key
        size = 64 if small else 96
        scheme = ec.ECDSA(hashes.SHA256() if small else hashes.SHA384())

        def check(signature: bytes, message: bytes) -> None:
            half = len(signature) // 2
            r, s = int.from_bytes(signature[:half], "big"), int.from_bytes(signature[half:], "big")
            ec_key.verify(encode_dss_signature(r, s), message, scheme)

    elif algorithm == "ed25519":
        if not isinstance(key, ed25519.Ed25519PublicKey):
            raise ValueError("an Ed25519 public key")
        size = 64
        check = key.verify
    else:
        raise ValueError(f"one of {', '.join(ALGORITHMS)}")

    def verify(signature: bytes, message: bytes) -> bool:
        if len(signature) != size:
            return False
        try:
            check(signature, message)
        except InvalidSignature:
            return False
        return True

    return verify, size


def _public_key(pem: bytes) -> Any:
    from cryptography import x509
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    try:
        if b"-----BEGIN CERTIFICATE-----" in pem:
            return x509.load_pem_x509_certificate(pem).public_key()
        return load_pem_public_key(pem)
    except Exception as error:
        raise ValueError("a public key or a certificate in PEM") from error
