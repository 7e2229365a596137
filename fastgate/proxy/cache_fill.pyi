from fastgate.proxy.cache_request import CacheRequest
from fastgate.proxy.stages import ResponseStage

__all__ = ["CacheFill"]

class CacheFill(ResponseStage):
    def __new__(cls, place: CacheRequest) -> CacheFill: ...
