"""Structured fields: what is read, how it is written back, and what is refused."""

from __future__ import annotations

import contextlib
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastgate.auth.structured_fields import (
    InnerList,
    Item,
    Token,
    dictionary,
    dictionary_text,
    item,
    item_text,
    items,
    items_text,
)


@pytest.mark.parametrize(
    ("text", "written"),
    [
        ('sig1=("@method"  "a";sf );created=1;keyid="k"', 'sig1=("@method" "a";sf);created=1;keyid="k"'),
        ("a=1, b=2.50;x, c", "a=1, b=2.5;x, c"),
        ("a=?0, b=?1, c=tok/en:*", "a=?0, b, c=tok/en:*"),
        ("a=:aGVsbG8=:\t,\tb=()", "a=:aGVsbG8=:, b=()"),
        ('a="q\\"\\\\"', 'a="q\\"\\\\"'),
        ("a=1;x=1;y;x=2", "a=1;x=2;y"),
        ("a=-0.0", "a=-0.0"),
        ("", ""),
        ("  a  ", "a"),
    ],
)
def test_a_dictionary_is_written_in_its_one_form(text: str, written: str) -> None:
    assert dictionary_text(dictionary(text)) == written


def test_a_list_has_items_and_inner_lists() -> None:
    assert items('("a" b);q=1, 3.125, tok;x') == [
        InnerList((Item("a", {}), Item(Token("b"), {})), {"q": 1}),
        Item(Decimal("3.125"), {}),
        Item(Token("tok"), {"x": True}),
    ]


@pytest.mark.parametrize(
    "text",
    [
        "a=1, a=2",
        "a=1,",
        "a=1 b=2",
        "A=1",
        "a=(1",
        'a=("x""y")',
        'a="x',
        'a="\x7f"',
        'a="\\n"',
        "a=:aGVsbG8:",
        "a=:aGVsbG9=:",
        "a=:aGVs bG8=:",
        "a=?2",
        "a=1.",
        "a=1.2345",
        "a=1234567890123456",
        "a=1234567890123.1",
        "a=@1659578233",
        'a=%"x"',
        "a=;x",
        "=1",
        "a=\u0661",
        ",".join(f"k{i}" for i in range(200)),
        "a=1" + "".join(f";p{i}" for i in range(40)),
        "a=(" + "x " * 200 + ")",
    ],
)
def test_what_is_no_dictionary_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        dictionary(text)


@pytest.mark.parametrize("text", ["1 2", "1, 2", "", "(1)"])
def test_what_is_no_item_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        item(text)


bare = st.one_of(
    st.booleans(),
    st.integers(-999_999_999_999_999, 999_999_999_999_999),
    st.binary(max_size=40),
    st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=40),
    st.from_regex(r"\A[A-Za-z*][!#$%&'*+.^_`|~0-9A-Za-z:/-]*\Z", fullmatch=True).map(Token),
    st.decimals(-999_999_999, 999_999_999, places=3).filter(lambda number: number != 0),
)
keys = st.from_regex(r"\A[a-z*][a-z0-9_.*-]{0,8}\Z", fullmatch=True)
one = st.builds(Item, bare, st.dictionaries(keys, bare, max_size=4))
inner = st.builds(InnerList, st.lists(one, max_size=4).map(tuple), st.dictionaries(keys, bare, max_size=4))


@given(st.dictionaries(keys, one | inner, max_size=6))
def test_every_dictionary_reads_back(members: dict[str, Item | InnerList]) -> None:
    assert dictionary(dictionary_text(members)) == members


@given(st.lists(one | inner, max_size=6))
def test_every_list_reads_back(members: list[Item | InnerList]) -> None:
    assert items(items_text(members)) == members


@given(one)
def test_every_item_reads_back(value: Item) -> None:
    assert item(item_text(value)) == value


@given(st.text(max_size=60))
def test_nothing_but_a_value_error_comes_of_any_text(text: str) -> None:
    for read in (dictionary, items, item):
        with contextlib.suppress(ValueError):
            read(text)


def test_a_repeated_parameter_has_the_last_value_in_the_first_place() -> None:
    assert item_text(item("a;x=1;y=2;x=3")) == "a;x=3;y=2"
    assert items_text(items("(a;p=1;q;p=2);m=1;n=2;m=3")) == "(a;p=2;q);m=3;n=2"
