"""The compiled extensions: one glob, one flags block. Everything else is in pyproject.toml.

FASTGATE_BUILD_JOBS=n  modules translated and compiled at a time; the number of cores unless told
FASTGATE_DEBUG=1       assertions, bounds checks and live-object counts compiled in
FASTGATE_BUILT=1       the extensions were built in place before; leave them as they are (editable installs)
FASTGATE_SANITIZE=1    AddressSanitizer and UndefinedBehaviorSanitizer (run with LD_PRELOAD of libasan)
"""

import os
import shutil
import sys
from pathlib import Path

from Cython.Build import cythonize
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py

DEBUG = os.environ.get("FASTGATE_DEBUG") == "1"
SANITIZE = os.environ.get("FASTGATE_SANITIZE") == "1"
JOBS = int(os.environ.get("FASTGATE_BUILD_JOBS") or os.cpu_count() or 1)

CFLAGS = ["-O3", "-g0", "-fvisibility=hidden", "-fno-semantic-interposition", "-Wall", "-Wno-unused-function"]
LDFLAGS: list[str] = []
if DEBUG or SANITIZE:
    CFLAGS = ["-O1", "-g", "-Wall", "-Wno-unused-function"]
if SANITIZE:
    CFLAGS += ["-fsanitize=address,undefined", "-fno-omit-frame-pointer", "-fno-sanitize-recover=undefined"]
    LDFLAGS += ["-fsanitize=address,undefined"]

DIRECTIVES = {
    "language_level": "3",
    "boundscheck": DEBUG,
    "wraparound": False,
    "cdivision": True,
    "initializedcheck": DEBUG,
    # The signature is part of the docstring, where help() and inspect.signature() find it. `binding` would
    # give the same, and calls that cost more.
    "embedsignature": True,
    "embedsignature.format": "clinic",
    "binding": False,
    # Cython would make __reduce__ out of C pointers: copy.copy() of such an object is a crash.
    "auto_pickle": False,
}


class BuildWithProgress(build_ext):
    """Compiles JOBS modules at a time and names each one on stderr when it really is compiled."""

    def finalize_options(self) -> None:
        super().finalize_options()
        self.parallel = JOBS

    def build_extension(self, ext: Extension) -> None:
        target = Path(self.get_ext_fullpath(ext.name))
        newest = max(Path(source).stat().st_mtime for source in ext.sources)
        if not target.exists() or target.stat().st_mtime < newest:
            sys.stderr.write(f"  compile {ext.name}\n")
        super().build_extension(ext)


class BuildWithManual(build_py):
    """Adds docs/ to the package as fastgate/pages, for `fastgate docs`. A build without docs/ fails."""

    def run(self) -> None:
        super().run()
        if self.editable_mode:  # reads docs/ itself
            return
        source, target = Path("docs"), Path(self.build_lib) / "fastgate" / "pages"
        shutil.rmtree(target, ignore_errors=True)  # build/ may hold pages that are gone
        if not (source / "cli.md").is_file():
            raise FileNotFoundError(f"{source.absolute()}: no manual to add to the package")
        for page in source.rglob("*.md"):
            copy = target / page.relative_to(source)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(page, copy)


def directives_changed(build_dir: str) -> bool:
    """True if some C was written before this file changed: Cython compares it with the .pyx files alone."""
    mine = Path(__file__).stat().st_mtime
    return any(path.stat().st_mtime < mine for path in Path(build_dir).rglob("*.c"))


def extensions() -> list[Extension]:
    # The generated C stays out of the source tree, and a debug build never reuses a release build's C.
    build_dir = "build/cython-debug" if DEBUG else "build/cython"
    return cythonize(
        [
            Extension(
                ".".join(path.with_suffix("").parts),
                [str(path)],
                extra_compile_args=CFLAGS,
                extra_link_args=LDFLAGS,
                define_macros=[("FASTGATE_DEBUG", "1")] if DEBUG else [],
            )
            for path in sorted(Path("fastgate").rglob("*.pyx"))
        ],
        build_dir=build_dir,
        force=directives_changed(build_dir),
        nthreads=JOBS,
        compiler_directives=DIRECTIVES,
        quiet=True,
    )


if __name__ == "__main__":  # the guard keeps multiprocessing's spawned children from building again
    built = os.environ.get("FASTGATE_BUILT") == "1"
    setup(
        ext_modules=[] if built else extensions(),
        cmdclass={"build_ext": BuildWithProgress, "build_py": BuildWithManual},
    )
