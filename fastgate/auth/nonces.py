"""Single-use nonces: across all workers of the machine, within a window, in bounded memory.

A nonce is a key of a limiter in shared memory that grants one use per window: the first worker takes it with
one compare-and-swap, so a replay is rejected by every worker, across reloads and worker deaths. The window is
longer than the validity of a signature, so a nonce is forgotten only after its signature has expired. A nonce
is recorded after its signature has been verified, so a client without a key cannot fill the table, and each
key id has a share of it, so that no consumer can fill it for the others. A full table rejects new signatures
(the gate returns 503) and counts it, because accepting them would allow replays.

The clock is the realtime clock, with which the timestamps are compared. If it is set back, old signatures
become valid again, and their nonces stay used for as much longer. If it is set forward and back again, a
nonce is forgotten only if a new one needed its place meanwhile.

After a restart of the whole gateway the table is empty.
"""

from __future__ import annotations

from typing import Any

from fastgate._core.limits.keyed import KeyedLimiter
from fastgate._core.limits.limits import TokenBucket
from fastgate._core.shm.table import LimiterTable
from fastgate.auth.scheme import CounterOf, Unavailable
from fastgate.settings import SECOND

__all__ = ["NonceWindow"]

FULL = "fastgate_auth_nonces_full_total"
REPLAYED = "fastgate_auth_replays_total"


class NonceWindow:
    """The nonces of one method of authentication."""

    def __init__(
        self, table: LimiterTable, method: str, valid_ns: int, counter: CounterOf | None = None
    ) -> None:
        # One second longer than the validity, because timestamps are truncated to seconds.
        self.window_ns = valid_ns + 2 * SECOND
        self._limiter = KeyedLimiter(
            TokenBucket(SECOND / self.window_ns, 1), table=table, scope=f"nonces of {method}"
        )
        self._full: Any = counter(FULL, method=method) if counter is not None else None
        self._replayed: Any = counter(REPLAYED, method=method) if counter is not None else None

    def first_use(self, key_id: str, nonce: str, now_s: float) -> bool:
        """True once per window and pair, across all workers. now_s: Unix time. Unavailable if the table is
        full.
        """
        key, now_ns = f"{len(key_id)}:{key_id}{nonce}".encode(), int(now_s * SECOND)
        decision = self._limiter.take(key, 1, now_ns, source=key_id)
        if decision.allowed:
            return True
        if decision.limit < 0:
            if self._full is not None:
                self._full.add(1)
            raise Unavailable("the table of nonces is full; raise memory.nonces or shorten the window")
        if self._replayed is not None:
            self._replayed.add(1)
        return False
