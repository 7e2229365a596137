"""State: structural changes at run time, as versions of one document (fastgate.state.versions).

A new version is stored as a candidate, and the supervisor is asked for a reload with it. That merges it with
the config file in use, checks the result as it checks a file, and hands it to the workers: it is in effect on
every worker, or refused with every error, when `put` returns. The supervisor's word decides: a version is
adopted when it says that the workers serve it, also by the controller that follows one that died meanwhile.
"""

from __future__ import annotations

import asyncio
import json
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
from fastgate.control.view import ReloadDesk, View
from fastgate.state.channel import ReloadRequest, ReloadResult
from fastgate.state.journal import Journal
from fastgate.state.store import Store
from fastgate.state.versions import StateVersion

__all__ = ["State", "StateResource"]

MOST_DOCUMENT_BYTES = 4_000_000
"""Of a document; 200 versions are kept."""

RECONCILE_S = 1.0
"""Between two looks at whether what the workers serve is the newest version of the store."""


class State:
    """The State document: read, changed and rolled back. Refused: what cannot be done, as the admin API tells
    it.
    """

    def __init__(
        self, keyring: Keyring, view: View, desk: ReloadDesk, ask: Callable[[ReloadRequest], bool]
    ) -> None:
        """ask(request): sends it to the supervisor; False when that is impossible."""
        self._keyring = keyring
        self._view = view
        self._desk = desk
        self._ask = ask
        self._journal = Journal("controller")
        self._lock = asyncio.Lock()
        self._adopted: tuple[Path | None, int] = (None, 0)  # what was last stored as the newest, and where
        self._tried: tuple[int, int] = (
            0,
            0,
        )  # (in use, newest in the store) of the last try to make them one

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
            result = await self._reload(version, base)
            if self.version == version:
                if self._adopted != (self._keyring.path, version):
                    text = f"State version {version} is in effect, but that could not be stored yet"
                    raise Refused(
                        507, f"{text}. It is being tried again", version=version, pending_write=True
                    )
                return version
            self._write(lambda store: store.versions.forget(version))
            if result.kind == "conflict":
                raise _conflict(base, self.version)
            raise Refused(
                422,
                "The state document was rejected; nothing has changed",
                version=self.version,
                errors=problems_of(result),
                total=result.problems_total,
            )

    async def _reload(self, version: int, base: int) -> ReloadResult:
        request_id, future = self._desk.open()
        if not self._ask(ReloadRequest(request_id, version, base)):
            future.cancel()
            raise Refused(503, "The supervisor does not respond")
        try:
            async with asyncio.timeout(RELOAD_LIMIT_S):
                return await future
        except TimeoutError:
            raise Refused(504, "The supervisor does not respond") from None

    async def run(self) -> None:
        """Makes what the store says and what the workers serve one, when they differ; until cancelled."""
        while True:
            await asyncio.sleep(RECONCILE_S)
            if not self._lock.locked() and self._keyring.is_open_for(self._view.config):
                async with self._lock:
                    await self._reconcile()

    async def _reconcile(self) -> None:
        try:
            newest = self._keyring.read(lambda store: store.versions.newest())
            if newest < self.version:
                self._adopt()  # the controller before died between the commit and the store
                return
            if newest == self.version or self._tried == (self.version, newest):
                return
            self._tried = (self.version, newest)
            # The store could not be read when the config was loaded.
            result = await self._reload(newest, self.version)
            if self.version != newest:
                problems = "; ".join(problem.text for problem in result.problems[:3])
                self._journal.error("state not in effect", version=newest, problem=problems)
        except Refused as error:
            self._journal.error("state not in effect", problem=str(error))

    def installed(self) -> None:
        """Another config is in use: if it brought a new version, that is adopted."""
        self._tried = (0, 0)
        if self._keyring.is_open_for(self._view.config):
            self._adopt()

    def _adopt(self) -> None:
        version = self.version
        place = (self._keyring.path, version)
        if version and place != self._adopted and self._write(lambda store: store.versions.adopt(version)):
            self._adopted = place

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
            Route("/api/state/versions/{version:int}", self.one, methods=["GET"]),
        ]

    async def show(self, _request: Request) -> Response:
        return JSONResponse(_told(self._state.get(self._state.version)))

    async def one(self, request: Request) -> Response:
        return JSONResponse(_told(self._state.get(request.path_params["version"])))

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
