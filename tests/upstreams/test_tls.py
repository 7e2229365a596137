"""TLS to an upstream: what is verified, against what, and our own certificate."""

from __future__ import annotations

import contextlib
import ssl
from pathlib import Path

import pytest

from fastgate.certificates import CertificateError
from fastgate.upstream.settings import UpstreamTlsConfig
from fastgate.upstream.tls import upstream_context
from tests.authority import Authority, Pair


def server_context(pair: Pair, client_authority: Authority | None = None) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*pair)
    context.set_alpn_protocols(["h2", "http/1.1"])
    if client_authority is not None:
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(client_authority.certificate)
    return context


def handshake(
    server: ssl.SSLContext, config: UpstreamTlsConfig, name: str
) -> tuple[ssl.SSLObject, ssl.SSLObject]:
    """The client's and the server's end after a whole handshake in memory. ssl.SSLError when one refuses."""
    up, down = ssl.MemoryBIO(), ssl.MemoryBIO()
    there = server.wrap_bio(up, down, server_side=True)
    here = upstream_context(config).wrap_bio(down, up, server_hostname=name)
    waiting = [here, there]
    while waiting:
        for side in list(waiting):
            with contextlib.suppress(ssl.SSLWantReadError):
                side.do_handshake()
                waiting.remove(side)
    return here, there


def test_an_upstream_of_the_named_authority_is_accepted(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    server = server_context(authority.issue("www", ["orders.internal"]))

    here, _ = handshake(server, UpstreamTlsConfig(ca=authority.certificate), "orders.internal")

    assert here.version() == "TLSv1.3"
    assert here.selected_alpn_protocol() == "http/1.1"


@pytest.mark.parametrize(
    ("trusted", "name"),
    [
        ("ours", "other.internal"),  # not a name of the certificate
        ("foreign", "orders.internal"),
        (None, "orders.internal"),  # the system does not know our authority
    ],
)
def test_an_upstream_that_cannot_be_verified_is_refused(
    tmp_path: Path, trusted: str | None, name: str
) -> None:
    files = {"ours": Authority(tmp_path), "foreign": Authority(tmp_path, "foreign")}
    server = server_context(files["ours"].issue("www", ["orders.internal"]))
    config = UpstreamTlsConfig(ca=files[trusted].certificate if trusted else None)

    with pytest.raises(ssl.SSLCertVerificationError):
        handshake(server, config, name)


def test_verification_can_be_turned_off(tmp_path: Path) -> None:
    server = server_context(Authority(tmp_path).issue("www", ["orders.internal"]))

    here, _ = handshake(server, UpstreamTlsConfig(verify=False), "other.internal")

    assert here.version() == "TLSv1.3"


def test_our_certificate_is_shown_to_an_upstream_that_asks(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    server = server_context(authority.issue("www", ["orders.internal"]), client_authority=authority)
    ours = authority.issue("gateway", ["gateway.internal"])
    config = UpstreamTlsConfig(ca=authority.certificate, certificate=ours.certificate, key=ours.key)

    _, there = handshake(server, config, "orders.internal")

    seen = there.getpeercert()
    assert seen is not None
    assert ("DNS", "gateway.internal") in seen["subjectAltName"]


def test_bad_files_are_named(tmp_path: Path) -> None:
    ours = Authority(tmp_path).issue("gateway", [])

    with pytest.raises(CertificateError, match=r"gone\.pem: No such file"):
        upstream_context(UpstreamTlsConfig(ca=str(tmp_path / "gone.pem")))
    with pytest.raises(CertificateError, match="needs its key"):
        upstream_context(UpstreamTlsConfig(certificate=ours.certificate))
