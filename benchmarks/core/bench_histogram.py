"""Histogram beside hdrhistogram; Ewma, SipHash and CidrSet. Promise: record <= 50 ns."""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks.core.rivals import Candidate, race, virtual_s

VALUES = """
import random
rng = random.Random(1)
values = [int(rng.lognormvariate(15, 1.5)) for _ in range(1000)]
"""
OURS = (
    VALUES + "from fastgate._core import Histogram\n"
    "h = Histogram(1000, 120_000_000_000, {precision}); record = h.record\n"
)
HDR = VALUES + (
    "from hdrh.histogram import HdrHistogram\n"
    "h = HdrHistogram(1000, 120_000_000_000, {digits}); record = h.record_value\n"
)
RECORD = "for value in values: record(value)"
RECORDS = [
    Candidate("fastgate", OURS.format(precision=0.0625), RECORD, 1000, "6 %"),
    Candidate("fastgate", OURS.format(precision=0.005), RECORD, 1000, "0.5 %"),
    Candidate(
        "fastgate",
        VALUES + "from fastgate._core import Histogram, SharedMemory\n"
        "h = Histogram(memory=SharedMemory(Histogram.size())); record = h.record",
        RECORD,
        1000,
        "6 %, shared",
    ),
    Candidate("hdrhistogram", HDR.format(digits=1), RECORD, 1000, "1 digit"),
    Candidate("hdrhistogram", HDR.format(digits=2), RECORD, 1000, "2 digits"),
]
QUANTILES = [
    Candidate("fastgate", OURS.format(precision=0.0625) + RECORD, "h.quantile(0.99)", 1, "6 %"),
    Candidate("fastgate", OURS.format(precision=0.005) + RECORD, "h.quantile(0.99)", 1, "0.5 %"),
    Candidate(
        "hdrhistogram",
        HDR.format(digits=2) + RECORD,
        "h.get_value_at_percentile(99)",
        1,
        "2 digits",
    ),
]
OTHERS = [
    Candidate(
        "fastgate",
        VALUES + "from fastgate._core import Ewma; update = Ewma().update",
        "update(5.0)",
        1,
        "Ewma",
    ),
    Candidate(
        "fastgate",
        "from fastgate._core import PeakEwma; p = PeakEwma(); p.update(5e6); load = p.load",
        "load(3)",
        1,
        "PeakEwma.load",
    ),
    Candidate(
        "fastgate",
        "from fastgate._core import siphash128; key = bytes(16); data = b'x' * 32",
        "siphash128(data, key, (1, 3))",
        1,
        "siphash128",
    ),
    Candidate(
        "fastgate",
        "from fastgate._core import CidrSet; import random; rng = random.Random(1)\n"
        "byte = lambda: rng.randrange(256)\n"
        "s = CidrSet(f'{byte()}.{byte()}.{byte()}.0/24' for _ in range(10_000))\n"
        "ips = ['.'.join(str(rng.randrange(256)) for _ in range(4)) for _ in range(1000)]",
        "for ip in ips: ip in s",
        1000,
        "CidrSet, 10 000 ranges, text",
    ),
]


@pytest.mark.benchmark(group="histogram record", timer=virtual_s)
@pytest.mark.parametrize("case", RECORDS, ids=str)
def test_record(benchmark: Any, case: Candidate) -> None:
    race(benchmark, case)


@pytest.mark.benchmark(group="histogram p99", timer=virtual_s)
@pytest.mark.parametrize("case", QUANTILES, ids=str)
def test_quantile(benchmark: Any, case: Candidate) -> None:
    race(benchmark, case)


@pytest.mark.benchmark(group="averages, hashing, CIDR", timer=virtual_s)
@pytest.mark.parametrize("case", OTHERS, ids=str)
def test_others(benchmark: Any, case: Candidate) -> None:
    race(benchmark, case)
