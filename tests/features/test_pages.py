"""The pages on access: every example can be used as it stands, and the table of variables is whole."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from fastgate.config import check
from fastgate.features.policy.variables import VARIABLES

DOCS = Path(__file__).resolve().parents[2] / "docs"
PAGES = ["auth/authorization.md", "policies.md", "upstream-credentials.md"]


@pytest.mark.parametrize("page", PAGES)
def test_the_examples_are_good_configs(page: str) -> None:
    pytest.importorskip("cel_expr_python")
    examples = re.findall(r"```yaml\n(.*?)```", (DOCS / page).read_text(), re.DOTALL)
    assert examples

    for example in examples:
        config, errors = check(example, "yaml", {})
        assert config is not None, "\n".join(map(str, errors))


def test_the_page_on_policies_has_every_variable() -> None:
    page = (DOCS / "policies.md").read_text()

    for name, (kind, _source, said) in VARIABLES.items():
        assert f"| `{name}` | {kind} | {said} |" in page
