"""How hypothesis runs here, the order of the files, and the bound on every test.

Hypothesis has no deadlines, for a busy machine is no bug, and takes the same examples in every run of the
same tests, so that `make test` says the same twice. HYPOTHESIS_PROFILE=fuzz searches long and at random.

A test that hangs fails with its name and with the stack of every thread, and the tests after it run. Set-up,
call and teardown have HANG_S each. The exception is raised in the main thread by SIGALRM, so it also ends a
blocking call. Only a hang inside compiled code is left to `faulthandler_timeout` in pyproject.toml, which
ends the whole run.
"""

from __future__ import annotations

import faulthandler
import gc
import os
import signal
import sys
import tempfile
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

# Above every bound that a wait inside a test may have, and below faulthandler_timeout.
HANG_S = float(os.environ.get("FASTGATE_HANG_S", "600"))
AGAIN_S = 30  # for what swallows the first exception

# Hundreds of tests start a gateway, and without bytecode files each one compiles the whole package.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False

settings.register_profile(
    "default", deadline=None, derandomize=True, database=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.register_profile(
    "fuzz",
    parent=settings.get_profile("default"),
    derandomize=False,
    max_examples=10_000,
    print_blob=True,
)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))


# Begun first, so that none of them is left to one process when the others are done; the longest is the first.
LONGEST = (
    "server/test_gateway_processes.py",
    "packaging/test_image.py",
    "benchmarks/test_lanes.py",
    "features/test_ratelimit.py",
    "caching/test_bounds.py",
    "pairs/test_shadow_scopes.py",
    "server/test_gateway_reload.py",
    "pairs/test_cache.py",
    "auth/test_api_keys.py",
    "cli/test_access_commands.py",
    "server/test_tls_listener.py",
    "plugins/test_lifecycle.py",
    "wire/test_slow_clients.py",
    "control/test_admin.py",
    "features/test_access.py",
    "server/test_reload.py",
    "server/test_supervisor.py",
    "server/test_shortages.py",
    "control/test_connections.py",
    "caching/test_exchange.py",
    "wire/test_attacks.py",
    "control/test_consumers.py",
    "server/test_tunnels_and_reload.py",
    "proxy/test_accesslog.py",
    "wire/test_refusals.py",
    "wire/test_forwarding.py",
    "wire/test_paths.py",
    "test_architecture.py",
    "features/test_policy_bounds.py",
    "caching/test_poisoning.py",
    "config/test_fuzz.py",
    "control/test_limits_api.py",
    "auth/test_schemes_gateway.py",
    "pairs/test_upstream.py",
    "upstreams/test_credentials.py",
    "caching/test_tiers_gateway.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    tests = Path(__file__).parent
    ranks = {tests / name: rank for rank, name in enumerate(LONGEST)}
    items.sort(key=lambda item: ranks.get(item.path, len(ranks)))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """Two more than CPUs: tests of the gateway mostly wait for processes that start, drain and end."""
    return len(os.sched_getaffinity(0)) + 2


class Hangs(SystemExit):
    """Derived from what asyncio and uvloop let through; other exceptions of a callback end in their log."""


def _bounded() -> Generator[None, Any, Any]:
    stacks: list[str] = []

    def stop(_signal: int, _frame: Any) -> None:
        if not stacks:
            with tempfile.TemporaryFile("w+") as file:
                faulthandler.dump_traceback(file)
                file.seek(0)
                stacks.append(file.read())
        raise Hangs(f"not done after {HANG_S:g} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, HANG_S, AGAIN_S)
    try:
        return (yield)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        if stacks:  # also when the test caught the exception
            pytest.fail(f"hangs: not done after {HANG_S:g} s\n{stacks[0]}")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_setup() -> Generator[None, Any, Any]:
    return (yield from _bounded())


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call() -> Generator[None, Any, Any]:
    return (yield from _bounded())


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown() -> Generator[None, Any, Any]:
    return (yield from _bounded())


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, Any, Any]:
    """No garbage collection while a traceback is formatted. An object that it ends may have one formatted,
    too, and Python 3.11 then fails inside `ast.parse` (CPython gh-106905), which would end the whole run.
    """
    gc.disable()
    try:
        return (yield)
    finally:
        gc.enable()
