from fastgate.server.exchange import ClientStream

__all__ = ["AnswerStream"]

class AnswerStream(ClientStream): ...
