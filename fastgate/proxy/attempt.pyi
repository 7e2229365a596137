from fastgate.upstream.pool import Target
from fastgate.upstream.stream import ResponseSink

__all__ = ["Attempt", "AttemptOwner", "Attempts"]

class AttemptOwner: ...

class Attempt(ResponseSink):
    @property
    def target(self) -> Target: ...

class Attempts: ...
