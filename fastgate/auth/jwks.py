"""Token verification keys: from a file, or from a URL and refreshed in the background.

The algorithm is a property of the key, never of the token: `KeySet.find` returns only keys that allow the
token's algorithm by their own `alg` and by the config. RemoteKeys does one fetch at a time: according to
Cache-Control within bounds, with back-off while it fails, and at most once in `unknown_kid` for a token with
an unknown key. The last valid set stays in use meanwhile.

Sources: RFC 7517 (JWK), RFC 7518 (JWA), RFC 8725 §3 (best practices), OpenID Connect Discovery 1.0 §4.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import re
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Final, NamedTuple

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, rsa
from cryptography.hazmat.primitives.serialization import load_pem_public_key
from jwt.algorithms import Algorithm, get_default_algorithms
from jwt.exceptions import PyJWTError

from fastgate.auth.settings import JwksConfig, JwtIssuerConfig
from fastgate.auth.strict_json import strict_json
from fastgate.state.files import stamp_of
from fastgate.upstream.fetch import Fetched, Fetcher, FetchError, check_url

__all__ = [
    "FileKeys",
    "Key",
    "KeySet",
    "RemoteKeys",
    "check_local_keys",
    "key_of_pem",
    "key_of_secret",
    "keys_of_jwks",
]

log = logging.getLogger("fastgate")

RSA_ALGORITHMS: Final = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512")
HMAC_BYTES: Final = {"HS256": 32, "HS384": 48, "HS512": 64}  # RFC 7518 §3.2
CURVES: Final = {"secp256r1": "ES256", "secp384r1": "ES384", "secp521r1": "ES512"}
# RFC 9864: the fully specified names, and the one that leaves the curve to the key. Both are the same
# signature. The ECDSA names of RFC 7518 have always included the curve; ESP256 etc. are for COSE only.
EDWARDS: Final = {"Ed25519": ("EdDSA", "Ed25519"), "Ed448": ("EdDSA", "Ed448")}
_FAMILIES: Final = {"RSA": "RS256", "EC": "ES256", "OKP": "EdDSA", "oct": "HS256"}
# RFC 7518 §3.3
LEAST_RSA_BITS: Final = 2048
# More keys than any issuer has; a token without a key id is tried against all of them.
MAX_KEYS: Final = 64
MAX_TRIED: Final = 8
FILE_LOOK_S: Final = 5.0
FIRST_RETRY_S: Final = 1.0
LAST_RETRY_S: Final = 60.0

_MAX_AGE = re.compile(r"(?:^|[\s,])max-age\s*=\s*\"?([0-9]{1,10})", re.I)
_NO_CACHE = re.compile(r"(?:^|[\s,])no-(?:cache|store)(?:\Z|[\s,])", re.I)


class Key(NamedTuple):
    """One key and the algorithms it may verify: PyJWT's algorithms by name."""

    kid: str | None
    key: Any
    algorithms: dict[str, Algorithm]

    def verifies(self, algorithm: str, signed: bytes, signature: bytes) -> bool:
        """True if this key made this signature over these bytes with this algorithm."""
        try:
            return self.algorithms[algorithm].verify(signed, self.key, signature)
        except (PyJWTError, ValueError, TypeError):
            return False


class KeySet:
    """Keys by their id. `alone`: a single configured key, used whatever id a token names."""

    def __init__(self, keys: Iterable[Key], *, alone: bool = False) -> None:
        self.keys = tuple(keys)
        self._by_id: dict[str, list[Key]] = {}
        self._nameless = [key for key in self.keys if key.kid is None]
        self._alone = alone
        for key in self.keys:
            if key.kid is not None:
                self._by_id.setdefault(key.kid, []).append(key)

    def knows(self, kid: str | None) -> bool:
        """True if there is a key for a token with this id."""
        return self._alone or kid is None or kid in self._by_id or bool(self._nameless)

    def find(self, kid: str | None, algorithm: str) -> list[Key]:
        """The keys to try for a token with this id and algorithm."""
        if self._alone or kid is None:
            found: Iterable[Key] = self.keys
        else:
            found = [*self._by_id.get(kid, ()), *self._nameless]
        return [key for key in found if algorithm in key.algorithms][:MAX_TRIED]


