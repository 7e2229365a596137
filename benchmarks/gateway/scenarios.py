"""What is compared: ladders of peers under the same closed-loop load, and scenarios that measure one thing
each: idle connections, start, memory, matching, reloads.

The ladders of connections and TLS are in connections.py, those of bodies, events and WebSockets in
streams.py, those of keys and limits in guarded.py, those of the cache in caching.py.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from typing import Any

from benchmarks.gateway import load, servers
from benchmarks.gateway.caching import CACHE_SINGLES, CACHES
from benchmarks.gateway.connections import CONNECTIONS, fixed_peers
from benchmarks.gateway.guarded import GUARDS
from benchmarks.gateway.ladder import Ladder, Options, Peers, Result
from benchmarks.gateway.load import Traffic
from benchmarks.gateway.servers import Server
from benchmarks.gateway.streams import STREAMS
from fastgate._core import Router

__all__ = ["LADDERS", "SINGLES"]

IDLE_CONNECTIONS = 10_000
RELOAD_ROUTES = 5_000
MATCH_ROUTES = (10, 1_000, 10_000)
STARTS = 5


def _proxy(origin: int, **more: Any) -> dict[str, Any]:
    target = f"http://127.0.0.1:{origin}"
    return {"routes": [{"path": "/{rest...}", "upstream": target, **more}]}


NGINX_PROXY = 'proxy_pass http://origin; proxy_http_version 1.1; proxy_set_header Connection "";'
NGINX_JSON_LOG = (
    'log_format json escape=json \'{"time":"$time_iso8601","client":"$remote_addr",'
    '"request_id":"$request_id","method":"$request_method","target":"$request_uri","status":$status,"bytes":$bytes_sent,'
    '"duration":$request_time,"upstream":"$upstream_addr","upstream_duration":"$upstream_response_time"}\';'
    "access_log {directory}/access json buffer=64k flush=1s;"
)


def _bare(origin: int) -> Peers:
    return {
        "nginx": lambda: servers.nginx(NGINX_PROXY, origin=origin),
        "haproxy": lambda: servers.haproxy("default_backend origin", origin=origin),
        "fastgate": lambda: servers.fastgate(_proxy(origin)),
    }


def _logged(origin: int) -> Peers:
    # Both to a file, JSON lines, buffered: what either would be run with. HAProxy logs to syslog only.
    logged = {"access_log": {"output": "{directory}/access", "format": "json"}}
    return {
        "nginx": lambda: servers.nginx(NGINX_PROXY, origin=origin, http=NGINX_JSON_LOG),
        "fastgate": lambda: servers.fastgate({**_proxy(origin), **logged}),
    }


def _workers(origin: int) -> Peers:
    return {
        "fastgate 1 worker": lambda: servers.fastgate(_proxy(origin)),
        "fastgate 2 workers": lambda: servers.fastgate(_proxy(origin), workers=2),
    }


def _hooks(origin: int) -> Peers:
    def with_plugin(name: str) -> Callable[[], Server]:
        plugins = [{"use": f"benchmarks.gateway.plugins:{name}"}]
        return lambda: servers.fastgate(_proxy(origin, plugins=plugins))

    return {
        "fastgate": lambda: servers.fastgate(_proxy(origin)),
        "fastgate empty walk": with_plugin("Nothing"),
        "fastgate one decide hook": with_plugin("Decide"),
        "fastgate one async hook": with_plugin("Await"),
    }


def _many_routes(origin: int) -> Peers:
    def config(count: int) -> dict[str, Any]:
        target = f"http://127.0.0.1:{origin}"
        routes = [{"path": f"/service{number}/{{id}}", "upstream": "origin"} for number in range(count - 1)]
        routes.append({"path": "/orders/{id}", "upstream": "origin"})
        return {"upstreams": {"origin": {"targets": [target]}}, "routes": routes}

    return {
        "fastgate 1 route": lambda: servers.fastgate(config(1)),
        "fastgate 10000 routes": lambda: servers.fastgate(config(10_000)),
    }


LADDERS: dict[str, Ladder] = {
    "proxy": Ladder("bare proxy, 64-byte JSON up and down", _bare, is_paced=True),
    "respond": Ladder("fixed response of 64 bytes", lambda _: fixed_peers(), Traffic("GET")),
    "access-log": Ladder("proxy with an access log in JSON", _logged),
    "workers": Ladder("proxy, two workers beside one, on the same core", _workers),
    "hooks": Ladder("proxy with the extension interface in use", _hooks),
    "routes": Ladder("proxy among many routes", _many_routes),
    **CONNECTIONS,
    **STREAMS,
    **GUARDS,
    **CACHES,
}


def _idle(_: Options, progress: Callable[[str], None]) -> Result:
    peers: Result = {}
    for name, start in fixed_peers().items():
        if servers.absent(name):
            continue
        progress(name)
        assert callable(start)
        with _stopping(start()) as server:
            before, during = load.hold_idle(server, IDLE_CONNECTIONS)
        peers[name] = {"bytes_each": (during - before) / IDLE_CONNECTIONS, "private_bytes": before}
    return {"what": f"{IDLE_CONNECTIONS} idle keep-alive connections", "peers": peers}


def _start(_: Options, progress: Callable[[str], None]) -> Result:
    took = []
    for number in range(STARTS):
        progress(f"start {number + 1} of {STARTS}")
        with socket.create_server(("127.0.0.1", 0)) as sock:
            port = sock.getsockname()[1]
        config = {"listen": f"127.0.0.1:{port}", "routes": [{"path": "/", "respond": "ok"}]}
        began = time.monotonic()
        with _stopping(servers.fastgate(config, core=None, wait=False)):
            while not _answers(port):
                if time.monotonic() - began > servers.START_S:
                    raise RuntimeError("fastgate does not answer")
                time.sleep(0.002)
            took.append(time.monotonic() - began)
    return {
        "what": "seconds from start to the first answer",
        "seconds": statistics.median(took),
        "rounds": took,
    }


def _answers(port: int) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", port), 1) as sock:
            sock.sendall(b"GET / HTTP/1.1\r\nHost: bench\r\n\r\n")
            return sock.recv(15) == b"HTTP/1.1 200 OK"
    except OSError:
        return False


def _match(_: Options, progress: Callable[[str], None]) -> Result:
    took: dict[str, float] = {}
    for count in MATCH_ROUTES:
        progress(f"{count} routes")
        router = Router()
        for number in range(count):
            router.add(f"/service{number}/{{id}}", number)
        router.freeze()
        paths = [f"/service{number * 7919 % count}/123" for number in range(1000)]
        assert all(router.match("bench", path) is not None for path in paths)
        best = []
        for _attempt in range(7):
            began = time.perf_counter_ns()
            for path in paths:
                router.match("bench", path)
            best.append((time.perf_counter_ns() - began) / len(paths))
        took[str(count)] = min(best)
    return {"what": "nanoseconds to match a path from Python, by number of routes", "ns": took}


def _reload(options: Options, progress: Callable[[str], None]) -> Result:
    if not load.is_paced_available():
        return {"what": "reloads under load", "missing": ["h2load"]}

    def config(origin: int, version: int) -> dict[str, Any]:
        routes = [
            {"path": f"/service{number}/{{id}}", "upstream": "origin"} for number in range(RELOAD_ROUTES - 2)
        ]
        routes.append({"path": "/orders/{id}", "upstream": "origin"})
        routes.append({"path": "/version", "respond": str(version)})
        return {"upstreams": {"origin": {"targets": [f"http://127.0.0.1:{origin}"]}}, "routes": routes}

    seconds = max(5.0, options.seconds)
    rate_per_s = options.rate_per_s / 2
    reloads = 0
    with (
        servers.upstream() as origin,
        _stopping(servers.fastgate(config(origin.port, 0), core=None)) as server,
    ):
        for pid in server.workers:  # the loader of a new config may take either core, as it would in service
            os.sched_setaffinity(pid, {servers.GATEWAY_CORE})
        progress("quiet")
        quiet = load.paced(server, Traffic(path="/orders/1"), seconds, rate_per_s)
        run = load.start_paced(server, Traffic(path="/orders/1"), seconds, rate_per_s)
        time.sleep(1)  # the generator warms up
        path = server.directory / "gateway.json"
        while run.is_running:
            reloads += 1
            progress(f"reload {reloads}")
            document = {**json.loads(path.read_text()), **config(origin.port, reloads)}
            fresh = path.with_suffix(".new")
            fresh.write_text(json.dumps(document))
            fresh.replace(path)
            server.process.send_signal(signal.SIGHUP)
            time.sleep(1)
        busy = run.finish()
    return {
        "what": f"p99 while {RELOAD_ROUTES} routes are reloaded once a second",
        "reloads": reloads,
        "quiet": asdict(quiet),
        "reloading": asdict(busy),
    }


@contextlib.contextmanager
def _stopping(server: Server) -> Iterator[Server]:
    try:
        yield server
    finally:
        server.stop()


SINGLES: dict[str, Callable[[Options, Callable[[str], None]], Result]] = {
    "idle": _idle,
    "start": _start,
    "match": _match,
    "reload": _reload,
    **CACHE_SINGLES,
}
