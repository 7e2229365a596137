"""`POST /api/gateway/explain`: what the running gateway would do with a request, by its keys and limits.

The explanation is computed in a forked child, one at a time. The child first takes a private copy of the
shared memory, so that the gates run as for traffic, but no token of a limit is taken, no key is counted as
used and nothing is written that another process sees. A hang or crash affects only that child.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import signal
import traceback
from collections.abc import Callable
from typing import Annotated, Any

import msgspec
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from fastgate.config import Config
from fastgate.control.answers import Refused, read_body
from fastgate.control.view import View
from fastgate.state.memory import HostMemory

__all__ = ["Explain", "ExplainResource"]

Explain = Callable[[Config, str, str, list[tuple[str, str]], str, HostMemory], dict[str, Any]]
"""config, method, URL, header fields, client, memory: the explanation. ValueError: what is no request."""

LIMIT_S = 15.0
"""A plan of 5 000 routes takes two seconds to build."""

MOST_WAITING = 8
_PR_SET_PDEATHSIG = 1


class Question(msgspec.Struct, forbid_unknown_fields=True):
    url: Annotated[str, msgspec.Meta(min_length=1, max_length=100_000)]
    method: str = "GET"
    headers: Annotated[list[tuple[str, str]], msgspec.Meta(max_length=256)] = []
    client: str = "127.0.0.1"


class ExplainResource:
    """`/api/gateway/explain`."""

    def __init__(self, view: View, explain: Explain) -> None:
        self._view = view
        self._explain = explain
        self._turn = asyncio.Lock()
        self._waiting = 0

    def routes(self) -> list[Route]:
        return [Route("/api/gateway/explain", self.explain, methods=["POST"])]

    async def explain(self, request: Request) -> Response:
        """200 with the explanation; 400 when it is no request; 503 when too many ask or it takes too long."""
        question = await read_body(request, Question)
        if self._view.config is None or self._waiting >= MOST_WAITING:
            raise Refused(503, "Too many requests are being explained")
        self._waiting += 1
        try:
            async with self._turn:
                answer = await self._in_child(question)
        finally:
            self._waiting -= 1
        if "error" in answer:
            raise Refused(400, answer["error"])
        return JSONResponse(
            {**answer, "config_version": self._view.version, "config_digest": self._view.digest}
        )

    async def _in_child(self, question: Question) -> dict[str, Any]:
        read_fd, write_fd = os.pipe()
        try:
            pid = os.fork()
        except OSError as error:
            os.close(read_fd)
            os.close(write_fd)
            raise Refused(503, f"No process can be started: {error.strerror}") from error
        if pid == 0:
            _be_child(self._explain, self._view, question, write_fd)
        os.close(write_fd)
        loop = asyncio.get_running_loop()
        reading = loop.run_in_executor(None, _read_all, read_fd)
        try:
            data = await asyncio.wait_for(asyncio.shield(reading), LIMIT_S)
        except TimeoutError:
            raise Refused(503, f"The explanation took longer than {LIMIT_S:.0f} s") from None
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            await loop.run_in_executor(None, os.waitpid, pid, 0)
            await reading
        try:
            answer: dict[str, Any] = msgspec.json.decode(data)
        except msgspec.DecodeError:
            raise Refused(500, "The request could not be explained; see the log") from None
        return answer


def _read_all(fd: int) -> bytes:
    with open(fd, "rb") as pipe:
        return pipe.read()


def _be_child(explain: Explain, view: View, question: Question, write_fd: int) -> None:
    """All that the child does; it ends without running what the controller registered to run at its end."""
    status = 1
    try:
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        signal.set_wakeup_fd(-1)
        view.memory.isolate()
        assert view.config is not None
        try:
            answer = explain(
                view.config, question.method, question.url, question.headers, question.client, view.memory
            )
        except ValueError as error:
            answer = {"error": str(error)}
        with open(write_fd, "wb") as pipe:
            pipe.write(msgspec.json.encode(answer))
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)