def key_of_secret(secret: str, allowed: Iterable[str]) -> Key:
    """A shared secret. Raises ValueError if it is too short for its algorithm."""
    raw = secret.encode()
    names = tuple(allowed) or ("HS256",)
    for name in names:
        least = HMAC_BYTES.get(name)
        if least is None:
            raise ValueError(f"HS256, HS384 or HS512 for a secret, got {name}")
        if len(raw) < least:
            raise ValueError(f"at least {least} bytes for {name}")
    known = get_default_algorithms()
    try:
        return Key(None, known["HS256"].prepare_key(raw), {name: known[name] for name in names})
    except PyJWTError as error:  # a public key used as a secret, which would let anyone forge tokens
        raise ValueError(f"a secret: {error}") from None


def key_of_pem(pem: bytes, allowed: Iterable[str]) -> Key:
    """A public key, or the key of a certificate. Raises ValueError with the text that was expected."""
    try:
        if b"-----BEGIN CERTIFICATE" in pem:
            key: Any = x509.load_pem_x509_certificate(pem).public_key()
        else:
            key = load_pem_public_key(pem)
    except ValueError:
        raise ValueError("a public key or certificate in PEM form") from None
    names = _fitting(key, tuple(allowed))
    if not names:
        raise ValueError(f"a key for {' or '.join(allowed) or 'RSA, EC P-256/384/521 or Ed25519'}")
    return Key(None, key, _verifying(names))


def _verifying(names: Iterable[str]) -> dict[str, Algorithm]:
    """PyJWT's algorithms by these names, including our names for algorithms newer than PyJWT's."""
    known = get_default_algorithms()
    return {name: known["EdDSA" if name in EDWARDS else name] for name in names}


def keys_of_jwks(document: Any, allowed: Iterable[str], *, symmetric: bool) -> KeySet:
    """The usable keys of a JWK Set. Keys for encryption, private keys, short keys and keys of unknown types
    are skipped.

    Raises ValueError if none is left. symmetric: whether shared secrets are accepted; they must not be at a
    URL.
    """
    entries = document.get("keys") if isinstance(document, dict) else None
    if not isinstance(entries, list):
        raise ValueError('an object with a list "keys" (RFC 7517 §5)')
    if len(entries) > MAX_KEYS:
        raise ValueError(f"at most {MAX_KEYS} keys, got {len(entries)}")
    allowed = tuple(allowed)
    keys = [key for entry in entries if (key := _key_of_jwk(entry, allowed, symmetric)) is not None]
    if not keys:
        raise ValueError("at least one usable key")
    return KeySet(keys)


def _key_of_jwk(entry: Any, allowed: tuple[str, ...], symmetric: bool) -> Key | None:
    if not isinstance(entry, dict):
        return None
    kid, use, uses = entry.get("kid"), entry.get("use"), entry.get("key_ops")
    if not (kid is None or isinstance(kid, str)) or (use is not None and use != "sig"):
        return None
    if uses is not None and (not isinstance(uses, list) or "verify" not in uses):
        return None
    known = get_default_algorithms()
    kind = entry.get("kty")
    family = {"RSA": "RS256", "EC": "ES256", "OKP": "EdDSA", "oct": "HS256"}.get(
        kind if isinstance(kind, str) else ""
    )
    if family is None or (kind == "oct" and not symmetric) or (kind != "oct" and "d" in entry):
        return None
    try:
        key = known[family].from_jwk(entry)
    except (PyJWTError, ValueError, TypeError, KeyError):
        return None
    if kind == "oct":
        names = tuple(
            name for name in (allowed or ("HS256",)) if name in HMAC_BYTES and len(key) >= HMAC_BYTES[name]
        )
    else:
        names = _fitting(key, allowed)
    stated = entry.get("alg")
    if stated is not None and names:
        # The key's own algorithm takes precedence over the default for its type, but not over the config.
        possible = names if allowed or kind == "oct" else (*names, *(RSA_ALGORITHMS if kind == "RSA" else ()))
        same = _edwards(key)
        if stated not in same:
            same = (stated,)
        names = tuple(dict.fromkeys(name for name in possible if name in same))
    return Key(kid, key, _verifying(names)) if names else None


def _fitting(key: Any, allowed: tuple[str, ...]) -> tuple[str, ...]:
    """The algorithms of this public key: those of its type that the config allows."""
    if isinstance(key, rsa.RSAPublicKey):
        if key.key_size < LEAST_RSA_BITS:
            return ()
        return tuple(name for name in (allowed or ("RS256",)) if name in RSA_ALGORITHMS)
    if isinstance(key, ec.EllipticCurvePublicKey):
        name = CURVES.get(key.curve.name)
    elif names := _edwards(key):
        # A config that allows EdDSA allows it on every curve, by either name.
        return tuple(one for one in names if not allowed or one in allowed or "EdDSA" in allowed)
    else:
        name = None
    return (name,) if name is not None and (not allowed or name in allowed) else ()


