"""State: structural changes at run time, as versions of one document (fastgate.state.versions).

A new version is stored as a candidate, and the supervisor is asked for a reload with it. That merges it with
the config file in use, checks the result as it checks a file, and hands it to the workers: it is in effect on
every worker, or refused with every error, when `put` returns. The supervisor's word decides: a version is
adopted when it says that the workers serve it, also by the controller that follows one that died meanwhile.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from fastgate.control.answers import Refused, iso, read_body
from fastgate.control.gateway import RELOAD_LIMIT_S, problems_of
from fastgate.control.keyring import Keyring
from fastgate.control.view import ReloadTable, View
from fastgate.state.channel import ReloadRequest, ReloadResult
from fastgate.state.journal import Journal
from fastgate.state.store import Store
from fastgate.state.versions import StateVersion

__all__ = ["State", "StateResource"]

MOST_DOCUMENT_BYTES = 4_000_000
MOST_DIGITS = 18  # of a version: SQLite's integers have 63 bits
"""Of a document; 200 versions are kept."""

RECONCILE_S = 1.0
"""Between two looks at whether what the workers serve is the newest version of the store."""

RETRY_S, MOST_RETRY_S = 1.0, 60.0
"""Back-off after a reload that failed for a passing reason (no process or memory to load it, a plugin whose
service does not respond): the first interval, which doubles each time, and the longest.
"""

Place = tuple[Path | None, int]
"""A version in a store: its file and the number."""


class State:
    """The State document: read, changed and rolled back. Refused: what cannot be done, as the admin API tells
    it.
    """

    def __init__(
        self,
        keyring: Keyring,
        view: View,
        reloads: ReloadTable,
        ask: Callable[[ReloadRequest], bool],
        chosen: int | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """ask(request): sends it to the supervisor; False when that is impossible. chosen: the version that
        the operator chose at the start; while it is in effect, the newest does not replace it. clock: in
        seconds.
        """
        self._keyring = keyring
        self._view = view
        self._reloads = reloads
        self._ask = ask
        self._journal = Journal("controller")
        self._lock = asyncio.Lock()
        self._chosen = chosen
        self._clock = clock
        self._adopted: Place = (None, 0)  # what was last stored as the newest
        self._lost: Place = (None, 0)  # in effect, but not in the store, and its document is not known
        self._known: dict[Place, StateVersion] = {}  # the version in effect, and the candidate
        self._newest: Place = (None, 0)  # the newest in the store, when it was last read
        self._attempt: tuple[int, int] = (
            0,
            0,
        )  # (in use, newest in the store) of the last try to make them one
        self._problem = ""  # why that try failed
        self._due = 0.0  # when the next one is due, by the clock
        self._delay_s = RETRY_S

    @property
    def version(self) -> int:
        """The version that the workers serve; 0 is the empty document."""
        return self._view.state_version

    def get(self, version: int) -> StateVersion:
        """An adopted version. Refused: 404, 503."""
        found = self._keyring.read(lambda store: store.versions.get(version))
        if found is None:
            raise Refused(404, f"There is no state version {version}")
        return found

    def versions(self) -> list[StateVersion]:
        """The adopted versions without their documents, newest first. Refused: 503."""
        return self._keyring.read(lambda store: store.versions.all())

    async def put(self, document: dict[str, Any], base: int) -> int:
        """Puts the document in place of version `base`, which must be the one in effect; returns the new
        version when every worker serves it. Rolling back is putting the document of an older version.

        Refused: 409 another version is in effect, 413 too large, 422 with every error when config and
        document together are invalid or cannot be built; then nothing has changed. 503, 507: the store.
        """
        text = json.dumps(document, ensure_ascii=False, separators=(",", ":"))
        if len(text.encode("utf-8", "surrogatepass")) > MOST_DOCUMENT_BYTES:
            raise Refused(413, f"A state document has at most {MOST_DOCUMENT_BYTES} bytes")
        async with self._lock:
            if not self._keyring.fault and not self._keyring.is_open_for(self._view.config):
                raise Refused(503, "Another store is being opened")
            if base != self.version:
                raise _conflict(base, self.version)
            version = self._keyring.write(lambda store: store.versions.insert(text, base))
            place = (self._keyring.path, version)
            self._known = {at: known for at, known in self._known.items() if at == self._adopted}
            self._known[place] = StateVersion(version, base, text, time.time_ns())
            result = await self._reload(version, base)
            if result.applied and self.version == version:
                if self._adopted != place:
                    text = f"State version {version} is in effect, but that could not be stored yet"
                    raise Refused(
                        507, f"{text}. It is being tried again", version=version, pending_write=True
                    )
                return version
            self._write(lambda store: store.versions.forget(version))
            if result.kind == "conflict" or result.applied:  # applied: another store is in use since
                raise _conflict(base, self.version)
            raise Refused(
                422,
                "The state document was rejected; nothing has changed",
                version=self.version,
                errors=problems_of(result),
                total=result.problems_total,
            )

    async def _reload(self, version: int, base: int) -> ReloadResult:
        request_id, future = self._reloads.open()
        if not self._ask(ReloadRequest(request_id, version, base)):
            future.cancel()
            raise Refused(503, "The supervisor does not respond")
        try:
            async with asyncio.timeout(RELOAD_LIMIT_S):
                return await future
        except TimeoutError:
            raise Refused(504, "The supervisor does not respond") from None

    def health(self) -> dict[str, Any]:
        """Its part of `/health`: degraded while the newest version is not in effect, or not known."""
        path, newest = self._newest
        is_known = path == self._keyring.path
        facts = {"version": self.version, "newest": newest if is_known else None}
        problem = ""
        if not is_known:
            fault = self._keyring.fault
            problem = f"the newest version is not known: {fault}" if fault else ""
        elif newest > self.version:
            problem = f"version {newest} is not in effect"
            problem += f": {self._problem}" if self._problem else ""
        elif newest < self.version:
            problem = f"version {self.version} is in effect, but not in the store"
        if not problem:
            return {"status": "healthy", **facts}
        return {"status": "degraded", "problem": problem, **facts}

    async def run(self) -> None:
        """Makes what the store says and what the workers serve one, when they differ; until cancelled."""
        while True:
            await asyncio.sleep(RECONCILE_S)
            await self.reconcile()

    async def reconcile(self) -> None:
        """Compares once, and acts if that is due. No effect during `put`, or while the store is not open."""
        if not self._lock.locked() and self._keyring.is_open_for(self._view.config):
            async with self._lock:
                try:
                    await self._reconcile()
                except Refused as error:
                    self._journal.error("state not in effect", problem=str(error))

    async def _reconcile(self) -> None:
        newest = self._look()
        if newest <= self.version:
            if newest < self.version:
                # The controller before died between the commit and the store, or the store was restored or
                # recreated.
                if self._adopted == (self._keyring.path, self.version):
                    self._journal.warning("state is no longer in the store", version=self.version)
                self._adopted = (None, 0)
            else:
                self._lost = (None, 0)
            self._adopt()
            return
        # The store could not be read when the config was loaded.
        attempt = (self.version, newest)
        if attempt != self._attempt:
            self._attempt, self._delay_s = attempt, RETRY_S
        elif self._clock() < self._due:
            return
        if self._chosen == self.version:
            self._problem = f"the gateway was started with --state {self._chosen}"
            self._journal.warning("state not in effect", version=newest, problem=self._problem)
            self._due = math.inf
            return
        is_rejected = False
        try:
            result = await self._reload(newest, self.version)
            if self.version == newest:
                return
            self._problem = "; ".join(problem.text for problem in result.problems[:3])
            # What has a place in the file or in the document stays wrong until one of them changes.
            is_rejected = any(problem.where for problem in result.problems)
        except Refused as error:
            self._problem = str(error)
        self._journal.error("state not in effect", version=newest, problem=self._problem)
        self._due = math.inf if is_rejected else self._clock() + self._delay_s
        self._delay_s = min(2 * self._delay_s, MOST_RETRY_S)

    def installed(self) -> None:
        """Another config is in use: if it brought a new version, that is adopted."""
        self._attempt, self._problem = (0, 0), ""
        if self._keyring.is_open_for(self._view.config):
            self._adopt()
            with contextlib.suppress(Refused):  # `run` reports it
                self._look()

    def _look(self) -> int:
        """The newest version of the store. Refused: 503."""
        newest = self._keyring.read(lambda store: store.versions.newest())
        self._newest = (self._keyring.path, newest)
        return newest

    def _adopt(self) -> None:
        """Stores the version that the workers serve as the newest, also if it was lost with the store."""
        version = self.version
        place = (self._keyring.path, version)
        if not version or place in (self._adopted, self._lost):
            return
        known = self._known.get(place)
        try:
            is_stored = self._keyring.write(lambda store: store.versions.adopt(version, known))
            if is_stored:
                self._known = {place: self.get(version)}
                self._adopted = self._newest = place
                return
        except Refused as error:
            self._journal.error("state not stored", version=version, problem=str(error))
            return
        self._lost = place
        self._journal.error(
            "state not stored",
            version=version,
            problem="it is not in the store, which was restored or recreated, and its document is not known",
            hint="put the document again",
        )

    def _write(self, write: Callable[[Store], object]) -> bool:
        try:
            self._keyring.write(write)
        except Refused as error:
            self._journal.error("state not stored", version=self.version, problem=str(error))
            return False
        return True


def _conflict(base: int, version: int) -> Refused:
    return Refused(409, f"State version {version} is in effect, not {base}", version=version)


class NewState(msgspec.Struct, forbid_unknown_fields=True):
    base: int
    document: dict[str, Any]


class StateResource:
    """`/api/state`."""

    def __init__(self, state: State) -> None:
        self._state = state

    def routes(self) -> list[Route]:
        return [
            Route("/api/state", self.show, methods=["GET"]),
            Route("/api/state", self.put, methods=["PUT"]),
            Route("/api/state/versions", self.list, methods=["GET"]),
            Route("/api/state/versions/{version}", self.one, methods=["GET"]),
        ]

    async def show(self, _request: Request) -> Response:
        return JSONResponse(_told(self._state.get(self._state.version)))

    async def one(self, request: Request) -> Response:
        version = request.path_params["version"]
        if not (version.isascii() and version.isdigit()) or len(version) > MOST_DIGITS:
            raise Refused(404, f"There is no state version {version[:MOST_DIGITS]}")
        return JSONResponse(_told(self._state.get(int(version))))

    async def list(self, _request: Request) -> Response:
        rows = [_row(version) for version in self._state.versions()]
        return JSONResponse({"version": self._state.version, "versions": rows})

    async def put(self, request: Request) -> Response:
        body = await read_body(request, NewState)
        return JSONResponse({"version": await self._state.put(body.document, body.base)})


def _row(version: StateVersion) -> dict[str, Any]:
    return {
        "version": version.version,
        "base": version.base,
        "created": iso(version.created_ns) if version.created_ns else None,
        "in_effect_since": iso(version.adopted_ns) if version.adopted_ns else None,
    }


def _told(version: StateVersion) -> dict[str, Any]:
    return {**_row(version), "document": json.loads(version.document)}
