__all__ = ["BackgroundRequest"]

from fastgate.proxy.upstream_request import UpstreamRequest

class BackgroundRequest(UpstreamRequest): ...
