"""An issuer of tokens: real keys, a key set behind a real socket, and the ways such a server fails."""

from __future__ import annotations

import base64
import json
import threading
import time
from typing import Any

import jwt
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from jwt.algorithms import ECAlgorithm, OKPAlgorithm, RSAAlgorithm

from tests.upstream import Peer, Upstream

__all__ = ["Issuer", "Key", "forge", "segment"]


class Key:
    """A private key and its public half as a JWK."""

    def __init__(self, algorithm: str, kid: str | None = None) -> None:
        self.algorithm = algorithm
        self.kid = kid
        if algorithm[:2] in ("RS", "PS"):
            self.private: Any = rsa.generate_private_key(65537, 2048)
            self.jwk = RSAAlgorithm.to_jwk(self.private.public_key(), as_dict=True)
        elif algorithm[:2] == "ES":
            curve = {"ES256": ec.SECP256R1, "ES384": ec.SECP384R1, "ES512": ec.SECP521R1}[algorithm]
            self.private = ec.generate_private_key(curve())
            self.jwk = ECAlgorithm.to_jwk(self.private.public_key(), as_dict=True)
        else:
            self.private = ed25519.Ed25519PrivateKey.generate()
            self.jwk = OKPAlgorithm.to_jwk(self.private.public_key(), as_dict=True)
        self.jwk.pop("key_ops", None)
        self.jwk.update({"use": "sig", "alg": algorithm})
        if kid is not None:
            self.jwk["kid"] = kid

    @property
    def pem(self) -> bytes:
        """The public key."""
        return bytes(
            self.private.public_key().public_bytes(
                serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
            )
        )

    def sign(self, claims: dict[str, Any], **headers: Any) -> str:
        """A token that says this, signed as it should be."""
        if self.kid is not None:
            headers.setdefault("kid", self.kid)
        return jwt.encode(claims, self.private, self.algorithm, headers)


def segment(data: bytes) -> str:
    """base64url without padding."""
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def forge(header: dict[str, Any] | bytes, claims: dict[str, Any] | bytes, signature: bytes = b"") -> str:
    """A token of exactly these bytes."""
    parts = [part if isinstance(part, bytes) else json.dumps(part).encode() for part in (header, claims)]
    return ".".join([*map(segment, parts), segment(signature)])


class Issuer(Upstream):
    """Serves `/keys` and `/.well-known/openid-configuration`, and counts who asks."""

    def __init__(self, *keys: Key, cache_control: str = "max-age=3600", delay_s: float = 0.0) -> None:
        super().__init__(self._serve)
        self.keys = list(keys)
        self.cache_control = cache_control
        self.delay_s = delay_s
        self.status = 200
        self.body: bytes | None = None  # in place of the key set
        self.mute = threading.Event()
        self.gate = threading.Event()  # answers wait until it is set
        self.gate.set()
        self.fetches = 0

    @property
    def keys_url(self) -> str:
        return self.url + "/keys"

    def claims(self, **more: Any) -> dict[str, Any]:
        """What a good token says."""
        now = int(time.time())
        return {"iss": self.url, "sub": "alice", "iat": now, "exp": now + 300, **more}

    def _serve(self, peer: Peer) -> None:
        while True:
            request = peer.read_request()
            if self.mute.is_set():
                peer.wait_closed()
                return
            if request.target == b"/.well-known/openid-configuration":
                body = json.dumps({"issuer": self.url, "jwks_uri": self.keys_url}).encode()
            else:
                self.fetches += 1
                body = self.body
                if body is None:
                    body = json.dumps({"keys": [key.jwk for key in self.keys]}).encode()
            self.gate.wait(60)
            if self.delay_s:
                time.sleep(self.delay_s)
            peer.send(
                b"HTTP/1.1 %d X\r\nContent-Type: application/json\r\n"
                b"Cache-Control: %s\r\nContent-Length: %d\r\n\r\n"
                % (self.status, self.cache_control.encode(), len(body))
                + body
            )
