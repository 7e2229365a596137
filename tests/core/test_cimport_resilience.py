"""The .pxd files of routing, balancing and resilience, cimported from outside the package."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import fastgate._core
from tests.core.test_cimport import SETUP

SOURCE = r"""
# cython: language_level=3
from libc.stdint cimport INT64_MAX, INT64_MIN, int32_t, int64_t, uint64_t
from libc.string cimport memset
from fastgate._core.backoff cimport (BACKOFF_CONSTANT, BACKOFF_EXPONENTIAL, BACKOFF_FIBONACCI, BACKOFF_LINEAR,
                                     BACKOFF_JITTER_EQUAL, BACKOFF_JITTER_FULL, BACKOFF_JITTER_NONE,
                                     backoff_config_t, backoff_ns)
from fastgate._core.balance cimport P2C, LeastRequests, SmoothWeighted
from fastgate._core.breaker cimport (BREAKER_CLOSED, BREAKER_OPEN, CircuitBreaker, breaker_acquire,
                                     breaker_config_t, breaker_record, breaker_retry_after_ns, breaker_t)
from fastgate._core.bulkhead cimport Bulkhead
from fastgate._core.consistent cimport HashRing, Maglev
from fastgate._core.retry_budget cimport (retry_budget_balance, retry_budget_config_t, retry_budget_configure,
                                          retry_budget_deposit, retry_budget_withdraw)
from fastgate._core.router cimport Route, Router, match_t

cdef bint only_second(void* arg, Route route) noexcept:
    (<int*>arg)[0] += 1
    return route.order == 1

def routing():
    cdef Router router = Router()
    cdef match_t match
    cdef int asked = 0
    router.add("/a/{x}/c", "first")
    router.add("/a/{y}/{z}", "second", host="*.example.com")
    router.add("/a/{z...}", "third")
    router.freeze()
    path = b"/a/bb/c"
    cdef Route route = router.find(b"w.example.com", 13, path, 7, only_second, &asked, &match)
    nothing = router.find(NULL, 0, b"/b", 2, NULL, NULL, NULL)
    spans = [(match.params[i].start, match.params[i].length) for i in range(match.count)]
    return route.value, asked, spans, nothing

def breaking():
    cdef breaker_t slot
    cdef CircuitBreaker options = CircuitBreaker(failure_threshold=2, recovery_timeout_s=1)
    cdef const breaker_config_t* config = &options.config
    cdef int32_t moved, first_moved
    cdef uint64_t ticket, refused
    memset(&slot, 0, sizeof(slot))
    with nogil:
        ticket = breaker_acquire(&slot, config, 5, &first_moved)
        breaker_record(&slot, config, ticket, False, 100, 5, NULL)
        breaker_record(&slot, config, ticket, False, 100, 5, &moved)
        refused = breaker_acquire(&slot, config, 6, NULL)
    return (first_moved, moved == (BREAKER_CLOSED << 2 | BREAKER_OPEN), refused, slot.opened_total,
            slot.refused_total, 0 < breaker_retry_after_ns(&slot, config, 6) <= 1_000_000_128, sizeof(slot))

def balancing():
    cdef SmoothWeighted smooth = SmoothWeighted([5, 1, 1])
    cdef LeastRequests least = LeastRequests([1, 1])
    cdef P2C choices = P2C([1, 1], seed=1)
    cdef HashRing ring = HashRing(["a", "b"], load_factor=2)
    cdef Maglev table = Maglev(["a", "b"])
    cdef unsigned char usable[3]
    usable[0], usable[1], usable[2] = 0, 1, 0
    picks = [smooth.pick_usable(usable), least.pick_usable(usable), choices.pick_usable(usable, 0),
             ring.pick_usable(ring.key_hash(b"k", 1), usable),
             table.pick_usable(table.key_hash(b"k", 1), usable)]
    least.finish(1)
    choices.finish(1, 5, 5)
    ring.finish(1)
    return picks, [smooth.pick() for _ in range(3)], least.in_flight, choices.in_flight, ring.in_flight

def limiting():
    cdef Bulkhead bulkhead = Bulkhead(1)
    taken = bulkhead.try_acquire(), bulkhead.try_acquire()
    bulkhead.give_back()
    return taken, bulkhead.running

