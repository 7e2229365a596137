"""What a client certificate says of its owner: pins, and names that are no evidence."""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from fastgate.auth.mtls import MtlsScheme
from fastgate.auth.scheme import REJECTED
from fastgate.auth.settings import MtlsConfig

KEY = ec.generate_private_key(ec.SECP256R1())


def certificate(*common_names: str, sans: Sequence[x509.GeneralName] = ()) -> bytes:
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name) for name in common_names])
    now = datetime.datetime.now(datetime.UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "CA")]))
        .public_key(KEY.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
    )
    if sans:
        builder = builder.add_extension(x509.SubjectAlternativeName(sans), critical=False)
    return builder.sign(KEY, hashes.SHA256()).public_bytes(Encoding.DER)


def judge(der: bytes, consumers: dict[str, list[str]], **settings: Any) -> Any:
    """The name of the consumer, or REJECTED."""

    def resolve(name: str, *, must_exist: bool, **_more: Any) -> str | None:
        return name if name in consumers or not must_exist else None

    scheme = MtlsScheme(MtlsConfig(**settings), consumers, resolve)
    return scheme.verify(SimpleNamespace(client_certificate=der))  # type: ignore[arg-type]


def test_a_name_reaches_a_consumer_without_listed_certificates() -> None:
    assert judge(certificate("orders"), {"orders": []}) == "orders"


PIN = {"orders": ["sha256:" + "ab" * 32], "plain": []}


@pytest.mark.parametrize(
    "der",
    [
        certificate("orders"),
        certificate("plain", "orders"),
        certificate("other", sans=[x509.DNSName("orders")]),
        certificate("other", sans=[x509.DNSName("ORDERS")]),
        certificate("other", sans=[x509.UniformResourceIdentifier("orders")]),
        certificate("plain", sans=[x509.DNSName("orders")]),
        certificate("other", sans=[x509.DNSName("plain"), x509.DNSName("orders")]),
    ],
    ids=["cn", "second-cn", "dns", "dns-upper", "uri", "beside-a-good-cn", "second-dns"],
)
@pytest.mark.parametrize("allow_unknown", [False, True])
def test_no_name_reaches_a_consumer_with_listed_certificates(der: bytes, allow_unknown: bool) -> None:
    assert judge(der, PIN, allow_unknown=allow_unknown) not in ("orders",)


def test_a_consumer_listed_by_the_section_is_reached_by_that_entry_only() -> None:
    listed = {"certificates": {"dns:orders.internal": "orders"}}

    assert judge(certificate("x", sans=[x509.DNSName("orders.internal")]), {}, **listed) == "orders"
    assert judge(certificate("orders"), {"orders": []}, **listed) is REJECTED


def test_two_common_names_are_none() -> None:
    consumers: dict[str, list[str]] = {"first": [], "second": []}

    assert judge(certificate("first", "second"), consumers) is REJECTED
    assert judge(certificate("first", "second"), {"first": ["cn:second"]}) is REJECTED
    assert judge(certificate("a", "b", sans=[x509.DNSName("first")]), consumers) == "first"
