"""The linear-time patterns against RE2 itself, and what they may cost."""

from __future__ import annotations

import gc
import random
import re
import time
import weakref

import pytest

from fastgate._core.http.automaton import Automaton, Budget, Exhausted, Patterns, Unsupported

PLENTY = 10**12


def found(pattern: str, text: str) -> bool:
    return Automaton(pattern).search(text, Budget(PLENTY))


@pytest.mark.parametrize(
    ("pattern", "text", "expected"),
    [
        ("", "", True),
        ("a", "bab", True),
        ("^a", "ba", False),
        ("a$", "ab", False),
        ("a$", "a\n", False),  # RE2: only the end is the end
        ("^$", "", True),
        ("^$", "x", False),
        ("^(foo|bar)[0-9]{1,1000}$", "foo1", True),
        ("^(foo|bar)[0-9]{1,1000}$", "foo" + "1" * 1001, False),
        (".", "\n", False),
        ("(?s).", "\n", True),
        ("(?i)Kelvin", "\u212aELVIN", True),
        (r"\d", "\u0663", False),  # RE2's classes are of ASCII
        (r"\w+@\w+\.com", "x ada@example.com", True),
        (r"[^\s]", " \t", False),
        ("(a*)*b", "a" * 50, False),
        ("x*", "", True),
        ("(?:ab){2,3}$", "xabab", True),
    ],
)
def test_what_is_found(pattern: str, text: str, expected: bool) -> None:
    assert found(pattern, text) is expected


@pytest.mark.parametrize(
    "pattern", [r"\bx", "[[:alpha:]]", r"\pL", "(?=x)", "a{,3}", "(?m)^a", r"(a)\1", "a{1,1000}" * 9]
)
def test_what_re2_may_read_otherwise_is_not_taken(pattern: str) -> None:
    with pytest.raises(Unsupported):
        Automaton(pattern)


def test_random_patterns_say_what_re2_says() -> None:
    cel = pytest.importorskip("cel_expr_python.cel")
    env = cel.NewEnv(variables={"s": cel.Type.STRING, "p": cel.Type.STRING})
    program = env.compile("s.matches(p)")
    seed = random.randrange(1 << 30)
    rng = random.Random(seed)
    atoms = ["a", "b", "ab", ".", "[ab]", "[^a]", r"\d", "1", "^", "$", r"\.", "x{0,2}", "[a-c]{1,3}"]
    for _ in range(1500):
        pattern = "".join(
            rng.choice(atoms) + rng.choice(["", "", "*", "+", "?", "|"]) for _ in range(rng.randint(1, 6))
        )
        if rng.random() < 0.4:
            pattern = f"({pattern})" + rng.choice(["*", "+", "?", "", "{2}"])
        text = "".join(rng.choice("abc1.x\n") for _ in range(rng.randint(0, 8)))
        said = program.eval(data={"s": text, "p": pattern})
        if said.type() == cel.Type.ERROR:
            continue
        try:
            ours = found(pattern, text)
        except Unsupported:
            continue
        assert ours is said.value(), f"seed {seed}: {pattern!r} in {text!r}"


def test_a_pattern_that_backtracks_elsewhere_is_paid_by_the_character() -> None:
    pattern = "(a|a)*(a|a)*(a|a)*(a|a)*(a|a)*b"
    budget = Budget(PLENTY)

    assert not Automaton(pattern).search("a" * 20_000, budget)
    assert PLENTY - budget.left_ns < 20_000 * 100 + 1_000_000


def test_the_budget_ends_it_and_stays_spent() -> None:
    budget = Budget(1000)

    with pytest.raises(Exhausted):
        Automaton("a").search("b" * 100, budget)
    assert budget.is_exhausted


def test_the_states_of_all_patterns_are_bounded() -> None:
    rng = random.Random(7)
    automaton = Automaton("(a|b)*a(a|b){11}c")
    for _ in range(40):
        automaton.search("".join(rng.choice("ab") for _ in range(4000)), Budget(PLENTY))

    assert Automaton._steps <= 100_000
    assert len(automaton._states) <= 5000


def test_patterns_are_kept_and_the_oldest_go() -> None:
    patterns = Patterns()
    first = patterns.get("a0", Budget(PLENTY))
    assert patterns.get("a0", Budget(PLENTY)) is first
    for number in range(600):
        patterns.get(f"a{number}", Budget(PLENTY))
    assert patterns.get(r"\bx", Budget(PLENTY)) is None
    assert len(patterns._known.automatons) <= 512


def test_the_nodes_of_the_patterns_of_requests_are_bounded() -> None:
    patterns = Patterns()
    for number in range(100):
        patterns.get(f"[a-c]{{1,1500}}{number}", Budget(PLENTY))

    assert 0 < patterns._known.nodes <= 50_000
    assert patterns._known.nodes == sum(one.size for one in patterns._known.automatons.values() if one)


def test_no_pattern_of_a_request_pushes_out_one_of_the_config() -> None:
    patterns = Patterns()
    patterns.keep("[a-c]{1000}")
    for number in range(600):
        patterns.get(f"a{number}", Budget(PLENTY))

    assert patterns.get("[a-c]{1000}", Budget(0)) is not None  # it costs the request nothing


def test_a_pattern_that_a_request_brings_along_is_paid_from_its_budget() -> None:
    patterns = Patterns()
    budget = Budget(20_000_000)
    patterns.get("[a-c]{1000}", budget)
    assert budget.left_ns <= 20_000_000 - 1000 * 2_500
    with pytest.raises(Exhausted):
        patterns.get("[a-c]{3999}", Budget(10_000_000))


@pytest.mark.parametrize(
    "pattern",
    [
        "((){1000}){1000}",
        "((a{0}){1000}){1000}",
        "((()*){1000}){1000}",
        "((){0,1000}){0,1000}",
        "((){1000}){1000}|a",
        "(((){1000}){1000}){1000}",
    ],
)
def test_repetitions_of_nothing_are_bounded_too(pattern: str) -> None:
    began = time.thread_time()
    with pytest.raises(Unsupported):
        Automaton(pattern)
    assert time.thread_time() - began < 1  # some 30 ms; it was 4 s, and hours


def test_it_is_quick_enough() -> None:
    automaton = Automaton("^(foo|bar)[0-9]{1,1000}$")
    assert re.search("^(foo|bar)[0-9]{1,1000}$", "foo1")
    began = time.thread_time()
    for _ in range(7500):
        automaton.search("a", Budget(PLENTY))
    assert time.thread_time() - began < 1


def test_a_pattern_that_nobody_uses_any_more_is_freed() -> None:
    known = weakref.ref(Automaton("ab+c"))

    gc.collect()

    assert known() is None
