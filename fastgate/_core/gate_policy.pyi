from fastgate._core.context import RequestContext
from fastgate._core.directory import Directory
from fastgate._core.pipeline import Plugin

__all__ = ["WatchingGate"]

class WatchingGate(Plugin):
    idle: bool
    def __init__(self, directory: Directory | None = None) -> None: ...
    def refresh(self) -> None: ...
    def judge(self, ctx: RequestContext) -> int: ...
