"""Paths and hosts in normal form, against plain readings of RFC 3986."""

from __future__ import annotations

import re
import string

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from fastgate.server.target import host, normalise

UNRESERVED = (string.ascii_letters + string.digits + "-._~").encode()


def oracle(path: bytes) -> bytes | None:
    """RFC 3986 §6.2.2: unreserved characters decoded, dot segments removed; None when malformed."""
    if re.search(rb"%(?![0-9A-Fa-f]{2})|%00", path):
        return None
    decoded = re.sub(
        rb"%([0-9A-Fa-f]{2})",
        lambda found: char if (char := bytes.fromhex(found[1].decode())) in UNRESERVED else found[0],
        path,
    )
    rest, out = decoded, b""
    while rest:  # §5.2.4, letter by letter
        if rest.startswith(b"/./"):
            rest = rest[2:]
        elif rest == b"/.":
            rest = b"/"
        elif rest.startswith(b"/../"):
            rest, out = rest[3:], out.rpartition(b"/")[0]
        elif rest == b"/..":
            rest, out = b"/", out.rpartition(b"/")[0]
        else:
            end = rest.find(b"/", 1)
            end = len(rest) if end < 0 else end
            out, rest = out + rest[:end], rest[end:]
    return out


pieces = st.sampled_from(
    [
        "/",
        "//",
        ".",
        "..",
        "a",
        "B",
        "%2e",
        "%2E",
        "%2f",
        "%2F",
        "%41",
        "%7e",
        "%00",
        "%",
        "%2",
        "%zz",
        "%25",
        ":",
        ";",
        "~",
    ]
)
paths = st.lists(pieces, max_size=12).map(lambda parts: b"/" + "".join(parts).encode())


@given(paths)
@example(b"/")
@example(b"/a/../../b")
@example(b"/%2e%2E/%2e/x")
@example(b"/a//../b")
@example(b"/a/%2f../b")
def test_paths_agree_with_the_rfc(path: bytes) -> None:
    expected = oracle(path)

    if expected is None:
        with pytest.raises(ValueError, match="malformed percent-encoding"):
            normalise(path)
        return
    found = normalise(path)
    assert found == expected
    assert normalise(found) == found


@given(paths)
def test_no_path_leaves_the_root(path: bytes) -> None:
    try:
        found = normalise(path)
    except ValueError:
        return

    assert found.startswith(b"/")
    assert not {b".", b".."} & set(found.split(b"/"))
    assert not re.search(rb"(?i)%2e", found)


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        (b"/a/b", b"/a/b"),
        (b"/a/./b", b"/a/b"),
        (b"/a/../b", b"/b"),
        (b"/../../etc/passwd", b"/etc/passwd"),
        (b"/a/..", b"/"),
        (b"/a/.", b"/a/"),
        (b"/a/b/..", b"/a/"),
        (b"/..", b"/"),
        (b"/...", b"/..."),
        (b"/.a/..b", b"/.a/..b"),
        (b"/%61dmin", b"/admin"),
        (b"/a%2Fb", b"/a%2Fb"),
        (b"/a%2fb", b"/a%2fb"),
        (b"/a%20b", b"/a%20b"),
        (b"/%2e%2e/x", b"/x"),
        (b"/a/%2E%2e/x", b"/x"),
        (b"/a/.%2e/x", b"/x"),
        (b"//a//b", b"//a//b"),
        (b"/a//../b", b"/a/b"),
        (b"/%252e%252e/x", b"/%252e%252e/x"),
        (b"/%E2%82%AC", b"/%E2%82%AC"),
    ],
)
def test_paths(path: bytes, expected: bytes) -> None:
    assert normalise(path) == expected


@pytest.mark.parametrize("path", [b"/%", b"/%2", b"/%g0", b"/%0g", b"/%00", b"/a%00b", b"/%-1", b"/a/%u0041"])
def test_malformed_escapes_are_refused(path: bytes) -> None:
    with pytest.raises(ValueError, match="malformed percent-encoding"):
        normalise(path)


@pytest.mark.parametrize(
    ("authority", "expected"),
    [
        (b"a", b"a"),
        (b"Example.COM", b"example.com"),
        (b"example.com:8080", b"example.com"),
        (b"example.com:", b"example.com"),
        (b"EXAMPLE.com.:80", b"example.com"),
        (b"127.0.0.1:65535", b"127.0.0.1"),
        (b"[::1]", b"[::1]"),
        (b"[2001:DB8::1]:443", b"[2001:db8::1]"),
        (b"[::ffff:1.2.3.4]", b"[::ffff:1.2.3.4]"),
        (b"my_service-1", b"my_service-1"),
        (b"a" * 253, b"a" * 253),
    ],
)
def test_hosts(authority: bytes, expected: bytes) -> None:
    assert host(authority) == expected


@pytest.mark.parametrize(
    "authority",
    [
        b"",
        b":80",
        b".",
        b".a",
        b"a b",
        b"a/b",
        b"a@b",
        b"user:pass@a",
        b"a:b",
        b"a:-1",
        b"a:80x",
        b"a:65536",
        b"a:123456",
        b"a:1:2",
        b"a,b",
        b"a?b",
        b"a#b",
        b"a\\b",
        b"a\x00",
        b"a\xe9",
        b"a%2eb",
        b"[",
        b"[]",
        b"[]:80",
        b"[::1",
        b"[::1]x",
        b"[::1]:x",
        b"[::g]",
        b"[::1%25eth0]",
        b"::1",
        b"a" * 262,
    ],
)
def test_malformed_hosts_are_refused(authority: bytes) -> None:
    with pytest.raises(ValueError, match="expected host"):
        host(authority)


@given(st.binary(max_size=20))
def test_a_host_is_plain_and_stays_the_same(authority: bytes) -> None:
    try:
        found = host(authority)
    except ValueError:
        return

    assert re.fullmatch(rb"[a-z0-9._-]+|\[[0-9a-f:.]+\]", found)
    assert host(found) in (found, found.rstrip(b"."))
