"""Client certificates: mapping to consumers. The TLS handshake of the listener has verified the certificate.

A certificate is parsed once per connection. Its names are looked up first in the configured entries
(`auth.mtls.certificates` and `certificate` of the consumers), then as the name of a consumer; both in the
order of `identify_by`. A consumer with listed certificates is identified by those only: another certificate
with its name is rejected. A subject with several common names is treated as having none, because it is
ambiguous. A certificate that expired since the handshake is rejected, for long-lived connections.
"""

from __future__ import annotations

import hashlib
import re
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from typing import Any, ClassVar, NamedTuple

from cryptography import x509
from cryptography.x509.oid import NameOID

from fastgate._core.pipeline.context import RequestContext
from fastgate.auth.claims import Resolve, name_of
from fastgate.auth.scheme import REJECTED, CounterOf, Scheme
from fastgate.auth.settings import MtlsConfig

__all__ = ["MtlsScheme", "certificate_key"]

# Certificates whose names are cached, per worker: usually one per client with connections.
MOST_REMEMBERED = 4096
# A certificate and its parsed form take several kilobytes, so it is counted twice.
READ_TIMES = 2
MOST_REMEMBERED_BYTES = 8 << 20

_FINGERPRINT = re.compile(r"sha256:[0-9a-fA-F]{2}(?::?[0-9a-fA-F]{2}){31}", re.ASCII)
_NAMED = re.compile(r"(?:dns|uri|email|cn):.+")
_SUBJECT = re.compile(r"[A-Za-z0-9.]+=.+")


class _Seen(NamedTuple):
    keys: list[tuple[str, str]]  # as listed in the config, and the bare name ("" if there is none)
    fingerprint: str
    ends_s: float


def certificate_key(text: str) -> str:
    """An entry of the config in canonical form. Raises ValueError with the text that was expected."""
    if _FINGERPRINT.fullmatch(text):
        return "sha256:" + text[7:].replace(":", "").lower()
    if not text.startswith("sha256:"):
        if text.startswith(("dns:", "email:")) and _NAMED.fullmatch(text):
            return text.lower()
        if _NAMED.fullmatch(text) or _SUBJECT.fullmatch(text):
            return text
    raise ValueError(
        "sha256: and 64 hex digits, a subject such as CN=orders,O=Acme, or dns: uri: email: cn: and a name"
    )


class MtlsScheme(Scheme):
    """The scheme `mtls`."""

    name = "mtls"
    challenge = 'Certificate realm="fastgate"'
    credential_headers = ()
    outcomes: ClassVar[tuple[str, ...]] = ("ok", "unknown", "expired", "malformed", "consumer", "forgotten")

    def __init__(
        self,
        config: MtlsConfig,
        consumers: Mapping[str, Iterable[str]],
        resolve: Resolve,
        counter: CounterOf | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """consumers: the certificates of each consumer, as listed in the config."""
        super().__init__(counter)
        self._config = config
        self._resolve = resolve
        self._clock = clock
        self._owners = {certificate_key(text): owner for text, owner in config.certificates.items()}
        for owner, texts in consumers.items():
            for text in texts:
                self._owners.setdefault(certificate_key(text), owner)
        self._pinned = frozenset(self._owners.values())
        self._seen_bytes = 0
        self._seen: OrderedDict[bytes, _Seen | None] = OrderedDict()

    def verify(self, ctx: RequestContext) -> Any:
        der = ctx.client_certificate
        if der is None:
            return None
        seen = self._look(der)
        if seen is None:
            return self._rejected("malformed")
        if self._clock() > seen.ends_s:
            return self._rejected("expired")
        for key, _ in seen.keys:
            owner = self._owners.get(key)
            if owner is not None:
                identity = self._identity(owner, seen, must_exist=False)
                break
        else:
            identity = self._by_name(seen)
        if identity is None:
            return self._rejected("unknown")
        self.count("ok")
        return identity

    def _by_name(self, seen: _Seen) -> Any:
        names = [name for _, name in seen.keys if name]
        if not self._pinned.isdisjoint(names):
            return None
        for name in names:
            identity = self._identity(name, seen, must_exist=True)
            if identity is not None:
                return identity
        return (
            self._identity(names[0], seen, must_exist=False) if names and self._config.allow_unknown else None
        )

    def _identity(self, name: str, seen: _Seen, *, must_exist: bool) -> Any:
        return self._resolve(
            name,
            method=self.name,
            key_id=seen.fingerprint[:16],
            default_tier=self._config.tier or "",
            must_exist=must_exist,
            metadata={"certificate_sha256": seen.fingerprint},
        )

    def _look(self, der: bytes) -> _Seen | None:
        if der in self._seen:
            return self._seen[der]
        try:
            seen = self._read(der)
        except (ValueError, x509.DuplicateExtension):
            seen = None
        self._seen[der] = seen
        self._seen_bytes += READ_TIMES * len(der)
        while len(self._seen) > MOST_REMEMBERED or self._seen_bytes > MOST_REMEMBERED_BYTES:
            oldest, _ = self._seen.popitem(last=False)
            self._seen_bytes -= READ_TIMES * len(oldest)
            self.count("forgotten")
        return seen

    def _read(self, der: bytes) -> _Seen:
        certificate = x509.load_der_x509_certificate(der)
        fingerprint = hashlib.sha256(der).hexdigest()
        try:
            names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        except x509.ExtensionNotFound:
            names = x509.SubjectAlternativeName([])
        common = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
        of: dict[str, list[tuple[str, str]]] = {
            "fingerprint": [(f"sha256:{fingerprint}", "")],
            "subject": [(certificate.subject.rfc4514_string(), "")],
            "common_name": [(f"cn:{one.value!s}", name_of(one.value)) for one in common if len(common) == 1],
            "san_dns": [
                (f"dns:{one.lower()}", name_of(one.lower()))
                for one in names.get_values_for_type(x509.DNSName)
            ],
            "san_uri": [
                (f"uri:{one}", name_of(one))
                for one in names.get_values_for_type(x509.UniformResourceIdentifier)
            ],
            "san_email": [
                (f"email:{one.lower()}", name_of(one.lower()))
                for one in names.get_values_for_type(x509.RFC822Name)
            ],
        }
        keys = [pair for kind in self._config.identify_by for pair in of[kind]]
        return _Seen(keys, fingerprint, certificate.not_valid_after_utc.timestamp())

    def _rejected(self, why: str) -> Any:
        self.count(why)
        return REJECTED
