"""What a pipeline binds: only what is overridden, in listed order, and the tightest bounds."""

from __future__ import annotations

from typing import Any

import pytest

from fastgate._core.http.edits import Template
from fastgate._core.pipeline.context import Answer
from fastgate._core.pipeline.pipeline import Pipeline, Plugin, overrides
from fastgate._core.pipeline.plan import FixedResponse, Redirect
from fastgate.errors import REASONS

PHASES = ["upstream_request", "upstream_response", "response", "request_chunk", "response_chunk", "log"]


def plugin(*phases: str, **attributes: Any) -> Plugin:
    """A plugin of a class of its own that overrides these phases."""

    async def request(self: Plugin, ctx: Any) -> None: ...

    def hook(self: Plugin, *arguments: Any) -> None: ...

    kind = type("Made", (Plugin,), {name: request if name == "request" else hook for name in phases})
    made: Plugin = kind()
    for name, value in attributes.items():
        setattr(made, name, value)
    return made


@pytest.mark.parametrize("phase", PHASES)
def test_a_phase_binds_those_who_override_it_in_order(phase: str) -> None:
    idle, first, second = plugin(), plugin(phase), plugin(phase, "decide")

    pipeline = Pipeline([idle, first, second])

    assert getattr(pipeline, phase) == (first, second)
    assert all(getattr(pipeline, other) == () for other in PHASES if other != phase)
    assert pipeline.plugins == (idle, first, second)


def test_the_walk_is_made_of_those_who_decide() -> None:
    decides, awaits, both, logs = (
        plugin("decide"),
        plugin("request"),
        plugin("decide", "request"),
        plugin("log"),
    )
    gate = FixedResponse(Answer(200, b"x"))
    redirect = Redirect(Template("/"), 307, False, REASONS["bad_target"])

    pipeline = Pipeline([logs, awaits, gate, both, redirect, decides])

    assert pipeline.steps == (awaits, gate, both, redirect, decides)


def test_an_inherited_override_counts() -> None:
    child = type("Child", (type(plugin("log")),), {})()

    assert overrides(child, "log")
    assert not overrides(child, "decide")
    assert Pipeline([child]).log == (child,)


def test_the_tightest_bound_counts() -> None:
    pipeline = Pipeline(
        [plugin(request_body_bytes=100), plugin(), plugin(request_body_bytes=50, response_body_bytes=7)]
    )

    assert (pipeline.request_body_bytes, pipeline.response_body_bytes) == (50, 7)
    assert (Pipeline().request_body_bytes, Pipeline().response_body_bytes) == (0, 0)


def test_more_steps_than_a_walk_can_hold_are_refused() -> None:
    with pytest.raises(ValueError, match="expected at most"):
        Pipeline(plugin("decide") for _ in range(1000))


def test_a_plugin_has_sensible_attributes_before_build() -> None:
    made = plugin()

    assert (made.name, made.enforce, made.place) == ("Made", True, 0)
    assert (made.request_body_bytes, made.response_body_bytes) == (0, 0)
    built = type(made).build("settings", None)
    assert built.config == "settings"
