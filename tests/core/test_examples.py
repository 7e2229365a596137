"""The examples of docs/primitives-cache.md run as they stand."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

DOCUMENT = Path(__file__).parents[2] / "docs" / "primitives-cache.md"
EXAMPLES = re.findall(r"^## (.+?)$.*?^```python\n(.*?)^```$", DOCUMENT.read_text(), re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize(("title", "code"), EXAMPLES, ids=[title for title, _ in EXAMPLES])
def test_example(title: str, code: str) -> None:
    exec(compile(code, f"{DOCUMENT.name}: {title}", "exec"), {})


def test_every_primitive_has_one() -> None:
    assert len(EXAMPLES) == 6
