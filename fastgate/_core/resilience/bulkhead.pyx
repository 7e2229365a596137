"""Bulkhead: at most so many calls at a time, a bounded queue in front, a bounded wait in it. For threads and for asyncio.

WHAT
    max_concurrent calls run, max_queue more wait in line, the rest are refused with BulkheadFull at once. Whoever waits longer than
    queue_timeout_s gets BulkheadTimeout. First come, first served, across threads, tasks and event loops alike: one bulkhead
    may be shared by all of them.

STATE   running, and a queue of waiters. Invariant: while anybody waits, running == max_concurrent.
        waiter: WAITING -> GRANTED  release() hands its place over; `running` does not change hands twice
                        -> LEFT     timed out or cancelled; it leaves the queue in the same step
        A waiter that is cancelled after it was granted gives the place on.

WHO WRITES  Any thread, under the GIL: no step between two lines that belong together runs Python code or waits, so there is no lock
            that a cancelled task or a signal could leave held.

COST    free: an increment. Queued: one lock (thread) or one future and one timer (task). A waiter that leaves costs O(queue).

SOURCES Nygard, Release It! (2007), chapter 5; resilience4j Bulkhead; asyncio.Semaphore and its cancellation bugs (bpo-45997).
"""

cimport cython
from libc.stdint cimport int64_t

from fastgate._core.arguments cimport float_argument, int_argument
from fastgate._core.debug cimport debug_assert, debug_live_add, debug_live_count

import asyncio
import threading
from collections import deque

from fastgate._core.resilience.protect import limited

__all__ = ["Bulkhead", "BulkheadFull", "BulkheadTimeout"]

cdef enum:
    WAITING = 0
    GRANTED = 1
    LEFT = 2
    MAX_COUNT = 1_000_000_000


class BulkheadFull(Exception):
    """The call was refused: all places are taken and the queue is full. Raised by a Bulkhead."""


class BulkheadTimeout(BulkheadFull):
    """The call waited for queue_timeout_s and no place came free. Raised by a Bulkhead."""


@cython.final
cdef class _Waiter:
    cdef int state
    cdef object lock        # of a thread: held until the place is granted
    cdef object loop
    cdef object future      # of a task

    cdef bint grant(self) except -1:
        """True if the place is its own now. False: it is gone, ask the next."""
        if self.state != WAITING:
            return False
        self.state = GRANTED
        if self.lock is not None:
            self.lock.release()
            return True
        if asyncio._get_running_loop() is self.loop:
            _wake(self.future)
            return True
        try:
            self.loop.call_soon_threadsafe(_wake, self.future)
        except RuntimeError:    # its event loop was closed under it
            self.state = LEFT
            return False
        return True


def _wake(future):
    if not future.done():
        future.set_result(None)


