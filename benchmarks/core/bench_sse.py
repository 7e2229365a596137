"""SseParser on the streams of model providers, in pieces as from a socket. Promise: >= 500 MB/s.

Beside it the shortest correct plain Python parser, for scale."""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks.core.rivals import Candidate, race, virtual_s

STREAMS = """
openai = (
    b'data: {"id":"chatcmpl-123","object":"chat.completion.chunk","created":1694268190,"model":"gpt-4o-mini",'
    b'"choices":[{"index":0,"delta":{"content":"Hello"},"logprobs":null,"finish_reason":null}]}\\n\\n'
)
anthropic = (
    b'event: content_block_delta\\ndata: {"type":"content_block_delta","index":0,"delta":'
    b'{"type":"text_delta","text":"Hello"}}\\n\\n'
)
crlf = anthropic.replace(b"\\n", b"\\r\\n")
cr = anthropic.replace(b"\\n", b"\\r")
tiny = b"data: x\\n\\n"
large = b"data: " + b"x" * 100_000 + b"\\n\\n"

def pieces(event, size):
    stream = event * (1_000_000 // len(event) + 1)
    stream = stream[:1_000_000]
    return [stream[i : i + size] for i in range(0, len(stream), size)]
"""
PLAIN = """
import re
class Plain:
    def __init__(self):
        self.rest, self.data, self.name = b"", [], b""
    def feed(self, chunk):
        *lines, self.rest = (self.rest + chunk).split(b"\\n")
        events = []
        for line in lines:
            if not line:
                if self.data:
                    events.append((self.name, b"\\n".join(self.data)))
                self.data, self.name = [], b""
            else:
                field, _, value = line.partition(b":")
                value = value.removeprefix(b" ")
                if field == b"data":
                    self.data.append(value)
                elif field == b"event":
                    self.name = value
        return events
feed = Plain().feed
"""
OURS = "from fastgate._core import SseParser\nfeed = SseParser().feed\n"
FEED = "for piece in stream: feed(piece)"


def case(setup: str, event: str, size: int, label: str) -> Candidate:
    return Candidate(
        "fastgate",
        STREAMS + setup + f"stream = pieces({event}, {size})",
        FEED,
        1,
        f"{label}{event}, {size}",
        bytes=1_000_000,
    )


CASES = [
    case(OURS, event, size, "")
    for event in ("openai", "anthropic", "crlf", "cr", "tiny", "large")
    for size in (1400, 65_536)
] + [case(PLAIN, event, 1400, "(plain Python) ") for event in ("openai", "anthropic")]


@pytest.mark.benchmark(group="SSE, 1 MB", timer=virtual_s)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_sse(benchmark: Any, case: Candidate) -> None:
    race(benchmark, case)
