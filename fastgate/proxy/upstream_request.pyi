from fastgate._core.pipeline.context import RequestContext
from fastgate.proxy.attempt import AttemptOwner

__all__ = ["UpstreamRequest"]

class UpstreamRequest(AttemptOwner):
    @property
    def ctx(self) -> RequestContext: ...
    @property
    def state(self) -> int: ...
    @property
    def body_complete(self) -> bool: ...
