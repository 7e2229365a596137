"""`fastgate status`: the state of the running gateway from the admin API, for terminals and for scripts."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any, Final

from rich import box
from rich.console import Console
from rich.table import Table

__all__ = ["show_status"]

#: Columns of workers that would make the table too wide to read.
ONLY_IN_JSON: Final = frozenset({"generation", "started", "heartbeat_age_ms", "tunnels", "private_bytes"})
LABELS: Final = {"requests_active": "in flight", "requests_per_s": "requests per s"}


def show_status(ask: Callable[[], dict[str, Any]], *, as_json: bool, every_s: float | None) -> None:
    """Prints the result of `ask`, once or every `every_s` seconds."""
    console = Console(highlight=False, soft_wrap=True)
    before: tuple[float, int] | None = None
    while True:
        response = ask()
        now, total = time.monotonic(), response.get("requests")
        if before is not None and isinstance(total, int) and now > before[0]:
            response["requests_per_s"] = round(max(0, total - before[1]) / (now - before[0]), 2)
        before = (now, total) if isinstance(total, int) else None
        if as_json:
            print(json.dumps(response, indent=None if every_s else 2), flush=True)
        else:
            if every_s and console.is_terminal:
                console.clear()
            _print(response, console)
        if every_s is None:
            return
        time.sleep(every_s)


def _print(response: dict[str, Any], console: Console) -> None:
    """Single values as lines, lists of mappings as tables that fit 80 columns."""
    for name, value in response.items():
        label = LABELS.get(name, name)
        if isinstance(value, list) and value and all(isinstance(row, dict) for row in value):
            _print_table(label, value, console)
        elif isinstance(value, dict):
            single = {key: inner for key, inner in value.items() if not isinstance(inner, dict | list)}
            console.print(f"{label}: " + "  ".join(f"{key}={_word(inner)}" for key, inner in single.items()))
            for key, inner in value.items():
                if isinstance(inner, dict):
                    console.print(f"  {key}: " + "  ".join(f"{k}={_word(v)}" for k, v in inner.items()))
                for row in inner if isinstance(inner, list) else ():
                    text = row.get("text", json.dumps(row)) if isinstance(row, dict) else row
                    console.print(f"  {key}: {text}", markup=False)
        elif isinstance(value, list):
            console.print(f"{label}: {', '.join(map(str, value))}", markup=False)
        elif value is not None:
            console.print(f"{label}: {_word(value)}", markup=False)


def _print_table(title: str, rows: list[dict[str, Any]], console: Console) -> None:
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, show_edge=False, padding=0)
    columns = [key for key in dict.fromkeys(key for row in rows for key in row) if key not in ONLY_IN_JSON]
    for column in columns:
        table.add_column(column.removesuffix("_bytes").replace("_", "\n"), no_wrap=True)
    for row in rows:
        table.add_row(*(_cell(column, row.get(column)) for column in columns))
    console.print(table)


def _cell(column: str, value: Any) -> str:
    if value is None:
        return ""
    return f"{value / 1e6:.0f} MB" if column.endswith("_bytes") else _word(value)


def _word(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "none" if value is None else str(value)
