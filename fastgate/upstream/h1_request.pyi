from fastgate._core.pipeline.context import RequestContext
from fastgate._core.pipeline.plan import RoutePlan
from fastgate.upstream.credential import Credential

__all__ = ["request_head_bytes"]

def request_head_bytes(
    ctx: RequestContext, route: RoutePlan, authority: bytes, credential: Credential | None
) -> bytes: ...
