"""The interface between an authentication method and the gate.

The gate calls a route's schemes in the order of the config. Each checks the request and returns an Identity,
None (no credential of this kind: try the next scheme), REJECTED (an invalid credential; the client gets the
same 401 for every cause), or LATER (asynchronous: the gate calls `verify_later`, and only that request
waits). A scheme that has set a response (`ctx.respond`) returns RESPONDED, and no further scheme is called. A
scheme whose server is unreachable raises Unavailable; its `on_error` decides whether such a request passes.

The exact cause is for operators: `count("expired")` appears in `fastgate_auth_total` and, by the
table `REASON_OF`, as the reason in the access log; the response says only that a credential is missing or
invalid.
"""

from __future__ import annotations

import enum
import logging
from typing import Any, ClassVar, Final, Literal, Protocol

from fastgate._core.pipeline.context import RequestContext
from fastgate.state.journal import Throttle

__all__ = [
    "LATER",
    "REASON_OF",
    "REJECTED",
    "RESPONDED",
    "CounterOf",
    "Scheme",
    "Unavailable",
    "Verdict",
    "authorization",
]


log = logging.getLogger("fastgate")

REASON_OF: Final[dict[str, str]] = {
    "missing": "credentials_missing",
    "invalid": "credentials_invalid",
    **dict.fromkeys(("repeated", ""), "credentials_repeated"),
    **dict.fromkeys(("malformed", "too_long"), "credentials_malformed"),
    **dict.fromkeys(("unknown", "unknown_key", "issuer", "inactive", "remembered"), "credentials_unknown"),
    **dict.fromkeys(("password", "signature", "algorithm", "type"), "credentials_wrong"),
    **dict.fromkeys(("expired", "too_old"), "credentials_expired"),
    "not_yet": "credentials_not_yet_valid",
    **dict.fromkeys(("replayed", "nonce"), "credentials_replayed"),
    "refused": "credentials_refused",
    "claims": "claims_refused",
    "audience": "wrong_audience",
    "coverage": "signature_incomplete",
    "digest": "digest_mismatch",
    "consumer": "consumer_refused",
}
"""The label in REASONS for an outcome. "" is REJECTED without an outcome: two credentials of one kind."""

# Interval between log lines, so that an unreachable server does not fill the log.
LOUD_S: Final = 10.0


class Verdict(enum.Enum):
    """The results of a scheme other than an Identity or None."""

    REJECTED = 1
    LATER = 2
    RESPONDED = 3


REJECTED: Final = Verdict.REJECTED
LATER: Final = Verdict.LATER
RESPONDED: Final = Verdict.RESPONDED


class Unavailable(Exception):
    """The server that can verify the credential (issuer, introspection, forward-auth) is unreachable. The
    text is for the log."""


class CounterOf(Protocol):
    """`MetricTable.counter`: the counter of these labels, for all processes."""

    def __call__(self, name: str, **labels: str) -> Any: ...


class Scheme:
    """A method of authentication. A subclass overrides `verify`, and `verify_later` if `verify` can return
    LATER.

    cacheable    the identity depends only on the credential: the gate may cache it, under a keyed hash of the
                 value of its `credential_headers`, until `identity.expires_ns` and for at most `cache_ns`
                 (0: as long as the identity is valid).
    outcomes     every word that `count` may receive; the counters are created with the scheme. outcome
    the last counted outcome; the gate reads it after `verify` has returned REJECTED.
    """

    name: str = ""
    #: The value of its WWW-Authenticate field; None if the scheme never rejects.
    challenge: str | None = None
    cacheable: bool = False
    cache_ns: int = 0
    #: Header fields that may carry its credential. A request that repeats one of them is rejected.
    credential_headers: tuple[str, ...] = ("authorization",)
    #: The query parameter that may carry it.
    credential_query: str | None = None
    #: Whether `conceal` removes the credential from the upstream request.
    hide: bool = False
    #: Header fields without any of which `verify` has nothing to check: it is not called then. None: always.
    needs: tuple[str, ...] | None = None
    on_error: Literal["deny", "allow"] = "deny"
    #: Header fields (lower case) that only this scheme may set: removed from client requests.
    strips: tuple[str, ...] = ()
    outcomes: ClassVar[tuple[str, ...]] = ("ok", "rejected", "unavailable")

    def __init__(self, counter: CounterOf | None = None) -> None:
        self.outcome = ""
        self._counts: dict[str, Any] = {}
        self._throttle = Throttle(burst=1, period_s=LOUD_S)
        if counter is not None:
            for outcome in self.outcomes:
                self._counts[outcome] = counter("fastgate_auth_total", method=self.name, outcome=outcome)

    def verify(self, ctx: RequestContext) -> Any:
        """An Identity, None, REJECTED or LATER. Raises Unavailable. Runs on the request path and must not
        block."""
        raise NotImplementedError

    def credential_field(self, ctx: RequestContext) -> bytes | None:
        """The header field (lower case) whose value alone made `verify` accept, or None. The gate caches the
        identity under this value."""
        return self.credential_headers[0].lower().encode("latin-1") if self.credential_headers else None

    @property
    def claims(self) -> tuple[str, ...]:
        """Names of the fields that `unclaimed` reads. It is called if one of them is present."""
        return self.credential_headers

    def unclaimed(self, ctx: RequestContext) -> str | None:
        """The outcome for a credential in a place that this scheme reads and that no scheme accepted; None if
        there is none. Called after every scheme has returned None."""
        return None

    def conceal(self, ctx: RequestContext) -> None:
        """Removes every credential of this kind from the upstream request (`hide`) and from logs. Called when
        the request continues, whichever scheme has accepted it."""

    async def verify_later(self, ctx: RequestContext) -> Any:
        """Like `verify`, without LATER, for a request whose `verify` returned LATER."""
        raise NotImplementedError

    async def start(self) -> None:
        """Called once, on the worker's loop, before the scheme's first request."""

    async def close(self) -> None:
        """Called once, when no plan uses the scheme any longer."""

    def complain(self, error: Unavailable) -> None:
        """Logs that the server of this scheme is unreachable: at once, then once per LOUD_S."""
        held = self._throttle.allow(self.name)
        if held is not None:
            log.warning("auth %s: %s (%d occurrences since the last such line)", self.name, error, held + 1)

    def count(self, outcome: str) -> None:
        """Counts this outcome, one of `outcomes`."""
        self.outcome = outcome
        counter = self._counts.get(outcome)
        if counter is not None:
            counter.add(1)


def authorization(ctx: RequestContext, scheme: str) -> str | Verdict | None:
    """The credentials after `scheme` (lower case) in Authorization; None if there are none of this scheme.

    REJECTED if the header is repeated: two servers might use different ones (RFC 9110 §5.3).
    """
    values = ctx.headers.get_all("authorization")
    if not values:
        return None
    if len(values) > 1:
        return REJECTED
    word, _, rest = values[0].partition(" ")
    if word.lower() != scheme:
        return None
    return rest.strip(" ")
