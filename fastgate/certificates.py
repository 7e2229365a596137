"""Certificate files: loading a chain with its key, and the names a certificate covers.

Used by the listeners (`server/tls.py`) and the upstream side (`upstream/tls.py`). Every way a file can be
wrong becomes one CertificateError that names the file and the cause. The standard library has no public
reader of certificate names, so a few lines here walk the DER (X.690) down to the subjectAltName extension
of RFC 5280 §4.2.1.6. The common name is ignored: clients stopped using it in 2017 (RFC 9525 §2).
"""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from pathlib import Path

__all__ = ["CertificateError", "certificate_names", "load_authorities", "load_pair"]

_SEQUENCE = 0x30
_EXTENSIONS = 0xA3  # [3] EXPLICIT in TBSCertificate
_DNS_NAME = 0x82  # [2] in GeneralName
_SUBJECT_ALT_NAME = bytes((0x06, 0x03, 0x55, 0x1D, 0x11))  # OID 2.5.29.17
_OCTET_STRING = 0x04


class CertificateError(ValueError):
    """A certificate, key or CA file cannot be used. The text has the file and the cause."""


def load_pair(context: ssl.SSLContext, certificate: str, key: str) -> None:
    """Loads a chain and its key into `context`. CertificateError when a file is missing, unreadable,
    encrypted, not PEM, or the key is not the certificate's; the context is then not to be used.
    """

    def no_password() -> str:
        # Without this OpenSSL would ask on the terminal and hold the process up.
        raise CertificateError(f"{key}: the key is encrypted; expected a key without a pass phrase")

    for path in (certificate, key):
        _read(path)
    try:
        context.load_cert_chain(certificate, key, no_password)
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            raise CertificateError(f"{key}: not the key of {certificate}") from error
        at_fault, what = (
            (certificate, "certificate") if _holds_no_certificate(certificate) else (key, "private key")
        )
        raise CertificateError(f"{at_fault}: {_cause(error, what)}") from error


def load_authorities(context: ssl.SSLContext, path: str) -> None:
    """Trusts the CA certificates of a PEM file. CertificateError when there is none in it."""
    _read(path)
    try:
        context.load_verify_locations(path)
    except ssl.SSLError as error:
        raise CertificateError(f"{path}: {_cause(error, 'certificate')}") from error


def certificate_names(path: str) -> tuple[str, ...]:
    """The DNS names of the first certificate in a PEM file, lower case, wildcards as `*.example.com`.

    Empty when it has no subjectAltName. CertificateError when the file holds no certificate.
    """
    text = _read(path).decode("ascii", "replace")
    start = text.find(ssl.PEM_HEADER)
    end = text.find(ssl.PEM_FOOTER, start)
    if start < 0 or end < 0:
        raise CertificateError(f"{path}: no certificate found; expected PEM")
    try:
        return tuple(_dns_names(ssl.PEM_cert_to_DER_cert(text[start : end + len(ssl.PEM_FOOTER)])))
    except (ValueError, IndexError) as error:
        raise CertificateError(f"{path}: damaged certificate ({error})") from error


def _read(path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise CertificateError(f"{path}: {error.strerror or error}") from error


def _holds_no_certificate(path: str) -> bool:
    try:
        ssl.create_default_context(cafile=path)
    except ssl.SSLError:
        return True
    return False


def _cause(error: ssl.SSLError, what: str) -> str:
    if error.reason in {"NO_START_LINE", "NO_CERTIFICATE_OR_CRL_FOUND"} or error.reason is None:
        return f"no {what} found; expected PEM"
    return str(error.reason).replace("_", " ").lower()


def _dns_names(der: bytes) -> Iterator[str]:
    certificate = _first(der)
    to_be_signed = _first(certificate)
    for tag, content in _elements(to_be_signed):
        if tag != _EXTENSIONS:
            continue
        for _, extension in _elements(_first(content)):
            if not extension.startswith(_SUBJECT_ALT_NAME):
                continue
            value = _first(extension, _OCTET_STRING)
            for kind, name in _elements(_first(value)):
                if kind == _DNS_NAME:
                    yield name.decode("ascii").lower().rstrip(".")


def _first(der: bytes, tag: int | None = None) -> bytes:
    """The content of the first DER element in `der` (with this tag). ValueError when there is none: the
    StopIteration of `next` would leave a generator as RuntimeError.
    """
    for kind, content in _elements(der):
        if tag is None or kind == tag:
            return content
    raise ValueError("an element is missing")


def _elements(der: bytes) -> Iterator[tuple[int, bytes]]:
    """The tag and content of each DER element in `der`, one level. ValueError when a length does not fit."""
    at = 0
    while at < len(der):
        tag, length, at = der[at], der[at + 1], at + 2
        if length & 0x80:
            width = length & 0x7F
            if not 1 <= width <= 4:
                raise ValueError(f"length of {width} bytes")
            length, at = int.from_bytes(der[at : at + width]), at + width
        if at + length > len(der):
            raise ValueError("cut short")
        yield tag, der[at : at + length]
        at += length
