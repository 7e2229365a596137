"""The memory that every process of a host shares: what the supervisor maps before it forks.

`HostMemory` is handed to the workers and to the controller as it is. It is sized once, by the first config
(section `memory`), because no process can be given more of it later; a reload finds everything where it was,
which is why counts, limits, keys and leases survive reloads and dead workers. Untouched pages take no memory:
the sizes are bounds and not costs.
"""

from __future__ import annotations

from dataclasses import dataclass

import msgspec

from fastgate._core.limits.inflight import InflightTable
from fastgate._core.resilience.health import HealthTable
from fastgate._core.shm.counters import Counters
from fastgate._core.shm.directory import Directory
from fastgate._core.shm.epochs import Epochs
from fastgate._core.shm.metric import MetricTable
from fastgate._core.shm.recordring import RecordRing
from fastgate._core.shm.runtime import RuntimeTable
from fastgate._core.shm.shm import SharedMemory
from fastgate._core.shm.table import LimiterTable

__all__ = ["HostMemory", "Sizes"]

LEAST_SERIES = 1024
LIMIT_STATE_WORDS = 13
"""Words of state per key of a limit: three windows (two words each), a burst and a cost fit with room to
spare.
"""


class Sizes(msgspec.Struct, frozen=True):
    """How much of each there can be at once."""

    routes: int = 0
    limiter_keys: int = 1_000_000
    inflight_keys: int = 65_536
    directory_entries: int = 250_000
    directory_bytes: int = 128_000_000
    metric_series: int = 8192
    nonces: int = 1_000_000
    purges: int = 1024
    fills: int = 65_536
    violations: int = 2048
    runtime_slots: int = 65_536
    health_rows: int = 65_536


@dataclass(frozen=True, slots=True)
class HostMemory:
    """The shared objects, one field each; `seats` is how many worker processes there can be at once."""

    seats: int
    counters: Counters
    metrics: MetricTable
    limits: LimiterTable
    inflight: InflightTable
    directory: Directory
    nonces: LimiterTable  # apart from `limits`: signed requests must not take the place of what limits count
    epochs: Epochs
    violations: RecordRing
    runtime: RuntimeTable
    health: HealthTable  # of targets, upstreams and routes

    mapped: tuple[SharedMemory, ...] = ()

    @classmethod
    def map(cls, seats: int, sizes: Sizes) -> HostMemory:
        """Maps it all. Counters for twice the routes there are now; those beyond share one series."""
        mapped: list[SharedMemory] = []

        def memory(size: int) -> SharedMemory:
            mapped.append(SharedMemory(size))
            return mapped[-1]

        series = max(LEAST_SERIES, 2 * sizes.routes)
        writers = min(seats + 16, 1000)  # the supervisor and the controller count, too
        return cls(
            seats=seats,
            counters=Counters(memory(Counters.size(seats, series)), seats, series),
            metrics=MetricTable(sizes.metric_series, memory(MetricTable.size(sizes.metric_series))),
            limits=LimiterTable(
                sizes.limiter_keys,
                LIMIT_STATE_WORDS,
                memory(LimiterTable.size(sizes.limiter_keys, LIMIT_STATE_WORDS, writers)),
                writers,
            ),
            inflight=InflightTable(
                sizes.inflight_keys, seats, memory(InflightTable.size(sizes.inflight_keys, seats))
            ),
            directory=Directory(
                sizes.directory_entries,
                sizes.directory_bytes,
                memory(Directory.size(sizes.directory_entries, sizes.directory_bytes)),
            ),
            nonces=LimiterTable(sizes.nonces, shared=memory(LimiterTable.size(sizes.nonces))),
            epochs=Epochs(sizes.purges, sizes.fills, memory(Epochs.size(sizes.purges, sizes.fills))),
            violations=RecordRing(sizes.violations, shared=memory(RecordRing.size(sizes.violations))),
            runtime=RuntimeTable(sizes.runtime_slots, memory(RuntimeTable.size(sizes.runtime_slots))),
            health=HealthTable(sizes.health_rows, seats, memory(HealthTable.size(sizes.health_rows, seats))),
            mapped=tuple(mapped),
        )

    def isolate(self) -> None:
        """Takes a private copy of everything, in a forked child: what it does from now on reaches no other
        process.
        """
        for memory in self.mapped:
            memory.isolate()

    def clear_seat(self, seat: int) -> None:
        """Releases what the dead process with this index held and had in flight."""
        self.inflight.clear_seat(seat)
        self.health.clear_slot(seat)

    @classmethod
    def private(cls, routes: int = 1, health_rows: int = 1024) -> HostMemory:
        """A small one that no other process sees: for `fastgate explain` and for tests."""
        return cls.map(
            1, Sizes(routes, 1024, 1024, 1024, 1_000_000, 1024, 1024, 64, 1024, 64, 64, health_rows)
        )
