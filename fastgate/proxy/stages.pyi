from fastgate._core.pipeline.context import RequestContext
from fastgate._core.pipeline.plan import RoutePlan
from fastgate.proxy.plane import Plane

__all__ = ["HoldStage", "HookStage", "ResponseStage"]

class ResponseStage: ...

class HoldStage(ResponseStage):
    def __new__(cls, most_bytes: int) -> HoldStage: ...

class HookStage(ResponseStage):
    def __new__(cls, plane: Plane, route: RoutePlan, ctx: RequestContext) -> HookStage: ...
