import asyncio
from typing import Any

from fastgate.proxy.responses import AnswerStream

__all__ = ["ClientConnection"]

class ClientConnection(AnswerStream, asyncio.Protocol):
    def connection_made(self, transport: Any) -> None: ...
