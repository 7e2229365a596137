"""The primitives by their short names, cheap to ask for."""

from __future__ import annotations

import asyncio
import inspect
import pydoc
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import fastgate
import fastgate._core
from fastgate import CircuitBreaker, CircuitOpen, TokenBucket

ROOT = Path(__file__).parents[2]


def test_every_primitive_has_its_short_name() -> None:
    assert frozenset(fastgate._core.__all__) == fastgate._PRIMITIVES
    assert TokenBucket is fastgate._core.TokenBucket
    assert "TokenBucket" in dir(fastgate)
    with pytest.raises(AttributeError, match="TokenBuckets"):
        fastgate.__getattr__("TokenBuckets")


def test_the_package_alone_loads_nothing_compiled() -> None:
    code = "import sys, fastgate; print([name for name in sys.modules if name.startswith('fastgate.')])"

    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)

    assert done.stdout.strip() == "[]"


def test_a_breaker_guards_an_async_block() -> None:
    breaker = CircuitBreaker(failure_threshold=2, name="orders")

    async def call(fails: bool) -> str:
        async with breaker as entered:
            assert entered is breaker
            await asyncio.sleep(0)
            if fails:
                raise OSError
            return "ok"

    async def main() -> None:
        assert await asyncio.gather(call(False), call(False)) == ["ok", "ok"]
        for _ in range(2):
            with pytest.raises(OSError):
                await call(True)
        with pytest.raises(CircuitOpen):
            await call(False)

    asyncio.run(main())
    assert breaker.state == "open"


def test_help_shows_every_signature() -> None:
    """Signatures are in the docstrings; stubtest (`make types`) compares them with the stubs."""
    unsigned = []
    for name in fastgate._core.__all__:
        thing = getattr(fastgate._core, name)
        for each in (thing, *_methods(thing)):
            try:
                inspect.signature(each)
            except ValueError:
                unsigned.append(f"{name}.{each.__name__}")

    made_by_others = {"Decision", "Lease", "Limit", "Match", "Reservation", "Route", "SseEvent"}
    exceptions = {"BulkheadFull", "BulkheadTimeout", "DirectoryFull"}
    assert set(unsigned) == {f"{name}.{name}" for name in made_by_others | exceptions}
    shown = pydoc.plain(pydoc.render_doc(TokenBucket))
    assert "TokenBucket(rate_per_s, burst, shared=None, offset=0)" in shown
    assert "take(self, /, amount=1, now_ns=None)" in pydoc.plain(pydoc.render_doc(TokenBucket.take))


def _methods(thing: Any) -> list[Any]:
    if not isinstance(thing, type):
        return []
    return [
        value for name, value in vars(thing).items() if inspect.isroutine(value) and not name.startswith("_")
    ]
