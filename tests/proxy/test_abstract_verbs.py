"""A stream or a sink that does not implement a verb says so, with its class and the verb."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import fastgate

PACKAGE = Path(fastgate.__file__).parent
ABSTRACT = {
    "ClientStream": PACKAGE / "proxy" / "client_stream.pxd",
    "ResponseSink": PACKAGE / "upstream" / "stream.pxd",
    "UpstreamStream": PACKAGE / "upstream" / "stream.pxd",
    "ConnectionOwner": PACKAGE / "upstream" / "h1_stream.pxd",
}
# Of several parties, a sink shares nothing unless it says so: a default, not a verb.
DEFAULTS = {"shared_with"}

SETUP = """
from Cython.Build import cythonize
from setuptools import Extension, setup
setup(name="outside", ext_modules=cythonize([Extension("outside", ["outside.pyx"])], quiet=True))
"""


def verbs(name: str) -> list[tuple[str, str]]:
    """The verbs that the class declares, with arguments for a call: 0 for a number, NULL, or None."""
    text = ABSTRACT[name].read_text()
    body = re.search(rf"^cdef class {name}\b.*?(?=^\S|\Z)", text, re.MULTILINE | re.DOTALL)
    assert body is not None
    found = []
    for verb, arguments in re.findall(r"^    cdef \w+ (\w+)\(self([^)]*)\)", body[0], re.MULTILINE):
        kinds = [argument.split()[:-1] for argument in arguments.split(",")[1:]]
        values = [
            "NULL" if kind[-1].endswith("*") else "0" if kind[-1] in ("int", "bint", "int64_t") else "None"
            for kind in kinds
        ]
        found.append((verb, ", ".join(values)))
    return [(verb, values) for verb, values in found if verb not in DEFAULTS]


def source() -> str:
    lines = ["# cython: language_level=3"]
    for name, path in ABSTRACT.items():
        module = ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts)
        lines += [f"from {module} cimport {name}", f"cdef class Own{name}({name}):", "    pass"]
        for verb, values in verbs(name):
            lines += [f"def {name}_{verb}():", f"    (<{name}>Own{name}()).{verb}({values})"]
    return "\n".join(lines) + "\n"


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What a subclass without any verb of its own raises, by class and verb."""
    pytest.importorskip("Cython")
    pytest.importorskip("setuptools")
    folder = tmp_path_factory.mktemp("outside")
    (folder / "outside.pyx").write_text(source())
    (folder / "setup.py").write_text(SETUP)
    environ = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(PACKAGE.parent), str(folder)]),
        "CFLAGS": "-O0",
    }
    for command in (
        [sys.executable, "setup.py", "-q", "build_ext", "--inplace"],
        [
            sys.executable,
            "-c",
            "import outside\n"
            "for name, function in vars(outside).items():\n"
            f"    if name.startswith({tuple(f'{name}_' for name in ABSTRACT)}):\n"
            "        try:\n"
            "            function()\n"
            "            print(name, 'nothing', sep='\\t')\n"
            "        except NotImplementedError as error:\n"
            "            print(name, error, sep='\\t')\n",
        ],
    ):
        run = subprocess.run(command, cwd=folder, env=environ, capture_output=True, text=True)
        assert run.returncode == 0, run.stderr
    return dict(line.split("\t") for line in run.stdout.splitlines())


def test_a_verb_that_is_not_implemented_is_named(told: dict[str, str]) -> None:
    expected = {
        f"{name}_{verb}": f"Own{name} does not implement {verb}"
        for name in ABSTRACT
        for verb, _ in verbs(name)
    }

    assert len(expected) >= 40
    assert told == expected
