"""The primitives by their short names, cheap to ask for."""

from __future__ import annotations

import asyncio
import inspect
import pydoc
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import fastgate
import fastgate._core
import fastgate.http_cache
from fastgate import CircuitBreaker, CircuitOpen, TokenBucket

ROOT = Path(__file__).parents[2]

#: Results and exceptions without arguments: nobody calls them, so they have no signature.
MADE_BY_OTHERS = {
    *("Decision", "Lease", "Limit", "Match", "Refusal", "Reservation", "Route", "SseEvent"),
    *("BulkheadFull", "BulkheadTimeout", "DirectoryFull"),
    *("http_cache.Decision", "http_cache.RequestRules", "http_cache.StoredResponse"),
}

PUBLIC = {name: getattr(fastgate._core, name) for name in fastgate._core.__all__} | {
    f"http_cache.{name}": thing
    for name in fastgate.http_cache.__all__
    if callable(thing := getattr(fastgate.http_cache, name))
}


def test_every_primitive_has_its_short_name() -> None:
    everything: dict[str, Any] = {}
    exec("from fastgate import *", everything)

    for name in fastgate._core.__all__:
        assert everything[name] is getattr(fastgate._core, name)
    assert set(fastgate._core.__all__) <= set(dir(fastgate))
    assert TokenBucket is fastgate._core.TokenBucket
    with pytest.raises(AttributeError, match="TokenBuckets"):
        getattr(fastgate, "TokenBuckets")  # noqa: B009  a type checker refuses it


def test_the_package_and_its_other_modules_load_nothing_compiled() -> None:
    code = (
        "import sys, fastgate; from fastgate.cli import warm\n"
        "print([name for name in sys.modules if name.startswith('fastgate.')])"
    )

    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)

    assert done.stdout.strip() == "['fastgate.cli', 'fastgate.cli.warm']"


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
    for name, thing in PUBLIC.items():
        for each in (thing, *_methods(thing)):
            try:
                inspect.signature(each)
            except ValueError:
                unsigned.append(name if each is thing else f"{name}.{each.__name__}")

    assert set(unsigned) == MADE_BY_OTHERS
    shown = pydoc.plain(pydoc.render_doc(TokenBucket))
    assert "TokenBucket(rate_per_s, burst, shared=None, offset=0)" in shown
    assert "take(self, /, amount=1, now_ns=None)" in pydoc.plain(pydoc.render_doc(TokenBucket.take))


def test_help_says_what_every_argument_is_and_which_errors_there_are() -> None:
    missing = []
    for name, thing in PUBLIC.items():
        text = thing.__doc__ or ""
        if name in MADE_BY_OTHERS:
            if not re.search(r"(?:Made|Created) by [\w`]|Raised by \w|Make one of ", text):
                missing.append(f"{name}: where it comes from")
            continue
        parameters = inspect.signature(thing).parameters.values()
        missing += [f"{name}: {each.name}" for each in parameters if not re.search(rf"\b{each.name}\b", text)]
        missing += [f"{name}: {each}" for each in parameters if each.default is ...]
        if isinstance(thing, type) and issubclass(thing, Exception):
            if not re.search(r"Raised by \w", text):
                missing.append(f"{name}: where it comes from")
        elif parameters and not re.search(r"(Value|Type)Error", text):
            missing.append(f"{name}: errors")
        missing += [f"{name}.{each.__name__}" for each in _methods(thing) if not each.__doc__]
    assert missing == []


def _methods(thing: Any) -> list[Any]:
    if not isinstance(thing, type):
        return []
    return [
        value for name, value in vars(thing).items() if inspect.isroutine(value) and not name.startswith("_")
    ]
