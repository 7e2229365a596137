"""Successors and Budget: what follows what, and what guessing may cost."""

from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from fastgate.caching.successors import SLOTS, Budget, Successors

S = 1_000_000_000


def walk(model: Successors[str], *paths: str, client: str = "c", start_ns: int = 0) -> list[str]:
    found: list[str] = []
    for number, key in enumerate(paths):
        found = model.observe(client, key, start_ns + number * S)
    return found


def test_what_usually_follows_is_told_likeliest_first() -> None:
    model = Successors[str](confidence=0.2, support=2)
    for number in range(10):
        walk(model, "/", "/login" if number % 3 else "/news", client=str(number))

    assert model.observe("new", "/", 0) == ["/login", "/news"]
    assert model.observe("new", "/login", S) == []


def test_nothing_is_told_before_there_is_support() -> None:
    model = Successors[str](support=3)
    walk(model, "/", "/a", client="1")
    walk(model, "/", "/a", client="2")
    assert model.after("/") == []

    walk(model, "/", "/a", client="3")
    assert model.after("/") == ["/a"]


def test_requests_far_apart_or_of_different_clients_do_not_follow_each_other() -> None:
    model = Successors[str](support=1, gap_ns=10 * S)
    model.observe("c", "/", 0)
    model.observe("other", "/x", 1 * S)
    model.observe("c", "/late", 11 * S)

    assert model.after("/") == []


def test_the_same_key_again_is_no_step() -> None:
    model = Successors[str](support=1)
    walk(model, "/", "/", "/", "/a")

    assert model.after("/") == ["/a"]


def test_a_changed_habit_is_learned() -> None:
    model = Successors[str](confidence=0.4)
    for number in range(200):
        walk(model, "/", "/old", client=f"o{number}")
    for number in range(200):
        walk(model, "/", "/new", client=f"n{number}")

    assert model.after("/") == ["/new"]


def test_a_frequent_follower_wins_a_slot_among_many_strangers() -> None:
    model = Successors[str](confidence=0.2)
    rng = random.Random(4)
    for number in range(500):
        walk(model, "/", "/usual" if rng.random() < 0.4 else f"/{rng.random()}", client=str(number))

    assert model.after("/") == ["/usual"]


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 40)), max_size=300))
def test_memory_is_bounded(steps: list[tuple[int, int]]) -> None:
    model = Successors[int](keys=10, clients=3, support=1, confidence=0.01)
    for number, (client, key) in enumerate(steps):
        assert len(model.observe(client, key, number)) <= 3

    assert len(model) <= 10
    assert len(model._last) <= 3
    assert all(len(page.followers) <= SLOTS for page in model._pages.values())


def test_budget_is_never_exceeded() -> None:
    budget = Budget(ratio=0.1, burst=5)
    made = 0
    for _ in range(10_000):
        budget.earn()
        while budget.take():
            made += 1
            budget.settle(True)

    assert 1000 <= made <= 10_000 * 0.1 + 5


def test_useless_fetches_shrink_the_budget_and_useful_ones_bring_it_back() -> None:
    budget = Budget(ratio=0.1, burst=5, usefulness=0.25)

    def spend(requests: int, useful: bool) -> int:
        before = budget.spent
        for _ in range(requests):
            budget.earn()
            if budget.take():
                budget.settle(useful)
        return budget.spent - before

    spend(5000, False)
    wasted = spend(5000, False)
    spend(5000, True)
    restored = spend(5000, True)

    assert wasted < 50
    assert restored > 450
    assert budget.usefulness > 0.9
