"""What plugins may say of a request, and what is refused of it."""

from __future__ import annotations

from typing import Any

import pytest

from fastgate._core.pipeline.context import CONTINUE, RESPOND, SUSPEND, Answer, RequestContext
from fastgate._core.pipeline.pipeline import Plugin
from fastgate.errors import REASONS


def test_verdicts_differ() -> None:
    assert len({CONTINUE, RESPOND, SUSPEND}) == 3


def test_refusing_and_responding_replace_each_other() -> None:
    ctx = RequestContext()

    assert ctx.refuse(REASONS["forbidden"], {"why": "x"}) == RESPOND
    assert (ctx.reason, ctx.detail) == (REASONS["forbidden"], {"why": "x"})
    assert ctx.respond(200, "text") == RESPOND
    assert ctx.reason is None
    ctx.refuse(REASONS["rate_limited"])
    assert ctx.reply(Answer(204)) == RESPOND
    assert ctx.reason is None


@pytest.mark.parametrize("status", [0, 99, 100, 101, 199, 600, -1])
def test_an_answer_has_a_final_status(status: int) -> None:
    with pytest.raises(ValueError, match="expected 200 to 599"):
        Answer(status)


@pytest.mark.parametrize("status", [204, 304])
def test_an_answer_without_body_has_none(status: int) -> None:
    with pytest.raises(ValueError, match="has no body"):
        Answer(status, b"x")
    assert Answer(status).body == b""


@pytest.mark.parametrize(
    "name", ["Content-Length", "transfer-encoding", "CONNECTION", b"Date", "X-Request-ID", "Keep-Alive"]
)
def test_framing_is_not_an_answers_business(name: str | bytes) -> None:
    with pytest.raises(ValueError, match="writes this field itself"):
        Answer(200, b"", [(name, "x")])


@pytest.mark.parametrize(("name", "value"), [("a b", "x"), ("", "x"), ("a", "x\r\nb: c"), ("a", "\x00")])
def test_an_answer_cannot_break_a_line(name: str, value: str) -> None:
    ctx = RequestContext()

    with pytest.raises(ValueError):
        Answer(200, b"", [(name, value)])
    with pytest.raises(ValueError):
        ctx.add_response_header(name, value)
    with pytest.raises(ValueError):
        ctx.respond(200, b"", [(name, value)])
    with pytest.raises(ValueError):
        ctx.refuse(REASONS["forbidden"], None, [(name, value)])


def test_plugins_remember_in_places_of_their_own() -> None:
    ctx = RequestContext()
    plugins = [Plugin() for _ in range(3)]
    for place, plugin in enumerate(plugins):
        plugin.place = place

    ctx.remember(plugins[2], "two")
    ctx.remember(plugins[0], "zero")

    assert [ctx.recall(plugin, "none") for plugin in plugins] == ["zero", "none", "two"]
    assert RequestContext().recall(plugins[0]) is None


@pytest.mark.parametrize("wrong", [None, 5, "forbidden"])
def test_a_reason_is_a_row_of_the_table(wrong: Any) -> None:
    with pytest.raises(TypeError):
        RequestContext().refuse(wrong)


def test_a_body_that_was_not_held_cannot_be_replaced() -> None:
    with pytest.raises(RuntimeError, match="set request_body_bytes"):
        RequestContext().replace_body(b"x")


def test_reasons_are_a_table_without_gaps() -> None:
    rows = list(REASONS.values())

    assert [row.index for row in rows] == list(range(1, len(rows) + 1))
    assert all(400 <= row.status <= 599 and row.text for row in rows)
    assert {row.source for row in rows} == {1, 2, 3}
