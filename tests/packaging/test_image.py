"""The container image without Docker: its build steps, its contents, its user, its health check."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.client import get
from tests.packaging.dockerfile import Stage, anybody_may_run, outsider, parse
from tests.upstream import Upstream, answer

ROOT = Path(__file__).resolve().parents[2]
DOCKERFILE = parse((ROOT / "Dockerfile").read_text())
STOP_S = 60
USER_ID = int(DOCKERFILE.last("USER").partition(":")[0])

MOUNTED = """
listen: 127.0.0.1:0
admin: {{listen: "unix:{socket}"}}
workers: 1
routes:
  - {{path: "/{{rest...}}", upstream: "{upstream}"}}
"""


class Image:
    """Both stages, built."""

    def __init__(self, root: Path, *, clean: bool) -> None:
        self.stages: dict[str, Stage] = {}
        for name, steps in DOCKERFILE.stages.items():
            stage = self.stages[name] = Stage(root / name, ROOT, dict(self.stages))
            for step in steps:
                if not clean and " -m build " in step.rest:
                    seed(stage.directory)
                stage.carry_out([step])
        self.final = list(self.stages.values())[-1]
        self.wheel = next((root / "build" / "wheel").glob("*.whl"))

    def popen(self, words: list[str], **more: Any) -> subprocess.Popen[str]:
        """Starts `words` as the image's user: another user only where we are root and it may run Python."""
        if anybody_may_run(outsider()):
            more |= {"user": USER_ID, "group": USER_ID, "extra_groups": []}
        return subprocess.Popen(
            words,
            cwd=self.final.directory,
            env=self.final.environ,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            **more,
        )

    def call(self, *words: str) -> tuple[int, str]:
        with self.popen(list(words)) as process:
            said, _ = process.communicate(timeout=STOP_S)
        return process.returncode, said

    def fastgate(self, *words: str) -> tuple[int, str]:
        return self.call(*self.final.entry, *words)

    @contextmanager
    def mounted(self, config: str) -> Iterator[None]:
        path = Path(self.final.environ["FASTGATE_CONFIG"])
        own = path.read_text()
        path.write_text(config)
        try:
            yield
        finally:
            path.write_text(own)


def seed(source: Path) -> None:
    """Brings what `make` has compiled here from the same sources, so that the build step only packs it.
    The same build from nothing is test_the_image_builds_from_nothing, which takes minutes.
    """
    # Touched, C before modules: Cython's own declarations in the fresh environment are younger than ours.
    shutil.copytree(ROOT / "build" / "cython", source / "build" / "cython", copy_function=shutil.copyfile)
    platform = f"{sysconfig.get_platform()}-{sys.implementation.cache_tag}"
    for module in (ROOT / "fastgate").rglob("*.so"):
        target = source / "build" / f"lib.{platform}" / module.relative_to(ROOT)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(module, target)
        target.chmod(0o755)


@contextmanager
def built(*, clean: bool) -> Iterator[Image]:
    # Not tmp_path: its parents are closed to other users, and the image's user is one.
    with tempfile.TemporaryDirectory(prefix="fastgate-image-") as directory:
        os.chmod(directory, 0o755)
        yield Image(Path(directory) / "image", clean=clean)


@pytest.fixture(scope="module")
def image() -> Iterator[Image]:
    with built(clean=False) as image:
        yield image


def test_only_the_first_stage_has_a_compiler(image: Image) -> None:
    first, last = image.stages["build"], image.final

    assert "gcc" in first.system_packages
    assert shutil.which("gcc", path=first.environ["PATH"])
    assert not last.system_packages
    assert os.listdir(last.root / "bin") == ["python"]


def test_the_image_runs_as_a_user_without_rights() -> None:
    assert re.fullmatch(r"(\d+):\1", DOCKERFILE.last("USER"))
    assert USER_ID > 1000


def test_the_wheel_holds_what_others_import_and_no_sources_of_the_extension(image: Image) -> None:
    names = set(zipfile.ZipFile(image.wheel).namelist())
    package = ROOT / "fastgate"
    suffix = sysconfig.get_config_var("EXT_SUFFIX")
    sources = {str(path.relative_to(ROOT)) for path in package.rglob("*") if "__pycache__" not in path.parts}

    expected = {name for name in sources if name.endswith((".py", ".pyi", ".pxd"))}
    expected |= {name.removesuffix(".pyx") + suffix for name in sources if name.endswith(".pyx")}
    expected |= {"fastgate/py.typed", "fastgate/cli/demo.yaml"}
    manual = ROOT / "docs"
    expected |= {f"fastgate/pages/{path.relative_to(manual)}" for path in manual.rglob("*.md")}
    inside = {name for name in names if ".dist-info/" not in name}

    assert inside == expected


