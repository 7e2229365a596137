"""The circuit breaker as one would write it in plain Python, and what breaker.pyx must equal."""

from __future__ import annotations

from dataclasses import dataclass, field

TENTHS = 10
SKEW_NS = 1_000_000_000


def splitmix(x: int) -> int:
    mask = 2**64 - 1
    x = (x + 0x9E3779B97F4A7C15) & mask
    x = ((x ^ x >> 30) * 0xBF58476D1CE4E5B9) & mask
    x = ((x ^ x >> 27) * 0x94D049BB133111EB) & mask
    return x ^ x >> 31


def up_to_128(ns: int) -> int:
    return -(-ns // 128) * 128


def ns_of(seconds: float) -> int:
    return int(seconds * 1e9 + 0.5)


Period = tuple[str, int, int]


@dataclass
class Oracle:
    failure_threshold: int | None = 5
    recovery_timeout_s: float = 30.0
    success_threshold: int = 1
    half_open_permits: int = 1
    permit_timeout_s: float | None = None
    backoff: str = "constant"
    max_recovery_timeout_s: float | None = None
    jitter_ratio: float = 0.0
    failure_ratio: float | None = None
    slow_call_s: float | None = None
    slow_ratio: float | None = None
    window_s: float = 10.0
    min_calls: int = 20
    adaptive: bool = False
    adaptive_calls: int = 1000
    adaptive_factor: float = 3.0
    adaptive_floor_ratio: float = 0.2
    seed: int = 0

    state: str = "closed"
    trips: int = 0
    until_ns: int = 0
    period: Period = ("closed", 0, 0)  # what a ticket names: state, trips, when it began
    outstanding: int = 0
    successes: int = 0
    expire_ns: int = 0
    in_a_row: int = 0
    buckets: dict[int, list[int]] = field(default_factory=dict)  # epoch -> [calls, failures, slow]
    learned_calls: int = 0
    learned_ok: int = 0
    usual_failures: float = 0.0
    usual_latency: float = 0.0
    transitions: list[tuple[str, str]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.recovery_ns = ns_of(self.recovery_timeout_s)
        self.permit_ns = self.recovery_ns if self.permit_timeout_s is None else ns_of(self.permit_timeout_s)
        self.max_ns = max(300_000_000_000, self.recovery_ns)
        if self.max_recovery_timeout_s is not None:
            self.max_ns = ns_of(self.max_recovery_timeout_s)
        if self.adaptive:
            self.failure_ratio = 0.5 if self.failure_ratio is None else self.failure_ratio
            self.slow_ratio = 0.5 if self.slow_ratio is None else self.slow_ratio
        self.has_window = self.failure_ratio is not None or self.slow_ratio is not None
        self.bucket_ns = ns_of(self.window_s) // TENTHS

    # --- the calls

    def acquire(self, now_ns: int) -> Period | None:
        """The period as the ticket, or None."""
        if self.state == "open":
            if not self.is_over(self.until_ns, now_ns, int(self.max_ns * (1.0 + self.jitter_ratio))):
                return None
            self.move("half_open", now_ns)
        if self.state == "half_open":
            if self.outstanding >= self.half_open_permits:
                if not self.is_over(self.expire_ns, now_ns, self.permit_ns):
                    return None
                self.outstanding = 0
            self.outstanding += 1
            self.expire_ns = now_ns + self.permit_ns
        return self.period

    def record(self, ok: bool, latency_ns: int, ticket: Period | None, now_ns: int) -> None:
        if (ticket and ticket != self.period) or self.state == "open":
            return
        failure_ratio, slow_ns = self.limits()
        is_slow = slow_ns is not None and latency_ns > slow_ns
        if self.state == "closed":
            self.record_closed(ok, is_slow, failure_ratio, latency_ns, now_ns)
            return
        if self.outstanding == 0 and not ticket:
            return
        if not ok or (self.slow_ratio is not None and is_slow):
            self.open(now_ns)
            return
        self.outstanding = max(0, self.outstanding - 1)
        self.successes += 1
        if self.successes >= self.success_threshold:
            self.close(now_ns)

    def forget(self, ticket: Period | None) -> None:
        if self.state == "half_open" and (not ticket or ticket == self.period):
            self.outstanding = max(0, self.outstanding - 1)

    def open(self, now_ns: int) -> None:
        self.trips = min(63, self.trips + 1)
        self.until_ns = up_to_128(now_ns + self.open_time_ns(now_ns))
        self.move("open", self.until_ns)

    def close(self, now_ns: int) -> None:
        self.trips = 0
        self.move("closed", now_ns)
        self.in_a_row = 0
        self.buckets.clear()

    def retry_after_ns(self, now_ns: int) -> int:
        if self.state == "open":
            longest = int(self.max_ns * (1.0 + self.jitter_ratio))
            return 0 if self.is_over(self.until_ns, now_ns, longest) else self.until_ns - now_ns
        if self.state == "half_open" and self.outstanding >= self.half_open_permits:
            return 0 if self.is_over(self.expire_ns, now_ns, self.permit_ns) else self.expire_ns - now_ns
        return 0

    def window(self, now_ns: int) -> tuple[int, int, int]:
        if not self.has_window:
            return (0, 0, 0)
        epoch = now_ns // self.bucket_ns
        live = [bucket for at, bucket in self.buckets.items() if epoch - TENTHS < at <= epoch + TENTHS]
        return (sum(b[0] for b in live), sum(b[1] for b in live), sum(b[2] for b in live))

    # --- the rules

    def record_closed(
        self, ok: bool, is_slow: bool, failure_ratio: float | None, latency_ns: int, now_ns: int
    ) -> None:
        trip = False
        if self.failure_threshold is not None:
            self.in_a_row = 0 if ok else self.in_a_row + 1
            trip = not ok and self.in_a_row >= self.failure_threshold
        if self.has_window:
            self.count(ok, is_slow, now_ns)
            calls, failures, slow = self.window(now_ns)
            if calls >= self.min_calls:
                trip |= failure_ratio is not None and failures >= failure_ratio * calls
                trip |= self.slow_ratio is not None and slow >= self.slow_ratio * calls
            if self.adaptive:
                self.learn(ok, latency_ns)
        if trip:
            self.open(now_ns)

    def count(self, ok: bool, is_slow: bool, now_ns: int) -> None:
        """One bucket per tenth of the window; ten exist, and a newer one takes the place of an older."""
        epoch = now_ns // self.bucket_ns
        slot = epoch % TENTHS
        for at in list(self.buckets):
            if at % TENTHS == slot and at not in (epoch, epoch + TENTHS):
                del self.buckets[at]
        at = epoch + TENTHS if epoch + TENTHS in self.buckets else epoch
        bucket = self.buckets.setdefault(at, [0, 0, 0])
        if bucket[0] == 65535:
            bucket[:] = [value >> 1 for value in bucket]
        bucket[0] += 1
        bucket[1] += not ok
        bucket[2] += is_slow

    def limits(self) -> tuple[float | None, int | None]:
        failure_ratio = self.failure_ratio
        slow_ns = None if self.slow_call_s is None else ns_of(self.slow_call_s)
        if not self.adaptive or self.learned_calls < self.adaptive_calls:
            return failure_ratio, slow_ns
        assert failure_ratio is not None
        learned = max(self.adaptive_floor_ratio, self.usual_failures * self.adaptive_factor)
        failure_ratio = min(failure_ratio, learned)
        usual = self.usual_latency * self.adaptive_factor
        if usual > 0 and (slow_ns is None or usual < slow_ns):
            slow_ns = int(usual)
        return failure_ratio, slow_ns

    def learn(self, ok: bool, latency_ns: int) -> None:
        self.learned_calls += 1
        weight = min(self.learned_calls, self.adaptive_calls)
        self.usual_failures += ((0.0 if ok else 1.0) - self.usual_failures) / weight
        if ok:
            self.learned_ok += 1
            weight = min(self.learned_ok, self.adaptive_calls)
            self.usual_latency += (latency_ns - self.usual_latency) / weight

    def open_time_ns(self, now_ns: int) -> int:
        trips = self.trips
        fibonacci = [1.0, 1.0]
        while len(fibonacci) < trips:
            fibonacci.append(fibonacci[-1] + fibonacci[-2])
        factor = {
            "constant": 1.0,
            "linear": float(trips),
            "exponential": 2.0 ** (trips - 1),
            "fibonacci": fibonacci[trips - 1],
        }[self.backoff]
        span = min(self.recovery_ns * factor, float(self.max_ns))
        if self.jitter_ratio:
            span *= 1.0 + self.jitter_ratio * ((splitmix(self.seed ^ trips ^ now_ns) >> 11) * 2.0**-53)
        return int(span)

    def is_over(self, until_ns: int, now_ns: int, longest_ns: int) -> bool:
        return now_ns >= until_ns or until_ns - now_ns > 2 * longest_ns + SKEW_NS

    def move(self, state: str, time_ns: int) -> None:
        self.transitions.append((self.state, state))
        self.state = state
        self.period = (state, self.trips, up_to_128(time_ns))
        self.outstanding = self.successes = self.in_a_row = 0
