"""docs/interactions.md against the tests: each promise names a test that exists."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "interactions.md"


def rows() -> list[list[str]]:
    lines = [line for line in PAGE.read_text().splitlines() if line.startswith("|")][2:]
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line.strip().strip("|"))] for line in lines]


def test_each_row_names_a_test_that_exists() -> None:
    wrong = []
    for row in rows():
        assert len(row) == 4, f"expected feature, with, what holds, test: {row}"
        path, _, name = row[3].strip("`").partition("::")
        file = ROOT / path
        names = {
            node.name
            for node in (ast.walk(ast.parse(file.read_text())) if file.exists() else ())
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        }
        if name not in names:
            wrong.append(row[3])
    assert not wrong, f"no such test: {wrong}"


def test_each_pair_is_listed_once() -> None:
    promises = [tuple(row[:3]) for row in rows()]
    assert len(promises) == len(set(promises))
