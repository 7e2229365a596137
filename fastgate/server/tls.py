"""TLS on a listener: choice of the certificate, and new certificates without a restart.

The listening socket is opened with `TlsContexts.context`, which never changes. It does not choose a
certificate itself: its SNI callback moves every new handshake to a context of the current table, so replacing
the table affects the next handshake and no open connection.

    exact name  www.example.com        one dict
    wildcard    *.example.com          one dict, looked up by the name without its first label (RFC 9525 §6.3)
    default     the first certificate  for no name, an unknown name

OpenSSL copies the verify mode, the options and the version bounds from the first context when the handshake
starts and takes certificates, trusted CAs and ALPN from the one it is moved to (SSL_set_SSL_CTX(3)). All
contexts are therefore built by one function.
"""

from __future__ import annotations

import ssl

from fastgate.certificates import CertificateError, certificate_names, load_authorities, load_pair
from fastgate.config import TlsConfig
from fastgate.state.files import Stamp, stamp_of

__all__ = ["TlsContexts"]

# TLS 1.2 with forward secrecy and AEAD only: the "intermediate" profile of Mozilla's guideline 5.7 without
# DHE, whose handshakes are slow. TLS 1.3 has no weak suites and keeps OpenSSL's order.
CIPHERS = "ECDHE+AESGCM:ECDHE+CHACHA20"

MIN_VERSIONS = {"1.2": ssl.TLSVersion.TLSv1_2, "1.3": ssl.TLSVersion.TLSv1_3}
CLIENT_CERTIFICATES = {
    "ignored": ssl.CERT_NONE,
    "optional": ssl.CERT_OPTIONAL,
    "required": ssl.CERT_REQUIRED,
}


class TlsContexts:
    """The certificates of one listener. One per worker; handshakes and `reload` run on the worker's loop."""

    def __init__(self, config: TlsConfig) -> None:
        """Raises CertificateError if a file cannot be used."""
        self._config = config
        self._files = [path for pair in config.certificates for path in (pair.certificate, pair.key)]
        if config.client_ca is not None:
            self._files.append(config.client_ca)
        self._seen: list[Stamp | None] = [None] * len(self._files)
        self._seen = self._stamps()
        self._table = _Table(config)
        self.context = _context(config, 0)
        # The type of the callback in typeshed wants SSLSocket; on an event loop it is an SSLObject.
        self.context.sni_callback = self._choose

    def changed(self) -> bool:
        """True if the stamp of a file differs from that of the last load, successful or not."""
        now = self._stamps()
        if now != self._seen:
            return True
        self._seen = now  # unchanged, but the stamps may have settled
        return False

    def reload(self) -> None:
        """Reads every file again; new handshakes use the result, open connections are unaffected.

        Raises CertificateError if one cannot be used: nothing changes, and `changed` is False until a file
        changes again, so that a half-replaced pair is reported once and loaded when it is complete.
        """
        self._seen = self._stamps()  # before reading: a change in between is detected next time
        self._table = _Table(self._config)

    def names(self) -> tuple[str, ...]:
        """Every covered name, sorted, wildcards as `*.example.com`."""
        return tuple(sorted([*self._table.exact, *(f"*.{suffix}" for suffix in self._table.wildcard)]))

    def _choose(self, connection: ssl.SSLObject, name: str | None, _: ssl.SSLContext) -> None:
        connection.context = self._table.find(name)

    def _stamps(self) -> list[Stamp | None]:
        return [stamp_of(path, known) for path, known in zip(self._files, self._seen, strict=True)]


class _Table:
    """Name to context, built completely and then only read. The first certificate that covers a name wins."""

    def __init__(self, config: TlsConfig) -> None:
        self.exact: dict[str, ssl.SSLContext] = {}
        self.wildcard: dict[str, ssl.SSLContext] = {}
        contexts = []
        for index, pair in enumerate(config.certificates):
            context = _context(config, index)
            contexts.append(context)
            for name in certificate_names(pair.certificate):
                if name.startswith("*."):
                    self.wildcard.setdefault(name[2:], context)
                else:
                    self.exact.setdefault(name, context)
        self.default = contexts[0]

    def find(self, name: str | None) -> ssl.SSLContext:
        if name is None:
            return self.default
        name = name.lower().rstrip(".")
        return self.exact.get(name) or self.wildcard.get(name.partition(".")[2], self.default)


def _context(config: TlsConfig, index: int) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = MIN_VERSIONS[config.min_version]
    context.set_ciphers(CIPHERS)
    context.options |= ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION
    context.set_alpn_protocols(["http/1.1"])
    pair = config.certificates[index]
    load_pair(context, pair.certificate, pair.key)
    context.verify_mode = CLIENT_CERTIFICATES[config.client_certificate]
    if context.verify_mode != ssl.CERT_NONE:
        if config.client_ca is None:
            raise CertificateError(f"client_certificate: {config.client_certificate} needs client_ca")
        load_authorities(context, config.client_ca)
        # A resumed session skips the check of the client's certificate: a removed CA would stay trusted in
        # it.
        context.options |= ssl.OP_NO_TICKET
        context.num_tickets = 0
    return context
