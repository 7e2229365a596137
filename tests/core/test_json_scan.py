"""Depth and repeated keys of JSON, against a parser that tells both."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastgate._core.http.json_scan import duplicate_key, too_deep

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=4),
    max_leaves=20,
)


def depth_of(value: Any) -> int:
    if isinstance(value, dict):
        return 1 + max(map(depth_of, value.values()), default=0)
    if isinstance(value, list):
        return 1 + max(map(depth_of, value), default=0)
    return 0


@given(values, st.booleans())
def test_the_depth_is_that_of_the_parsed_document(value: Any, escaped: bool) -> None:
    text = json.dumps(value, ensure_ascii=escaped).encode("utf-8", "surrogatepass")
    depth = depth_of(value)

    assert too_deep(text, depth) == -1
    if depth:
        at = too_deep(text, depth - 1)
        assert text[at : at + 1] in (b"[", b"{")


@given(values)
def test_a_document_of_a_parser_has_no_key_twice(value: Any) -> None:
    assert duplicate_key(json.dumps(value).encode()) is None


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ('{"a":1,"a":2}', "$.a"),
        ('{"a":1,"b":{"c":[0,{"d":1,"d":2}]}}', "$.b.c[1].d"),
        ('[{"a":1},{"a":1},{"a b":1,"a b":2}]', '$[2]["a b"]'),
        ('{"a":1,"\\u0061":2}', "$.a"),
        ('{"\\ud800":1,"\\ud800":2}', '$["\\ufffd\\ufffd\\ufffd"]'),
        ('{"":1,"":2}', '$[""]'),
        ('{"a":"a","b":["a","a"],"c":{"a":1}}', None),
        ('{"a\\"":1,"a":2}', None),
        ('{"a":{"x":1},"b":{"x":1}}', None),
        ('["a","a"]', None),
        ('"a"', None),
    ],
)
def test_the_first_key_that_is_there_twice_is_named(text: str, path: str | None) -> None:
    assert duplicate_key(text.encode()) == path


@pytest.mark.parametrize("most", [1, 32, 200])
def test_a_bomb_is_found_at_its_first_bracket_too_many(most: int) -> None:
    assert too_deep(b"[" * 1_000_000, most) == most
    assert too_deep(b'{"a":' * 200_000, most) == 5 * most
    assert too_deep(b"[]" * 500_000, most) == -1


@given(st.binary(max_size=80))
def test_any_bytes_can_be_looked_at(data: bytes) -> None:
    assert -1 <= too_deep(data, 2) < max(len(data), 1)
    assert too_deep(b'"' + data.replace(b'"', b"").replace(b"\\", b"") + b'"', 1) == -1
