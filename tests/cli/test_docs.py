"""`fastgate docs`: every page of the manual is reachable from the command line, and is in the package."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from click.testing import CliRunner

from fastgate.cli.main import main

ROOT = Path(__file__).parents[2]
PAGES = {str(path.relative_to(ROOT / "docs"))[:-3]: path for path in (ROOT / "docs").rglob("*.md")}


def test_every_page_is_listed_with_its_title_and_printed() -> None:
    listed = CliRunner().invoke(main, ["docs"])

    assert listed.exit_code == 0
    assert {line.split()[0] for line in listed.output.splitlines()} == set(PAGES)
    assert re.search(r"^cli +The command line$", listed.output, re.M)
    assert CliRunner().invoke(main, ["docs", "docs/auth/jwt.md"]).output == PAGES["auth/jwt"].read_text()


def test_an_unknown_page_says_where_the_list_is() -> None:
    done = CliRunner().invoke(main, ["docs", "jtw"])

    assert done.exit_code == 2
    assert "`fastgate docs` lists the pages" in done.output


def test_the_built_package_has_every_page_and_prints_it(tmp_path: Path) -> None:
    subprocess.run(
        [sys.executable, "setup.py", "-q", "build_py", "--build-lib", str(tmp_path)],
        cwd=ROOT,
        env={**os.environ, "FASTGATE_BUILT": "1"},  # the modules of Python alone
        check=True,
    )
    command = [sys.executable, "-c", "from fastgate.cli.manual import docs; docs()"]
    environ = {**os.environ, "PYTHONPATH": str(tmp_path)}
    listed, page = (
        subprocess.run([*command, *more], cwd=tmp_path, env=environ, capture_output=True, check=True).stdout
        for more in ([], ["auth/jwt"])
    )

    assert {line.split()[0].decode() for line in listed.splitlines()} == set(PAGES)
    assert page == PAGES["auth/jwt"].read_bytes()


def test_every_page_is_reachable_from_the_readme() -> None:
    seen: set[Path] = set()
    queue = [ROOT / "README.md"]
    while queue:
        page = queue.pop()
        for link in re.findall(r"\]\(([^)#:]+\.md)(?:#[^)]*)?\)", page.read_text()):
            target = (page.parent / link).resolve()
            assert target.is_file(), f"{page.name}: {link}"
            if target not in seen:
                seen.add(target)
                queue.append(target)

    assert {path.resolve() for path in PAGES.values()} <= seen
