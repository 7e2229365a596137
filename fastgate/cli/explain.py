"""`fastgate explain`: how the gateway would handle one request, without sending it.

The request is passed, as bytes, to the real data plane over a transport without a peer, so parsing, refusals,
normalization and matching are those that serve traffic. All plugins are replaced by one that records the
route and the bytes for its target, and responds at once: nothing goes upstream, and no plugin code runs. The
other candidates are collected afterwards, each with the reason why it lost.

With the memory of a running gateway, the gates use its keys, limits and policies. That memory must be a
private copy (`HostMemory.isolate`), because the gates take tokens from limits as for any request.
"""

from __future__ import annotations

import asyncio
import difflib
import re
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import msgspec
from rich.console import Console
from rich.markup import escape

from fastgate._core.balance.strategies import Scored
from fastgate._core.http.route import Route
from fastgate._core.http.urlpath import normalise
from fastgate.checks import TOKEN
from fastgate.config import AccessLogConfig, Config, ListenerConfig, PluginUse, RouteConfig, TlsConfig
from fastgate.errors import REASONS
from fastgate.features.registry import FEATURES
from fastgate.plan.freeze import freeze_now
from fastgate.plugin import CONTINUE, Plugin, RequestContext
from fastgate.proxy.dataplane import DataPlane
from fastgate.proxy.request_target import host as host_of
from fastgate.settings import duration_text, size_text
from fastgate.state.memory import HostMemory
from fastgate.upstream.h1_request import request_head_bytes
from fastgate.upstream.pool import Upstream

__all__ = ["Candidate", "Explanation", "Recorder", "explain_request", "print_explanation"]

_KINDS = {"literal": "literal", "params": "parameters", "regex": "regular expression", "prefix": "prefix"}


class Candidate(msgspec.Struct, frozen=True):
    """A route whose host and path match. `refused` is why it does not accept the request, or ""."""

    route: str
    pattern: str
    refused: str


class Explanation(msgspec.Struct, frozen=True):
    """The handling of a request: its route, or its refusal (`status` and `response`) without one."""

    request: str
    host: str
    path: str
    candidates: tuple[Candidate, ...]
    route: str = ""
    why: str = ""
    params: dict[str, str] = {}
    plugins: tuple[str, ...] = ()
    action: str = ""
    upstream: str = ""
    targets: tuple[str, ...] = ()
    limits: dict[str, str] = {}
    head: str = ""
    status: int = 0
    response: str = ""
    refused: str = ""  # the reason, if a gate of the route refuses
    decisions: tuple[str, ...] = ()  # the decisions of policies
    guards: dict[str, str] = {}  # what the route requires and stores
    identity: str = ""  # the consumer, by which method and key
    rate_limit: dict[str, str] = {}  # the RateLimit fields of the response
    nearest: str = ""  # without a route: the nearest one
    difference: str = ""  # and why it does not match
    source: str = "config"  # `gateway`: the running gateway

    @classmethod
    def of(cls, response: dict[str, Any]) -> Explanation:
        """From the response of the admin API of the running gateway."""
        return msgspec.convert(response, cls)

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        found: dict[str, Any] = msgspec.to_builtins(self)
        return found


class Recorder(Plugin):
    """Records the request and responds to it."""

    Config = None

    def __init__(self) -> None:
        self.route: Any = None
        self.params: dict[str, str] = {}
        self.heads: list[bytes] = []
        self.refused = ""
        self.identity = ""
        self.decisions: list[str] = []

    @classmethod
    def build(cls, config: Any, env: Any) -> Recorder:
        return cls()

    def decide(self, ctx: RequestContext) -> Any:
        self.route = ctx.route
        self.params = ctx.params
        self.identity = _identity(ctx)
        destination = ctx.route.destination
        if destination is not None:
            self.heads = [
                request_head_bytes(ctx, ctx.route, target.authority, destination.upstream.credential)
                for target in destination.upstream.targets
            ]
        if ctx.tags:
            self.decisions.append(f"tagged {', '.join(ctx.tags)}")
        if ctx.upstream_override is not None:
            self.decisions.append(f"sent to upstream {ctx.upstream_override} instead")
        return CONTINUE if destination is None else ctx.respond(204)

    def log(self, ctx: RequestContext) -> None:
        if self.route is None and ctx.route is not None:  # refused by an earlier gate
            self.route, self.params = ctx.route, ctx.params
            self.refused = ctx.reason.label if ctx.reason is not None else ""
            self.identity = _identity(ctx)


