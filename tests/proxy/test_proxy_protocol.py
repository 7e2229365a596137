"""The PROXY protocol header: every case whole, cut at every byte, and with a request behind it."""

from __future__ import annotations

import ipaddress
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastgate.proxy.proxy_protocol import V1_MAX_BYTES, V2_MAX_BYTES, V2_SIGNATURE, Address, parse

FOUR = Address("192.0.2.1", 56324, "198.51.100.7", 443)
SIX = Address("2001:db8::1", 1, "2001:db8::2", 65535)


def v1(kind: str, address: Address) -> bytes:
    words = ("PROXY", kind, address[0], address[2], str(address[1]), str(address[3]))
    return " ".join(words).encode() + b"\r\n"


def v2(command: int, family: int, body: bytes, length: int | None = None) -> bytes:
    size = len(body) if length is None else length
    return V2_SIGNATURE + bytes((command, family)) + size.to_bytes(2, "big") + body


def packed(address: Address) -> bytes:
    ips = ipaddress.ip_address(address[0]).packed + ipaddress.ip_address(address[2]).packed
    return ips + address[1].to_bytes(2, "big") + address[3].to_bytes(2, "big")


def tlv(kind: int, value: bytes) -> bytes:
    return bytes((kind,)) + len(value).to_bytes(2, "big") + value


TLVS = tlv(0x01, b"h2") + tlv(0x02, b"example.com") + tlv(0x04, bytes(500)) + tlv(0xEA, b"\x01vpce-1")

VALID: dict[str, tuple[bytes, Address | None]] = {
    "v1 TCP4": (v1("TCP4", FOUR), FOUR),
    "v1 TCP6": (v1("TCP6", SIX), SIX),
    "v1 TCP6 uncompressed": (
        v1("TCP6", SIX._replace(source_ip="2001:0db8:0000:0000:0000:0000:0000:0001")),
        SIX,
    ),
    "v1 port 0": (v1("TCP4", FOUR._replace(source_port=0)), FOUR._replace(source_port=0)),
    "v1 UNKNOWN": (b"PROXY UNKNOWN\r\n", None),
    "v1 UNKNOWN with addresses": (b"PROXY UNKNOWN ffff::1 ffff::2 65535 65535\r\n", None),
    "v1 UNKNOWN with anything": (b"PROXY UNKNOWN what ever \x00\xff\r\n", None),
    "v1 longest": (b"PROXY UNKNOWN " + b"x" * (V1_MAX_BYTES - 16) + b"\r\n", None),
    "v2 TCP4": (v2(0x21, 0x11, packed(FOUR)), FOUR),
    "v2 TCP6": (v2(0x21, 0x21, packed(SIX)), SIX),
    "v2 TCP4 with TLVs": (v2(0x21, 0x11, packed(FOUR) + TLVS), FOUR),
    "v2 TCP6 with TLVs": (v2(0x21, 0x21, packed(SIX) + TLVS), SIX),
    "v2 LOCAL": (v2(0x20, 0x00, b""), None),
    "v2 LOCAL with addresses": (v2(0x20, 0x11, packed(FOUR)), None),
    "v2 LOCAL of an unknown family": (v2(0x20, 0x77, b"abc"), None),
    "v2 UNSPEC": (v2(0x21, 0x00, b""), None),
    "v2 UNSPEC with TLVs": (v2(0x21, 0x00, TLVS), None),
    "v2 UDP4": (v2(0x21, 0x12, packed(FOUR)), None),
    "v2 UDP6": (v2(0x21, 0x22, packed(SIX)), None),
    "v2 Unix stream": (v2(0x21, 0x31, b"/run/a.sock".ljust(108, b"\0") * 2), None),
    "v2 longest": (v2(0x21, 0x11, packed(FOUR).ljust(V2_MAX_BYTES - 16, b"\0")), FOUR),
}