def _edwards(key: Any) -> tuple[str, ...]:
    """The algorithm names of a key on an Edwards curve; empty for other keys."""
    if isinstance(key, ed25519.Ed25519PublicKey):
        return EDWARDS["Ed25519"]
    return EDWARDS["Ed448"] if isinstance(key, ed448.Ed448PublicKey) else ()


def check_local_keys(issuer: JwtIssuerConfig) -> None:
    """Loads the local keys of an issuer. Raises ValueError or OSError if they cannot be used."""
    if issuer.secret is not None:
        key_of_secret(issuer.secret, issuer.algorithms)
    elif issuer.public_key is not None:
        key_of_pem(Path(issuer.public_key).read_bytes(), issuer.algorithms)
    elif issuer.jwks_file is not None:
        keys_of_jwks(strict_json(Path(issuer.jwks_file).read_bytes()), issuer.algorithms, symmetric=True)


class FileKeys:
    """A key or key set in a file, read again when it changes. An invalid new file is logged and ignored."""

    def __init__(self, path: str, read: Callable[[bytes], KeySet]) -> None:
        self._path = path
        self._read = read
        self._stamp = stamp_of(path)
        self.keys: KeySet | None = read(Path(path).read_bytes())
        self._task: asyncio.Task[None] | None = None

    def may_learn(self, kid: str | None) -> bool:
        """Always False: the file is already loaded."""
        return False

    async def learn(self) -> None:
        """Never called, since `may_learn` is always False."""

    async def start(self) -> None:
        self._task = asyncio.create_task(self._watch())

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(FILE_LOOK_S)
            stamp = stamp_of(self._path, self._stamp)
            if stamp is None:
                continue
            is_same, self._stamp = stamp == self._stamp, stamp
            if is_same:
                continue
            try:
                data = await asyncio.to_thread(Path(self._path).read_bytes)
                self.keys = self._read(data)
            except (OSError, ValueError) as error:
                log.warning("keys in %s: %s; the previous ones stay in use", self._path, error)


