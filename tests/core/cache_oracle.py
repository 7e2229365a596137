"""The cache's policies, purges and byte accounts in plain Python, eager where the cache is lazy."""

from __future__ import annotations

import re
from typing import Any, Literal

__all__ = ["Entry", "Oracle", "Policy", "block", "glob_regex"]

Policy = Literal["lru", "s3fifo"]


def block(n: int) -> int:
    return max(32, (n + 8 + 15) // 16 * 16)


class Entry:
    def __init__(self, value: bytes, size: int, expires_ns: float, lives: int, tags: list[bytes]) -> None:
        self.value, self.size, self.expires_ns, self.lives, self.tags = value, size, expires_ns, lives, tags
        self.hits = 0


class Oracle:
    """The policies in plain Python; head of a queue = index 0. Dead entries leave at once, so sweep first."""

    def __init__(self, max_bytes: int, policy: Policy, fixed_bytes: int) -> None:
        self.max_bytes, self.policy, self.fixed_bytes = max_bytes, policy, fixed_bytes
        self.entries: dict[bytes, Entry] = {}
        self.queues: dict[str, list[bytes]] = {"main": [], "small": []}
        self.purge_room = 0

    def used(self) -> int:
        tags = {tag for e in self.entries.values() for tag in e.tags}
        return (
            self.fixed_bytes
            + self.purge_room
            + sum(e.size for e in self.entries.values())
            + sum(block(32 + len(tag)) for tag in tags)
        )

    def remove(self, key: bytes) -> None:
        del self.entries[key]
        for queue in self.queues.values():
            if key in queue:
                queue.remove(key)

    def expire(self, now_ns: int) -> None:
        for key in [k for k, e in self.entries.items() if e.expires_ns <= now_ns]:
            self.remove(key)

    def get(self, key: bytes) -> bytes | None:
        entry = self.entries.get(key)
        if entry is None:
            return None
        if self.policy == "lru":
            self.queues["main"].remove(key)
            self.queues["main"].insert(0, key)
        else:
            entry.hits = min(3, entry.hits + 1)
        return entry.value

    def set(self, key: bytes, entry: Entry, queue_of_new: str | None) -> bool:
        """queue_of_new: where the cache has put a new key; only its ghosts, which may forget, know that."""
        new_tags = {t for t in entry.tags if all(t not in e.tags for e in self.entries.values())}
        tag_bytes = sum(block(32 + len(tag)) for tag in new_tags)
        queue = "main" if self.policy == "lru" else queue_of_new
        old = self.entries.get(key)
        if old is not None:
            queue = next(name for name, keys in self.queues.items() if key in keys)
            entry.hits = min(3, old.hits + 1)
            kept = [t for t in set(old.tags) & set(entry.tags) if self.only_user(t, key)]
            tag_bytes += sum(block(32 + len(tag)) for tag in kept)
            self.remove(key)
        # Tags that an evicted entry shares with the new one stay, charged to the new one.
        fits = entry.size <= self.max_bytes // 2
        if fits:
            self.evict_until(lambda: self.used_with(entry) + entry.size <= self.max_bytes)
            self.entries[key] = entry
            assert queue is not None
            self.queues[queue].insert(0, key)
        else:
            self.evict_until(lambda: self.used() <= self.max_bytes)
        return fits

    def only_user(self, tag: bytes, key: bytes) -> bool:
        return all(tag not in e.tags for k, e in self.entries.items() if k != key)

    def used_with(self, entry: Entry) -> int:
        held = {tag for e in self.entries.values() for tag in e.tags}
        return self.used() + sum(block(32 + len(tag)) for tag in set(entry.tags) - held)

    def evict_until(self, fits: Any) -> None:
        while not fits():
            self.evict_one()

    def evict_one(self) -> None:
        main, small = self.queues["main"], self.queues["small"]
        rotations = 32
        while True:
            small_bytes = sum(self.entries[k].size for k in small)
            from_small = bool(small) and (not main or small_bytes > self.max_bytes // 10)
            key = (small if from_small else main)[-1]
            entry = self.entries[key]
            if rotations == 0:
                break
            if from_small and entry.hits >= 1:
                entry.hits = 0
            elif not from_small and entry.hits and self.policy == "s3fifo":
                entry.hits -= 1
            elif entry.lives:
                entry.lives -= 1
            else:
                break
            rotations -= 1
            (small if from_small else main).pop()
            main.insert(0, key)
        self.remove(key)

    def purge(self, matches: Any) -> None:
        for key in [k for k, e in self.entries.items() if matches(k, e)]:
            self.remove(key)

    def order(self) -> list[tuple[bytes, str, int, int, int]]:
        found = []
        for queue in ("main", "small"):
            for key in self.queues[queue]:
                e = self.entries[key]
                found.append((key, queue, e.hits if self.policy == "s3fifo" else 0, e.lives, e.size))
        return found


def glob_regex(pattern: bytes) -> re.Pattern[bytes]:
    """The documented glob, as a regex."""
    out, i = b"", 0
    while i < len(pattern):
        c = pattern[i : i + 1]
        if c == b"*":
            out += b".*"
        elif c == b"?":
            out += b"."
        elif c == b"\\":
            i += 1
            out += re.escape(pattern[i : i + 1])
        elif c == b"[":
            start = i + 1
            negated = pattern[start : start + 1] == b"!"
            start += negated
            end = pattern.index(b"]", start + 1)
            members, j = b"", start
            while j < end:
                if j + 2 < end and pattern[j + 1 : j + 2] == b"-":
                    low, high = pattern[j], pattern[j + 2]
                    members += b"".join(re.escape(bytes([x])) for x in range(low, high + 1))
                    j += 3
                else:
                    members += re.escape(pattern[j : j + 1])
                    j += 1
            if members:
                out += b"[" + (b"^" if negated else b"") + members + b"]"
            else:
                out += b"." if negated else b"(?!)"
            i = end
        else:
            out += re.escape(c)
        i += 1
    return re.compile(out, re.DOTALL)
