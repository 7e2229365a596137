from fastgate.proxy.cache_request import CacheRequest

__all__ = ["CacheLookup"]

class CacheLookup(CacheRequest): ...
