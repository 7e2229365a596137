from fastgate.proxy.exchange import ClientStream

__all__ = ["AnswerStream"]

class AnswerStream(ClientStream): ...
