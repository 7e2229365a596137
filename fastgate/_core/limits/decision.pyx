"""The result of a limiter, as an object."""

cimport cython
from libc.stdint cimport int64_t

__all__ = ["Decision", "Refusal"]


@cython.freelist(64)
cdef class Decision:
    """The result of a limiter. True in a condition if allowed. Made by decide(), take() and peek().

    limit: position of the tightest limit: of the refusing ones the one with the longest wait, else the one with the least
    remaining; -1 if the table had no room for a new key. remaining: the amount that could still be taken from it now.
    retry_after_ns: wait until the same call would be granted if no other call takes anything; 0 if allowed, NEVER (2**63 - 1) if
    the amount is more than the limit. reset_ns: time until that limit is unused again.
    """

    NEVER = 2**63 - 1

    def __bool__(self):
        return self.allowed

    @property
    def retry_after_s(self):
        """retry_after_ns in seconds; inf for NEVER."""
        return float("inf") if self.retry_after_ns == NEVER else self.retry_after_ns / 1e9

    @property
    def reset_s(self):
        """reset_ns in seconds."""
        return self.reset_ns / 1e9

    def __repr__(self):
        return (f"{type(self).__name__}(allowed={self.allowed}, limit={self.limit}, remaining={self.remaining}, "
                f"retry_after_s={self.retry_after_s}, reset_s={self.reset_s})")


@cython.final
cdef class Refusal(Decision):
    """A Decision that is never allowed. Made by KeyedLimiter.reserve() where there is no Reservation, so that a type checker
    distinguishes the two by their truth value."""


cdef Decision new_decision(bint allowed, int limit, int64_t remaining, int64_t retry_after_ns, int64_t reset_ns):
    cdef Decision made = Decision.__new__(Decision)
    made.allowed = allowed
    made.limit = limit
    made.remaining = remaining
    made.retry_after_ns = retry_after_ns
    made.reset_ns = reset_ns
    return made


cdef Refusal new_refusal(int limit, int64_t remaining, int64_t retry_after_ns, int64_t reset_ns):
    cdef Refusal made = Refusal.__new__(Refusal)
    made.limit = limit
    made.remaining = remaining
    made.retry_after_ns = retry_after_ns
    made.reset_ns = reset_ns
    return made
