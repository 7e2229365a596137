from fastgate.proxy.client_stream import ClientStream

__all__ = ["AnswerStream"]

class AnswerStream(ClientStream): ...
