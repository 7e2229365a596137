"""Requests as a scheme sees them, and who came of it, without a gateway."""

from __future__ import annotations

from typing import Any

from fastgate._core.pipeline.context import RequestContext
from fastgate._core.pipeline.identity import Identity

__all__ = ["Counts", "request", "resolve"]


def request(*fields: tuple[str, str]) -> RequestContext:
    """A request with these header fields."""
    ctx = RequestContext()
    for name, value in fields:
        ctx.headers.add(name, value)
    return ctx


def resolve(name: str, *, tier: str = "", default_tier: str = "", **rest: Any) -> Identity | None:
    """`Consumers.identity` of a gateway that knows nobody."""
    rest.pop("must_exist", None)
    rest["scopes"] = rest.get("scopes") or ()
    return Identity(name, tier=tier or default_tier, **rest)


class Counts:
    """A stand-in for the metric table: what was counted, by its labels."""

    class _Counter:
        def __init__(self) -> None:
            self.value = 0

        def add(self, n: int = 1) -> None:
            self.value += n

    def __init__(self) -> None:
        self._counters: dict[tuple[str, ...], Counts._Counter] = {}

    def __call__(self, name: str, /, **labels: str) -> Any:
        return self._counters.setdefault((name, *labels.values()), self._Counter())

    def of(self, *words: str) -> int:
        """The sum of the counters whose name and labels contain all these words."""
        return sum(c.value for key, c in self._counters.items() if all(word in key for word in words))

    def outcomes(self) -> dict[str, int]:
        """Outcome → count of everything that was counted at all."""
        return {key[-1]: counter.value for key, counter in self._counters.items() if counter.value}