@cython.final
cdef class Bulkhead:
    """Bulkhead(max_concurrent, max_queue=0, queue_timeout_s=None, *, name="")\n--\n
    Limits how many calls run at a time. `with` in threads, `async with` in tasks, or as a decorator of either kind of function.

    max_concurrent   1..1 000 000 000 calls at a time.
    max_queue        0..1 000 000 000 more that may wait; 0 refuses at once. Default 0.
    queue_timeout_s  0.001..1 000 000: the longest wait. None (default) = as long as it takes.
    name             for messages and repr().
    ValueError or TypeError names the argument, its value and the allowed range.
    """

    def __cinit__(self, max_concurrent, max_queue=0, queue_timeout_s=None, *, name=""):
        debug_live_add(1)
        self.max_concurrent = int_argument(max_concurrent, "max_concurrent", 1, MAX_COUNT)
        self.max_queue = int_argument(max_queue, "max_queue", 0, MAX_COUNT)
        if queue_timeout_s is not None:
            self.queue_timeout_ns = <int64_t>(float_argument(queue_timeout_s, "queue_timeout_s", 0.001, 1e6) * 1e9 + 0.5)
        if not isinstance(name, str):
            raise TypeError(f"name: expected str, got {type(name).__name__}")
        self.name = name
        self._queue = deque()

    def __dealloc__(self):
        debug_live_add(-1)

    @property
    def waiting(self):
        """How many calls are in the queue."""
        return len(self._queue)

    cpdef bint try_acquire(self) noexcept:
        """Takes a place and returns True, or returns False if none is free. Then call release()."""
        if self.running >= self.max_concurrent:
            return False
        self.running += 1
        return True

    def release(self):
        """Gives the place up, to whoever waits longest. RuntimeError if no call is running."""
        self.give_back()

    cdef int give_back(self) except -1:
        cdef _Waiter waiter
        if self.running == 0:
            raise RuntimeError(f"bulkhead {self.name!r}: release() without acquire()")
        while self._queue:
            waiter = self._queue.popleft()
            if waiter.grant():
                debug_assert(self.running <= self.max_concurrent)
                return 0
        self.running -= 1
        return 0

    def acquire(self):
        """Takes a place, waiting for it in this thread. BulkheadFull or BulkheadTimeout. Then call release()."""
        cdef _Waiter waiter
        if self.try_acquire():
            return
        waiter = _Waiter()
        waiter.lock = threading.Lock()
        waiter.lock.acquire()
        if admitted(self, waiter):
            return
        try:
            granted = waiter.lock.acquire(timeout=self.queue_timeout_ns / 1e9 if self.queue_timeout_ns else -1)
        except BaseException:       # a signal handler raised
            leave(self, waiter)
            raise
        if granted or waiter.state == GRANTED:
            return
        leave(self, waiter)
        self.timed_out_total += 1
        raise BulkheadTimeout(told(self, "no place came free in time"))

    async def acquire_async(self):
        """Takes a place, waiting for it in this task. BulkheadFull or BulkheadTimeout. Then call release()."""
        cdef _Waiter waiter
        if self.try_acquire():
            return
        waiter = _Waiter()
        waiter.loop = asyncio.get_running_loop()
        waiter.future = waiter.loop.create_future()
        if admitted(self, waiter):
            return
        timer = None
        try:
            if self.queue_timeout_ns:
                timer = waiter.loop.call_later(self.queue_timeout_ns / 1e9, self._give_up, waiter)
            await waiter.future
        except BaseException:       # cancelled, or the timer's BulkheadTimeout
            leave(self, waiter)
            raise
        finally:
            if timer is not None:
                timer.cancel()

    def _give_up(self, _Waiter late not None):
        """The timer of a task in the queue."""
        if late.state == WAITING and not late.future.done():
            leave(self, late)
            self.timed_out_total += 1
            late.future.set_exception(BulkheadTimeout(told(self, "no place came free in time")))

    def __enter__(self):
        self.acquire()
        return self

    def __exit__(self, kind, error, traceback):
        self.give_back()
        return False

    async def __aenter__(self):
        await self.acquire_async()
        return self

    async def __aexit__(self, kind, error, traceback):
        self.give_back()
        return False

    def __call__(self, function):
        """Decorates a function (waits in its thread) or a coroutine function (waits in its task)."""
        return limited(self, function)

    def __repr__(self):
        return (f"<Bulkhead {self.name!r} running={self.running}/{self.max_concurrent} "
                f"waiting={len(self._queue)}/{self.max_queue}>")


cdef bint admitted(Bulkhead self, _Waiter waiter) except -1:
    """True if a place is free, else the waiter is in the queue, or BulkheadFull. Nothing in here allocates what the garbage
    collector tracks, so no other thread can come between the look at `running` and the place in the queue."""
    if self.try_acquire():
        return True
    if len(self._queue) >= self.max_queue:
        self.refused_total += 1
        raise BulkheadFull(told(self, "the queue is full"))
    self._queue.append(waiter)
    return False


cdef int leave(Bulkhead self, _Waiter waiter) except -1:
    """Out of the queue; or, if the place was granted meanwhile, on with it to the next."""
    if waiter.state == GRANTED:
        waiter.state = LEFT
        self.give_back()
    elif waiter.state == WAITING:
        waiter.state = LEFT
        self._queue.remove(waiter)
    return 0


cdef str told(Bulkhead self, str why):
    return f"bulkhead {self.name!r}: {why} ({self.running} running, {len(self._queue)} waiting)"


def live_objects():
    """How many bulkheads are alive; -1 unless built with FASTGATE_DEBUG=1."""
    return debug_live_count()
