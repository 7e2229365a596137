"""`fastgate run` below the command line: from a config file to a supervisor that serves it.

The only module that depends on both the config's Structs and the processes: it determines which part of a
config concerns the supervisor, and which changes the running workers cannot apply.
"""

from __future__ import annotations

import hashlib
import importlib
import os
import sys
import sysconfig
from collections.abc import Callable, Mapping
from pathlib import Path

import msgspec

from fastgate._core.shm.shm import SharedMemory
from fastgate.config import Config, InvalidConfig, Source, encode, load_source, read_source
from fastgate.features.registry import runtime_names
from fastgate.plugin import PLUGINS
from fastgate.server.loader import LoadOrder, Reading, Topology, problem_of
from fastgate.server.process import occupy_standard_descriptors, usable_cpus
from fastgate.server.supervisor import Supervisor
from fastgate.server.worker import WorkerOrders, run_worker
from fastgate.state.channel import ControllerOrders, Problem
from fastgate.state.host import HostTable
from fastgate.state.memory import HostMemory, Sizes
from fastgate.state.versions import EMPTY, NEWEST, UnreadableState, read_version

__all__ = ["serve", "topology_of"]

CODE_FILES = 1000
"""Upper bound for the watched files of plugin code."""

SEATS_MOST = 4096
"""Live workers of all generations: four times the largest valid `workers`."""


def serve(
    path: Path,
    overrides: Mapping[str, str],
    *,
    control: Callable[[ControllerOrders], None] | None,
    ready_fd: int | None = None,
    on_ready: Callable[[list[str], str | None], None] | None = None,
    dev: bool = False,
    state: int = NEWEST,
) -> int:
    """Serves the config in this file until a signal ends it; returns the exit status.

    `overrides` are those of fastgate.config.load. `control` is the controller's main function, handed in
    because the data plane does not import the control plane. When every worker accepts, one line of
    JSON goes to `ready_fd` ({"listen": [...], "admin": ..., "pid": ...}) and `on_ready` is called with the
    bound addresses. `dev` watches the config file and the code of plugins, and searches the config's folder
    for plugins. `state` is the version of the State document at the start.
    """
    occupy_standard_descriptors()
    if dev:
        sys.path.insert(0, str(path.resolve().parent))
        # Compiled files are matched by a time in whole seconds: a second edit within one would be missed.
        sys.dont_write_bytecode = True
        overrides = {**overrides, "watch_config": "true"}

    def read_config(order: LoadOrder) -> Reading | list[Problem]:
        return read_merged(path, overrides, order, watch_code=dev, start_state=state)

    def work(orders: WorkerOrders) -> None:
        from fastgate.server.runtime import GatewayRuntime

        run_worker(GatewayRuntime(), orders)

    def warm_up() -> None:
        # Importing the data plane takes as long as loading the first config: both in parallel.
        importlib.import_module("fastgate.server.runtime")

    supervisor = Supervisor(
        read_config,
        work,
        control,
        memory=SharedMemory(HostTable.size(SEATS_MOST)),
        map_host=HostMemory.map,
        watched=[path],
        ready_fd=ready_fd,
        on_ready=on_ready,
        warm_up=warm_up,
    )
    return supervisor.run()


def read_merged(
    path: Path,
    overrides: Mapping[str, str],
    order: LoadOrder,
    *,
    watch_code: bool = False,
    start_state: int = NEWEST,
) -> Reading | list[Problem]:
    """The config of this file, or of the one in the order, with its State document; or its problems.

    start_state: the version of the document at the start, which is the only order for the newest.
    """
    is_start = order.state == NEWEST
    state = EMPTY
    try:
        source = read_source(path) if order.source is None else _decode_source(order.source)
        config = load_source(source, overrides=overrides)
        store, warning = "", ""
        if config.admin.listen != "off":  # without a controller the file is the only source, as for consumers
            store = str(config.store.file().absolute())
            is_known = order.store == store
            wanted = order.state if is_known else start_state if is_start else NEWEST
            try:
                state = read_version(Path(store), wanted)
            except UnreadableState as error:
                if is_known or wanted != NEWEST:
                    return [Problem(text=str(error), event="state refused")]
                warning = str(error)  # the gateway serves, as it would without the keys in it
            if is_start and start_state > 0 and not state.adopted_ns:
                text = f"{store}: state version {start_state} was never in effect"
                return [Problem(text=text, event="state refused")]
        elif is_start and start_state > 0:
            text = f"--state {start_state} has no effect without the admin API, and admin.listen is off"
            return [Problem(text=text, event="state refused")]
        if state.document != EMPTY.document:
            named = (f"state version {state.version}", state.document)
            config = load_source(source, overrides=overrides, state=named, plain=config)
    except InvalidConfig as invalid:
        problems = [problem_of(error) for error in invalid.errors]
        if is_start and state is not EMPTY:
            text = f"the file and state version {state.version} are invalid together, with these errors"
            problems.insert(0, Problem(text=text, hint=_WITHOUT_STATE, event="state refused"))
        return problems
    return Reading(
        topology_of(config, watch_code=watch_code),
        encode(config),
        msgspec.msgpack.encode(source),
        state.version,
        store,
        warning,
    )


_WITHOUT_STATE = (
    "correct the file, or start with --state 0 (the file alone) or --state VERSION, and put another document"
)

_decode_source = msgspec.msgpack.Decoder(Source).decode


def topology_of(config: Config, *, watch_code: bool = False) -> Topology:
    """The topology of this config, for the supervisor. `watch_code`: also watch files of plugin code."""
    code = plugin_code(config)
    workers = config.workers or usable_cpus()
    return Topology(
        listen=[listener.address for listener in config.listen],
        workers=workers,
        admin_listen=None if config.admin.listen == "off" else config.admin.listen,
        drain_timeout_ns=config.server.drain_timeout_ns,
        watch=config.watch_config,
        # Fixed when a worker starts to listen: the sockets, their TLS and PROXY protocol, the number of
        # workers, and the code of plugins, which a process imports once.
        generation_key=msgspec.msgpack.encode((workers, config.listen, code)),
        sizes=Sizes(
            len(config.routes),
            config.memory.limiter_keys,
            config.memory.inflight_keys,
            config.memory.directory_entries,
            config.memory.directory_bytes,
            nonces=config.memory.nonces,
            runtime_slots=config.memory.runtime_slots,
            health_rows=config.memory.health_rows,
        ),
        runtime_names=runtime_names(config),
        sources=sorted(code) if watch_code else [],
    )


def plugin_code(config: Config) -> dict[str, str]:
    """The files that the config's plugins were imported from, each with a digest: the modules of their
    packages, and other modules of the operator's own code that they import. Other installed packages are left
    out: they are numerous, and change with an upgrade only."""
    names = {use.use for use in config.plugins}
    names |= {use.use for route in config.each_route() for use in route.plugins}
    packages = {PLUGINS.load(name).__module__.partition(".")[0] for name in names}
    if not packages:
        return {}
    installed = tuple(
        f"{sysconfig.get_path(kind)}{os.sep}" for kind in ("stdlib", "platstdlib", "purelib", "platlib")
    )
    files: dict[str, str] = {}
    for name, module in sorted(sys.modules.items()):
        file = getattr(module, "__file__", None)
        package = name.partition(".")[0]
        if not isinstance(file, str) or package == "fastgate" or len(files) == CODE_FILES:
            continue
        if package in packages or not file.startswith(installed):
            try:
                files[file] = hashlib.sha256(Path(file).read_bytes()).hexdigest()
            except OSError:
                files[file] = "gone"
    return files
