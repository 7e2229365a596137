"""Durations and sizes: what is read, what is refused, and that what is printed reads back."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastgate.settings import (
    MAX_DURATION_NS,
    MAX_SIZE_BYTES,
    ConfigError,
    duration_text,
    parse_duration,
    parse_share,
    parse_size,
    share_text,
    short_key,
    size_text,
)


@pytest.mark.parametrize(
    ("text", "ns"),
    [
        ("0", 0),
        ("0s", 0),
        ("250us", 250_000),
        ("250µs", 250_000),
        ("100ms", 100_000_000),
        ("30s", 30_000_000_000),
        ("1.5s", 1_500_000_000),
        ("0.1s", 100_000_000),
        ("5m", 300_000_000_000),
        ("1h30m", 5_400_000_000_000),
        ("1d", 86_400_000_000_000),
        ("1h30m15s250ms", 5_415_250_000_000),
    ],
)
def test_durations_are_read_exactly(text: str, ns: int) -> None:
    assert parse_duration(text) == ns


@pytest.mark.parametrize(
    "text", ["", "30", "s", "-1s", "1 s", "1S", "1w", "1.s", ".5s", "1e3s", "30s ", "\u0661s", "1h 30m"]
)
def test_other_durations_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="a duration such as"):
        parse_duration(text)


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("0", 0),
        ("512B", 512),
        ("64KB", 64_000),
        ("64KiB", 65_536),
        ("10MB", 10_000_000),
        ("10mb", 10_000_000),
        ("1 GiB", 1 << 30),
        ("1.5GB", 1_500_000_000),
        ("2TiB", 2 << 40),
    ],
)
def test_sizes_are_read_exactly(text: str, count: int) -> None:
    assert parse_size(text) == count


@pytest.mark.parametrize("text", ["", "64", "64K", "64k", "1G", "-1MB", "MB", "1PB", "1.MB", "1  MB", "1MBs"])
def test_other_sizes_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="a size such as"):
        parse_size(text)


@given(st.integers(0, MAX_DURATION_NS))
def test_a_printed_duration_reads_back(ns: int) -> None:
    assert parse_duration(duration_text(ns)) == ns


@given(st.integers(0, MAX_SIZE_BYTES))
def test_a_printed_size_reads_back(count: int) -> None:
    assert parse_size(size_text(count)) == count


@pytest.mark.parametrize(
    ("ns", "text"),
    [
        (0, "0s"),
        (100_000_000, "100ms"),
        (75_000_000_000, "75s"),
        (5_400_000_000_000, "1h30m"),
        (1, "0.000000001s"),
    ],
)
def test_durations_are_printed_as_people_write_them(ns: int, text: str) -> None:
    assert duration_text(ns) == text


@pytest.mark.parametrize(("count", "text"), [(0, "0B"), (32_000, "32KB"), (65_536, "64KiB"), (1001, "1001B")])
def test_sizes_are_printed_as_people_write_them(count: int, text: str) -> None:
    assert size_text(count) == text


def test_keys_carry_no_unit() -> None:
    assert [short_key(name) for name in ("idle_timeout_ns", "max_body_bytes", "from_", "path")] == [
        "idle_timeout",
        "max_body",
        "from",
        "path",
    ]


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (ConfigError("$.a", "x", "y", "z", "f:1"), "f:1: $.a: expected y, got x (z)"),
        (ConfigError("$.a", "unknown key", hint="did you mean b?"), "$.a: unknown key (did you mean b?)"),
        (ConfigError("$.a", "missing key", "text"), "$.a: missing key, expected text"),
        (ConfigError("$.a", expected="text"), "$.a: expected text, got nothing"),
        (ConfigError("$", "not valid"), "$: not valid"),
    ],
)
def test_an_error_says_where_what_and_how_to_mend_it(error: ConfigError, text: str) -> None:
    assert str(error) == text


@pytest.mark.parametrize(
    ("text", "ppm"),
    [("0", 0), ("0%", 0), ("20%", 200_000), ("0.5%", 5_000), ("12.3456%", 123_456), ("100 %", 1_000_000)],
)
def test_shares_are_read_exactly(text: str, ppm: int) -> None:
    assert parse_share(text) == ppm


@pytest.mark.parametrize("text", ["", "20", "0.2", "%", "-1%", "1.23456%", "5 percent", "\u0661%"])
def test_other_shares_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="a share such as"):
        parse_share(text)


@given(st.integers(0, 1_000_000))
def test_a_printed_share_reads_back(ppm: int) -> None:
    assert parse_share(share_text(ppm)) == ppm
