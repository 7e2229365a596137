"""Policy violations, enforced or in shadow mode: a ring of records written by all workers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import msgspec

from fastgate._core.shm.recordring import RecordRing

__all__ = ["Violation", "ViolationLog", "observe"]


class Violation(msgspec.Struct, frozen=True, array_like=True):
    """One request that a policy rejected, or would have rejected in shadow mode."""

    realtime_ns: int
    policy: str
    action: str  # deny, limit, or error
    enforced: bool
    route: str
    consumer: str
    client_ip: str
    method: str
    path: str
    request_id: str
    worker: int
    detail: str = ""


class ViolationLog:
    """The most recent violations of all workers. Workers write, the controller reads."""

    RECORD_BYTES: ClassVar[int] = 488
    CAPACITY: ClassVar[int] = 2048

    def __init__(self, ring: RecordRing) -> None:
        self._ring = ring
        self._encode = msgspec.msgpack.Encoder().encode
        self._decode = msgspec.msgpack.Decoder(Violation).decode

    def note(self, violation: Violation) -> None:
        record = self._encode(violation)
        room = self._ring.record_bytes
        if len(record) > room:
            short = msgspec.structs.replace(
                violation,
                path=_cut(violation.path, 120),
                route=_cut(violation.route, 60),
                consumer=_cut(violation.consumer, 60),
                request_id=_cut(violation.request_id, 36),
                method=_cut(violation.method, 16),
                detail=_cut(violation.detail, 60),
            )
            record = self._encode(short)
            if len(record) > room:
                record = self._encode(
                    msgspec.structs.replace(
                        short, path="", detail="", route="", consumer=_cut(short.consumer, 20)
                    )
                )
        self._ring.append(record)

    @property
    def total(self) -> int:
        return self._ring.appended

    def recent(self, most: int = 100) -> list[tuple[int, Violation]]:
        """The most recent violations with their numbers, newest first."""
        found = []
        for number, record in self._ring.recent(most):
            try:
                found.append((number, self._decode(record)))
            except msgspec.DecodeError:  # written by another version, before a restart of the controller
                continue
        return found


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"


def observe(memory: Any) -> Callable[[], list[str]]:
    """A function that returns the violations since now as sentences."""
    log = ViolationLog(memory.violations)
    before = log.total

    def sentences() -> list[str]:
        return [
            f"policy {violation.policy} {'refuses' if violation.enforced else 'would refuse'} it"
            + (f" ({violation.detail})" if violation.detail else "")
            for _number, violation in reversed(log.recent(log.total - before))
        ]

    return sentences
