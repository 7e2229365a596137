"""The figures as a table, as promises kept or not, as JSON and as a plot."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

__all__ = ["Promise", "plot", "print_report", "promises", "write"]

COLOURS = {"nginx": "#1b9e77", "haproxy": "#7570b3", "fastgate": "#d95f02"}


@dataclass(frozen=True)
class Promise:
    """One figure the project stands for. `value` None: not measured this time."""

    what: str
    value: float
    bound: float
    unit: str = ""

    @property
    def holds(self) -> bool:
        """True if the value does not exceed its bound."""
        return self.value <= self.bound


def promises(results: dict[str, Any]) -> list[Promise]:
    """Every promise whose scenario was measured."""
    found = []

    def cpu(scenario: str, peer: str) -> float | None:
        peers = results.get(scenario, {}).get("peers", {})
        return peers[peer]["cpu_us"] if peer in peers else None

    def ratio(what: str, bound: float, scenario: str, peer: str, beside: str) -> None:
        value, other = cpu(scenario, peer), cpu(scenario, beside)
        if value is not None and other:
            found.append(Promise(what, value / other, bound, "x"))

    ratio("bare proxy, CPU beside nginx proxy_pass", 1.0, "proxy", "fastgate", "nginx")
    ratio("fixed response, CPU beside nginx return", 1.15, "respond", "fastgate", "nginx")
    ratio("connection per request, CPU compared with nginx", 1.1, "connect", "fastgate", "nginx")
    ratio("TLS keep-alive, CPU compared with nginx", 1.0, "tls", "fastgate", "nginx")
    ratio("TLS handshake per request, CPU compared with nginx", 1.1, "tls-handshake", "fastgate", "nginx")
    ratio("proxy with access log, CPU beside nginx with its own", 1.0, "access-log", "fastgate", "nginx")
    ratio("guarded proxy, CPU beside nginx bare proxy_pass", 1.0, "guarded", "fastgate", "nginx")
    ratio("guarded proxy, CPU beside nginx + Lua", 0.7, "guarded", "fastgate", "nginx + lua")
    ratio("a refusal, CPU beside nginx return", 1.15, "refusal", "fastgate", "nginx")
    key, token = cpu("jwt", "fastgate key"), cpu("jwt", "fastgate jwt")
    if key is not None and token is not None:
        found.append(Promise("a token seen before, CPU beside a key", token - key, 1.0, "µs"))
    ratio("100000 keys, CPU beside 10", 1.1, "many-keys", "fastgate 100000 keys", "fastgate 10 keys")
    ratio(
        "1000000 limiter entries, CPU beside 100",
        1.1,
        "many-entries",
        "fastgate 1000000 entries",
        "fastgate 100 entries",
    )
    ratio("guarded hit, CPU beside nginx proxy_cache", 0.65, "hit", "fastgate", "nginx")
    ratio("guarded hit, CPU beside Varnish", 0.7, "hit", "fastgate", "varnish")
    ratio("guarded hit, CPU beside nginx + Lua", 0.9, "hit", "fastgate", "nginx + lua")
    ratio("hit on disk, CPU beside one in memory", 1.3, "hit-l2", "fastgate disk", "fastgate memory")
    ratio("1000000 answers, CPU beside 1000", 1.1, "hit-keys", "fastgate 1000000 keys", "fastgate 1000 keys")
    if results.get("store-big", {}).get("stored"):
        stored, relayed = (
            sorted(run["max_us"] for run in results["store-big"][name]) for name in ("stored", "relayed")
        )
        # The median round of each: one stall of the machine is neither's.
        added = (stored[len(stored) // 2] - relayed[len(relayed) // 2]) / 1000
        found.append(Promise("longest wait that storing 1 GB adds", added, 5.0, "ms"))
    ratio("two workers, CPU beside one", 1.1, "workers", "fastgate 2 workers", "fastgate 1 worker")
    ratio("10000 routes, CPU beside one", 1.1, "routes", "fastgate 10000 routes", "fastgate 1 route")
    if "idle" in results:
        each = results["idle"]["peers"]["fastgate"]["bytes_each"]
        found.append(Promise("an idle keep-alive connection", each / 1000, 10.0, "kB"))
    if "start" in results:
        found.append(Promise("first answer after start", results["start"]["seconds"], 0.7, "s"))
    if "proxy" in results:
        private = results["proxy"]["peers"]["fastgate"]["private_bytes"]
        found.append(Promise("private memory of a worker", private / 1e6, 45.0, "MB"))
    if "match" in results:
        took = results["match"]["ns"]
        found.append(Promise("a match among 10000 routes", took["10000"], 1000.0, "ns"))
    if "quiet" in results.get("reload", {}):
        quiet, busy = results["reload"]["quiet"], results["reload"]["reloading"]
        if quiet["p99_us"]:
            found.append(
                Promise("p99 while reloading, beside quiet", busy["p99_us"] / quiet["p99_us"], 2.0, "x")
            )
        found.append(Promise("requests failed while reloading", busy["errors"], 0.0))
    return found


def print_report(document: dict[str, Any], console: Console) -> None:
    """The tables a person reads."""
    results = document["scenarios"]
    table = Table(title="CPU time", title_justify="left")
    for column in ("scenario", "peer", "CPU µs", "per", "ratio to first", "per second", "p50 µs", "p99 µs"):
        is_text = column in ("scenario", "peer", "per")
        table.add_column(column, justify="left" if is_text else "right", no_wrap=is_text)
    for name, result in results.items():
        first: float | None = None
        for peer, figures in result.get("peers", {}).items():
            if "cpu_us" not in figures:
                continue
            first = first or figures["cpu_us"]
            paced = figures.get("paced", {})
            table.add_row(
                name,
                peer,
                f"{figures['cpu_us']:.2f}",
                result["unit"],
                f"{figures['cpu_us'] / first:.2f}",
                f"{figures['per_s']:.0f}",
                f"{paced['p50_us']:.0f}" if paced else "",
                f"{paced['p99_us']:.0f}" if paced else "",
            )
        table.add_section()
    if table.row_count:
        console.print(table)
    kept = Table(title="Promises", title_justify="left")
    for column in ("what", "measured", "bound", ""):
        kept.add_column(column, justify="right" if column in ("measured", "bound") else "left")
    for promise in promises(results):
        kept.add_row(
            promise.what,
            f"{promise.value:.3g} {promise.unit}",
            f"{promise.bound:g} {promise.unit}",
            "[green]kept[/]" if promise.holds else "[red]broken[/]",
        )
    if kept.row_count:
        console.print(kept)
    for line in document["missing"]:
        console.print(f"missing: {line}", markup=False)
    for line in document["failed"]:
        console.print(f"failed: {line}", markup=False)


def write(document: dict[str, Any], path: Path) -> None:
    """The document as JSON, with the promises spelled out."""
    document["promises"] = [
        {"what": p.what, "value": p.value, "bound": p.bound, "unit": p.unit, "holds": p.holds}
        for p in promises(document["scenarios"])
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document, indent=1) + "\n")


def plot(document: dict[str, Any], path: Path) -> bool:
    """Draws the ladders as bars with the rounds as dots. False without matplotlib."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return False
    ladders = {
        name: result
        for name, result in document["scenarios"].items()
        if any("cpu_us" in figures for figures in result.get("peers", {}).values())
    }
    if not ladders:
        return True
    figure = Figure(figsize=(9, 1.2 + sum(0.4 * len(result["peers"]) + 0.7 for result in ladders.values())))
    heights = [len(result["peers"]) + 0.8 for result in ladders.values()]
    axes = figure.subplots(
        len(ladders), 1, sharex=True, squeeze=False, gridspec_kw={"height_ratios": heights}
    )
    for axis, (name, result) in zip(axes[:, 0], ladders.items(), strict=True):
        peers = list(result["peers"])
        for place, peer in enumerate(peers):
            figures = result["peers"][peer]
            colour = COLOURS.get(peer.split()[0], "#666666")
            axis.barh(place, figures["cpu_us"], color=colour, alpha=0.75, height=0.7)
            rounds = [sample["cpu_us"] for sample in figures["rounds"]]
            axis.plot(rounds, [place] * len(rounds), "k.", markersize=3)
            axis.text(
                max(figures["cpu_us"], *rounds), place, f"  {figures['cpu_us']:.1f}", va="center", fontsize=8
            )
        axis.set_yticks(range(len(peers)), peers, fontsize=8)
        axis.invert_yaxis()
        axis.set_title(f"{name}: {result['what']} (per {result['unit']})", fontsize=9, loc="left")
        for side in ("top", "right"):
            axis.spines[side].set_visible(False)
    axes[-1, 0].set_xlabel("CPU µs (median of rounds; dots are rounds)")
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    return True
