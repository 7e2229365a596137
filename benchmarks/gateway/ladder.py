"""A ladder: peers under one load, each started once and measured in interleaved rounds.

The order rotates from round to round, so that a slow moment of the machine falls on every peer alike. Before
the first round each peer is asked, and must give the answer that the load expects: a peer that refuses, or a
cache that does not hit, would be fast for the wrong reason.
"""

from __future__ import annotations

import contextlib
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from benchmarks.gateway import load, servers
from benchmarks.gateway.load import Traffic
from benchmarks.gateway.servers import BODY, Server

__all__ = ["Ladder", "Options", "Peer", "Peers", "Result", "measure_ladder"]

MADE = "x-made"  # the header with which the upstream tells its answers apart

Result = dict[str, Any]


@dataclass(frozen=True)
class Options:
    """How long and how often."""

    rounds: int = 5
    seconds: float = 3.0
    rate_per_s: float = 4000.0


@dataclass(frozen=True)
class Peer:
    """How one peer is started, and what it is asked when that is not what all are asked. `prepare` fills its
    stores before the first round and may say what to ask from then on.
    """

    start: Callable[[], Server]
    traffic: Traffic | None = None
    prepare: Callable[[Server, Traffic], Traffic | None] | None = None


Peers = Mapping[str, Callable[[], Server] | Peer]


@dataclass(frozen=True)
class Ladder:
    """Peers under one load. `peers` gets the port of the upstream."""

    what: str
    peers: Callable[[int], Peers]
    traffic: Traffic = field(default_factory=Traffic)
    is_paced: bool = False
    origin: str = f"return 200 '{BODY}';"
    is_hit: bool = False  # the answers must come from the peer's own store


def measure_ladder(ladder: Ladder, options: Options, progress: Callable[[str], None]) -> Result:
    """Every peer's samples, round by round, and their medians."""
    with contextlib.ExitStack() as stack:
        origin = stack.enter_context(servers.upstream(ladder.origin))
        running: dict[str, Server] = {}
        asked: dict[str, Traffic] = {}
        missing = []
        for name, found in ladder.peers(origin.port).items():
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
                traffic = peer.prepare(server, traffic) or traffic
            _prove(name, server, traffic, is_hit=ladder.is_hit)
            asked[name] = traffic
        samples: dict[str, list[load.Sample]] = {name: [] for name in running}
        paced: dict[str, list[load.Paced]] = {name: [] for name in running}
        names = list(running)
        for number in range(options.rounds):
            turn = number % len(names)
            for name in names[turn:] + names[:turn]:
                progress(f"round {number + 1} of {options.rounds}: {name}")
                samples[name].append(load.closed_loop(running[name], asked[name], options.seconds))
                if ladder.is_paced and load.is_paced_available():
                    run = load.paced(running[name], asked[name], options.seconds, options.rate_per_s)
                    paced[name].append(run)
        memory = {name: server.private_bytes() for name, server in running.items()}
    return {
        "what": ladder.what,
        "missing": missing,
        "peers": {name: _summary(samples[name], paced[name], memory[name]) for name in names},
    }


def _prove(name: str, server: Server, traffic: Traffic, *, is_hit: bool) -> None:
    for _ in range(2):  # the first fills a cache, the second must come from it
        status, _headers, body = load.ask(server, traffic)
        if status != traffic.status:
            raise RuntimeError(f"{name} answers {status}, not {traffic.status}: {body[:300]!r}")
    # A disk is written to in batches: what it stores may take a moment to be there.
    until = time.monotonic() + 5
    while is_hit:
        first, second = (load.ask(server, traffic)[1].get(MADE) for _ in range(2))
        if first == second:
            return
        if time.monotonic() > until:
            raise RuntimeError(f"{name} asks the upstream again for what it should have stored")
        time.sleep(0.1)


def _summary(samples: list[load.Sample], paced: list[load.Paced], private_bytes: int) -> Result:
    def median(field: str, of: list[Any]) -> float:
        return float(statistics.median(getattr(sample, field) for sample in of))

    summary: Result = {
        "cpu_us": median("cpu_us", samples),
        "rps": median("rps", samples),
        "errors": sum(sample.errors for sample in samples),
        "private_bytes": private_bytes,
        "rounds": [asdict(sample) for sample in samples],
    }
    if paced:
        summary["paced"] = {
            "rate_per_s": paced[0].rate_per_s,
            "p50_us": median("p50_us", paced),
            "p99_us": median("p99_us", paced),
            "errors": sum(run.errors for run in paced),
            "rounds": [asdict(run) for run in paced],
        }
    return summary
