"""The Dockerfile's own steps, run without Docker: each stage in a directory that stands for its `/`.

Every instruction is either carried out here or named in TOLD_ONLY; an unknown one is an error, so the file
and the tests that run it cannot drift apart. What differs from Docker: absolute paths are moved under the
stage's directory, `python` is an interpreter of this machine, and system packages are not installed.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

__all__ = ["Dockerfile", "Instruction", "Stage", "anybody_may_run", "outsider", "parse"]

TOLD_ONLY = {"EXPOSE"}
SYSTEM_PACKAGES = "apt-get update && apt-get install -y --no-install-recommends "
ABSOLUTE = re.compile(r"""(?<![^\s"'=:,])/(?=[\w.])""")
NOBODY = 65534


class Instruction(NamedTuple):
    line: int
    name: str
    rest: str


class Dockerfile(NamedTuple):
    """The stages by name, in order; one without a name has its number."""

    stages: dict[str, list[Instruction]]

    def all(self, stage: str, name: str) -> list[str]:
        return [instruction.rest for instruction in self.stages[stage] if instruction.name == name]

    def last(self, name: str) -> str:
        """The last such instruction of the last stage: the one that holds for the image."""
        return self.all(list(self.stages)[-1], name)[-1]


def parse(text: str) -> Dockerfile:
    stages: dict[str, list[Instruction]] = {}
    steps: list[Instruction] = []
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip() or line.startswith("#"):
            continue
        name, _, rest = line.partition(" ")
        if line.endswith("\\") or not name.isupper():
            raise ValueError(f"line {number}: one instruction per line")
        if name == "FROM":
            _, _, alias = rest.partition(" AS ")
            steps = stages[alias or str(len(stages))] = []
        steps.append(Instruction(number, name, rest))
    return Dockerfile(stages)


class Stage:
    """One stage: its directory, its environment, and what its image would run."""

    def __init__(self, root: Path, source: Path, earlier: dict[str, Stage]) -> None:
        self.root, self._source, self._earlier = root, source, earlier
        root.mkdir(parents=True)
        self.directory = root
        self.user: str | None = None
        self.health: list[str] = []
        self.entry: list[str] = []
        self.command: list[str] = []
        self.system_packages: list[str] = []
        # The only program on the path is an interpreter: a step that needs anything else must say so.
        (root / "bin").mkdir()
        (root / "bin" / "python").symlink_to(outsider())
        self.environ = {
            name: value
            for name, value in os.environ.items()
            if name.startswith(("PIP_", "HOME", "SSL_", "LC_"))
        }
        self.environ["PATH"] = str(root / "bin")

    def _bring_compiler(self) -> None:
        """Puts on the path what `apt-get install gcc` would: this machine's compiler and linker."""
        for tool in ("cc", "gcc", "ld", "as", "ar", "x86_64-linux-gnu-gcc"):
            if found := shutil.which(tool):
                (self.root / "bin" / tool).symlink_to(found)

    def inside(self, text: str) -> str:
        """`text` with absolute paths moved under this stage's directory."""
        return ABSOLUTE.sub(f"{self.root}/", text)

    def carry_out(self, steps: list[Instruction]) -> None:
        for step in steps:
            if step.name in TOLD_ONLY or step.name == "FROM":
                continue
            action = getattr(self, f"_{step.name.lower()}", None)
            if action is None:
                raise ValueError(
                    f"line {step.line}: {step.name} is not understood here; teach it to this file"
                )
            action(step.rest)

    def _run(self, command: str) -> None:
        if command.startswith(SYSTEM_PACKAGES):
            self.system_packages += command.removeprefix(SYSTEM_PACKAGES).split()
            self._bring_compiler()
            return
        done = subprocess.run(
            ["/bin/sh", "-euc", self.inside(command)],
            cwd=self.directory,
            env=self.environ,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, f"RUN {command}\n{done.stdout}\n{done.stderr}"

    def _copy(self, rest: str) -> None:
        words = shlex.split(rest)
        origin = self._source
        if words[0].startswith("--from="):
            stage = self._earlier[words.pop(0).removeprefix("--from=")]
            *names, target = words
            names = [str(Path(stage.inside(name)).relative_to(stage.root)) for name in names]
            origin = stage.root
        else:
            *names, target = words
        place = Path(self.inside(target)) if target.startswith("/") else self.directory / target
        for name in names:
            if (origin / name).is_dir():
                shutil.copytree(origin / name, place, ignore=_ignored, symlinks=True)
            else:
                into = place / Path(name).name if target.endswith("/") or len(names) > 1 else place
                into.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(origin / name, into)

    def _workdir(self, path: str) -> None:
        self.directory = Path(self.inside(path))
        self.directory.mkdir(parents=True, exist_ok=True)

    def _env(self, rest: str) -> None:
        for pair in shlex.split(rest):
            name, _, value = pair.partition("=")
            self.environ[name] = self.inside(value)

    def _user(self, rest: str) -> None:
        self.user = rest

    def _healthcheck(self, rest: str) -> None:
        self.health = self._words(rest.partition(" CMD ")[2])

    def _entrypoint(self, rest: str) -> None:
        self.entry = self._words(rest)

    def _cmd(self, rest: str) -> None:
        self.command = self._words(rest)

    def _words(self, rest: str) -> list[str]:
        return [self.inside(word) for word in json.loads(rest)]


def _ignored(directory: str, names: list[str]) -> list[str]:
    # What .dockerignore keeps out.
    return [name for name in names if name == "__pycache__" or name.endswith((".so", ".c"))]


def outsider() -> Path:
    """The interpreter for the stages: this one's origin, or when only root may run that, the system's."""
    version = f"python{sys.version_info[0]}.{sys.version_info[1]}"
    own = Path(sys.base_prefix) / "bin" / version
    candidates = [own, Path("/usr/local/bin") / version, Path("/usr/bin") / version]
    if os.geteuid() != 0:
        return own
    return next((path for path in candidates if path.exists() and anybody_may_run(path)), own)


def anybody_may_run(interpreter: Path) -> bool:
    """True if we are root and a user without any right may run it, with the modules a stage needs."""
    if os.geteuid() != 0:
        return False
    try:
        done = subprocess.run(
            [interpreter, "-c", "import ensurepip, venv"],
            user=NOBODY,
            group=NOBODY,
            extra_groups=[],
            capture_output=True,
            check=False,
        )
    except PermissionError:
        return False
    return done.returncode == 0