def _identity(ctx: RequestContext) -> str:
    """The authenticated identity, in words."""
    found = ctx.identity
    if found is None:
        return ""
    words = [f"consumer {found.consumer}"]
    words += [f"tier {found.tier}"] * bool(found.tier) + [f"by {found.method}"] * bool(found.method)
    return ", ".join(words + [f"key {found.key_id}"] * bool(found.key_id))


class _Nowhere(asyncio.Transport):
    """A transport that keeps what is written."""

    def __init__(self, client: str) -> None:
        super().__init__({"peername": (client, 40000), "sockname": ("127.0.0.1", 8080)})
        self.written = b""

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        """Ignored: the buffer is unbounded."""

    def write(self, data: bytes | bytearray | memoryview[Any]) -> None:
        self.written += bytes(data)

    def can_write_eof(self) -> bool:
        return False

    def is_closing(self) -> bool:
        return False

    def pause_reading(self) -> None:
        """Ignored: there is no input."""

    def resume_reading(self) -> None:
        """Ignored: there is no input."""

    def close(self) -> None:
        """Ignored: there is no connection."""

    def abort(self) -> None:
        """Ignored: there is no connection."""


def explain_request(
    config: Config,
    method: str,
    url: str,
    fields: Sequence[tuple[str, str]] = (),
    client: str = "127.0.0.1",
    memory: HostMemory | None = None,
) -> Explanation:
    """The handling of this request. `url` is absolute or a path; Host comes from it, or from `fields`.
    `memory` is a private copy of a running gateway's; without it there are no keys, and every limit is full.

    ValueError describes a fault in the URL or a field.
    """
    live = memory is not None
    scheme, authority, target = _address(url, fields)
    data = _request(method, target, authority, fields)
    routes = {route.name: route for route in config.each_route()}
    loop = asyncio.new_event_loop()
    try:
        if memory is None:
            memory = HostMemory.private(len(routes) + 1, config.memory.health_rows)
            memory.directory.loaded = 1  # there is no controller to wait for
        observed = [
            feature.explain_decisions(memory) for feature in FEATURES if feature.explain_decisions is not None
        ]
        plane = DataPlane(loop, memory, 0)
        plan = freeze_now(_bare(config, routes), plane)
        plane.install(plan)
        transport = _Nowhere(client)
        tls = TlsConfig(certificates=()) if scheme == "https" else None
        plain = [listener.redirect for listener in config.listen if listener.tls is None]
        redirect = (
            min(plain) if plain and scheme == "http" else 0
        )  # a listener without a redirect, if there is one
        connection = plane.connection(ListenerConfig(address="127.0.0.1:0", tls=tls, redirect=redirect))
        connection.connection_made(transport)
        connection.data_received(data)
        waits = bool(asyncio.all_tasks(loop))
        if waits:  # a step would await, and explain sends nothing
            connection.connection_lost(None)
            loop.run_until_complete(asyncio.sleep(0))
        plane.close()
        host, path = _matched_on(authority, target)
        recorder: Any = next(plugin for plugin in plan.plugins if isinstance(plugin, Recorder))
        candidates = plan.router.candidates(host, path)
        if waits:
            recorder.refused = ""
            recorder.decisions.append("waits for an asynchronous step (auth, or a plugin)")
        why = REASONS.get(recorder.refused)
        if not live and why is not None and (why.status == 401 or why.label == "forbidden"):
            recorder.decisions.append(
                "evaluated without the keys and policies of a running gateway, which may change the result"
            )
        for sentences in observed:
            recorder.decisions += sentences()
    finally:
        loop.close()
    seen = routes.get(recorder.route.name) if recorder.route is not None else None
    found = tuple(
        Candidate(
            route.value.name, _pattern(route), _refusal(routes[route.value.name], method, target, fields)
        )
        for route in candidates
    )
    common = {
        "request": f"{method} {url}",
        "host": host,
        "path": path,
        "candidates": found,
        "source": "gateway" if live else "config",
    }
    if seen is None:
        status, body = _parts(transport.written)
        if status == 308 and redirect:
            return Explanation(
                **common,  # type: ignore[arg-type]
                route="(https redirect)",
                why="the listener redirects plain HTTP",
                action="redirect",
                status=status,
                response=transport.written.decode("latin-1"),
            )
        closest, difference = _nearest(config, plan.router, host, path) if not found else ("", "")
        return Explanation(
            **common,  # type: ignore[arg-type]
            status=status,
            response=body,
            nearest=closest,
            difference=difference,
        )
    chosen = next((route for route in candidates if route.value.name == seen.name), None)
    return Explanation(
        **common,  # type: ignore[arg-type]
        route=seen.name,
        why=_why(chosen) if chosen is not None else "",
        params=recorder.params,
        plugins=tuple(use.use for use in (*config.plugins, *seen.plugins)),
        decisions=tuple(recorder.decisions),
        guards=_guards(seen),
        identity=recorder.identity,
        rate_limit=_rate_limit(transport.written),
        **_consequences(config, seen, recorder, transport.written),
    )


