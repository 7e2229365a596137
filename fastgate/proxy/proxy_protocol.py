"""The PROXY protocol, versions 1 and 2: the client's address as reported by the load balancer in front.

One pure function over the first bytes of a connection. It is called again with more bytes while it returns
None; what it may ask for is bounded, so a peer that never ends its header holds a few kB at most.

    v1   PROXY TCP4 192.0.2.1 198.51.100.1 56324 443\\r\\n         at most 107 bytes
    v2   signature 12 | version, command 1 | family 1 | length 2 | addresses | TLVs

Source: "The PROXY protocol, versions 1 & 2", Willy Tarreau, HAProxy 3.0 doc/proxy-protocol.txt (sections
cited as "spec").
"""

from __future__ import annotations

import ipaddress
from typing import NamedTuple

__all__ = ["Address", "parse"]

V1_SIGNATURE = b"PROXY "
V1_MAX_BYTES = 107  # spec 2.1: the longest line there can be, with its CRLF

V2_SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n"
V2_HEAD_BYTES = 16
# The field could say 65535. Real ones are below 1 kB even with TLS and cloud TLVs; nginx reads 4 kB too.
V2_MAX_BYTES = 4096

LOCAL, PROXY = 0x20, 0x21  # version 2 in the high half
# Family and transport to the bytes its addresses take. Spec 2.2: others "must be rejected as invalid".
V2_FAMILIES = {0x00: 0, 0x11: 12, 0x12: 12, 0x21: 36, 0x22: 36, 0x31: 216, 0x32: 216}
TCP4, TCP6 = 0x11, 0x21


class Address(NamedTuple):
    """The client's and the server's address as the load balancer saw them."""

    source_ip: str
    source_port: int
    destination_ip: str
    destination_port: int


def parse(data: bytes) -> tuple[int, Address | None] | None:
    """The bytes that the header takes and the address in it; None when `data` ends inside the header.

    The address is None when the header names none that counts: v1 UNKNOWN, v2 LOCAL (the balancer's own
    health checks), UNSPEC, datagrams and Unix sockets (spec 2.2: fall back to UNSPEC). The socket's own
    address holds then. ValueError when `data` cannot become a valid header, as early as that is certain.
    """
    if data.startswith(V2_SIGNATURE):
        return _parse_v2(data)
    if data.startswith(V1_SIGNATURE):
        return _parse_v1(data)
    if V2_SIGNATURE.startswith(data) or V1_SIGNATURE.startswith(data):
        return None
    raise ValueError("no PROXY protocol signature")


def _parse_v1(data: bytes) -> tuple[int, Address | None] | None:
    end = data.find(b"\n", 0, V1_MAX_BYTES)
    if end < 0:
        if len(data) >= V1_MAX_BYTES:
            raise ValueError(f"v1: no end of line in {V1_MAX_BYTES} bytes")
        return None
    if data[end - 1 : end] != b"\r":
        raise ValueError("v1: line ends without CR")
    fields = data[: end - 1].split(b" ")
    if fields[1] == b"UNKNOWN":
        return end + 1, None  # spec 2.1: whatever follows is ignored
    if len(fields) != 6:
        raise ValueError(f"v1: {len(fields)} fields, expected 6")
    version = {b"TCP4": 4, b"TCP6": 6}.get(fields[1])
    if version is None:
        raise ValueError("v1: protocol is none of TCP4, TCP6, UNKNOWN")
    return end + 1, Address(
        _ip(fields[2], version), _port(fields[4]), _ip(fields[3], version), _port(fields[5])
    )


def _ip(text: bytes, version: int) -> str:
    # A scope (fe80::1%eth0) has a meaning on one machine only and is not allowed in the header.
    if b"%" in text or not text.isascii():
        raise ValueError("v1: malformed address")
    if version == 4:
        return str(ipaddress.IPv4Address(text.decode()))
    return _plain(ipaddress.IPv6Address(text.decode()))


def _plain(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> str:
    # A balancer that listens on [::] reports an IPv4 client as ::ffff:192.0.2.1 (RFC 4291 2.5.5.2): for lists
    # and limits that is the same client.
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return str(mapped or address)


def _port(text: bytes) -> int:
    # bytes.isdigit is ASCII only. No leading zeros: spec 2.1 requires "exactly" the decimal form.
    if not text.isdigit() or len(text) > 5 or (len(text) > 1 and text.startswith(b"0")):
        raise ValueError("v1: malformed port")
    port = int(text)
    if port > 65535:
        raise ValueError(f"v1: port {port}, expected <= 65535")
    return port


def _parse_v2(data: bytes) -> tuple[int, Address | None] | None:
    if len(data) < V2_HEAD_BYTES:
        if len(data) > 12 and data[12] not in (LOCAL, PROXY):
            raise ValueError("v2: unknown version or command")
        return None
    command, family = data[12], data[13]
    if command not in (LOCAL, PROXY):
        raise ValueError("v2: unknown version or command")
    length = int.from_bytes(data[14:16], "big")
    end = V2_HEAD_BYTES + length
    if end > V2_MAX_BYTES:
        raise ValueError(f"v2: {end} bytes, expected <= {V2_MAX_BYTES}")
    if command == PROXY:
        if family not in V2_FAMILIES:
            raise ValueError(f"v2: unknown family 0x{family:02x}")
        if length < V2_FAMILIES[family]:
            raise ValueError(f"v2: {length} bytes of addresses, expected {V2_FAMILIES[family]}")
    if len(data) < end:
        return None
    if command == PROXY and family in (TCP4, TCP6):
        return end, _v2_address(data, 4 if family == TCP4 else 16)
    return end, None


def _v2_address(data: bytes, width: int) -> Address:
    source = data[V2_HEAD_BYTES : V2_HEAD_BYTES + width]
    destination = data[V2_HEAD_BYTES + width : V2_HEAD_BYTES + 2 * width]
    ports = V2_HEAD_BYTES + 2 * width
    return Address(
        _plain(ipaddress.ip_address(source)),
        int.from_bytes(data[ports : ports + 2], "big"),
        _plain(ipaddress.ip_address(destination)),
        int.from_bytes(data[ports + 2 : ports + 4], "big"),
    )
