"""Paths and hosts in normal form, against plain readings of RFC 3986."""

from __future__ import annotations

import re
import string

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from fastgate._core.http.urlpath import normalise, readings
from fastgate.proxy.request_target import host

UNRESERVED = (string.ascii_letters + string.digits + "-._~").encode()
PATH_BYTES = UNRESERVED + b"!$&'()*+,;=:@/%"


def oracle(path: bytes, merge: bool) -> bytes | None:
    """RFC 3986 §6.2.2: unreserved characters decoded, other escapes in upper case, what may not stand in a
    path escaped, dot segments removed; None when malformed. merge: empty segments taken out first.
    """
    if re.search(rb"%(?![0-9A-Fa-f]{2})|%00", path):
        return None
    decoded = re.sub(
        rb"%([0-9A-Fa-f]{2})",
        lambda found: char if (char := bytes.fromhex(found[1].decode())) in UNRESERVED else found[0].upper(),
        path,
    )
    decoded = b"".join(b"%c" % c if c in PATH_BYTES else b"%%%02X" % c for c in decoded)
    if merge:
        decoded = re.sub(rb"/+", b"/", decoded)
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
        "\\",
        "|",
        "%5c",
        "%3B",
        "%40",
        "%c0%af",
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
    for merge in (True, False):
        expected = oracle(path, merge)

        if expected is None:
            with pytest.raises(ValueError, match="malformed percent-encoding"):
                normalise(path, merge)
            continue
        found = normalise(path, merge)
        # Between its dot segments, `/a/..//b` has an empty one only once they are removed.
        assert (re.sub(rb"/+", b"/", found) if merge else found) == (
            re.sub(rb"/+", b"/", expected) if merge else expected
        )
        assert not merge or b"//" not in found
        assert normalise(found, merge) == found


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
        (b"/a%2fb", b"/a%2Fb"),
        (b"/caf%c3%a9", b"/caf%C3%A9"),
        (b"/a\\b", b"/a%5Cb"),
        (b'/a|b"<>^`{}[]', b"/a%7Cb%22%3C%3E%5E%60%7B%7D%5B%5D"),
        (b"/a;b=c,d@e:f!$&'()*+", b"/a;b=c,d@e:f!$&'()*+"),
        (b"/a//", b"/a/"),
        (b"//", b"/"),
        (b"//..//a", b"/a"),
        (b"/a%20b", b"/a%20b"),
        (b"/%2e%2e/x", b"/x"),
        (b"/a/%2E%2e/x", b"/x"),
        (b"/a/.%2e/x", b"/x"),
        (b"//a//b", b"/a/b"),
        (b"/a//../b", b"/b"),
        (b"/%252e%252e/x", b"/%252e%252e/x"),
        (b"/%E2%82%AC", b"/%E2%82%AC"),
    ],
)
def test_paths(path: bytes, expected: bytes) -> None:
    assert normalise(path) == expected


def test_empty_segments_are_kept_when_asked() -> None:
    assert normalise(b"//a//b/", False) == b"//a//b/"
    assert normalise(b"/a//../b", False) == b"/a/b"


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        (b"/plain/path.txt", []),
        (b"/caf%c3%a9/%20", []),
        (b"/a%2fb", [b"/a/b"]),
        (b"/a%2f..%2fb", [b"/b"]),
        (b"/a;x/b", [b"/a/b"]),
        (b"/a%5cb", [b"/a\\b".replace(b"\\", b"/")]),
        (b"/a/..;/b", [b"/b"]),
        (b"/%252fa", [b"//a", b"/a"]),
        (b"/a%40b", [b"/a@b"]),
        (b"/%c0%aea", [b"/.a"]),
        (b"/a%2500", [None]),
    ],
)
def test_what_others_may_read(path: bytes, expected: list[bytes | None]) -> None:
    assert readings(path)[1:] == expected


@given(paths)
def test_a_reading_is_in_normal_form(path: bytes) -> None:
    try:
        normalise(path)
    except ValueError:
        return

    for found in readings(path):
        assert found is None or normalise(found, False) == found


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
