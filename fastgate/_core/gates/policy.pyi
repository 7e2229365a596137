from fastgate._core.pipeline.context import RequestContext
from fastgate._core.pipeline.pipeline import Plugin
from fastgate._core.shm.directory import Directory

__all__ = ["WatchingGate"]

class WatchingGate(Plugin):
    idle: bool
    def __init__(self, directory: Directory | None = None, document: bytes | None = None) -> None: ...
    def refresh(self) -> None: ...
    def judge(self, ctx: RequestContext) -> int: ...
