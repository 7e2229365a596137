"""`fastgate demo`: small services on this machine, the gateway in front of them, and commands to try.

The services run in this process on free loopback ports; the gateway is `python -m fastgate run` with the
packaged demo.yaml, which takes the services' addresses from its environment. The services implement only the
part of HTTP/1.1 that the gateway sends; they are not a web server for other uses.

    echo       JSON of the received request, with the name of the instance (two of them)
    slow       responds after ?s= seconds
    flaky      every third response is 503, every fifth request is closed without a response
    stream     ?mb= megabytes
    events     ?count= server-sent events, one every ?every= seconds
    ws         a WebSocket that echoes
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import ctypes
import functools
import hashlib
import json
import os
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import parse_qs, urlsplit

__all__ = ["CONFIG", "Services", "commands", "run"]

CONFIG = Path(__file__).with_name("demo.yaml")

MAX_BODY_BYTES = 8 << 20  # a larger echo shows nothing new
MAX_FRAME_BYTES = 1 << 20
BLOCK = bytes(64 << 10)

PR_SET_PDEATHSIG = 1  # linux/prctl.h
WEBSOCKET_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"  # RFC 6455 §1.3
CLOSE, PING, PONG = 0x8, 0x9, 0xA


class Request(NamedTuple):
    method: str
    target: str
    headers: list[tuple[str, str]]
    body: bytes

    def header(self, name: str) -> str:
        return next((value for key, value in self.headers if key.lower() == name), "")

    def number(self, name: str, default: float, most: float) -> float:
        """A number of the query, clamped to 0 and `most`; `default` if there is none."""
        given = parse_qs(urlsplit(self.target).query).get(name, [""])[0]
        try:
            return min(max(0.0, float(given)), most)  # in this order NaN is 0
        except ValueError:
            return default


Service = Callable[[Request, asyncio.StreamReader, asyncio.StreamWriter], Awaitable[bool]]


class Services:
    """The demo services. Inside `async with Services() as services:`, `services.environ` is the environment
    for demo.yaml."""

    def __init__(self) -> None:
        self.environ: dict[str, str] = {}
        self._flaky_requests = 0
        self._open: set[asyncio.Task[None]] = set()
        self._servers: list[asyncio.Server] = []

    async def __aenter__(self) -> Services:
        paths: dict[str, Service] = {
            "/slow": self._slow,
            "/flaky": self._flaky,
            "/stream": _stream,
            "/events": _events,
            "/ws": _websocket,
        }

        async def choose(
            request: Request, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
        ) -> bool:
            return await paths.get(urlsplit(request.target).path, _missing)(request, reader, writer)

        await self._listen("DEMO_ECHO_1", functools.partial(_echo, "echo-1"))
        await self._listen("DEMO_ECHO_2", functools.partial(_echo, "echo-2"))
        await self._listen("DEMO_SERVICES", choose)
        return self

    async def __aexit__(self, *_: object) -> None:
        for server in self._servers:
            server.close()
        for task in self._open:
            task.cancel()
        await asyncio.gather(*self._open, return_exceptions=True)
        for server in self._servers:
            await server.wait_closed()

    async def _listen(self, variable: str, service: Service) -> None:
        server = await asyncio.start_server(functools.partial(self._connection, service), "127.0.0.1", 0)
        self._servers.append(server)
        self.environ[variable] = "{}:{}".format(*server.sockets[0].getsockname())

    async def _connection(
        self, service: Service, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._open.add(task)
        try:
            while (request := await _read_request(reader)) is not None:
                if not await service(request, reader, writer):
                    break
                await writer.drain()
        except (OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError, ValueError):
            pass  # the peer disconnected or sent something other than HTTP/1.1: close the connection
        except asyncio.CancelledError:
            writer.transport.abort()
        finally:
            self._open.discard(task)
            writer.close()
            with contextlib.suppress(OSError, asyncio.CancelledError):
                await writer.wait_closed()

    async def _slow(self, request: Request, _: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        seconds = request.number("s", 2, 60)
        await asyncio.sleep(seconds)
        return _respond(writer, {"service": "slow", "seconds": seconds})

    async def _flaky(self, _: Request, __: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        self._flaky_requests += 1
        if self._flaky_requests % 5 == 0:
            return False
        if self._flaky_requests % 3 == 0:
            return _respond(writer, {"service": "flaky", "error": "try again"}, "503 Service Unavailable")
        return _respond(writer, {"service": "flaky", "request": self._flaky_requests})


async def _read_request(reader: asyncio.StreamReader) -> Request | None:
    """The next request with its body; None if the peer closed the connection before it."""
    try:
        head = await reader.readuntil(b"\r\n\r\n")
    except asyncio.IncompleteReadError as error:
        if error.partial:
            raise
        return None
    first, *lines = head[:-4].decode("latin-1").split("\r\n")
    method, target, _ = first.split(" ")
    headers = [(name, value.strip()) for name, _, value in (line.partition(":") for line in lines)]
    request = Request(method, target, headers, b"")
    body = b""
    if request.header("transfer-encoding").lower() == "chunked":
        async for chunk in _chunks(reader):
            body += chunk
            if len(body) > MAX_BODY_BYTES:
                raise ValueError("body too large")
    elif length := int(request.header("content-length") or "0"):
        if length > MAX_BODY_BYTES:
            raise ValueError("body too large")
        body = await reader.readexactly(length)
    return request._replace(body=body)


async def _chunks(reader: asyncio.StreamReader) -> AsyncIterator[bytes]:
    while size := int((await reader.readuntil(b"\r\n")).partition(b";")[0], 16):
        if size > MAX_BODY_BYTES:
            raise ValueError("chunk too large")
        yield (await reader.readexactly(size + 2))[:-2]
    while await reader.readuntil(b"\r\n") != b"\r\n":
        pass  # trailers


def _respond(writer: asyncio.StreamWriter, value: Any, status: str = "200 OK") -> bool:
    body = json.dumps(value, indent=1).encode() + b"\n"
    head = f"HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    writer.write(head.encode() + body)
    return True


async def _missing(_: Request, __: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
    return _respond(writer, {"error": "no such demo service"}, "404 Not Found")


async def _echo(
    instance: str, request: Request, _: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> bool:
    parts = urlsplit(request.target)
    text = request.body.decode(errors="replace")
    try:
        body = json.loads(text) if text else None
    except ValueError:
        body = text
    return _respond(
        writer,
        {
            "instance": instance,
            "method": request.method,
            "path": parts.path,
            "query": parse_qs(parts.query),
            "headers": dict(request.headers),
            "body": body,
        },
    )


async def _stream(request: Request, _: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
    left = int(request.number("mb", 10, 100_000) * 1_000_000)
    head = f"HTTP/1.1 200 OK\r\nContent-Type: application/octet-stream\r\nContent-Length: {left}\r\n\r\n"
    writer.write(head.encode())
    while left:
        writer.write(BLOCK[:left])
        left -= min(left, len(BLOCK))
        await writer.drain()
    return True


async def _events(request: Request, _: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
    writer.write(
        b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nCache-Control: no-store\r\n"
        b"Transfer-Encoding: chunked\r\n\r\n"
    )
    count, pause_s = int(request.number("count", 5, 10_000)), request.number("every", 0.5, 60)
    for number in range(1, count + 1):
        event = f"id: {number}\nevent: tick\ndata: {json.dumps({'number': number, 'of': count})}\n\n".encode()
        writer.write(b"%x\r\n%s\r\n" % (len(event), event))
        await writer.drain()
        if number < count:
            await asyncio.sleep(pause_s)
    writer.write(b"0\r\n\r\n")
    return True


async def _websocket(request: Request, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
    """Echoes each frame, unmasked (RFC 6455 §5), until one side closes."""
    key = request.header("sec-websocket-key")
    if not key or request.header("upgrade").lower() != "websocket":
        return _respond(writer, {"error": "this path expects a WebSocket handshake"}, "400 Bad Request")
    accept = base64.b64encode(hashlib.sha1(key.encode() + WEBSOCKET_GUID, usedforsecurity=False).digest())
    writer.write(
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Accept: " + accept + b"\r\n\r\n"
    )
    while True:
        first, second = await reader.readexactly(2)
        length = second & 0x7F
        if length >= 126:
            length = int.from_bytes(await reader.readexactly(2 if length == 126 else 8), "big")
        if not second & 0x80 or length > MAX_FRAME_BYTES:
            return False  # RFC 6455 §5.1: a client masks every frame
        mask = await reader.readexactly(4)
        payload = await reader.readexactly(length)
        whole = int.from_bytes(payload, "little") ^ int.from_bytes(
            (mask * (length // 4 + 1))[:length], "little"
        )
        opcode = first & 0x0F
        if opcode == PING:
            first = first & 0xF0 | PONG
        if opcode != PONG:
            writer.write(bytes((first,)) + _frame_length(length) + whole.to_bytes(length, "little"))
            await writer.drain()
        if opcode == CLOSE:
            return False


def _frame_length(length: int) -> bytes:
    if length < 126:
        return bytes((length,))
    if length < 1 << 16:
        return b"\x7e" + length.to_bytes(2, "big")
    return b"\x7f" + length.to_bytes(8, "big")


def commands(listen: str, admin: str | None) -> list[tuple[str, str]]:
    """Five commands to try on a demo at this address, each with its purpose."""
    url = f"http://{listen}"
    return [
        (f"""curl -s {url}/echo/hello -d '{{"name": "you"}}'""", "the request as the upstream receives it"),
        (f"curl -sN '{url}/events?count=5'", "server-sent events, streamed"),
        (f"curl -si '{url}/slow?s=5'", "the route allows 3 s: 504 with a reason"),
        (f"curl -s '{url}/stream?mb=500' | wc -c", "half a gigabyte, streamed with constant memory"),
        (
            f"curl -s http://{admin}/metrics | grep fastgate_requests_total"
            if admin
            else f"curl -s {url}/orders/7",
            "metrics of all workers" if admin else "a rewritten path and an added header",
        ),
    ]


async def _demo(arguments: list[str]) -> int:
    ready_read, ready_write = os.pipe()
    loop = asyncio.get_running_loop()
    async with Services() as services:
        # A separate session: only this process receives Ctrl-C, and forwards it once. If it dies, the gateway
        # gets SIGTERM.
        die_with_us = functools.partial(ctypes.CDLL(None).prctl, PR_SET_PDEATHSIG, signal.SIGTERM)
        gateway = await asyncio.create_subprocess_exec(
            sys.executable,
            *("-m", "fastgate", "run", "-c", str(CONFIG), "--ready-fd", str(ready_write), *arguments),
            env={**os.environ, **services.environ},
            pass_fds=[ready_write],
            start_new_session=True,
            preexec_fn=die_with_us,
        )
        os.close(ready_write)
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, _pass_on, gateway, signal.SIGTERM)
        line = await loop.run_in_executor(None, functools.partial(_read_line, ready_read))
        if line:
            _greet(json.loads(line))
        return await gateway.wait()


def _read_line(descriptor: int) -> str:
    with open(descriptor) as pipe:
        return pipe.readline()


def _pass_on(gateway: asyncio.subprocess.Process, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        gateway.send_signal(number)


def _greet(ready: dict[str, Any]) -> None:
    listen, admin = ready["listen"][0], ready.get("admin")
    print(
        f"\nfastgate listens on http://{listen}, in front of its demo services. In another terminal, try:\n"
    )
    for command, shows in commands(listen, admin):
        print(f"  # {shows}\n  {command}\n")
    print("Press Ctrl-C to stop.", flush=True)


def run(arguments: list[str]) -> int:
    """Runs the demo until a signal ends it, and returns the gateway's exit status. `arguments` go to
    `fastgate run`.
    """
    return asyncio.run(_demo(arguments))
