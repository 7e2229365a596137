"""What is read from a store is believed only after a look at it: a checksum finds damage, but whoever can
write to Redis can write a checksum, too.
"""

from __future__ import annotations

import struct
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis as client

from fastgate._core.cache.envelope import open_fields
from fastgate._core.cache.http_cache import Rules
from fastgate._core.cache.http_dates import format_date
from fastgate._core.cache.http_keys import Vary
from fastgate._core.cache.http_stored import StoredResponse
from fastgate._core.hashing import siphash64
from fastgate.state.envelope import seal
from tests.caching.redis_server import RedisServer
from tests.caching.test_exchange import Origin
from tests.caching.test_tiers_gateway import ask, gateway

SECOND = 1_000_000_000
NOW = 1_700_000_000 * SECOND
BODY = b"0123456789"
HEAD_AT = struct.calcsize("<4sQHHHH7qIIQ")
FIELDS = struct.Struct("<HHHH7qIIQ")
CHECK_KEY = struct.pack("<QQ", 0x6661737467617465, 0x6361636865763031)


def stored(**more: Any) -> StoredResponse:
    rules = Rules(**more)
    asked = rules.read_request("GET")
    rules.key(asked, False, b"here.example", b"/")
    fields = [
        ("Date", format_date(NOW // SECOND).decode()),
        ("Cache-Control", "max-age=60"),
        ("ETag", '"a"'),
        ("Last-Modified", format_date(NOW // SECOND - 9).decode()),
        ("Vary", "accept"),
        ("Surrogate-Key", "tag"),
    ]
    return rules.store(asked, 200, fields, NOW, NOW).finish(BODY)


def sealed(record: bytes) -> bytes:
    """The record with the checksum that belongs to what it is now."""
    rest = record[12:]
    return record[:4] + struct.pack("<Q", siphash64(rest, CHECK_KEY, (1, 3))) + rest


def with_head(change: Callable[[bytes], bytes]) -> bytes:
    """A record with another head, and everything else right."""
    whole = stored()
    record = whole.to_bytes()
    at = record.rindex(whole.head)
    head = change(whole.head)
    shape = list(FIELDS.unpack_from(record, 12))
    shape[12] = len(head)
    return sealed(
        record[:12] + FIELDS.pack(*shape) + record[HEAD_AT:at] + head + record[at + len(whole.head) :]
    )


def with_field(index: int, value: int) -> bytes:
    record = stored().to_bytes()
    shape = list(FIELDS.unpack_from(record, 12))
    shape[index] = value
    return sealed(record[:12] + FIELDS.pack(*shape) + record[HEAD_AT:])


def test_the_changes_below_are_the_only_thing_wrong() -> None:
    assert StoredResponse.from_bytes(with_head(lambda head: head)) is not None
    assert StoredResponse.from_bytes(with_head(lambda head: head + b"X-More: 1\r\n")) is not None
    assert StoredResponse.from_bytes(with_field(0, 404)) is None  # the line says 200


@pytest.mark.parametrize(
    "change",
    [
        lambda head: head + b"no colon\r\n",
        lambda head: head + b"a:\r\n",
        lambda head: head + b"a:b\r\n",
        lambda head: head + b": b\r\n",
        lambda head: head + b"a b: c\r\n",
        lambda head: head + b"\r\n",
        lambda head: head + b"a: b",
        lambda head: head + b"a: b\r",
        lambda head: head + b"a: b\n",
        lambda head: head + b"a: b\rc: d\r\n",
        lambda head: head + b"a: b\nc: d\r\n",
        lambda head: head + b"a: \0\r\n",
        lambda head: head.replace(b"\r\n", b"\r\n\r\nHTTP/1.1 200 OK\r\n", 1),
        lambda head: head + b"Transfer-Encoding: chunked\r\n",
        lambda head: head + b"Connection: close\r\n",
        lambda head: head + b"Content-Length: 10\r\n",
        lambda head: head.replace(b"Content-Length: 10", b"Content-Length: 11"),
        lambda head: head.replace(b"Content-Length: 10\r\n", b""),
        lambda head: head.replace(b"Content-Length: 10", b"Content-Length: +10"),
        lambda head: head.replace(b"Date", b"Dote"),
        lambda head: head.replace(b"Last-Modified", b"Lost-Modified"),
        lambda head: head.replace(b"HTTP/1.1 200 ", b"HTTP/1.1 200"),
        lambda head: head.replace(b"HTTP/1.1 200", b"HTTP/1.1 2 0"),
        lambda head: head.replace(b"HTTP/1.1", b"HTTP/1.0"),
        lambda head: head.replace(b"200 OK", b"200 O\tK\x01"),
        lambda head: b"",
        lambda head: b"HTTP/1.1 200 OK",
        lambda head: b"HTTP/1.1 200 OK\r\n",
        lambda head: head + b"x: y\r\n" * 600,
    ],
)
def test_a_head_that_was_not_written_here_is_nothing(change: Callable[[bytes], bytes]) -> None:
    assert StoredResponse.from_bytes(with_head(change)) is None


@pytest.mark.parametrize(
    ("index", "value"),
    [
        (0, 99),
        (0, 206),
        (0, 304),
        (0, 65535),
        (2, 300),
        (3, 60),
        (4, 2**63 - 1),
        (4, -(2**63)),
        (6, 2**63 - 1),
        (9, 2**62),
        (11, 2**31),
        (12, 2**31),
        (13, 2**63),
        (13, 2**64 - 1),
    ],
)
def test_a_number_out_of_bounds_is_nothing(index: int, value: int) -> None:
    assert StoredResponse.from_bytes(with_field(index, value)) is None


@pytest.mark.parametrize("names", [b"a b", b"a\0b", b"", b"a,", b"\r\n", b"x" * 300, b",".join([b"n"] * 99)])
def test_a_vary_that_was_not_stored_is_nothing(names: bytes) -> None:
    assert Vary.from_bytes(b"FGV1" + names) is None


def test_objects_made_by_hand_are_harmless() -> None:
    empty = StoredResponse()

    assert empty.fields() == []
    assert empty.conditions() == []
    assert empty.field(b"date") is None
    assert empty.size > 0
    assert StoredResponse.from_bytes(empty.to_bytes()) is None


# --- through the gateway, with a Redis that somebody else writes to ---


@pytest.fixture(scope="module")
def redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    server = RedisServer(tmp_path_factory.mktemp("hostile"))
    server.start()
    yield server
    server.stop()


def poison(redis: RedisServer, prefix: str, change: Callable[[bytes], bytes], until: float) -> None:
    """Puts another record in the place of the only value there is, in an envelope with the right checksum."""
    with client.Redis(unix_socket_path=str(redis.socket)) as connection:
        while not (names := list(connection.keys(f"{prefix}*v"))):
            assert time.monotonic() < until, "nothing was stored"
            time.sleep(0.02)
        for name in names:
            data = connection.get(name)
            assert isinstance(data, bytes)
            key_n = struct.unpack_from("<H", data, 14)[0]
            key = data[44 : 44 + key_n]
            found = open_fields(data, 0, None)
            assert isinstance(found, tuple)
            expires_ns, sequence, tags = found[:3]
            connection.set(name, seal(key, change(found[4]), tags, expires_ns, sequence, 1 << 30))


@pytest.mark.parametrize("line", [b"no colon\r\n", b"a:\r\n", b"\r\nsecond: response\r\n", b"a: b"])
def test_a_poisoned_value_reaches_no_client(redis: RedisServer, line: bytes) -> None:
    prefix = f"p{line.hex()}:"
    origin = Origin()

    def change(record: bytes) -> bytes:
        whole = StoredResponse.from_bytes(record)
        assert whole is not None
        at = record.rindex(whole.head)
        shape = list(FIELDS.unpack_from(record, 12))
        shape[12] += len(line)
        end = at + len(whole.head)
        return sealed(record[:12] + FIELDS.pack(*shape) + record[HEAD_AT:end] + line + record[end:])

    with gateway(
        origin, memory="0B", redis={"url": redis.url, "prefix": prefix, "timeout": "10s"}
    ) as running:
        until = time.monotonic() + 60
        workers = running.worker_pids()
        with client.Redis(unix_socket_path=str(redis.socket)) as connection:
            while not connection.keys(f"{prefix}*v"):
                assert time.monotonic() < until, "nothing was stored"
                ask(running, "/a")
                time.sleep(0.02)
        poison(redis, prefix, change, until)
        asked = len(origin.asked)

        assert ask(running, "/a") == b"one"

        assert len(origin.asked) == asked + 1
        assert running.worker_pids() == workers


@pytest.mark.parametrize("forged", [lambda value: value[:-16], lambda value: value[:-16] + b"x" * 16])
def test_with_a_secret_only_what_carries_its_checksum_is_used(
    redis: RedisServer, forged: Callable[[bytes], bytes], tmp_path: Path
) -> None:
    prefix = f"{tmp_path.name}:"
    origin = Origin()
    store = {"url": redis.url, "prefix": prefix, "timeout": "10s", "secret": "known to the fleet"}
    until = time.monotonic() + 60
    with (
        gateway(origin, memory="0B", redis=store) as running,
        client.Redis(unix_socket_path=str(redis.socket)) as connection,
    ):
        while not (names := connection.keys(f"{prefix}*v")):
            assert time.monotonic() < until, "nothing was stored"
            ask(running, "/a")
            time.sleep(0.02)
        asked = len(origin.asked)
        assert ask(running, "/a") == b"one"
        assert len(origin.asked) == asked
        for name in names:
            connection.set(name, forged(connection.get(name) or b""))

        ask(running, "/a")

        assert len(origin.asked) == asked + 1
