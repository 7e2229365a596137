"""The bulkhead against a plain-Python oracle; order, cancellation and time-outs in tasks and threads."""

from __future__ import annotations

import asyncio
import gc
import random
import sys
import threading
from collections import deque
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastgate._core import Bulkhead, BulkheadFull, BulkheadTimeout
from fastgate._core.resilience.bulkhead import live_objects


class Oracle:
    """Who runs, who waits, who was refused: three lists."""

    def __init__(self, places: int, queue: int) -> None:
        self.places, self.queue = places, queue
        self.running: list[int] = []
        self.waiting: deque[int] = deque()
        self.refused: list[int] = []

    def enter(self, call: int) -> None:
        if len(self.running) < self.places:
            self.running.append(call)
        elif len(self.waiting) < self.queue:
            self.waiting.append(call)
        else:
            self.refused.append(call)

    def end(self, call: int) -> None:
        """Finished, or cancelled: both leave."""
        if call in self.running:
            self.running.remove(call)
            if self.waiting:
                self.running.append(self.waiting.popleft())
        elif call in self.waiting:
            self.waiting.remove(call)


async def settle() -> None:
    for _ in range(4):
        await asyncio.sleep(0)


@given(
    st.integers(1, 3),
    st.integers(0, 4),
    st.lists(st.tuples(st.sampled_from(["enter", "finish", "cancel"]), st.integers(0, 9)), max_size=40),
    st.booleans(),
)
def test_tasks_run_wait_and_are_refused_as_in_the_oracle(
    places: int, queue: int, steps: list[tuple[str, int]], in_bursts: bool
) -> None:
    async def history() -> None:
        bulkhead, oracle = Bulkhead(places, queue), Oracle(places, queue)
        inside: list[int] = []
        refused: list[int] = []
        gates: dict[int, asyncio.Event] = {}
        tasks: dict[int, asyncio.Task[None]] = {}

        async def call(number: int) -> None:
            try:
                async with bulkhead:
                    inside.append(number)
                    try:
                        await gates[number].wait()
                    finally:
                        inside.remove(number)
            except BulkheadFull:
                refused.append(number)

        for number, (verb, pick) in enumerate(steps):
            present = [*oracle.running, *oracle.waiting]
            if verb == "enter":
                gates[number] = asyncio.Event()
                tasks[number] = asyncio.create_task(call(number))
                oracle.enter(number)
                await settle()
            elif present:
                target = present[pick % len(present)]
                if verb == "finish" and target in oracle.waiting:
                    continue
                if verb == "finish":
                    gates[target].set()
                else:
                    tasks[target].cancel()
                oracle.end(target)
                if in_bursts and pick % 2:
                    continue  # the next step meets this one half done
                await settle()
            if not in_bursts:
                assert inside == oracle.running
                assert refused == oracle.refused
                assert (bulkhead.running, bulkhead.waiting) == (len(oracle.running), len(oracle.waiting))
            assert bulkhead.running <= places and bulkhead.waiting <= queue

        for task in tasks.values():
            task.cancel()
        await asyncio.gather(*tasks.values(), return_exceptions=True)
        assert (bulkhead.running, bulkhead.waiting) == (0, 0)
        assert bulkhead.refused_total == len(refused)

    asyncio.run(history())


def test_a_task_cancelled_after_it_was_granted_gives_the_place_on() -> None:
    async def run() -> None:
        bulkhead = Bulkhead(1, 2)
        await bulkhead.acquire_async()
        first = asyncio.create_task(bulkhead.acquire_async())
        second = asyncio.create_task(bulkhead.acquire_async())
        await settle()

        bulkhead.release()  # granted to first …
        first.cancel()  # … which is cancelled before it could run
        await asyncio.gather(first, second, return_exceptions=True)

        assert first.cancelled() and second.done() and second.exception() is None
        assert (bulkhead.running, bulkhead.waiting) == (1, 0)

    asyncio.run(run())


def test_waiting_too_long_is_a_timeout_and_leaves_the_queue() -> None:
    bulkhead = Bulkhead(1, 5, 0.002, name="reports")
    bulkhead.acquire()

    async def wait() -> None:
        async with bulkhead:
            raise AssertionError("no place came free")

    with pytest.raises(BulkheadTimeout, match="reports"):
        asyncio.run(wait())
    with pytest.raises(BulkheadTimeout, match="reports"), bulkhead:
        raise AssertionError("no place came free")

    assert (bulkhead.running, bulkhead.waiting, bulkhead.timed_out_total) == (1, 0, 2)
    bulkhead.release()
    assert bulkhead.try_acquire()


