# cython: boundscheck=False
"""RetryPolicy: which failures lead to another attempt, after which wait, and whether the budget allows it.

WHAT        `names_reason` and `names_status` say whether a failure is one of those that are retried; `wait_ns` decides about one retry.
            Whether the request may be sent twice at all is decided by its owner (proxy/attempt.pyx).
STATE       The budget is a word in the route's row of the HealthTable, so that it is one for all processes and outlives reloads.
WHO WRITES  The word: any process, by CAS. The rest: the worker's loop.
COST        A request: one deposit, 5 ns when the budget is full. Without a policy nothing.
SOURCES     Finagle RetryBudget; gRPC A6; Envoy retry_policy and retry_budget; RFC 9110 §10.2.3 (Retry-After).
"""

import os

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from libc.stdint cimport int64_t, uint64_t

from fastgate._core.arguments cimport int_argument
from fastgate._core.cache.http_dates cimport NO_DATE, date_read
from fastgate._core.clock cimport realtime_ns
from fastgate._core.http.headers cimport Headers
from fastgate._core.http.scan cimport decimal
from fastgate._core.pipeline.context cimport Reason
from fastgate._core.resilience.backoff cimport Backoff, backoff_ns
from fastgate._core.resilience.health cimport Health
from fastgate._core.resilience.retry_budget cimport (
    retry_budget_balance, retry_budget_configure, retry_budget_deposit, retry_budget_withdraw,
)
from fastgate._core.shm.metric cimport Metric, metric_add

__all__ = ["RetryPolicy"]

cdef int64_t LONGEST_WAIT_S = 1_000_000         # of a Retry-After


cdef class RetryPolicy:
    """RetryPolicy(row, reasons, statuses, *, attempts, backoff, budget, retried, over_budget, per_try_ns=0, retry_after_ns=0,
        body_bytes=65536, attempt_header=None)\n--\n
    row: the Health of the route. reasons: Reasons. statuses: ints, 400..599. backoff: a Backoff. budget: (ratio, min_retries_per_s,
    burst) as for RetryBudget. retried, over_budget: Metrics that count the retries, and those that the budget refused.
    """

    def __init__(self, Health row not None, reasons, statuses, *, attempts, Backoff backoff not None, budget, Metric retried not None,
                 Metric over_budget not None, per_try_ns=0, retry_after_ns=0, body_bytes=65536, attempt_header=None):
        cdef int index
        row.check()
        self.row = row
        self.attempts = int_argument(attempts, "attempts", 1, 100)
        self.per_try_ns = per_try_ns
        self.retry_after_ns = retry_after_ns
        self.body_bytes = body_bytes
        self.attempt_header = attempt_header
        self.backoff = backoff.config
        self.random = int.from_bytes(os.urandom(8), "little")
        ratio, min_retries_per_s, burst = budget
        retry_budget_configure(&self.budget, ratio, min_retries_per_s, burst)
        self.retried = retried
        self.over_budget = over_budget
        for reason in reasons:
            index = (<Reason?>reason).index
            self.reasons[index >> 6] |= <uint64_t>1 << (index & 63)
        for status in statuses:
            index = int_argument(status, "status", 400, 599)
            self.statuses[index >> 6] |= <uint64_t>1 << (index & 63)

    cdef bint names_reason(self, Reason reason) noexcept:
        return self.reasons[reason.index >> 6] >> (reason.index & 63) & 1

    cdef bint names_status(self, int status) noexcept:
        return 0 <= status < 640 and self.statuses[status >> 6] >> (status & 63) & 1

    cdef void deposit(self, int64_t now_ns) noexcept:
        """A request begins."""
        retry_budget_deposit(&self.row.row.retry_budget, &self.budget, now_ns)

    cdef int64_t wait_ns(self, int retry, int64_t retry_after_ns, int64_t now_ns, int64_t deadline_ns) noexcept:
        """The wait before retry number 1, 2 …, which is taken from the budget; -1: it is not permitted. retry_after_ns: what the
        upstream asked for, 0 if it did not. deadline_ns: of the whole request, 0 if there is none."""
        cdef int64_t wait = backoff_ns(&self.backoff, retry, &self.random)
        if retry >= self.attempts or retry_after_ns > self.retry_after_ns:
            return -1
        wait = max(wait, retry_after_ns)
        if deadline_ns and now_ns + wait >= deadline_ns:
            return -1
        if not retry_budget_withdraw(&self.row.row.retry_budget, &self.budget, now_ns):
            metric_add(self.over_budget, 1)
            return -1
        metric_add(self.retried, 1)
        return wait

    def balance(self, now_ns):
        """The retries that the budget has left at now_ns."""
        if self.row is None:
            raise ValueError("a RetryPolicy is made with its arguments")
        self.row.check()
        return retry_budget_balance(&self.row.row.retry_budget, &self.budget, int_argument(now_ns, "now_ns", 0, 1 << 62))


cdef int64_t asked_wait_ns(Headers fields) except -1:
    """The Retry-After of a response (RFC 9110 §10.2.3), in seconds or as a date; 0 if there is none that can be read."""
    cdef bytes value = fields.find(b"retry-after", 11)
    cdef long long seconds
    cdef int64_t at_s, now_s
    if value is None:
        return 0
    seconds = decimal(PyBytes_AS_STRING(value), PyBytes_GET_SIZE(value))
    if seconds < 0:
        now_s = realtime_ns() // 1_000_000_000
        at_s = date_read(PyBytes_AS_STRING(value), PyBytes_GET_SIZE(value), now_s)
        if at_s == NO_DATE:
            return LONGEST_WAIT_S * 1_000_000_000 if value.isdigit() else 0
        seconds = max(0, at_s - now_s)
    return min(seconds, LONGEST_WAIT_S) * 1_000_000_000