def test_the_command_works_where_nothing_else_is_installed(image: Image) -> None:
    example = image.final.root / "demo.yaml"
    shutil.copyfile(ROOT / "examples" / "demo.yaml", example)

    for words, expected in (
        (["version"], "0.1.0"),
        (["check"], "valid"),
        (["check", str(example)], "valid"),
        (["docs"], "The command line"),
        (["docs", "auth/jwt"], (ROOT / "docs/auth/jwt.md").read_text()),
    ):
        status, said = image.fastgate(*words)
        assert (status, expected in said) == (0, True), said


def test_a_mounted_config_is_served_and_the_health_check_tells_how_it_is(image: Image) -> None:
    with (
        tempfile.TemporaryDirectory(prefix="fastgate-run-") as directory,
        Upstream(answer(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello")) as upstream,
    ):
        os.chmod(directory, 0o777)
        config = MOUNTED.format(socket=f"{directory}/admin.sock", upstream=upstream.url)
        with image.mounted(config):
            read, write = os.pipe()
            words = [*image.final.entry, *image.final.command, "--ready-fd", str(write)]
            with image.popen(words, pass_fds=[write]) as gateway:
                os.close(write)
                try:
                    with open(read) as pipe:
                        line = pipe.readline()
                    assert line, "the gateway did not become ready"
                    port = int(json.loads(line)["listen"][0].rpartition(":")[2])

                    assert get(port, "/a").body == b"hello"
                    if anybody_may_run(outsider()):
                        assert os.stat(f"/proc/{gateway.pid}").st_uid == USER_ID
                    health, said = image.call(*image.final.health)
                    assert health == 0, said
                finally:
                    gateway.send_signal(signal.SIGTERM)
                    said, _ = gateway.communicate(timeout=STOP_S)
            assert gateway.returncode == 0, said
            assert "Traceback" not in said

            health, _ = image.call(*image.final.health)
            assert health != 0


@pytest.mark.soak
def test_the_image_builds_from_nothing() -> None:
    with built(clean=True) as image:
        status, said = image.fastgate("check")

    assert status == 0, said


SERVICE = """
from libc.stdint cimport int64_t
from fastgate._core.clock cimport monotonic_ns
from fastgate._core.histogram cimport histogram_quantile, histogram_record, histogram_t
from fastgate._core.balance cimport SmoothWeighted
from fastgate._core.hashing cimport siphash
from libc.stdint cimport uint64_t
from libc.string cimport memset

def use():
    cdef histogram_t seen
    cdef int64_t value
    cdef uint64_t key[2]
    cdef SmoothWeighted balance = SmoothWeighted([3, 1])
    key[0] = key[1] = 7
    memset(&seen, 0, sizeof(seen))
    with nogil:
        for value in range(1, 1001):
            histogram_record(&seen, value * 1000)
    picks = [balance.pick() for _ in range(4)]
    return seen.count, histogram_quantile(&seen, 0.5), picks, siphash(b"a", 1, key), monotonic_ns()
"""


def test_another_project_cimports_from_the_installed_wheel(image: Image, tmp_path: Path) -> None:
    installed = tmp_path / "installed"
    zipfile.ZipFile(image.wheel).extractall(installed)
    project = tmp_path / "project"
    project.mkdir()
    (project / "service.pyx").write_text(SERVICE)
    environ = {**os.environ, "PYTHONPATH": str(installed)}

    subprocess.run(
        [sys.executable, "-m", "Cython.Build.Cythonize", "-3", "-i", "-q", "service.pyx"],
        cwd=project,
        env=environ,
        check=True,
        capture_output=True,
        timeout=120,
    )
    program = "import fastgate, service; print(fastgate.__file__); print(service.use()[:3])"
    said = subprocess.run(
        [sys.executable, "-c", program],
        cwd=project,
        env=environ,
        check=True,
        capture_output=True,
        text=True,
        timeout=60,
    ).stdout.splitlines()

    assert said[0].startswith(str(installed))
    assert said[1].startswith("(1000, ") and said[1].endswith(", [0, 0, 1, 0])")
