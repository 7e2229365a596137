"""The circuit breaker against its plain-Python oracle, and what it promises by hand, `with` and as a decorator."""

from __future__ import annotations

import asyncio
import gc
import random
import sys
import threading
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastgate._core import CircuitBreaker, CircuitOpen
from fastgate._core.breaker import live_objects
from tests.core.breaker_oracle import Oracle, Period

MS = 1_000_000
S = 1_000 * MS

CONFIGS = st.fixed_dictionaries(
    {"recovery_timeout_s": st.sampled_from([0.001, 0.05, 1, 2.5])},
    optional={
        "failure_threshold": st.integers(1, 4),
        "success_threshold": st.integers(1, 3),
        "half_open_permits": st.integers(1, 3),
        "permit_timeout_s": st.sampled_from([0.001, 0.03, 4.0]),
        "backoff": st.sampled_from(["constant", "linear", "exponential", "fibonacci"]),
        "max_recovery_timeout_s": st.sampled_from([2.5, 7.0, 100.0]),
        "jitter_ratio": st.sampled_from([0.0, 0.1, 1.0]),
        "failure_ratio": st.sampled_from([0.01, 0.3, 0.5, 1.0]),
        "window_s": st.sampled_from([0.01, 0.1, 1.0, 10.0]),
        "min_calls": st.integers(1, 6),
        "seed": st.integers(0, 2**63 - 1),
    },
)
SLOW = st.one_of(
    st.just({}),
    st.fixed_dictionaries({"slow_call_s": st.sampled_from([0.001, 0.01]), "slow_ratio": st.sampled_from([0.2, 0.6])}),
    st.fixed_dictionaries(
        {"adaptive": st.just(True), "adaptive_calls": st.integers(10, 14)},
        optional={
            "adaptive_factor": st.sampled_from([1.0, 2.0]),
            "adaptive_floor_ratio": st.sampled_from([0.0, 0.2]),
            "slow_call_s": st.just(0.004),
        },
    ),
)
STEPS = st.lists(
    st.tuples(
        st.sampled_from(["acquire", "acquire", "record", "record", "record", "forget", "trip", "reset"]),
        st.sampled_from([0, 1, 100, MS, 7 * MS, 60 * MS, S, 3 * S, 11 * S, 400 * S, -1, -5 * MS, -40 * S]),
        st.booleans(),
        st.sampled_from([0, MS - 1, MS, MS + 1, 5 * MS, 20 * MS]),
        st.integers(0, 5),
    ),
    max_size=120,
)


@settings(max_examples=500, deadline=None)
@given(CONFIGS, SLOW, STEPS, st.sampled_from([0, 10 * S, 10**15 + 7]))
def test_every_decision_equals_the_oracle(
    config: dict[str, Any], slow: dict[str, Any], steps: list[tuple[str, int, bool, int, int]], now_ns: int
) -> None:
    moves: list[tuple[str, str]] = []
    options = {"seed": 1, **config, **slow}
    breaker = CircuitBreaker(**options, on_transition=lambda _, old, new: moves.append((old, new)))
    oracle = Oracle(**options)
    tickets: list[tuple[int, Period | None]] = [(0, None)]

    for verb, step_ns, ok, latency_ns, pick in steps:
        now_ns = max(0, now_ns + step_ns)
        ours, theirs = tickets[-1 - pick % len(tickets)]
        if verb == "acquire":
            ours, theirs = breaker.acquire(now_ns), oracle.acquire(now_ns)
            assert bool(ours) == bool(theirs)
            if ours:
                tickets.append((ours, theirs))
        elif verb == "record":
            breaker.record(ok, latency_ns, ticket=ours, now_ns=now_ns)
            oracle.record(ok, latency_ns, theirs, now_ns)
        elif verb == "forget":
            breaker.forget(ours)
            oracle.forget(theirs)
        elif verb == "trip" and pick == 0:
            breaker.trip(now_ns)
            oracle.open(now_ns)
        elif verb == "reset" and pick == 0:
            breaker.reset(now_ns)
            oracle.close(now_ns)

        assert (breaker.state, breaker.trips) == (oracle.state, oracle.trips)
        assert breaker.window(now_ns) == oracle.window(now_ns)
        assert breaker.retry_after_ns(now_ns) == oracle.retry_after_ns(now_ns)
        assert breaker.limits == oracle.limits()
    assert moves == oracle.transitions
    assert breaker.opened_total == sum(new == "open" for _, new in moves)
