"""The limits in plain Python, written for reading. The compiled ones must agree to the last decision."""

from __future__ import annotations

from dataclasses import dataclass, field
from fractions import Fraction

from fastgate._core import Decision, FixedWindow, Limit, SlidingWindow, TokenBucket

SLACK_NS = 60_000_000_000
NEVER: int = Decision.NEVER


@dataclass
class Outcome:
    allowed: bool
    remaining: int
    retry_after_ns: int
    is_stored: bool = (
        True  # a refusal stores nothing, unless the clock was set back too far and the state taken over
    )


def ceil_div(a: int, b: int) -> int:
    return -(-a // b)


class BucketOracle:
    """GCRA in ticks of a token / 2**shift; see limits.pyx for why ticks."""

    def __init__(self, rate_per_s: float, burst: int) -> None:
        exact = Fraction(rate_per_s) / 1_000_000_000
        self.burst = burst
        self.shift = 0
        while exact * 2 ** (self.shift + 1) <= 1:
            self.shift += 1
        self.ratio = int(exact * 2 ** (self.shift + 62))
        self.full_at = 0

    def ticks(self, ns: int) -> int:
        return ns * self.ratio >> 62

    def debt(self, now_ns: int) -> tuple[int, bool]:
        debt = self.full_at - self.ticks(now_ns)
        full = self.burst << self.shift
        if debt > 2 * full + self.ticks(SLACK_NS):
            self.full_at = self.ticks(now_ns) + full
            return full, True
        return max(debt, 0), False

    def take(self, amount: int, now_ns: int) -> Outcome:
        debt, is_taken_over = self.debt(now_ns)
        room = (self.burst << self.shift) - debt
        need = amount << self.shift
        if need <= room:
            self.full_at = self.ticks(now_ns) + debt + need
            return Outcome(True, (room - need) >> self.shift, 0)
        wait = NEVER
        if amount <= self.burst:
            wait = ceil_div((self.ticks(now_ns) + need - room) << 62, self.ratio) - now_ns
        return Outcome(False, max(room, 0) >> self.shift, wait, is_taken_over)

    def charge(self, amount: int, now_ns: int) -> int:
        debt, _ = self.debt(now_ns)
        amount = min(amount, max((2 * self.burst << self.shift) - debt, 0) >> self.shift)
        self.full_at = self.ticks(now_ns) + debt + (amount << self.shift)
        return amount

    def refund(self, amount: int, taken_ns: int, now_ns: int) -> int:
        debt, _ = self.debt(now_ns)
        amount = min(amount, debt >> self.shift)
        if amount:
            self.full_at = self.ticks(now_ns) + debt - (amount << self.shift)
        return amount

    def reset_ns(self, now_ns: int) -> int:
        return max(ceil_div(self.full_at << 62, self.ratio) - now_ns, 0)


class FixedOracle:
    def __init__(self, limit: int, window_ns: int) -> None:
        self.limit, self.window_ns = limit, window_ns
        self.number = self.used = 0

    def roll(self, now_ns: int) -> bool:
        current = now_ns // self.window_ns
        if current > self.number:
            self.number, self.used = current, 0
        elif self.number * self.window_ns - now_ns > self.window_ns + SLACK_NS:
            self.number = current
            return True
        return False

    def take(self, amount: int, now_ns: int) -> Outcome:
        before = dict(vars(self))
        is_taken_over = self.roll(now_ns)
        if self.used + amount <= self.limit:
            self.used += amount
            return Outcome(True, self.limit - self.used, 0)
        wait = NEVER if amount > self.limit else (self.number + 1) * self.window_ns - now_ns
        remaining = max(self.limit - self.used, 0)
        if not is_taken_over:
            vars(self).update(before)
        return Outcome(False, remaining, wait, is_taken_over)

    def charge(self, amount: int, now_ns: int) -> int:
        self.roll(now_ns)
        amount = min(amount, 2 * self.limit - self.used)
        self.used += amount
        return amount

    def refund(self, amount: int, taken_ns: int, now_ns: int) -> int:
        self.roll(now_ns)
        if taken_ns // self.window_ns != self.number:
            return 0
        amount = min(amount, self.used)
        self.used -= amount
        return amount

    def reset_ns(self, now_ns: int) -> int:
        later = FixedOracle(self.limit, self.window_ns)
        vars(later).update(vars(self))
        later.roll(now_ns)
        return (later.number + 1) * self.window_ns - now_ns if later.used else 0


class SlidingOracle:
    def __init__(self, limit: int, window_ns: int) -> None:
        self.limit, self.window_ns = limit, window_ns
        self.number = self.used = self.before = 0

    def roll(self, now_ns: int) -> bool:
        current = now_ns // self.window_ns
        if current > self.number:
            self.before = self.used if current == self.number + 1 else 0
            self.number, self.used = current, 0
        elif self.number * self.window_ns - now_ns > self.window_ns + SLACK_NS:
            self.number = current
            return True
        return False

    def weight(self, now_ns: int) -> int:
        left = min((self.number + 1) * self.window_ns - now_ns, self.window_ns)
        return ceil_div(self.before * left, self.window_ns)

    def fits(self, amount: int, now_ns: int) -> bool:
        return self.used + self.weight(now_ns) + amount <= self.limit

    def take(self, amount: int, now_ns: int) -> Outcome:
        before = dict(vars(self))
        is_taken_over = self.roll(now_ns)
        if self.fits(amount, now_ns):
            self.used += amount
            return Outcome(True, self.limit - self.used - self.weight(now_ns), 0)
        remaining = max(self.limit - self.used - self.weight(now_ns), 0)
        wait = NEVER if amount > self.limit else self.wait(amount, now_ns)
        if not is_taken_over:
            vars(self).update(before)
        return Outcome(False, remaining, wait, is_taken_over)

    def wait(self, amount: int, now_ns: int) -> int:
        """By bisection over the future in which nobody takes, instead of by algebra."""
        low, high = 0, (self.number + 2) * self.window_ns - now_ns
        while low < high:
            middle = (low + high) // 2
            later = SlidingOracle(self.limit, self.window_ns)
            later.number, later.used, later.before = self.number, self.used, self.before
            later.roll(now_ns + middle)
            if later.fits(amount, now_ns + middle):
                high = middle
            else:
                low = middle + 1
        return low

    def charge(self, amount: int, now_ns: int) -> int:
        self.roll(now_ns)
        amount = min(amount, max(2 * self.limit - self.used, 0))
        self.used += amount
        return amount

    def refund(self, amount: int, taken_ns: int, now_ns: int) -> int:
        self.roll(now_ns)
        window = taken_ns // self.window_ns
        if window == self.number:
            amount = min(amount, self.used)
            self.used -= amount
        elif window == self.number - 1:
            amount = min(amount, self.before)
            self.before -= amount
        else:
            amount = 0
        return amount

    def reset_ns(self, now_ns: int) -> int:
        later = SlidingOracle(self.limit, self.window_ns)
        vars(later).update(vars(self))
        later.roll(now_ns)
        if later.used:
            return (later.number + 2) * self.window_ns - now_ns
        return (later.number + 1) * self.window_ns - now_ns if later.before else 0


LimitOracle = BucketOracle | FixedOracle | SlidingOracle


def oracle_of(limit: Limit) -> LimitOracle:
    if isinstance(limit, TokenBucket):
        return BucketOracle(limit.rate_per_s, limit.burst)
    if isinstance(limit, FixedWindow):
        return FixedOracle(limit.limit, round(limit.window_s * 1_000_000_000))
    assert isinstance(limit, SlidingWindow)
    return SlidingOracle(limit.limit, round(limit.window_s * 1_000_000_000))


@dataclass
class KeyedOracle:
    """A dictionary of lists of oracles; a decision asks copies and keeps them only if all agree."""

    limits: list[Limit]
    entries: dict[str, list[LimitOracle]] = field(default_factory=dict)

    def at(self, key: str) -> list[LimitOracle]:
        return self.entries.setdefault(key, [oracle_of(limit) for limit in self.limits])

    def take(self, key: str, amounts: list[int], now_ns: int) -> tuple[bool, int, int, int, int]:
        before = [dict(vars(oracle)) for oracle in self.at(key)]
        asked = [
            (index, oracle, oracle.take(amount, now_ns))
            for index, (oracle, amount) in enumerate(zip(self.at(key), amounts, strict=True))
            if amount
        ]
        refused = [question for question in asked if not question[2].allowed]
        if refused:
            index, oracle, outcome = max(refused, key=lambda question: question[2].retry_after_ns)
        else:
            index, oracle, outcome = min(asked, key=lambda question: question[2].remaining)
        answer = (not refused, index, outcome.remaining, outcome.retry_after_ns, oracle.reset_ns(now_ns))
        if refused:
            for each, state in zip(self.at(key), before, strict=True):
                vars(each).update(state)
        if any(question[2].is_stored for question in refused):
            for each in self.at(key):
                each.take(0, now_ns)
        return answer

    def adjust(self, key: str, amounts: list[int], taken_ns: int, now_ns: int) -> None:
        for oracle, amount in zip(self.at(key), amounts, strict=True):
            if amount > 0:
                oracle.charge(amount, now_ns)
            elif amount < 0:
                oracle.refund(-amount, taken_ns, now_ns)
