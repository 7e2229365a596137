"""Plugins that do what the request tells them, and note every call in a file.

`X-A: decide=refuse` tells the plugin labelled `A` to refuse in `decide`. What was called is one JSON line
each: `[label, phase, request id, facts]`.
"""

from __future__ import annotations

import asyncio
import json
import os
import time
from typing import Any, Self

from fastgate.plugin import (
    CONTINUE,
    REASONS,
    RESPOND,
    SUSPEND,
    Plugin,
    PluginEnv,
    RequestContext,
    RequestHead,
    ResponseHead,
    Settings,
)
from fastgate.settings import Size

__all__ = ["Chunker", "Decider", "Logger", "Responder", "Starter", "Upstreamer", "Waiter", "Whole"]


RAISED: dict[str, type[BaseException]] = {
    "": RuntimeError,
    "cancelled": asyncio.CancelledError,
    "exit": SystemExit,
    "interrupt": KeyboardInterrupt,
    "generator": GeneratorExit,
}
"""What `raise` and `raise:exit` and so on raise."""


class Probe(Plugin):
    """What all of them share."""

    class Config(Settings, frozen=True, kw_only=True):
        label: str
        record: str
        bound_bytes: Size = 0
        enforce: bool = True

    @classmethod
    def build(cls, config: Any, env: PluginEnv) -> Self:
        plugin = cls()
        plugin.config = config
        plugin.request_body_bytes = plugin.response_body_bytes = config.bound_bytes
        return plugin

    def note(self, phase: str, ctx: RequestContext | None, *facts: object) -> None:
        line = json.dumps([self.config.label, phase, ctx.request_id if ctx else "", *facts]) + "\n"
        descriptor = os.open(self.config.record, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        os.write(descriptor, line.encode())
        os.close(descriptor)

    def told(self, ctx: RequestContext, phase: str) -> tuple[str, str]:
        """The action and its argument for this phase; ("", "") without one."""
        for value in ctx.headers.get_all(f"X-{self.config.label}"):
            wanted, _, action = value.partition("=")
            if wanted == phase:
                name, _, argument = action.partition(":")
                if name == "raise":
                    raise RAISED[argument](f"{self.config.label} was told to fail in {phase}")
                return name, argument
        return "", ""


def verdict(plugin: Probe, ctx: RequestContext, action: str, argument: str) -> Any:
    label = plugin.config.label
    match action:
        case "refuse":
            return ctx.refuse(REASONS[argument or "forbidden"], {"by": label}, [("X-Refused-By", label)])
        case "respond":
            return ctx.respond(int(argument or 201), f"made by {label}", [("Content-Type", "text/plain")])
        case "forget":  # the `return`
            ctx.refuse(REASONS["forbidden"])
        case "suspend":
            return SUSPEND
        case "continue":
            return CONTINUE
        case "answerless":
            return RESPOND
        case "number":
            return int(argument)
        case "text":
            return "no verdict"
        case "value":
            return {"false": False, "true": True, "float": 0.0, "list": [], "empty": "", "class": Probe}[
                argument
            ]
        case "coroutine":
            return asyncio.sleep(0)
        case "overrule":  # a refusal, and then the last line of the method
            ctx.refuse(REASONS["forbidden"])
            return CONTINUE
        case "block":
            time.sleep(float(argument))
        case "add":
            ctx.add_response_header("X-Added-By", label)
        case "inject":
            ctx.add_response_header("X-Added-By", "a\r\nX-Evil: b")
        case "remember":
            ctx.remember(plugin, [label])
        case "override":
            ctx.send_to(argument)
    return None


class Decider(Probe):
    def decide(self, ctx: RequestContext) -> Any:
        self.note("decide", ctx, ctx.recall(self))
        return verdict(self, ctx, *self.told(ctx, "decide"))

    def log(self, ctx: RequestContext) -> None:
        self.note("log", ctx, ctx.recall(self, "nothing"))


class Waiter(Probe):
    async def request(self, ctx: RequestContext) -> Any:
        self.note("request", ctx, None if ctx.body is None else len(ctx.body))
        action, argument = self.told(ctx, "request")
        match action:
            case "wait" | "swallow":
                try:
                    await asyncio.Event().wait()
                except asyncio.CancelledError:
                    self.note("cancelled", ctx)
                    if action == "wait":
                        raise
                    return ctx.respond(200, "too late")
            case "yield":
                await asyncio.sleep(0)
            case "cancel":
                raise asyncio.CancelledError
            case "canceltask":
                task = asyncio.current_task()
                assert task is not None
                task.cancel()
                await asyncio.sleep(0)
            case "replace":
                ctx.replace_body(argument.encode())
        return verdict(self, ctx, action, argument)


class Upstreamer(Probe):
    def upstream_request(self, ctx: RequestContext, head: RequestHead) -> Any:
        self.note("upstream_request", ctx, head.method, head.target, head.body is not None)
        action, argument = self.told(ctx, "upstream_request")
        match action:
            case "edit":
                head.headers.set("X-Edited", self.config.label)
                head.headers.remove("X-Secret")
                head.target = "/edited?by=" + self.config.label
            case "method":
                head.method = argument
            case "target":
                head.target = argument
            case "hostile":
                for name, value in (
                    ("Host", "evil.test"),
                    ("Content-Length", "999"),
                    ("Transfer-Encoding", "chunked"),
                    ("Connection", "close"),
                    ("Upgrade", "x"),
                    ("X-Forwarded-For", "6.6.6.6"),
                ):
                    head.headers.set(name, value)
            case "body":
                head.body = argument.encode()
            case _:
                return misused(ctx, action, argument)
        return None

    def upstream_response(self, ctx: RequestContext, head: ResponseHead) -> Any:
        self.note("upstream_response", ctx, head.status)
        action, argument = self.told(ctx, "upstream_response")
        edit(self, head, action, argument)
        return misused(ctx, action, argument)


def misused(ctx: RequestContext, action: str, argument: str) -> Any:
    """What is no business of a hook that edits in place."""
    match action:
        case "refuse":
            return ctx.refuse(REASONS["forbidden"])
        case "forget":
            ctx.refuse(REASONS["forbidden"])
        case "false":
            return False
        case "block":
            time.sleep(float(argument))
    return None


class Responder(Probe):
    def response(self, ctx: RequestContext, head: ResponseHead) -> Any:
        self.note("response", ctx, head.status, head.headers.get("Content-Type"))
        for value in ctx.headers.get_all(f"X-{self.config.label}"):
            if value == "response=half":  # of an edit, and then it fails
                edit(self, head, "edit", "")
                head.status = 299
                raise RuntimeError(f"{self.config.label} was told to fail in response")
        action, argument = self.told(ctx, "response")
        edit(self, head, action, argument)
        return misused(ctx, action, argument)


def edit(plugin: Probe, head: ResponseHead, action: str, argument: str) -> None:
    match action:
        case "edit":
            head.headers.set("X-Edited", plugin.config.label)
            head.headers.remove("Server")
        case "status":
            head.status = int(argument)
        case "body":
            head.body = argument.encode()
        case "upper":
            assert head.body is not None
            head.body = head.body.upper() + b"!"
        case "bodytext":
            head.body = "text"  # type: ignore[assignment]
        case "bodynone":
            head.body = None
        case "hostile":
            for name, value in (("Content-Length", "1"), ("Transfer-Encoding", "x"), ("Connection", "close")):
                head.headers.set(name, value)


class Whole(Responder):
    """Reads and edits the whole answer."""

    def upstream_response(self, ctx: RequestContext, head: ResponseHead) -> None:
        self.note("upstream_response", ctx, None if head.body is None else len(head.body))
        edit(self, head, *self.told(ctx, "upstream_response"))


class Chunker(Probe):
    def request_chunk(self, ctx: RequestContext, chunk: bytes, last: bool) -> Any:
        self.note("request_chunk", ctx, len(chunk), last)
        return replaced(chunk, last, *self.told(ctx, "request_chunk"))

    def response_chunk(self, ctx: RequestContext, chunk: bytes, last: bool) -> Any:
        self.note("response_chunk", ctx, len(chunk), last)
        return replaced(chunk, last, *self.told(ctx, "response_chunk"))


def replaced(chunk: bytes, last: bool, action: str, argument: str) -> Any:
    match action:
        case "upper":
            return chunk.upper() + (b"!" if last else b"")
        case "drop":
            return b""
        case "collect":
            return argument.encode() if last else b""
        case "none":
            return None
        case "failatend":
            if last:
                raise RuntimeError("told to fail at the end")
    return chunk


class Logger(Probe):
    def log(self, ctx: RequestContext) -> None:
        self.note(
            "log",
            ctx,
            {
                "status": ctx.status,
                "upstream_status": ctx.upstream_status,
                "reason": ctx.reason.label if ctx.reason else None,
                "path": ctx.path,
                "finished": ctx.finished_ns >= ctx.started_ns,
            },
        )
        self.told(ctx, "log")


class Starter(Probe):
    """Notes its life; fails where its label says so."""

    @classmethod
    def build(cls, config: Any, env: PluginEnv) -> Self:
        if config.label == "bad-build":
            raise ValueError("this one cannot be built")
        if config.label == "exit-build":
            raise SystemExit(3)
        if config.label == "no-plugin":
            return config  # type: ignore[no-any-return]
        plugin = super().build(config, env)
        plugin.note("build", None, env.name, env.route)
        return plugin

    async def start(self) -> None:
        self.note("start", None)
        if self.config.label == "bad-start":
            await asyncio.sleep(0)
            raise OSError("this one cannot start")
        if self.config.label == "exit-start":
            raise SystemExit(3)
        if self.config.label == "cancel-start":
            raise asyncio.CancelledError

    async def close(self) -> None:
        self.note("close", None)
        if self.config.label == "bad-close":
            raise OSError("this one cannot close")

    def decide(self, ctx: RequestContext) -> Any:
        ctx.add_response_header("X-Seen-By", f"{self.config.label} {id(self)}")
        return None