MALFORMED: dict[str, bytes] = {
    "a plain request": b"GET / HTTP/1.1\r\n\r\n",
    "a TLS hello": b"\x16\x03\x01",
    "a request that starts alike": b"PROPFIND / HTTP/1.1\r\n",
    "lower case": b"proxy TCP4 1.1.1.1 2.2.2.2 1 2\r\n",
    "v1 without an end": b"PROXY TCP4 " + b"1" * V1_MAX_BYTES,
    "v1 too long by one": b"PROXY UNKNOWN " + b"x" * (V1_MAX_BYTES - 15) + b"\r\n",
    "v1 bare LF": b"PROXY TCP4 1.1.1.1 2.2.2.2 1 2\n",
    "v1 two spaces": b"PROXY TCP4  1.1.1.1 2.2.2.2 1 2\r\n",
    "v1 tab": b"PROXY TCP4\t1.1.1.1 2.2.2.2 1 2\r\n",
    "v1 trailing space": b"PROXY TCP4 1.1.1.1 2.2.2.2 1 2 \r\n",
    "v1 no protocol": b"PROXY \r\n",
    "v1 no addresses": b"PROXY TCP4\r\n",
    "v1 another protocol": b"PROXY UDP4 1.1.1.1 2.2.2.2 1 2\r\n",
    "v1 protocol in lower case": b"PROXY tcp4 1.1.1.1 2.2.2.2 1 2\r\n",
    "v1 five fields": b"PROXY TCP4 1.1.1.1 2.2.2.2 1\r\n",
    "v1 TCP4 with IPv6": b"PROXY TCP4 ::1 ::2 1 2\r\n",
    "v1 TCP6 with IPv4": b"PROXY TCP6 1.1.1.1 2.2.2.2 1 2\r\n",
    "v1 octal address": b"PROXY TCP4 010.1.1.1 2.2.2.2 1 2\r\n",
    "v1 short address": b"PROXY TCP4 1.1.1 2.2.2.2 1 2\r\n",
    "v1 address too large": b"PROXY TCP4 256.1.1.1 2.2.2.2 1 2\r\n",
    "v1 scoped address": b"PROXY TCP6 fe80::1%eth0 ::2 1 2\r\n",
    "v1 not ASCII": b"PROXY TCP4 \xef\xbc\x91.1.1.1 2.2.2.2 1 2\r\n",
    "v1 port too large": b"PROXY TCP4 1.1.1.1 2.2.2.2 65536 2\r\n",
    "v1 port with zeros": b"PROXY TCP4 1.1.1.1 2.2.2.2 080 2\r\n",
    "v1 port with sign": b"PROXY TCP4 1.1.1.1 2.2.2.2 +80 2\r\n",
    "v1 port negative": b"PROXY TCP4 1.1.1.1 2.2.2.2 -1 2\r\n",
    "v1 port with underscore": b"PROXY TCP4 1.1.1.1 2.2.2.2 8_0 2\r\n",
    "v1 port empty": b"PROXY TCP4 1.1.1.1 2.2.2.2  2\r\n",
    "v2 broken signature": V2_SIGNATURE[:-1] + b"X",
    "v2 version 1": v2(0x11, 0x11, packed(FOUR)),
    "v2 version 3": v2(0x31, 0x11, packed(FOUR)),
    "v2 unknown command": v2(0x22, 0x11, packed(FOUR)),
    "v2 unknown family": v2(0x21, 0x41, bytes(36)),
    "v2 unknown transport": v2(0x21, 0x13, bytes(36)),
    "v2 no room for its addresses": v2(0x21, 0x11, packed(FOUR)[:-1]),
    "v2 IPv6 in the room of IPv4": v2(0x21, 0x21, packed(FOUR)),
    "v2 too long by one": v2(0x21, 0x11, packed(FOUR), length=V2_MAX_BYTES - 15),
    "v2 as long as can be said": v2(0x21, 0x11, packed(FOUR), length=65535),
}


@pytest.mark.parametrize("case", VALID)
def test_a_valid_header_gives_its_address_and_length(case: str) -> None:
    header, address = VALID[case]

    assert parse(header) == (len(header), address)


@pytest.mark.parametrize("case", VALID)
def test_a_valid_header_is_taken_whole_and_no_further(case: str) -> None:
    header, address = VALID[case]

    for behind in (b"G", b"GET / HTTP/1.1\r\n\r\n", b"\r\n", b"\0", header):
        assert parse(header + behind) == (len(header), address)


@pytest.mark.parametrize("case", VALID)
def test_every_part_of_a_valid_header_asks_for_more(case: str) -> None:
    header, _ = VALID[case]

    assert [parse(header[:cut]) for cut in range(len(header))] == [None] * len(header)


@pytest.mark.parametrize("case", MALFORMED)
def test_a_malformed_header_is_refused_whole_and_with_bytes_behind_it(case: str) -> None:
    for behind in (b"", b"GET / HTTP/1.1\r\n\r\n"):
        with pytest.raises(ValueError, match=r".+"):
            parse(MALFORMED[case] + behind)


@pytest.mark.parametrize("case", MALFORMED)
def test_a_malformed_header_never_passes_byte_by_byte(case: str) -> None:
    header = MALFORMED[case]

    for cut in range(len(header) + 1):
        try:
            assert parse(header[:cut]) is None
        except ValueError:
            return
    pytest.fail("asked for more for ever")


def addresses(version: Literal[4, 6]) -> st.SearchStrategy[Address]:
    ips = st.ip_addresses(v=version).map(str)
    ports = st.integers(0, 65535)
    return st.builds(Address, ips, ports, ips, ports)


def unmapped(text: str) -> str:
    """An IPv4 client of a listener on [::] is an IPv4 client (RFC 4291 §2.5.5.2)."""
    address = ipaddress.ip_address(text)
    return str(getattr(address, "ipv4_mapped", None) or address)


@given(st.one_of(addresses(4), addresses(6)), st.binary(max_size=300), st.binary(max_size=30))
def test_any_address_comes_back_from_either_version(address: Address, extra: bytes, behind: bytes) -> None:
    is_four = ":" not in address.source_ip
    first = v1("TCP4" if is_four else "TCP6", address)
    second = v2(0x21, 0x11 if is_four else 0x21, packed(address) + extra)

    expected = address._replace(
        source_ip=unmapped(address.source_ip), destination_ip=unmapped(address.destination_ip)
    )
    assert parse(first + behind) == (len(first), expected)
    assert parse(second + behind) == (len(second), expected)


@given(
    st.one_of(
        st.binary(max_size=400),
        st.binary(max_size=200).map(b"PROXY ".__add__),
        st.binary(max_size=400).map(V2_SIGNATURE.__add__),
        st.text("PROXYTCP46UNKNOWN 0123456789.:abcdef\r\n", max_size=150).map(
            lambda text: b"PROXY " + text.encode()
        ),
    )
)
def test_whatever_comes_the_answer_does_not_depend_on_how_it_was_cut(data: bytes) -> None:
    def outcome(part: bytes) -> object:
        try:
            return parse(part)
        except ValueError:
            return ValueError

    answers = [outcome(data[:cut]) for cut in range(len(data) + 1)]

    decided = [answer for answer in answers if answer is not None]
    assert all(answer == decided[0] for answer in decided)  # once decided, more bytes change nothing
    assert answers == [None] * (len(answers) - len(decided)) + decided
    if decided and decided[0] is not ValueError:
        assert decided[0][0] <= len(data)  # type: ignore[index]