class RemoteKeys:
    """A key set at a URL, or at the URL that an issuer's discovery document names."""

    def __init__(
        self,
        fetcher: Fetcher,
        config: JwksConfig,
        allowed: Iterable[str],
        *,
        url: str | None = None,
        issuer: str | None = None,
        count: Callable[[str], None] = lambda outcome: None,
    ) -> None:
        self.keys: KeySet | None = None
        self._fetcher = fetcher
        self._config = config
        self._allowed = tuple(allowed)
        self._given_url = url
        self._url = url
        self._issuer = issuer
        self._count = count
        self._name = url or f"{issuer} (discovery)"
        self._fetch: asyncio.Task[None] | None = None
        self._loop: asyncio.Task[None] | None = None
        self._woken = asyncio.Event()
        self._begun_ns = 0  # start of the last fetch, CLOCK_MONOTONIC; 0 = none yet
        self._good_ns = 0
        self._failures = 0
        self._due_s = 0.0  # time of the next regular fetch, CLOCK_MONOTONIC

    def may_learn(self, kid: str | None) -> bool:
        """True if waiting may yield a missing key: a fetch is in flight, or may be started."""
        if self._fetch is not None:
            return True
        # With a key set, one fetch per interval for all requests; without one, the interval of the retries.
        least_ns = self._config.unknown_kid_ns if self.keys is not None else int(self._retry_s() * 1e9)
        return self._begun_ns == 0 or time.monotonic_ns() - self._begun_ns >= least_ns

    async def learn(self) -> None:
        """Waits for the fetch in flight, or starts one. The time is bounded, regardless of the issuer."""
        if self._fetch is None and self.may_learn(None):  # it may have ended since the token was checked
            self._begin()
        fetch = self._fetch
        if fetch is not None:
            await asyncio.wait({fetch})  # not cancelled with this request: others wait for it too

    async def start(self) -> None:
        """Starts fetching in the background: a worker must start even if its issuers are down."""
        self._loop = asyncio.create_task(self._refresh())

    async def close(self) -> None:
        for task in (self._loop, self._fetch):
            if task is not None:
                task.cancel()
        await self._fetcher.close()

    async def _refresh(self) -> None:
        while True:
            left_s = self._due_s - time.monotonic()
            if self._fetch is None and left_s <= 0:
                self._begin()
            if self._fetch is not None:
                await asyncio.wait({self._fetch})
                continue
            self._woken.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(left_s):
                    await self._woken.wait()  # a token triggered a fetch, which moved the due time

    def _begin(self) -> None:
        self._begun_ns = time.monotonic_ns()
        self._fetch = asyncio.create_task(self._once())
        self._fetch.add_done_callback(self._ended)
        self._woken.set()

    def _ended(self, fetch: asyncio.Task[None]) -> None:
        self._fetch = None

    async def _once(self) -> None:
        try:
            async with asyncio.timeout(self._config.timeout_ns / 1e9):
                fetched = await self._ask()
                self.keys = keys_of_jwks(_document(fetched), self._allowed, symmetric=False)
                fresh_s = self._fresh_s(fetched)
        except (FetchError, ValueError, TimeoutError) as error:
            self._failed(str(error) or "no response in time")
            return
        except Exception:
            log.exception("keys of %s", self._name)
            self._failed("an error of the gateway")
            return
        self._good_ns = time.monotonic_ns()
        self._failures = 0
        self._due_in(fresh_s)
        self._count("ok")

    async def _ask(self) -> Fetched:
        if self._url is None:
            assert self._issuer is not None
            where = self._issuer.rstrip("/") + "/.well-known/openid-configuration"
            document = _document(await self._get(where))
            if not isinstance(document, dict) or document.get("issuer") != self._issuer:
                raise ValueError("a discovery document of another issuer")  # OpenID Connect Discovery §4.3
            url = document.get("jwks_uri")
            if not isinstance(url, str) or (
                self._issuer.startswith("https:") and not url.startswith("https:")
            ):
                raise ValueError("a discovery document without a usable jwks_uri")
            check_url(url)
            self._url = url
        return await self._get(self._url)

    async def _get(self, url: str) -> Fetched:
        fetched = await self._fetcher.request(
            "GET",
            url,
            headers=(("Accept", "application/json"), ("Accept-Encoding", "identity")),
            timeout_ns=self._config.timeout_ns,
            max_bytes=self._config.max_bytes,
            redirects=3,
        )
        if fetched.status != 200:
            raise ValueError(f"status {fetched.status} from {url}")
        return fetched

    def _failed(self, why: str) -> None:
        self._failures += 1
        self._due_in(self._retry_s())
        self._url = self._given_url  # with discovery, the URL may have changed
        self._count("failed")
        if self._failures == 1 or self._failures & (self._failures - 1) == 0:  # the 1st, 2nd, 4th, 8th …
            log.warning("keys of %s: %s (failure %d)", self._name, why, self._failures)
        if self.keys is not None and time.monotonic_ns() - self._good_ns > self._config.max_stale_ns:
            log.warning("keys of %s are too old to be trusted", self._name)
            self.keys = None

    def _due_in(self, pause_s: float) -> None:
        """Schedules the next regular fetch with a jitter of a tenth, so that workers do not fetch in step."""
        self._due_s = time.monotonic() + pause_s * (0.9 + 0.2 * random.random())

    def _retry_s(self) -> float:
        return (
            float(min(LAST_RETRY_S, FIRST_RETRY_S * 2 ** min(self._failures - 1, 10)))
            if self._failures
            else 0.0
        )

    def _fresh_s(self, fetched: Fetched) -> float:
        """Time until which the set is fresh, by its Cache-Control, within the bounds of the config."""
        config = self._config
        control = ", ".join(fetched.headers.get_all("cache-control"))
        said = _MAX_AGE.search(control)
        if _NO_CACHE.search(control):
            fresh_ns = config.min_refresh_ns
        elif said is None:
            fresh_ns = config.refresh_ns
        else:
            age = fetched.headers.get("age", "0")
            fresh_ns = (int(said[1]) - (int(age) if age.isdecimal() and len(age) < 10 else 0)) * 1_000_000_000
        return max(config.min_refresh_ns, min(fresh_ns, config.max_refresh_ns)) / 1e9


def _document(fetched: Fetched) -> Any:
    try:
        return strict_json(fetched.body)
    except ValueError as error:
        raise ValueError(f"not a JSON document: {error}") from None
