from fastgate._core.pipeline.wheel import Timed

__all__ = ["ClientStream"]

class ClientStream(Timed): ...
