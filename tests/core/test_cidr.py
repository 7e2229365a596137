"""CidrSet against the ipaddress module."""

from __future__ import annotations

import ipaddress
import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastgate._core import CidrSet
from fastgate._core.http import cidr

Network = ipaddress.IPv4Network | ipaddress.IPv6Network
Address = ipaddress.IPv4Address | ipaddress.IPv6Address

# Few different bits, so that networks overlap, touch and contain what is asked for.
V4 = st.builds(
    lambda a, b: ipaddress.IPv4Address((10 << 24) | (a << 8) | b), st.integers(0, 3), st.integers(0, 255)
)
V6 = st.builds(
    lambda high, low: ipaddress.IPv6Address((0x20010DB8 << 96) | (high << 64) | low),
    st.integers(0, 3),
    st.integers(0, 7) | st.integers(0, 2**64 - 1),
)
MAPPED = st.builds(lambda a: ipaddress.IPv6Address((0xFFFF << 32) | int(a)), V4)
ANY = V4 | V6 | MAPPED | st.builds(ipaddress.IPv6Address, st.integers(0, 2**128 - 1))


@st.composite
def networks(draw: st.DrawFn) -> Network:
    address = draw(V4 | V6 | MAPPED)
    if isinstance(address, ipaddress.IPv4Address):
        return ipaddress.IPv4Network((address, draw(st.integers(0, 32))), strict=False)
    low = 96 if address.ipv4_mapped else 0
    return ipaddress.IPv6Network((address, draw(st.integers(low, 128))), strict=False)


def unmapped(address: Address) -> Address:
    return getattr(address, "ipv4_mapped", None) or address


def oracle(blocks: list[Network], address: Address) -> bool:
    address = unmapped(address)
    for block in blocks:
        first, last = unmapped(block[0]), unmapped(block[-1])
        if first.version == address.version and int(first) <= int(address) <= int(last):
            return True
    return False


@given(blocks=st.lists(networks(), max_size=20), addresses=st.lists(ANY, max_size=20))
def test_membership_is_what_ipaddress_says(blocks: list[Network], addresses: list[Address]) -> None:
    texts = CidrSet([str(block) for block in blocks])
    objects = CidrSet(blocks)
    borders = [block[i] for block in blocks for i in (0, -1)]

    for address in addresses + borders:
        expected = oracle(blocks, address)
        assert (str(address) in texts) == (address.packed in texts) == (address in objects) == expected, (
            address
        )


def test_thousands_of_ranges() -> None:
    rng = random.Random(7)
    blocks = [
        ipaddress.IPv4Network((rng.getrandbits(32), rng.randint(16, 32)), strict=False) for _ in range(3000)
    ]
    blocks_by_prefix = {(b.prefixlen, int(b.network_address)) for b in blocks}
    many = CidrSet(blocks)

    for _ in range(3000):
        ip = rng.getrandbits(32)
        expected = any((p, ip >> (32 - p) << (32 - p)) in blocks_by_prefix for p in range(16, 33))
        assert (ip.to_bytes(4, "big") in many) == expected


def test_neighbours_and_overlaps_are_joined() -> None:
    assert len(CidrSet(["10.0.0.0/25", "10.0.0.128/25", "10.0.1.0/24", "10.0.0.7"])) == 1
    assert len(CidrSet(["10.0.0.0/25", "10.0.0.129/32"])) == 2
    assert len(CidrSet(["::/1", "8000::/1"])) == 1


def test_everything_and_nothing() -> None:
    everything = CidrSet(["0.0.0.0/0", "::/0"])

    for ip in (
        "0.0.0.0",
        "255.255.255.255",
        "::",
        "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff",
        "::ffff:1.2.3.4",
    ):
        assert ip in everything
        assert ip not in CidrSet()
    assert "::ffff:1.2.3.4" not in CidrSet(["::/0"]), "a v4-mapped address is the v4 address"
    assert "::1.2.3.4" not in CidrSet(["0.0.0.0/0"]), "a v4-compatible address is not"


@pytest.mark.parametrize(
    "bad",
    [
        "10.0.0.1/8",
        "1.2.3.4/33",
        "::/129",
        "x",
        "",
        "1.2.3.4/",
        "1.2.3.4/-1",
        "1.2.3.4/+1",
        "01.2.3.4",
        "1.2.3",
        "1.2.3.4/8/8",
        "::ffff:0:0/95",
        "fe80::1%eth0",
        "1.2.3.4\0",
        "\uff11.2.3.4",  # fullwidth and Arabic digits
        "1.2.3.4/\u0663",
    ],
)
def test_bad_networks_are_named_with_their_place(bad: str) -> None:
    with pytest.raises(ValueError, match=r"networks\[1\]"):
        CidrSet(["10.0.0.0/8", bad])


@pytest.mark.parametrize(
    "bad", ["", "x", "1.2.3", "1.2.3.4.5", "1.2.3.256", " 1.2.3.4", "1.2.3.4\0", "é", "\ud800", ":" * 100]
)
def test_text_that_is_no_address_is_an_error_not_a_no(bad: str) -> None:
    with pytest.raises(ValueError, match="ip: expected an address"):
        bad in CidrSet(["0.0.0.0/0"])  # noqa: B015


@pytest.mark.parametrize(
    ("bad", "error"), [(b"123", ValueError), (b"", ValueError), (5, TypeError), (None, TypeError)]
)
def test_what_is_no_address_is_an_error(bad: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match="ip"):
        bad in CidrSet()  # noqa: B015


@pytest.mark.parametrize("bad", ["10.0.0.0/8", b"10.0.0.0/8", 5, [5], [b"10.0.0.0/8"], [None]])
def test_networks_must_be_a_list_of_text(bad: Any) -> None:
    with pytest.raises(TypeError):
        CidrSet(bad)


def test_sets_are_freed() -> None:
    before = cidr.live_objects()

    for _ in range(100):
        CidrSet(["10.0.0.0/8", "::1"])
        with pytest.raises(ValueError):
            CidrSet(["10.0.0.0/8", "x"])

    assert cidr.live_objects() == before
