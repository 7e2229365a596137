"""The controller's side of the State document, with a supervisor that responds as the test says: a store that
was restored or recreated, and reloads that fail for a while or for good.
"""

from __future__ import annotations

import asyncio
import os
import sqlite3
from collections.abc import Callable, Coroutine
from itertools import pairwise
from pathlib import Path
from typing import Any

import msgspec
import pytest

from fastgate._core import SharedMemory
from fastgate.config import Config
from fastgate.config.load import check
from fastgate.control.answers import Refused
from fastgate.control.keyring import Keyring
from fastgate.control.state import MOST_RETRY_S, State
from fastgate.control.view import ReloadTable, View
from fastgate.state.channel import Problem, ReloadRequest, ReloadResult
from fastgate.state.host import HostTable
from fastgate.state.journal import Journal
from fastgate.state.memory import HostMemory

BUSY = [Problem(text="cannot fork the loader: no memory")]
WRONG = [Problem(text="no such upstream", path="$.routes[0]", where="state version 1 $.routes[0]")]


class Harness:
    """A controller without its process, and a supervisor that applies everything without `problems`."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "a.db"
        text = {"store": {"path": str(self.path)}, "routes": [{"path": "/", "respond": ""}]}
        config, errors = check(msgspec.json.encode(text).decode(), "json", {})
        assert config is not None, errors
        self.config: Config = config
        self.memory = HostMemory.private()
        self.keyring = Keyring(self.memory, Journal("test", os.open(os.devnull, os.O_WRONLY)))
        self.view = View(HostTable(SharedMemory(HostTable.size(1)), 1), self.memory)
        self.view.config = config
        self.reloads = ReloadTable()
        self.now_s = 100.0
        self.problems: list[Problem] = []
        self.is_deaf = False
        self.before_commit: Callable[[], None] = lambda: None
        self.asked: list[int] = []
        self.state = self.controller()

    def controller(self, chosen: int | None = None) -> State:
        """Another one, which knows nothing of what the one before has done."""
        self.state = State(self.keyring, self.view, self.reloads, self.ask, chosen, lambda: self.now_s)
        return self.state

    def ask(self, request: ReloadRequest) -> bool:
        self.asked.append(request.state)
        if self.is_deaf:
            return False
        assert request.base == self.view.state_version
        is_applied = not self.problems
        if is_applied:
            self.before_commit()
            self.install(request.state)
        result = ReloadResult(request.id, is_applied, 1, "hot", 1, self.problems, len(self.problems))
        asyncio.get_running_loop().call_soon(self.reloads.answer, result)
        return True

    def install(self, version: int) -> None:
        self.view.state_version = version
        self.state.installed()

    def lose_versions(self) -> None:
        """Makes the store one without versions, whose numbers begin at 1."""
        with sqlite3.connect(self.path) as db:
            db.executescript("DELETE FROM state; DELETE FROM sqlite_sequence;")
        db.close()

    def store_version(self, document: str) -> int:
        """A version that is adopted, but not in effect."""
        version = self.keyring.write(lambda store: store.versions.insert(document, 0))
        self.keyring.write(lambda store: store.versions.adopt(version))
        return version


def run(folder: Path, test: Callable[[Harness], Coroutine[Any, Any, None]]) -> None:
    async def whole() -> None:
        harness = Harness(folder)
        await harness.keyring.start(harness.config)
        harness.state.installed()
        await test(harness)
        await harness.keyring.close()

    asyncio.run(whole())


def test_a_document_that_is_refused_is_not_taken_for_the_one_with_the_same_number(tmp_path: Path) -> None:
    async def test(harness: Harness) -> None:
        state = harness.state
        assert await state.put({"routes": []}, 0) == 1
        harness.lose_versions()
        harness.problems = WRONG

        with pytest.raises(Refused) as refused:
            await state.put({"routes": [{"name": "wrong"}]}, 1)

        assert (refused.value.status, refused.value.body["version"]) == (422, 1)
        assert harness.asked == [1, 2]

    run(tmp_path, test)


def test_the_version_in_effect_is_stored_again_after_the_store_was_recreated(tmp_path: Path) -> None:
    async def test(harness: Harness) -> None:
        state = harness.state
        for base in range(3):
            await state.put({"upstreams": {f"u{base}": {}}}, base)
        before = state.get(3)
        harness.lose_versions()

        await state.reconcile()

        assert state.get(3) == before
        assert [version.version for version in state.versions()] == [3]
        assert state.health() == {"status": "healthy", "version": 3, "newest": 3}
        assert await state.put({}, 3) == 4
        assert harness.asked == [1, 2, 3, 4]

    run(tmp_path, test)


def test_a_candidate_that_is_lost_before_the_commit_is_stored_with_it(tmp_path: Path) -> None:
    async def test(harness: Harness) -> None:
        harness.before_commit = harness.lose_versions

        assert await harness.state.put({"upstreams": {"a": {}}}, 0) == 1

        assert harness.state.get(1).document == '{"upstreams":{"a":{}}}'

    run(tmp_path, test)


def test_a_lost_version_whose_document_is_not_known_is_reported_until_another_is_put(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    async def test(harness: Harness) -> None:
        await harness.state.put({}, 0)
        harness.lose_versions()
        state = harness.controller()

        state.installed()
        for _ in range(3):
            await state.reconcile()

        assert capfd.readouterr().err.count("its document is not known") == 1
        told = {"version": 1, "newest": 0, "problem": "version 1 is in effect, but not in the store"}
        assert state.health() == {"status": "degraded", **told}
        assert await state.put({}, 1) == 2
        assert state.health()["status"] == "healthy"

    run(tmp_path, test)


def test_a_passing_failure_is_tried_again_with_longer_intervals(tmp_path: Path) -> None:
    async def test(harness: Harness) -> None:
        state = harness.state
        version = harness.store_version("{}")
        harness.problems = BUSY
        tries = []
        for _ in range(300):
            before = len(harness.asked)
            await state.reconcile()
            if len(harness.asked) > before:
                tries.append(harness.now_s)
            harness.now_s += 1.0

        intervals = [later - earlier for earlier, later in pairwise(tries)]
        assert intervals == [1, 2, 4, 8, 16, 32, MOST_RETRY_S, MOST_RETRY_S, MOST_RETRY_S]
        problem = f"version {version} is not in effect: cannot fork the loader: no memory"
        assert state.health() == {"status": "degraded", "version": 0, "newest": version, "problem": problem}

        harness.problems = []
        harness.now_s += MOST_RETRY_S
        await state.reconcile()
        assert (state.version, state.health()["status"]) == (version, "healthy")

    run(tmp_path, test)


def test_a_supervisor_that_does_not_respond_is_a_passing_failure(tmp_path: Path) -> None:
    async def test(harness: Harness) -> None:
        version = harness.store_version("{}")
        harness.is_deaf = True
        await harness.state.reconcile()
        assert "The supervisor does not respond" in harness.state.health()["problem"]

        harness.is_deaf = False
        harness.now_s += 1.0
        await harness.state.reconcile()

        assert harness.state.version == version

    run(tmp_path, test)


def test_a_rejected_document_is_tried_again_with_another_config_only(tmp_path: Path) -> None:
    async def test(harness: Harness) -> None:
        state = harness.state
        version = harness.store_version("{}")
        harness.problems = WRONG
        for _ in range(5):
            await state.reconcile()
            harness.now_s += 10 * MOST_RETRY_S
        assert harness.asked == [version]
        assert state.health()["problem"] == f"version {version} is not in effect: no such upstream"

        harness.problems = []
        harness.install(0)
        await state.reconcile()
        assert (harness.asked, state.version) == ([version, version], version)

    run(tmp_path, test)


def test_a_version_chosen_at_the_start_stays_in_effect_until_a_document_is_put(tmp_path: Path) -> None:
    async def test(harness: Harness) -> None:
        newest = harness.store_version("{}")
        state = harness.controller(0)
        for _ in range(5):
            await state.reconcile()
            harness.now_s += 10 * MOST_RETRY_S
        assert (harness.asked, state.version) == ([], 0)
        problem = f"version {newest} is not in effect: the gateway was started with --state 0"
        assert state.health()["problem"] == problem

        assert await state.put({}, 0) == newest + 1
        await state.reconcile()
        assert state.health() == {"status": "healthy", "version": newest + 1, "newest": newest + 1}

    run(tmp_path, test)


def test_health_is_degraded_while_the_newest_version_cannot_be_read(tmp_path: Path) -> None:
    async def test(harness: Harness) -> None:
        health = harness.state.health()
        assert (health["status"], health["newest"]) == ("degraded", None)
        assert health["problem"].startswith("the newest version is not known: ")

    (tmp_path / "a.db").write_bytes(b"SQLite format 3\0" + b"\xff" * 8000)
    run(tmp_path, test)
