"""The compiled extensions: one glob, one flags block. Everything else is in pyproject.toml.

FASTGATE_DEBUG=1     assertions, bounds checks and live-object counts compiled in
FASTGATE_SANITIZE=1  AddressSanitizer and UndefinedBehaviorSanitizer (run with LD_PRELOAD of libasan)
"""

import os
from pathlib import Path

from Cython.Build import cythonize
from setuptools import Extension, setup

DEBUG = os.environ.get("FASTGATE_DEBUG") == "1"
SANITIZE = os.environ.get("FASTGATE_SANITIZE") == "1"

CFLAGS = ["-O3", "-g0", "-fvisibility=hidden", "-fno-semantic-interposition", "-Wall", "-Wno-unused-function"]
LDFLAGS: list[str] = []
if DEBUG or SANITIZE:
    CFLAGS = ["-O1", "-g", "-Wall", "-Wno-unused-function"]
if SANITIZE:
    CFLAGS += ["-fsanitize=address,undefined", "-fno-omit-frame-pointer", "-fno-sanitize-recover=undefined"]
    LDFLAGS += ["-fsanitize=address,undefined"]

extensions = [
    Extension(
        ".".join(path.with_suffix("").parts),
        [str(path)],
        extra_compile_args=CFLAGS,
        extra_link_args=LDFLAGS,
        define_macros=[("FASTGATE_DEBUG", "1")] if DEBUG else [],
    )
    for path in sorted(Path("fastgate").rglob("*.pyx"))
]

setup(
    ext_modules=cythonize(
        extensions,
        nthreads=int(os.environ.get("FASTGATE_BUILD_JOBS", os.cpu_count() or 1)),
        compiler_directives={
            "language_level": "3",
            "boundscheck": DEBUG,
            "wraparound": False,
            "cdivision": True,
            "initializedcheck": DEBUG,
            "embedsignature": True,
            "embedsignature.format": "python",
            "binding": False,
        },
        quiet=True,
    )
)