def _rate_limit(written: bytes) -> dict[str, str]:
    """The response fields by which features tell clients how much they may still use."""
    names = {name for feature in FEATURES for name in feature.explain_fields}
    head = written.partition(b"\r\n\r\n")[0].decode("latin-1")
    fields = [line.partition(": ") for line in head.split("\r\n")[1:]]
    return {name: value for name, _, value in fields if name.lower() in names}


MOST_COMPARED = 5000
"""Patterns compared with an unmatched path; bounds the work for a config of any size."""


def _nearest(config: Config, router: Any, host: str, path: str) -> tuple[str, str]:
    """The enabled route nearest to a host and path, and the difference. ("", "") without routes."""
    best: tuple[float, str, str] = (-1.0, "", "")
    compared = 0
    for route in config.each_route():
        if not route.enabled:
            continue
        names = ", ".join(route.host)
        fits = not route.host or any(_host_fits(pattern, host) for pattern in route.host)
        for pattern in route.path:
            compared += 1
            if compared > MOST_COMPARED:
                return best[1:]
            asked = route.host[0].replace("*", "any") if route.host else "any.test"
            if not fits and any(found.value.name == route.name for found in router.candidates(asked, path)):
                score, why = 2.0, f"host {host or '(none)'} is not {names}"
            else:
                score, why = _path_difference(pattern, path)
                if not fits:
                    score, why = score - 0.5, f"{why}; host {host or '(none)'} is not {names}"
            if score > best[0]:
                place = f"{names}{pattern}"
                best = (score, route.name if place == route.name else f"{route.name} ({place})", why)
    return best[1:]


def _host_fits(pattern: str, host: str) -> bool:
    pattern = pattern.lower()
    return host.endswith(pattern[1:]) if pattern.startswith("*.") else pattern == host


def _path_difference(pattern: str, path: str) -> tuple[float, str]:
    """Similarity of a path and a pattern, 0 to 1.9, and the difference."""
    if pattern.startswith("~"):
        return 0.1, f"path {path} does not match the regular expression {pattern[1:]}"
    stem = pattern.removesuffix("/*").removesuffix("*")
    if path.rstrip("/") == pattern.rstrip("/"):
        return 1.9, f"path {path}: the route has {pattern}, and the trailing slash is significant"
    if path.lower() == pattern.lower() or (
        pattern.endswith("*") and path.lower().startswith(stem.lower() + "/")
    ):
        return 1.8, f"path {path} differs from {pattern} in case"
    ours, theirs = pattern.strip("/").split("/"), path.strip("/").split("/")
    same = 0
    for one, other in zip(ours, theirs, strict=False):
        if one != other and not one.startswith("{"):
            break
        same += 1
    alike = difflib.SequenceMatcher(None, stem, path).quick_ratio()
    score = 0.6 * same / max(len(ours), len(theirs)) + 0.4 * alike
    if same == len(theirs) < len(ours) and not pattern.endswith("*"):
        return score, f"path {path} is shorter than {pattern}"
    if same == len(ours) < len(theirs) and not pattern.endswith("*"):
        return score, f"path {path} is longer than {pattern}; a prefix is {pattern.rstrip('/')}/*"
    return score, f"path {path} does not match {pattern}"


def _guards(route: RouteConfig) -> dict[str, str]:
    """What features say about the route, by key."""
    guards: dict[str, str] = {}
    for feature in FEATURES:
        if feature.explain is not None:
            guards |= feature.explain(route)
    return guards


