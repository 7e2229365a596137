"""The shipped .pxd files work: an extension outside the package cimports them, links and runs."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import fastgate._core

SOURCE = r"""
# cython: language_level=3
from libc.stdint cimport int64_t, uint64_t
from libc.string cimport memset
from fastgate._core.cache cimport Cache, value_size
from fastgate._core.cidr cimport CidrSet, address_parse
from fastgate._core.clock cimport monotonic_ns
from fastgate._core.ewma cimport ewma_t, ewma_update, ewma_value
from fastgate._core.glob cimport glob_match
from fastgate._core.hashing cimport hash128, hash128_t, siphash
from fastgate._core.histogram cimport (HISTOGRAM_BUCKETS, Histogram, histogram_bucket_upper, histogram_merge,
                                       histogram_quantile, histogram_record, histogram_t)
from fastgate._core.linear_hash cimport node_t, table_free, table_grow, table_init, table_link, table_t
from fastgate._core.sse cimport SseEvent, SseParser

def histograms():
    cdef histogram_t a, b
    cdef int64_t value
    memset(&a, 0, sizeof(a))
    memset(&b, 0, sizeof(b))
    with nogil:
        for value in range(1, 100001):
            histogram_record(&a if value % 2 else &b, value * 1000)
        histogram_merge(&a, &b)
    cdef Histogram general = Histogram()
    general.record_value(5000)
    return (a.count, a.sum, histogram_quantile(&a, 0.5), HISTOGRAM_BUCKETS, sizeof(histogram_t),
            general.count, [histogram_bucket_upper(i) for i in range(HISTOGRAM_BUCKETS)])

def hashes():
    cdef uint64_t key[2]
    cdef hash128_t out
    key[0], key[1] = 0x0706050403020100, 0x0f0e0d0c0b0a0908
    with nogil:
        hash128(b"abc", 3, key, &out)
    return siphash(b"abc", 3, key), out.low, out.high

def addresses():
    cdef CidrSet networks = CidrSet(["10.0.0.0/8", "2001:db8::/32"])
    cdef unsigned char packed[16]
    cdef int n
    with nogil:
        n = address_parse(b"::ffff:10.1.2.3", 15, packed)
    return (n, networks.contains_packed(packed, n), networks.contains_text(b"11.0.0.1", 8),
            networks.contains_text(b"nonsense", 8), networks.contains_packed(packed, 7))

def caching():
    cdef Cache cache = Cache(1 << 20)
    value = b"value"
    stored = cache.store(b"key", 3, value, value_size(5), monotonic_ns() + 10**9, 0, ("tag",), monotonic_ns())
    found = cache.lookup(b"key", 3, monotonic_ns())
    cache.purge_tag("tag")
    return stored, found is value, cache.lookup(b"key", 3, 0)

def averages():
    cdef ewma_t e
    memset(&e, 0, sizeof(e))
    ewma_update(&e, 4, 10, 1e9)
    ewma_update(&e, 8, 10, 1e9)
    return ewma_value(&e)

def events():
    cdef SseParser parser = SseParser()
    cdef SseEvent event = parser.feed_bytes(b"data: x\n\n", 9)[0]
    return event.data

def tables():
    cdef table_t table
    cdef node_t node
    assert table_init(&table)
    node.hash = 7
    table_grow(&table)
    table_link(&table, &node)
    count = table.count
    table_free(&table)
    return count, glob_match(b"a*", 2, b"abc", 3)
"""

SETUP = """
from Cython.Build import cythonize
from setuptools import Extension, setup
setup(name="outside", ext_modules=cythonize([Extension("outside", ["outside.pyx"])], quiet=True))
"""


@pytest.fixture(scope="module")
def outside(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Every function of the extension, run in a process of its own: name -> repr of what it returned."""
    pytest.importorskip("Cython")
    pytest.importorskip("setuptools")
    folder = tmp_path_factory.mktemp("outside")
    (folder / "outside.pyx").write_text(SOURCE)
    (folder / "setup.py").write_text(SETUP)
    package = Path(fastgate.__file__).parent.parent
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join([str(package), str(folder)]), "CFLAGS": "-O1"}
    build = subprocess.run(
        [sys.executable, "setup.py", "-q", "build_ext", "--inplace"],
        cwd=folder,
        env=environ,
        capture_output=True,
        text=True,
    )
    assert build.returncode == 0, build.stderr
    program = (
        "import outside\n"
        "for name in ('histograms', 'hashes', 'addresses', 'caching', 'averages', 'events', 'tables'):\n"
        "    print(name, repr(getattr(outside, name)()), sep='\\t')\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", program], cwd=folder, env=environ, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    return dict(line.split("\t") for line in run.stdout.splitlines())


def test_histogram(outside: dict[str, str]) -> None:
    count, total, median, buckets, size, general, uppers = eval(outside["histograms"])

    assert (count, total, general) == (100_000, 1000 * 100_000 * 100_001 // 2, 1)
    assert abs(median - 50_000_000) <= 50_000_000 * 0.0625
    assert size == 16 + 8 * buckets < 2048
    assert uppers[0] == 1023 and uppers[-1] == 2**64 - 1 and uppers == sorted(uppers)
    assert fastgate._core.Histogram.size() == size


def test_hashing(outside: dict[str, str]) -> None:
    key = bytes(range(16))
    wide = fastgate._core.siphash128(b"abc", key, (1, 3))

    assert eval(outside["hashes"]) == (
        fastgate._core.siphash64(b"abc", key),
        int.from_bytes(wide[:8], "little"),
        int.from_bytes(wide[8:], "little"),
    )


def test_the_others(outside: dict[str, str]) -> None:
    assert eval(outside["addresses"]) == (4, True, 0, -1, False)
    assert eval(outside["caching"]) == (1, True, None)
    assert eval(outside["averages"]) == 6.0
    assert eval(outside["events"]) == b"x"
    assert eval(outside["tables"]) == (1, True)
