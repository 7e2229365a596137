"""Time that is passed in: stands in for the module `time` in one module under test.

    clock = Clock()
    monkeypatch.setattr(jwks, "time", clock)
    clock.forward(3600)

Its clocks run with the real ones, ahead by what was passed. Choose steps so large that what a loaded machine
adds does not matter.
"""

from __future__ import annotations

import time
from typing import Any

__all__ = ["Clock"]


class Clock:
    """The module `time`, ahead."""

    def __init__(self) -> None:
        self.ahead_ns = 0

    def forward(self, seconds: float) -> None:
        """Lets so much time pass."""
        self.ahead_ns += int(seconds * 1e9)

    def monotonic_ns(self) -> int:
        return time.monotonic_ns() + self.ahead_ns

    def monotonic(self) -> float:
        return self.monotonic_ns() / 1e9

    def time_ns(self) -> int:
        return time.time_ns() + self.ahead_ns

    def time(self) -> float:
        return self.time_ns() / 1e9

    def __getattr__(self, name: str) -> Any:
        return getattr(time, name)