def _bare(config: Config, routes: Mapping[str, RouteConfig]) -> Config:
    """The config with the recorder instead of all plugins, without log and without the features that would
    store something.
    """
    without: dict[str, Any] = {feature.name: None for feature in FEATURES if not feature.is_explained}
    return msgspec.structs.replace(
        config,
        plugins=(PluginUse(use=f"{__name__}:Recorder"),),
        access_log=AccessLogConfig(output="off"),
        routes=tuple(
            msgspec.Raw(msgspec.msgpack.encode(msgspec.structs.replace(route, plugins=(), **without)))
            for route in routes.values()
        ),
    )


def _address(url: str, fields: Sequence[tuple[str, str]]) -> tuple[str, str, str]:
    given = next((value for name, value in fields if name.lower() == "host"), "")
    if url.startswith("/") or url == "*":
        return "http", given or "localhost", url.partition("#")[0]
    parts = urlsplit(url if "://" in url else f"http://{url}")
    if parts.scheme not in ("http", "https") or not parts.netloc:
        raise ValueError(f"expected http://host/path, https://host/path or /path, got {url!r}")
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    return parts.scheme, given or parts.netloc.rpartition("@")[2], target


def _request(method: str, target: str, authority: str, fields: Sequence[tuple[str, str]]) -> bytes:
    if not TOKEN.fullmatch(method):
        raise ValueError(f"expected a method such as GET, got {method!r}")
    if re.search(r"[^!-~]", target):
        raise ValueError(f"expected printable ASCII without spaces, got {target!r}: percent-encode the rest")
    lines = [f"{method} {target} HTTP/1.1", f"Host: {authority}"]
    names = {name.lower() for name, _ in fields}
    for name, value in fields:
        if not TOKEN.fullmatch(name) or re.search(r"[\x00-\x08\x0a-\x1f\x7f]", value):
            raise ValueError(f"expected a header field, got {name!r}: {value!r}")
        if name.lower() != "host":
            lines.append(f"{name}: {value}")
    if method in ("POST", "PUT", "PATCH") and not names & {"content-length", "transfer-encoding"}:
        lines.append("Content-Length: 0")
    return "\r\n".join([*lines, "", ""]).encode("latin-1", "replace")


def _matched_on(authority: str, target: str) -> tuple[str, str]:
    """Host and path in the form that routes are matched against; unchanged if they are malformed."""
    path = target.partition("?")[0]
    try:
        return host_of(authority.encode()).decode(), normalise(path.encode()).decode()
    except ValueError:
        return authority, path


def _pattern(route: Route) -> str:
    return f"{route.host or ''}{route.pattern}"


def _why(route: Route) -> str:
    host = "any host" if route.host is None else f"host {route.host}"
    if route.host is not None:
        host += " (wildcard)" if route.host.startswith("*.") else " (exact)"
    conditions = f", {route.predicates} condition{'s' * (route.predicates != 1)}" if route.predicates else ""
    return f"{host}, path {route.pattern} ({_KINDS[route.kind]}){conditions}"


def _refusal(route: RouteConfig, method: str, target: str, fields: Sequence[tuple[str, str]]) -> str:
    """Why this route does not accept the request, although its host and path match."""
    takes = (*route.methods, *(("HEAD",) if "GET" in route.methods else ()))
    if takes and method not in takes:
        return f"method {method} is not one of {', '.join(takes)}"
    values = {name.lower(): value for name, value in reversed(fields)}
    for name, wanted in route.headers.items():
        if not _holds(wanted, values.get(name.lower()), re.ASCII):
            return f"header {name}: {_difference(wanted, values.get(name.lower()))}"
    query = dict(reversed(parse_qsl(target.partition("?")[2], keep_blank_values=True)))
    for name, wanted in route.query.items():
        if not _holds(wanted, query.get(name)):
            return f"query {name}: {_difference(wanted, query.get(name))}"
    return ""


def _holds(wanted: str, value: str | None, flags: re.RegexFlag = re.NOFLAG) -> bool:
    if value is None:
        return False
    return wanted == "*" or (
        re.search(wanted[1:], value, flags) is not None if wanted.startswith("~") else value == wanted
    )


def _difference(wanted: str, value: str | None) -> str:
    expected = "any value" if wanted == "*" else f'"{wanted}"'
    got = "nothing" if value is None else f'"{value}"'
    return f"expected {expected}, got {got}"


