"""The reader of the Dockerfile: what it takes, what it refuses, and that the file's parts exist."""

from __future__ import annotations

import re
import shlex
import tomllib
from pathlib import Path

import pytest

from tests.packaging.dockerfile import Stage, parse

ROOT = Path(__file__).resolve().parents[2]


def test_stages_are_told_apart() -> None:
    file = parse("# a\nFROM x AS build\nRUN a\n\nFROM y\nUSER 1:1\nUSER 2:2\n")

    assert list(file.stages) == ["build", "1"]
    assert file.all("build", "RUN") == ["a"]
    assert file.last("USER") == "2:2"


def test_an_instruction_that_is_not_understood_is_refused(tmp_path: Path) -> None:
    file = parse("FROM x\nONBUILD RUN true\n")

    with pytest.raises(ValueError, match="line 2: ONBUILD is not understood"):
        Stage(tmp_path / "stage", ROOT, {}).carry_out(file.stages["0"])


def test_absolute_paths_move_under_the_stage(tmp_path: Path) -> None:
    stage = Stage(tmp_path / "s", ROOT, {})

    moved = stage.inside("/a/bin/pip -c /b/c.txt --x=/d a/b http://h/p ./e /w/*.whl")

    root = tmp_path / "s"
    assert moved == f"{root}/a/bin/pip -c {root}/b/c.txt --x={root}/d a/b http://h/p ./e {root}/w/*.whl"


def test_what_the_dockerfile_copies_is_let_through_by_dockerignore() -> None:
    allowed = {
        line.removeprefix("!")
        for line in (ROOT / ".dockerignore").read_text().splitlines()
        if line.startswith("!")
    }
    file = parse((ROOT / "Dockerfile").read_text())
    copied = {
        name
        for stage in file.stages
        for rest in file.all(stage, "COPY")
        if not rest.startswith("--from")
        for name in shlex.split(rest)[:-1]
    }

    assert copied == allowed
    assert all((ROOT / name).exists() for name in copied)


def test_the_image_has_the_extras_that_documented_features_need() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    needed = {
        re.split(r"[<>=\[]", requirement)[0]
        for name in extras.keys() - {"dev", "bench"}
        for requirement in extras[name]
    }
    installed = " ".join(parse((ROOT / "Dockerfile").read_text()).all("1", "RUN"))

    assert needed >= {"cel-expr-python", "jsonschema-rs"}
    assert all(f" {name}" in installed for name in needed), installed
