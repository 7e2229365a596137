"""Responses of the admin API as text, for terminals and for `grep`."""

from __future__ import annotations

import json
from typing import Any

import click

__all__ = ["cell", "print_fields", "print_table"]


def print_fields(response: dict[str, Any], as_json: bool) -> None:
    """One line per field that has a value; or the JSON."""
    if as_json:
        click.echo(json.dumps(response, indent=2))
        return
    for name, value in response.items():
        if value not in (None, "", [], {}):
            click.echo(f"{name}: {cell(value)}")


def cell(value: Any) -> str:
    """The text of a value, on one line."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, dict):
        return " ".join(f"{name}={cell(inner)}" for name, inner in value.items())
    if isinstance(value, list):
        return " ".join(map(cell, value))
    return "none" if value is None else str(value)


def print_table(rows: list[dict[str, Any]], columns: tuple[str, ...]) -> None:
    """Columns sized to their contents."""
    if not rows:
        click.echo("none", err=True)
        return
    lines = [[column.replace("_", " ") for column in columns]]
    lines += [["" if row.get(column) is None else cell(row[column]) for column in columns] for row in rows]
    widths = [max(len(line[index]) for line in lines) for index in range(len(columns))]
    for line in lines:
        click.echo("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())