def _consequences(config: Config, route: RouteConfig, recorder: Recorder, written: bytes) -> dict[str, Any]:
    if recorder.refused:
        status, response = _parts(written)
        return {"action": "refuse", "refused": recorder.refused, "status": status, "response": response}
    limit = config.server.max_body_bytes if route.max_body_bytes is None else route.max_body_bytes
    limits = {"max_body": size_text(limit) if limit else "none"}
    if route.upstream is None:
        status, _ = _parts(written)
        head = written.decode("latin-1")
        return {
            "action": recorder.route.pipeline.plugins[-1].name,
            "status": status,
            "response": head,
            "limits": limits,
        }
    upstream = config.upstreams[route.upstream]
    timeouts = upstream.timeouts.overridden(route.timeouts)
    for name in ("connect", "first_byte", "between_bytes", "total"):
        value = getattr(timeouts, f"{name}_ns")
        limits[name] = duration_text(value) if value else "none"
    targets = _targets(recorder.route.destination.upstream)
    return {
        "action": "proxy",
        "upstream": route.upstream,
        "targets": targets,
        "limits": limits,
        "head": recorder.heads[0].decode("latin-1") if recorder.heads else "",
    }


def _targets(upstream: Upstream) -> tuple[str, ...]:
    """The targets with their shares at this moment, for strategies that share out by weight; with the terms
    of their scores for the strategy `intelligent`."""
    balance = upstream.balance
    weights, shares = balance.usable(), balance.shares()
    sums = [0.0] * len(shares)
    for weight, tier in zip(weights, balance.tiers_of_targets, strict=True):
        sums[tier] += weight
    scores = {
        row["target"]: ", ".join(
            f"{term} {row[term]:.3g}" for term in ("latency", "cost", "health", "quality")
        )
        for row in (balance.strategy.explain(balance) if isinstance(balance.strategy, Scored) else ())
    }
    lines = []
    for url, weight, tier in zip(balance.names, weights, balance.tiers_of_targets, strict=True):
        text = f"{100 * shares[tier] * weight / sums[tier]:.0f} %" if weight else "not usable now"
        lines.append(f"{url} ({text}; {scores[url]})" if url in scores else f"{url} ({text})")
    return tuple(lines)


def _parts(written: bytes) -> tuple[int, str]:
    head, _, body = written.partition(b"\r\n\r\n")
    status = int(head.split(b" ", 2)[1]) if head.startswith(b"HTTP/1.") else 0
    return status, body.decode("utf-8", "replace")


def print_explanation(explanation: Explanation, console: Console | None = None) -> None:
    """Prints the explanation for a terminal."""
    console = console or Console(highlight=False, soft_wrap=True)

    def say(label: str, text: str) -> None:
        console.print(f"[bold]{label:<10}[/bold] {escape(text)}")

    say("request", explanation.request)
    say("matched on", f"{explanation.host} {explanation.path}")
    if explanation.route:
        say("route", explanation.route)
        say("because", explanation.why)
    else:
        say("route", "none")
        if explanation.nearest:
            say("nearest", explanation.nearest)
            say("but", explanation.difference)
    for candidate in explanation.candidates:
        if candidate.route != explanation.route:
            verdict = candidate.refused or "also matches, but is less specific"
            say("candidate", f"{candidate.route}: {verdict}")
    if explanation.params:
        say("params", "  ".join(f"{name}={value}" for name, value in explanation.params.items()))
    if explanation.plugins:
        say("plugins", " → ".join(explanation.plugins))
    if explanation.guards:
        say("guards", "  ".join(f"{name}={value}" for name, value in explanation.guards.items()))
    if explanation.identity:
        say("identity", explanation.identity)
    for decision in explanation.decisions:
        say("decision", decision)
    for name, value in explanation.rate_limit.items():
        say("limit", f"{name}: {value}")
    if explanation.refused:
        say("refused", explanation.refused)
    if explanation.upstream:
        say("upstream", explanation.upstream)
        for target in explanation.targets:
            say("target", target)
    if explanation.limits:
        say("limits", "  ".join(f"{name}={value}" for name, value in explanation.limits.items()))
    if explanation.head:
        say("upstream gets", "")
        for line in explanation.head.rstrip("\r\n").split("\r\n"):
            console.print(f"  {escape(line)}")
    elif explanation.status:
        say("response", str(explanation.status))
        for line in explanation.response.splitlines():
            console.print(f"  {escape(line)}")
