"""A ladder: peers under one load, each started once and measured in interleaved rounds.

The order rotates from round to round, so that a slow moment of the machine falls on every peer alike. Before
the first round each peer must give the response that the load expects: a peer that refuses, or a cache that
does not hit, would be fast for the wrong reason. An error in any round ends the ladder: it has no figures.
"""

from __future__ import annotations

import contextlib
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field
from typing import Any

from benchmarks.gateway import load, servers
from benchmarks.gateway.load import Load, Origin, Traffic
from benchmarks.gateway.servers import Server

__all__ = ["Ladder", "Options", "Peer", "Peers", "Result", "measure_ladder"]

MADE = "x-made"  # the header with which the upstream tells its answers apart

Result = dict[str, Any]


@dataclass(frozen=True)
class Options:
    """How long, how often, and which peers: all, or those whose names begin with one of these."""

    rounds: int = 5
    seconds: float = 3.0
    rate_per_s: float = 4000.0
    peers: tuple[str, ...] = ("",)


@dataclass(frozen=True)
class Peer:
    """How one peer is started, and what it is asked when that is not what all are asked. `prepare` fills its
    stores before the first round.
    """

    start: Callable[[], Server]
    traffic: Load | None = None
    prepare: Callable[[Server, Load], None] | None = None


Peers = Mapping[str, Callable[[], Server] | Peer]


@dataclass(frozen=True)
class Ladder:
    """Peers under one load. `peers` gets the port of the upstream."""

    what: str
    peers: Callable[[int], Peers]
    traffic: Load = field(default_factory=Traffic)
    is_paced: bool = False
    origin: Callable[[], AbstractContextManager[Origin]] = servers.upstream
    is_hit: bool = False  # the responses must come from the peer's own store


def measure_ladder(ladder: Ladder, options: Options, progress: Callable[[str], None]) -> Result:
    """Every peer's samples, round by round, and their medians."""
    with contextlib.ExitStack() as stack:
        origin = stack.enter_context(ladder.origin())
        running: dict[str, Server] = {}
        asked: dict[str, Load] = {}
        missing = []
        for name, found in ladder.peers(origin.port).items():
            if not name.startswith(options.peers):
                continue
            peer = found if isinstance(found, Peer) else Peer(found)
            lacking = servers.absent(name)
            if lacking:
                missing.append(f"{name}: {lacking}")
                continue
            progress(f"starting {name}")
            server = running[name] = peer.start()
            stack.callback(server.stop)
            traffic = peer.traffic or ladder.traffic
            if peer.prepare:
                progress(f"preparing {name}")
                peer.prepare(server, traffic)
            with _naming(name):
                _prove(server, origin, traffic, is_hit=ladder.is_hit)
            asked[name] = traffic
        samples: dict[str, list[load.Sample]] = {name: [] for name in running}
        paced: dict[str, list[load.Paced]] = {name: [] for name in running}
        names = list(running)
        for number in range(options.rounds):
            turn = number % len(names)
            for name in names[turn:] + names[:turn]:
                progress(f"round {number + 1} of {options.rounds}: {name}")
                with _naming(name):
                    samples[name].append(
                        load.closed_loop(running[name], asked[name], origin, options.seconds)
                    )
                    if ladder.is_paced and load.is_paced_available():
                        paced[name].append(_paced(running[name], asked[name], options))
        memory = {name: server.private_bytes() for name, server in running.items()}
    return {
        "what": ladder.what,
        "unit": ladder.traffic.unit,
        "missing": missing,
        "peers": {name: _summary(samples[name], paced[name], memory[name]) for name in names},
    }


@contextlib.contextmanager
def _naming(peer: str) -> Iterator[None]:
    """Says of what fails which peer it was."""
    try:
        yield
    except (OSError, RuntimeError) as error:
        raise RuntimeError(f"{peer}: {error}") from error


def _prove(server: Server, origin: Origin, traffic: Load, *, is_hit: bool) -> None:
    load.prove(server, traffic, origin)
    if not is_hit:
        return
    assert isinstance(traffic, Traffic)
    # A disk is written to in batches: what it stores may take a moment to be there.
    until = time.monotonic() + 5
    while True:
        first, second = (load.ask(server, traffic)[1].get(MADE) for _ in range(2))
        if first == second:
            return
        if time.monotonic() > until:
            raise RuntimeError("asks the upstream again for what it should have stored")
        time.sleep(0.1)


def _paced(server: Server, traffic: Load, options: Options) -> load.Paced:
    assert isinstance(traffic, Traffic)
    run = load.paced(server, traffic, options.seconds, options.rate_per_s)
    if run.errors:
        raise RuntimeError(f"{run.errors} of {run.requests + run.errors} paced requests failed")
    return run


def _summary(samples: list[load.Sample], paced: list[load.Paced], private_bytes: int) -> Result:
    def median(field: str, of: list[Any]) -> float:
        return float(statistics.median(getattr(sample, field) for sample in of))

    summary: Result = {
        "cpu_us": median("cpu_us", samples),
        "per_s": median("per_s", samples),
        "private_bytes": private_bytes,
        "rounds": [asdict(sample) for sample in samples],
    }
    if paced:
        summary["paced"] = {
            "rate_per_s": paced[0].rate_per_s,
            "p50_us": median("p50_us", paced),
            "p99_us": median("p99_us", paced),
            "rounds": [asdict(run) for run in paced],
        }
    return summary
