"""The fully specified names of RFC 9864 for keys and tokens on the Edwards curves."""

from __future__ import annotations

import json
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ed448, ed25519
from jwt.algorithms import OKPAlgorithm

from fastgate.auth.jwks import keys_of_jwks

KEYS: dict[str, Any] = {
    "Ed25519": ed25519.Ed25519PrivateKey.generate(),
    "Ed448": ed448.Ed448PrivateKey.generate(),
}


@pytest.mark.parametrize("curve", KEYS)
@pytest.mark.parametrize("stated", [None, "EdDSA", "curve"])
@pytest.mark.parametrize("used", ["EdDSA", "curve"])
def test_both_names_verify(curve: str, stated: str | None, used: str) -> None:
    entry = json.loads(OKPAlgorithm.to_jwk(KEYS[curve].public_key()))
    if stated is not None:
        entry["alg"] = curve if stated == "curve" else stated
    key = keys_of_jwks({"keys": [entry]}, (), symmetric=False).keys[0]
    name = curve if used == "curve" else used

    assert key.verifies(name, b"text", KEYS[curve].sign(b"text"))
    assert not key.verifies(name, b"other", KEYS[curve].sign(b"text"))


@pytest.mark.parametrize("stated", ["ES256", "Ed448", "ESP256"])
def test_a_name_of_another_kind_makes_the_key_unusable(stated: str) -> None:
    entry = json.loads(OKPAlgorithm.to_jwk(KEYS["Ed25519"].public_key())) | {"alg": stated}

    with pytest.raises(ValueError, match="usable key"):
        keys_of_jwks({"keys": [entry]}, (), symmetric=False)
