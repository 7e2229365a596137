"""Certificate files: the names they cover, and a clear error for every way a file can be wrong."""

from __future__ import annotations

import ssl
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from fastgate.certificates import CertificateError, certificate_names, load_authorities, load_pair
from tests.authority import Authority


def server_context() -> ssl.SSLContext:
    return ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)


def test_names_come_from_the_certificate_in_lower_case(tmp_path: Path) -> None:
    pair = Authority(tmp_path).issue("www", ["WWW.Example.com", "*.example.com", "example.com"])

    assert certificate_names(pair.certificate) == ("www.example.com", "*.example.com", "example.com")


def test_the_leaf_of_a_chain_is_the_one_that_is_read(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    leaf = Path(authority.issue("leaf", ["leaf.test"]).certificate)
    chain = tmp_path / "chain.pem"
    chain.write_text("a comment\n" + leaf.read_text() + Path(authority.certificate).read_text())

    assert certificate_names(str(chain)) == ("leaf.test",)


def test_a_certificate_with_many_names_is_read_whole(tmp_path: Path) -> None:
    names = [f"host-{number}.example.com" for number in range(300)]

    assert certificate_names(Authority(tmp_path).issue("many", names).certificate) == tuple(names)


def test_no_names_is_an_empty_tuple(tmp_path: Path) -> None:
    assert certificate_names(Authority(tmp_path).issue("bare", []).certificate) == ()


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    pair = Authority(tmp_path).issue("www", ["www.test"])

    with pytest.raises(CertificateError, match=r"gone\.key: No such file"):
        load_pair(server_context(), pair.certificate, str(tmp_path / "gone.key"))
    with pytest.raises(CertificateError, match=r"gone\.pem: No such file"):
        certificate_names(str(tmp_path / "gone.pem"))


def test_a_key_of_another_certificate_is_named(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    first, second = authority.issue("first", []), authority.issue("second", [])

    with pytest.raises(CertificateError, match=r"second\.key: not the key of .*first\.pem"):
        load_pair(server_context(), first.certificate, second.key)


def test_an_encrypted_key_is_refused_without_asking_for_its_pass_phrase(tmp_path: Path) -> None:
    pair = Authority(tmp_path).issue("sealed", [], password=b"secret")

    with pytest.raises(CertificateError, match=r"sealed\.key: the key is encrypted"):
        load_pair(server_context(), pair.certificate, pair.key)


@pytest.mark.parametrize("wrong", ["certificate", "key"])
def test_the_file_that_is_not_pem_is_the_one_named(tmp_path: Path, wrong: str) -> None:
    pair = Authority(tmp_path).issue("www", [])._replace(**{wrong: str(tmp_path / "text.pem")})
    (tmp_path / "text.pem").write_text("hello\n")

    with pytest.raises(CertificateError, match=rf"text\.pem: no (private )?{wrong} found; expected PEM"):
        load_pair(server_context(), pair.certificate, pair.key)


def test_authorities_without_a_certificate_are_refused(tmp_path: Path) -> None:
    (tmp_path / "empty.pem").write_text("")

    with pytest.raises(CertificateError, match=r"empty\.pem"):
        load_authorities(server_context(), str(tmp_path / "empty.pem"))


def test_a_certificate_without_its_parts_is_damaged(tmp_path: Path) -> None:
    sequence_of_nothing = b"\x30\x00"
    (tmp_path / "hollow.pem").write_text(ssl.DER_cert_to_PEM_cert(sequence_of_nothing))

    with pytest.raises(CertificateError, match="damaged certificate"):
        certificate_names(str(tmp_path / "hollow.pem"))


@example(cut=0.75, flipped=1)
@given(cut=st.floats(0, 1), flipped=st.integers(0, 255))
def test_a_damaged_certificate_gives_names_or_a_clear_error(
    tmp_path_factory: pytest.TempPathFactory, cut: float, flipped: int
) -> None:
    directory = tmp_path_factory.getbasetemp() / "damaged"
    if not directory.exists():
        directory.mkdir()
        Authority(directory).issue("www", ["www.test"])
    der = bytearray(ssl.PEM_cert_to_DER_cert((directory / "www.pem").read_text()))
    der[int(cut * (len(der) - 1))] ^= flipped
    (directory / "hurt.pem").write_text(ssl.DER_cert_to_PEM_cert(bytes(der)))

    try:
        names = certificate_names(str(directory / "hurt.pem"))
    except CertificateError as error:
        assert "damaged certificate" in str(error)
    else:
        assert all(isinstance(name, str) for name in names)
