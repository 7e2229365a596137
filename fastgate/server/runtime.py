"""The parts of a worker: the data plane, the plan of a config, TLS on its listeners.

worker.py decides when these parts are created, this module which ones.
"""

from __future__ import annotations

import asyncio
import os
from typing import Any

from fastgate.config import Config, ListenerConfig, decode
from fastgate.plan.freeze import freeze
from fastgate.proxy.dataplane import DataPlane
from fastgate.server.tls import TlsContexts
from fastgate.server.worker import WorkerOrders
from fastgate.settings import ConfigError

__all__ = ["GatewayRuntime"]


class GatewayRuntime:
    """The real parts."""

    def plane(self, loop: asyncio.AbstractEventLoop, orders: WorkerOrders) -> Any:
        # The previous worker of this slot may have been killed with connections open.
        orders.memory.counters.reset_gauges(orders.seat.index)
        return DataPlane(loop, orders.memory, orders.seat.index)

    def decode(self, blob: bytes) -> Config:
        return decode(blob)

    async def freeze(self, config: Config, plane: Any, previous: Any) -> Any:
        self._check_log(config)
        return await freeze(config, plane, previous)

    def listener(self, config: Config, index: int) -> ListenerConfig:
        return config.listen[index]

    def tls(self, listener: ListenerConfig) -> TlsContexts | None:
        return TlsContexts(listener.tls) if listener.tls is not None else None

    def _check_log(self, config: Config) -> None:
        """Raises ConfigError if the access log cannot be written: it is too late when the plan takes
        effect."""
        path = config.access_log.output
        if path in ("off", "stdout"):
            return
        try:
            os.close(os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o640))
        except OSError as error:
            reason = (error.strerror or str(error)).lower()
            raise ConfigError(
                "$.access_log.output", f"{path}: {reason}", "a file that can be written"
            ) from error
