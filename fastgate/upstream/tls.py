"""TLS to an upstream: one SSLContext per upstream, shared by all connections of its pool.

The name to verify and to send as SNI is given per connection (`server_hostname=`): the config's
`server_name`, else the target's host.
"""

from __future__ import annotations

import ssl

from fastgate.certificates import CertificateError, load_authorities, load_pair
from fastgate.upstream.settings import UpstreamTlsConfig

__all__ = ["upstream_context"]


def upstream_context(config: UpstreamTlsConfig) -> ssl.SSLContext:
    """A client context: TLS 1.2 or newer, ALPN http/1.1, the upstream verified unless `verify` is off.

    Raises CertificateError if a file cannot be used.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # verifies chain and name by default
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION
    context.set_alpn_protocols(["http/1.1"])
    if not config.verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    elif config.ca is None:
        context.load_default_certs()
    else:
        load_authorities(context, config.ca)
    if config.certificate is not None:
        if config.key is None:
            raise CertificateError(f"{config.certificate}: a client certificate needs its key")
        load_pair(context, config.certificate, config.key)
    return context
