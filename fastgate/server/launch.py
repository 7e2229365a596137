"""`fastgate run` below the command line: from a config file to a supervisor that serves it.

The only place that knows both the config's Structs and the processes: it says what of a config concerns the
supervisor, and which changes the running workers cannot take.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Mapping
from pathlib import Path

import msgspec

from fastgate._core.shm import SharedMemory
from fastgate.config import Config, InvalidConfig, encode, load
from fastgate.server.loader import Topology, problem_of
from fastgate.server.supervisor import Supervisor
from fastgate.server.worker import WorkerOrders, run_worker
from fastgate.state.channel import ControllerOrders, Problem
from fastgate.state.host import HostTable
from fastgate.state.memory import HostMemory, Sizes

__all__ = ["serve", "topology_of"]

SEATS_MOST = 4096
"""Live workers of all generations: four times the largest `workers` a config takes."""


def serve(
    path: Path,
    overrides: Mapping[str, str],
    *,
    control: Callable[[ControllerOrders], None] | None,
    ready_fd: int | None = None,
    on_ready: Callable[[list[str], str | None], None] | None = None,
) -> int:
    """Serves the config in this file until a signal ends it; returns the exit status.

    `overrides` are those of fastgate.config.load. `control` is the controller's main function, handed in
    because the rooms of the data plane do not know the control plane. When every worker accepts, one line of
    JSON goes to `ready_fd` ({"listen": [...], "admin": ..., "pid": ...}) and `on_ready` is called with the
    bound addresses.
    """

    def read_config() -> tuple[Topology, bytes] | list[Problem]:
        try:
            config = load(path, overrides=overrides)
        except InvalidConfig as invalid:
            return [problem_of(error) for error in invalid.errors]
        return topology_of(config), encode(config)

    def work(orders: WorkerOrders) -> None:
        from fastgate.server.runtime import GatewayRuntime

        run_worker(GatewayRuntime(), orders)

    def warm_up() -> None:
        # The data plane takes as long to import as the first config takes to load: both at once.
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


def topology_of(config: Config) -> Topology:
    """What the supervisor has to know of this config."""
    workers = config.workers or len(os.sched_getaffinity(0))
    return Topology(
        listen=[listener.address for listener in config.listen],
        workers=workers,
        admin_listen=None if config.admin.listen == "off" else config.admin.listen,
        drain_timeout_ns=config.server.drain_timeout_ns,
        watch=config.watch_config,
        # What is fixed when a worker starts to listen: the sockets, their TLS and PROXY protocol, and how
        # many share them.
        generation_key=msgspec.msgpack.encode((workers, config.listen)),
        sizes=Sizes(
            len(config.routes),
            config.memory.limiter_keys,
            config.memory.inflight_keys,
            config.memory.directory_entries,
            config.memory.directory_bytes,
            nonces=config.memory.nonces,
        ),
    )
