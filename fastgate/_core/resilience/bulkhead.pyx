"""Bulkhead: a bound on concurrent calls, with a bounded queue and a bounded wait in it. For threads and for asyncio.

WHAT
    max_concurrent calls run, max_queue more wait in a queue, the rest are refused immediately with BulkheadFull. A call that
    waits longer than queue_timeout_s gets BulkheadTimeout. First come, first served, across threads, tasks and event loops alike:
    one bulkhead may be shared by all of them.

STATE   running, and a queue of waiters. Invariant: while a call waits, running == max_concurrent.
        waiter: WAITING -> GRANTED  release() passes its slot on; `running` stays the same
                        -> LEFT     timed out or canceled; it leaves the queue in the same step
        A waiter that is canceled after the grant passes the slot on.

WHO WRITES  Any thread, under the GIL: no step within an update runs Python code or waits, so there is no lock that a canceled
            task or a signal could leave held.

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
    """The call was refused: all slots are taken and the queue is full. Raised by a Bulkhead."""


class BulkheadTimeout(BulkheadFull):
    """The call waited for queue_timeout_s and no slot became free. Raised by a Bulkhead."""


@cython.final
cdef class _Waiter:
    cdef int state
    cdef object lock        # of a thread: held until the slot is granted
    cdef object loop
    cdef object future      # of a task

    cdef bint grant(self) except -1:
        """True if the waiter now owns the slot. False: it is gone, try the next."""
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
        except RuntimeError:    # its event loop was closed meanwhile
            self.state = LEFT
            return False
        return True


def _wake(future):
    if not future.done():
        future.set_result(None)


@cython.final
cdef class Bulkhead:
    """Bulkhead(max_concurrent, max_queue=0, queue_timeout_s=None, *, name="")\n--\n
    Limits the number of concurrent calls. `with` in threads, `async with` in tasks, or as a decorator of either kind of function.

    max_concurrent   1..1 000 000 000 calls at a time.
    max_queue        0..1 000 000 000 more that may wait; 0 refuses at once. Default 0.
    queue_timeout_s  0.001..1 000 000: the longest wait. None (default) = no limit.
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
        """Number of calls in the queue."""
        return len(self._queue)

    cpdef bint try_acquire(self) noexcept:
        """Takes a slot and returns True, or returns False if none is free. Then call release()."""
        if self.running >= self.max_concurrent:
            return False
        self.running += 1
        return True

    def release(self):
        """Releases the slot to the call that has waited longest. RuntimeError if no call is running."""
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
        """Takes a slot, waiting for it in this thread. BulkheadFull or BulkheadTimeout. Then call release()."""
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
        """Takes a slot, waiting for it in this task. BulkheadFull or BulkheadTimeout. Then call release()."""
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
        except BaseException:       # canceled, or the timer's BulkheadTimeout
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
    """True if a slot is free; else the waiter is in the queue, or BulkheadFull is raised. No object tracked by the garbage
    collector is allocated here, so no other thread can run between the check of `running` and the entry into the queue."""
    if self.try_acquire():
        return True
    if len(self._queue) >= self.max_queue:
        self.refused_total += 1
        raise BulkheadFull(told(self, "the queue is full"))
    self._queue.append(waiter)
    return False


cdef int leave(Bulkhead self, _Waiter waiter) except -1:
    """Leaves the queue; if the slot was granted meanwhile, passes it to the next waiter."""
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