def test_threads_never_exceed_the_places_and_all_get_their_turn() -> None:
    bulkhead = Bulkhead(3, 100)
    lock = threading.Lock()
    inside, most, done = 0, 0, 0

    def work() -> None:
        nonlocal inside, most, done
        for _ in range(200):
            with bulkhead:
                with lock:
                    inside += 1
                    most = max(most, inside)
                with lock:
                    inside -= 1
                    done += 1

    threads = [threading.Thread(target=work) for _ in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert done == 2400 and most <= 3
    assert (bulkhead.running, bulkhead.waiting, bulkhead.refused_total) == (0, 0, 0)


def test_threads_and_event_loops_share_one_bulkhead() -> None:
    bulkhead = Bulkhead(2, 1000)
    done: list[int] = []

    async def tasks(seed: int) -> None:
        rng = random.Random(seed)

        async def one() -> None:
            async with bulkhead:
                assert bulkhead.running <= 2
                await asyncio.sleep(0)
                done.append(seed)

        running = [asyncio.create_task(one()) for _ in range(100)]
        for task in rng.sample(running, 30):
            await asyncio.sleep(0)
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)

    def blocking() -> None:
        for _ in range(100):
            with bulkhead:
                assert bulkhead.running <= 2
                done.append(-1)

    threads = [threading.Thread(target=lambda seed=seed: asyncio.run(tasks(seed))) for seed in range(2)]
    threads += [threading.Thread(target=blocking) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert done.count(-1) == 200
    assert (bulkhead.running, bulkhead.waiting) == (0, 0)


def test_a_closed_event_loop_does_not_swallow_the_place() -> None:
    bulkhead = Bulkhead(1, 5)
    bulkhead.acquire()
    loop = asyncio.new_event_loop()
    task = loop.create_task(bulkhead.acquire_async())
    loop.run_until_complete(asyncio.sleep(0))
    assert bulkhead.waiting == 1
    loop.close()

    bulkhead.release()

    assert (bulkhead.running, bulkhead.waiting) == (0, 0)
    task._log_destroy_pending = False  # type: ignore[attr-defined]
    with pytest.raises(RuntimeError):
        task.cancel()


def test_the_decorator_takes_both_kinds_of_function() -> None:
    bulkhead = Bulkhead(1)

    @bulkhead
    def nested(depth: int) -> int:
        return nested(depth - 1) if depth else 7

    @bulkhead
    async def inside() -> int:
        return bulkhead.running

    assert nested(0) == 7
    with pytest.raises(BulkheadFull):
        nested(1)
    assert asyncio.run(inside()) == 1
    assert asyncio.iscoroutinefunction(inside)
    assert bulkhead.running == 0


def test_bad_arguments_are_refused_by_name() -> None:
    cases: list[tuple[list[Any], type[Exception], str]] = [
        ([0], ValueError, "max_concurrent"),
        ([-1], ValueError, "max_concurrent"),
        ([10**30], ValueError, "max_concurrent"),
        ([1.5], TypeError, "max_concurrent"),
        ([True], TypeError, "max_concurrent"),
        ([1, -1], ValueError, "max_queue"),
        ([1, "1"], TypeError, "max_queue"),
        ([1, 1, 0], ValueError, "queue_timeout_s"),
        ([1, 1, float("nan")], ValueError, "queue_timeout_s"),
        ([1, 1, float("inf")], ValueError, "queue_timeout_s"),
        ([1, 1, "1"], TypeError, "queue_timeout_s"),
    ]
    for arguments, error, name in cases:
        with pytest.raises(error, match=name):
            Bulkhead(*arguments)
    with pytest.raises(TypeError, match="name"):
        Bulkhead(1, name=5)  # type: ignore[arg-type]
    with pytest.raises(RuntimeError, match="release"):
        Bulkhead(1).release()


def test_nothing_is_leaked() -> None:
    def use() -> None:
        bulkhead = Bulkhead(1, 3, 5.0)

        async def run() -> None:
            await bulkhead.acquire_async()
            tasks = [asyncio.create_task(bulkhead.acquire_async()) for _ in range(5)]
            await settle()
            tasks[1].cancel()
            bulkhead.release()
            await settle()
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

        asyncio.run(run())

    for _ in range(3):
        use()
    gc.collect()
    blocks, live = sys.getallocatedblocks(), live_objects()
    for _ in range(20):
        use()
    gc.collect()

    assert live_objects() == live
    assert abs(sys.getallocatedblocks() - blocks) < 300
