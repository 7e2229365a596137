# cython: boundscheck=False
"""Deadlines for very many connections; moving one costs a store.

WHAT     A hashed timer wheel of objects that derive from `Timed`. Moving a deadline later, which every request does several
         times, only stores a number: the wheel notices it at the old time, and re-inserts the object.
STATE    1 024 slots, each a doubly linked ring through a sentinel; an object is on at most one. Slot = (deadline / tick + 1) mod 1 024:
         deadlines more than one turn away are checked once per turn and stay in their slot.
WHO      One thread; `turn` is called by the owner's timer.
COST     arm: 2 ns if later, 20 ns if earlier; turn: one step per slot passed plus one per object due. Fires up to one tick late.
SOURCES  Varghese & Lauck, "Hashed and hierarchical timing wheels", SOSP 1987, scheme 6; the lazy move is Linux's mod_timer_pending.
"""

from libc.stdint cimport int64_t

__all__ = ["Timed", "TimerWheel"]

cdef enum:
    SLOTS = 1024


cdef class Timed:
    """Something with at most one deadline. Subclasses override `expired`."""

    cdef int expired(self, int64_t now_ns) except -1:
        return 0


cdef class _Noted(Timed):
    """A Timed for Python: calls a function with the time."""

    cdef object callback

    def __cinit__(self, callback):
        self.callback = callback

    cdef int expired(self, int64_t now_ns) except -1:
        self.callback(now_ns)
        return 0


cdef class TimerWheel:
    """A wheel that ticks every tick_ns nanoseconds (1 ms to 1 s)."""

    def __cinit__(self, int64_t tick_ns, int64_t now_ns):
        cdef Timed sentinel
        cdef int i
        if not 1_000_000 <= tick_ns <= 1_000_000_000:
            raise ValueError(f"tick_ns: expected 1000000 to 1000000000, got {tick_ns}")
        self.tick_ns = tick_ns
        self.turned_to = now_ns // tick_ns
        self.slots = []
        for i in range(SLOTS):
            sentinel = Timed()
            sentinel.before = sentinel.after = sentinel
            self.slots.append(sentinel)

    cdef int arm(self, Timed timed, int64_t deadline_ns) except -1:
        """Sets the one deadline of timed."""
        cdef Timed sentinel
        cdef int64_t tick
        timed.deadline_ns = deadline_ns
        if timed.looked_at_ns != 0:
            if timed.looked_at_ns <= deadline_ns:
                return 0
            self._unlink(timed)
        tick = deadline_ns // self.tick_ns + 1       # the first tick that begins at or after the deadline
        if tick <= self.turned_to:
            tick = self.turned_to + 1
        timed.looked_at_ns = deadline_ns
        sentinel = <Timed>self.slots[tick & (SLOTS - 1)]
        timed.before = sentinel.before
        timed.after = sentinel
        sentinel.before.after = timed
        sentinel.before = timed
        self.armed += 1
        return 0

    cdef int cancel(self, Timed timed) except -1:
        """Removes timed from the wheel; required before it is dropped, because the wheel holds a reference."""
        timed.deadline_ns = 0
        if timed.looked_at_ns != 0:
            self._unlink(timed)
        return 0

    cdef int _unlink(self, Timed timed) except -1:
        timed.before.after = timed.after
        timed.after.before = timed.before
        timed.before = timed.after = None
        timed.looked_at_ns = 0
        self.armed -= 1
        return 0

    cpdef int turn(self, int64_t now_ns) except -1:
        """Fires everything due at now_ns and returns the number. A clock that went back fires nothing. If some raise, all are
        fired and then the first exception is raised."""
        cdef int64_t last = now_ns // self.tick_ns
        cdef Timed sentinel, timed, following
        cdef list due = []
        cdef int fired = 0
        cdef object failure = None
        if last - self.turned_to > SLOTS:           # after a long pause, one full turn is sufficient
            self.turned_to = last - SLOTS
        while self.turned_to < last:
            self.turned_to += 1
            sentinel = <Timed>self.slots[self.turned_to & (SLOTS - 1)]
            timed = sentinel.after
            while timed is not sentinel:
                following = timed.after
                if timed.deadline_ns == 0:
                    self._unlink(timed)
                elif timed.deadline_ns <= now_ns:
                    self._unlink(timed)
                    due.append(timed)
                elif ((timed.deadline_ns // self.tick_ns + 1) & (SLOTS - 1)) != (self.turned_to & (SLOTS - 1)):
                    self._unlink(timed)
                    self.arm(timed, timed.deadline_ns)
                else:
                    timed.looked_at_ns = timed.deadline_ns      # several turns away: stays in this slot
                timed = following
        for timed in due:
            if timed.deadline_ns == 0 or timed.deadline_ns > now_ns:
                continue                                # cancelled or moved later by one that fired before
            timed.deadline_ns = 0
            fired += 1
            try:
                timed.expired(now_ns)
            except Exception as error:
                failure = error if failure is None else failure
        if failure is not None:
            raise failure
        return fired

    def call_at(self, int64_t deadline_ns, callback):
        """Calls callback(now_ns) once at the first turn after deadline_ns. Returns a handle for `cancel_call`."""
        timed = _Noted(callback)
        self.arm(timed, deadline_ns)
        return timed

    def cancel_call(self, Timed timed not None):
        """Cancels a call_at."""
        self.cancel(timed)