def waiting():
    cdef backoff_config_t c
    cdef uint64_t random = 1
    cdef int64_t wait
    c.jitter = BACKOFF_JITTER_NONE
    found = []
    spans = [(3, 10), (INT64_MAX // 2, INT64_MAX), (INT64_MAX, INT64_MAX), (9, 5), (0, 5), (-1, 5), (5, -1)]
    attempts = [-2147483648, 0, 1, 2, 3, 4, 65, 2147483647]
    for c.base_ns, c.max_ns in spans:
        for c.shape in (BACKOFF_CONSTANT, BACKOFF_LINEAR, BACKOFF_EXPONENTIAL, BACKOFF_FIBONACCI):
            found.append([backoff_ns(&c, attempt, NULL) for attempt in attempts])
    c.base_ns = c.max_ns = INT64_MAX
    highest = 0
    for c.jitter in (BACKOFF_JITTER_FULL, BACKOFF_JITTER_EQUAL):
        for _ in range(1000):
            wait = backoff_ns(&c, 1, &random)
            if wait < 0 or c.jitter == BACKOFF_JITTER_EQUAL and wait < INT64_MAX // 2:
                return "outside"
            highest = max(highest, wait)
    return found, highest > INT64_MAX // 100 * 99

def budgeting():
    cdef uint64_t word = 0
    cdef retry_budget_config_t c
    cdef bint first, second, third, earlier, later
    retry_budget_configure(&c, 0.5, 1, 2)
    with nogil:
        first = retry_budget_withdraw(&word, &c, 7)
        second = retry_budget_withdraw(&word, &c, 7)
        third = retry_budget_withdraw(&word, &c, 7)
        retry_budget_deposit(&word, &c, 7)
        earlier = retry_budget_withdraw(&word, &c, INT64_MIN)
        retry_budget_deposit(&word, &c, 7)
    balance = retry_budget_balance(&word, &c, 7)
    later = retry_budget_withdraw(&word, &c, INT64_MAX)
    left = retry_budget_balance(&word, &c, INT64_MAX)
    return first, second, third, earlier, balance, later, left, sizeof(word)
"""


@pytest.fixture(scope="module")
def outside(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Every function of the extension, run in a process of its own: name -> what it returned."""
    pytest.importorskip("Cython")
    pytest.importorskip("setuptools")
    folder = tmp_path_factory.mktemp("outside")
    (folder / "outside.pyx").write_text(SOURCE)
    (folder / "setup.py").write_text(SETUP)
    package = Path(fastgate.__file__).parent.parent
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join([str(package), str(folder)]), "CFLAGS": "-O1"}
    names = ("routing", "breaking", "balancing", "limiting", "waiting", "budgeting")
    program = f"import outside\nfor name in {names}:\n"
    program += "    print(name, repr(getattr(outside, name)()), sep='\\t')\n"
    lines = ""
    for command in (["setup.py", "-q", "build_ext", "--inplace"], ["-c", program]):
        done = subprocess.run(
            [sys.executable, *command], cwd=folder, env=environ, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        lines = done.stdout
    return {name: eval(text) for name, text in (line.split("\t") for line in lines.splitlines())}


def test_the_router_is_found_into(outside: dict[str, Any]) -> None:
    assert outside["routing"] == ("second", 1, [(3, 2), (6, 1)], None)


def test_a_breaker_on_the_stack_needs_no_gil(outside: dict[str, Any]) -> None:
    assert outside["breaking"] == (-1, True, 0, 1, 1, True, fastgate._core.CircuitBreaker.SIZE)


def test_balancers_take_a_mask(outside: dict[str, Any]) -> None:
    assert outside["balancing"] == ([1] * 5, [0, 0, 1], (0, 0), (0, 0), (0, 0))


def test_the_bulkhead_counts(outside: dict[str, Any]) -> None:
    assert outside["limiting"] == ((True, False), 0)


def test_a_wait_stays_within_64_bits(outside: dict[str, Any]) -> None:
    half, top = (2**63 - 1) // 2, 2**63 - 1
    expected = [
        *([3] * 8, [3, 3, 3, 6, 9, 10, 10, 10], [3, 3, 3, 6, 10, 10, 10, 10], [3, 3, 3, 3, 6, 9, 10, 10]),
        *([half] * 8, [half] * 3 + [top - 1] + [top] * 4, [half] * 3 + [top - 1] + [top] * 4),
        [half] * 4 + [top - 1] + [top] * 3,
        *([[top] * 8] * 4 + [[5] * 8] * 4 + [[0] * 8] * 12),
    ]

    assert outside["waiting"] == (expected, True)


def test_a_retry_budget_is_one_word(outside: dict[str, Any]) -> None:
    assert outside["budgeting"] == (True, True, False, False, 1.0, True, 1.0, 8)
