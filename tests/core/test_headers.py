"""Header tables against a list of pairs."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastgate._core.http.headers import Headers

NAMES = ["Host", "host", "X-A", "x-a", "Content-Length", "Via", "a"]
names = st.sampled_from(NAMES)
values = st.text(alphabet="ab \t,\xe4", max_size=6)
steps = st.lists(
    st.one_of(
        st.tuples(st.just("add"), names, values),
        st.tuples(st.just("set"), names, values),
        st.tuples(st.just("remove"), names),
        st.tuples(st.just("rename"), names, names),
    ),
    max_size=20,
)


class Oracle:
    """What a header table means."""

    def __init__(self) -> None:
        self.pairs: list[tuple[str, str]] = []

    def add(self, name: str, value: str) -> None:
        self.pairs.append((name, value.strip(" \t")))

    def set(self, name: str, value: str) -> None:
        self.remove(name)
        self.add(name, value)

    def remove(self, name: str) -> bool:
        kept = [pair for pair in self.pairs if pair[0].lower() != name.lower()]
        found = len(kept) < len(self.pairs)
        self.pairs = kept
        return found

    def rename(self, old: str, new: str) -> bool:
        found = any(name.lower() == old.lower() for name, _ in self.pairs)
        self.pairs = [(new if name.lower() == old.lower() else name, value) for name, value in self.pairs]
        return found


@given(steps)
def test_histories_of_edits_agree_with_a_list(history: list[tuple[Any, ...]]) -> None:
    table, oracle = Headers(), Oracle()
    for step, *arguments in history:
        assert getattr(table, step)(*arguments) == getattr(oracle, step)(*arguments)

    assert table.items() == list(table) == oracle.pairs
    assert len(table) == len(oracle.pairs)
    assert table.serialize() == "".join(f"{name}: {value}\r\n" for name, value in oracle.pairs).encode(
        "latin-1"
    )
    for name in NAMES:
        found = [value for key, value in oracle.pairs if key.lower() == name.lower()]
        assert table.get_all(name) == found
        assert table.get(name) == (found[0] if found else None)
        assert table.get(name, 7) == (found[0] if found else 7)
        assert (name in table) == bool(found)


def test_names_match_without_regard_to_case_and_keep_theirs() -> None:
    table = Headers([("X-ReQuest", "a"), (b"x-request", b"b")])

    assert table["x-REQUEST"] == "a"
    assert table.get_all("X-Request") == ["a", "b"]
    assert table.items() == [("X-ReQuest", "a"), ("x-request", "b")]
    with pytest.raises(KeyError):
        table["x-requests"]


@pytest.mark.parametrize(
    "name", ["", " a", "a ", "a b", "a:", "a\r\n", "a\x00", "\xe4", "(a)", b"a\n", "\u20ac"]
)
def test_names_that_could_break_a_line_are_refused(name: str | bytes) -> None:
    table = Headers([("a", "1")])

    for edit, first in ((table.add, name), (table.set, name), (table.rename, "a")):
        with pytest.raises(ValueError):
            edit(first, name if first == "a" else "x")
    assert table.items() == [("a", "1")]


@pytest.mark.parametrize("value", ["a\r\nb: c", "\n", "a\rb", "a\x00", "a\x7f", "\x1b[0m", b"a\nb", "a\x0b"])
def test_values_that_could_break_a_line_are_refused(value: str | bytes) -> None:
    table = Headers([("a", "1")])

    for edit, name in ((table.add, "b"), (table.set, "a")):
        with pytest.raises(ValueError, match="control characters"):
            edit(name, value)
    assert table.items() == [("a", "1")]


@pytest.mark.parametrize("wrong", [None, 5, ["a"]])
def test_only_text_and_bytes_are_taken(wrong: Any) -> None:
    with pytest.raises(TypeError, match="header name"):
        Headers().add(wrong, "x")
    with pytest.raises(TypeError, match="header value"):
        Headers().add("a", wrong)


def test_text_beyond_latin_1_is_replaced_in_values() -> None:
    assert Headers([("a", "1 \u20ac")]).items() == [("a", "1 ?")]


def test_blanks_around_a_value_are_not_part_of_it() -> None:
    assert Headers([("a", " \t b c \t")]).items() == [("a", "b c")]


def test_a_table_holds_512_fields_and_says_when_it_is_full() -> None:
    table = Headers((f"n{i}", str(i)) for i in range(512))

    with pytest.raises(ValueError, match="at most 512"):
        table.add("one-more", "x")
    table.remove("n5")
    table.add("one-more", "x")  # the place of a field that was removed is free
    assert len(table) == 512
    assert table.items()[-1] == ("one-more", "x")
    assert "n5" not in table
