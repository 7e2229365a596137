from fastgate.proxy.upstream_request import UpstreamRequest

class Exchange(UpstreamRequest):
    @property
    def response_started(self) -> bool: ...
