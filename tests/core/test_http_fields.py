"""Dates, Cache-Control, structured dictionaries and the normal form of `Vary` values."""

from __future__ import annotations

from email.utils import formatdate
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from fastgate._core.cache.http_cache import Rules
from fastgate._core.cache.http_dates import format_date, parse_date
from fastgate._core.cache.http_fields import normalise_value, parse_cache_control, parse_dictionary
from fastgate._core.cache.http_stored import StoredResponse

NOW_S = 1_700_000_000
FIELD_TEXT = st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=60).map(str.encode)


@pytest.mark.parametrize(
    "text",
    [
        b"Sun, 06 Nov 1994 08:49:37 GMT",
        b"Sunday, 06-Nov-94 08:49:37 GMT",
        b"Sun Nov  6 08:49:37 1994",
    ],
)
def test_the_three_forms_of_a_date_are_one_moment(text: bytes) -> None:
    assert parse_date(text, NOW_S) == 784111777


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"0",
        b"-1",
        b"Sun, 06 Nov 1994 08:49:37 UTC",
        b"Sun, 6 Nov 1994 08:49:37 GMT",
        b"Sun, 06 Nov 1994 24:49:37 GMT",
        b"Sun, 06 Nov 1994 08.49.37 GMT",
        b"Sun 06 Nov 1994 08:49:37 GMT",
        b"Sun, 06 Nov 94 08:49:37 GMT",
        b"Sun, 32 Nov 1994 08:49:37 GMT",
        b"Sunday, 06-Nov-1994 08:49:37 GMT",
        b"Sun Nov 6 08:49:37 1994",
    ],
)
def test_what_is_no_date(text: bytes) -> None:
    assert parse_date(text, NOW_S) is None


def test_two_digit_years_lie_at_most_fifty_years_ahead() -> None:
    assert parse_date(b"Thursday, 18-Aug-50 02:01:18 GMT", NOW_S) == 2544400878
    assert parse_date(b"Sunday, 18-Aug-90 02:01:18 GMT", NOW_S) == 650944878


@given(st.integers(min_value=-62_135_596_800, max_value=253_402_300_799))
def test_dates_come_back(moment: int) -> None:
    assert parse_date(format_date(moment)) == moment


@given(st.integers(min_value=0, max_value=4_000_000_000))
def test_dates_are_written_as_the_standard_library_does(moment: int) -> None:
    assert format_date(moment) == formatdate(moment, usegmt=True).encode()


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([b"max-age=1"], {"max-age": 1}),
        ([b"MAX-AGE=1, No-Store"], {"max-age": 1, "no-store": True}),
        ([b'max-age="1"'], {"max-age": 1}),
        ([b"max-age=1", b"max-age=1"], {"max-age": 1}),
        ([b"max-age=1, max-age=2"], {"max-age": "invalid"}),
        ([b"max-age"], {"max-age": "invalid"}),
        ([b"max-age=-1"], {"max-age": "invalid"}),
        ([b"max-age =1"], {"max-age": "invalid"}),
        ([b"max-age=1x"], {"max-age": "invalid"}),
        ([b"max-age=1 x"], {"max-age": "invalid"}),
        ([b",,max-age=1,,"], {"max-age": 1}),
        ([b'a="max-age=1"'], {}),
        ([b'a="\\"", max-age=1'], {"max-age": 1}),
        ([b'private="a, B"'], {"fields": [b"a", b"b"]}),
        ([b'no-cache=""'], {"no-cache": True}),
        ([b"no-cache=a"], {"fields": [b"a"]}),
        ([b'a="b'], {"malformed": True}),
        ([b"max-stale"], {"max-stale": 2147483648}),
        ([b"stale-while-revalidate=1,stale-if-error=2"], {"stale-while-revalidate": 1, "stale-if-error": 2}),
        (
            [b"immutable, must-understand, public"],
            {"immutable": True, "must-understand": True, "public": True},
        ),
        ([b"@, max-age=1"], {"max-age": 1}),
    ],
)
def test_cache_control(values: list[bytes], expected: dict[str, Any]) -> None:
    assert parse_cache_control(*values) == expected


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (b'a=1, b;x=1, c=?0, d=tok, e="s\\"", f=1.5, g=(1 2);y, h=:aGk=:, *i=-3', None),
        (b"", {}),
        (b"a=1,", None),
        (b"a=1 b=2", None),
        (b"A=1", None),
        (b"a=1.", None),
        (b"a=1234567890123456", None),
        (b'a="\x7f"', None),
        (b"a=?2", None),
        (b"a=1, a=2", {b"a": 2}),
        (b"max-age=60, no-store", {b"max-age": 60, b"no-store": True}),
    ],
)
def test_structured_dictionaries(value: bytes, expected: dict[bytes, Any] | None) -> None:
    if value.startswith(b"a=1, b;"):
        expected = {b"a": 1, b"b": True, b"c": False, b"d": b"tok", b"e": 's"', b"f": 1.5, b"g": None}
        expected |= {b"h": None, b"*i": -3}

    assert parse_dictionary(value) == expected


@given(st.lists(FIELD_TEXT, max_size=3))
@example([b"0,;"])
def test_any_text_is_read_without_harm(values: list[bytes]) -> None:
    parse_cache_control(*values)
    for value in values:
        parse_dictionary(value)
        parse_date(value, NOW_S)
        for name in (b"accept", b"accept-language", b"foo"):
            once = normalise_value(name, value)
            assert normalise_value(name, once) == once


@given(
    st.lists(
        st.tuples(
            st.sampled_from(
                [
                    "Cache-Control",
                    "Age",
                    "Expires",
                    "Date",
                    "Vary",
                    "ETag",
                    "Last-Modified",
                    "CDN-Cache-Control",
                ]
            ),
            FIELD_TEXT.map(bytes.decode),
        ),
        max_size=6,
    ),
    st.integers(min_value=200, max_value=599),
)
@example([], 204)
def test_any_answer_is_judged_without_harm(fields: list[tuple[str, str]], status: int) -> None:
    rules = Rules(ttl_ns=1)
    asked = rules.read_request("GET", [fields[0]] if fields and fields[0][0] == "Cache-Control" else [])
    rules.key(asked, False, b"a", b"/")

    decision = rules.store(asked, status, fields, NOW_S * 10**9, NOW_S * 10**9)

    if decision.storable:
        stored = decision.finish(b"" if status == 204 else b"body")
        back = StoredResponse.from_bytes(stored.to_bytes())
        assert back is not None
        assert back.fields() == stored.fields()
        stored.answer(asked)
        rules.update(asked, stored, fields, NOW_S * 10**9, NOW_S * 10**9)
