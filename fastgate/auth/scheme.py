"""The interface between an authentication method and the gate.

The gate calls a route's schemes in the order of the config. Each checks the request and returns an Identity,
None (no credential of this kind: try the next scheme), REJECTED (an invalid credential; the client gets the
same 401 for every cause), or LATER (asynchronous: the gate calls `verify_later`, and only that request
waits). A scheme that has set a response (`ctx.respond`) returns ANSWERED, and no further scheme is called. A
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
    "ANSWERED",
    "LATER",
    "REASON_OF",
    "REJECTED",
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
"""The label in REASONS for an outcome. "" is REJECTED without an outcome: two credentials of a kind."""

# A dead server must not fill the disk with its name.
LOUD_S: Final = 10.0


class Verdict(enum.Enum):
    """The results of a scheme other than an Identity or None."""

    REJECTED = 1
    LATER = 2
    ANSWERED = 3


REJECTED: Final = Verdict.REJECTED
LATER: Final = Verdict.LATER
ANSWERED: Final = Verdict.ANSWERED


class Unavailable(Exception):
    """The server that would know (issuer, introspection, forward-auth) cannot be asked. The text is for
    the log.
    """


class CounterOf(Protocol):
    """`MetricTable.counter`: the counter of these labels, for all processes."""

    def __call__(self, name: str, **labels: str) -> Any: ...


class Scheme:
    """One way to say who sent a request. A subclass overrides `verify`, and `verify_later` if that says
    LATER.

    cacheable    the identity depends on nothing but the credential: the gate may keep it, under a keyed hash
                 of the value of its `credential_headers`, until `identity.expires_ns` and for `cache_ns` at
                 most (0: as long as the identity says).
    outcomes     every word that `count` may be told; the counters are made when the scheme is.
    outcome      the one that was counted last; the gate reads it when `verify` has said REJECTED.
    """

    name: str = ""
    #: The value of its WWW-Authenticate field; None when the scheme never refuses.
    challenge: str | None = None
    cacheable: bool = False
    cache_ns: int = 0
    #: Header fields that may carry its credential. A request with one of them twice is refused.
    credential_headers: tuple[str, ...] = ("authorization",)
    #: The query parameter that may carry it.
    credential_query: str | None = None
    #: Whether `conceal` takes the credential away, so that the upstream is not told.
    hide: bool = False
    on_error: Literal["deny", "allow"] = "deny"
    #: Header fields (lower case) that only this scheme may set: dropped from what clients send.
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
        """An Identity, None, REJECTED or LATER. Raises Unavailable. On the request path: no waiting here."""
        raise NotImplementedError

    def credential_field(self, ctx: RequestContext) -> bytes | None:
        """The header field (lower case) whose value alone made `verify` accept; None: it was none, or not
        alone. The gate remembers the identity under this value.
        """
        return self.credential_headers[0].lower().encode("latin-1") if self.credential_headers else None

    @property
    def claims(self) -> tuple[str, ...]:
        """Names of the fields that `unclaimed` looks at; it is asked when one of them is there."""
        return self.credential_headers

    def unclaimed(self, ctx: RequestContext) -> str | None:
        """The outcome for a credential that stands where this scheme reads and that no scheme took; None when
        there is none. Asked when every scheme has said None.
        """
        return None

    def conceal(self, ctx: RequestContext) -> None:
        """Take every credential of this kind out of what goes upstream (`hide`) and out of what logs show.
        Called when the request goes on, whichever scheme has let it pass.
        """

    async def verify_later(self, ctx: RequestContext) -> Any:
        """The same without LATER, for a request whose `verify` said LATER."""
        raise NotImplementedError

    async def start(self) -> None:
        """Called once, on the worker's loop, before the scheme's first request."""

    async def close(self) -> None:
        """Called once, when no plan uses the scheme any more."""

    def complain(self, error: Unavailable) -> None:
        """Log that the server behind this scheme cannot be asked: at once, then once in LOUD_S."""
        held = self._throttle.allow(self.name)
        if held is not None:
            log.warning("auth %s: %s (%d since the last such line)", self.name, error, held + 1)

    def count(self, outcome: str) -> None:
        """One more of this outcome, one of `outcomes`."""
        self.outcome = outcome
        counter = self._counts.get(outcome)
        if counter is not None:
            counter.add(1)


def authorization(ctx: RequestContext, scheme: str) -> str | Verdict | None:
    """The credentials behind `scheme` (lower case) in Authorization; None when there are none of this scheme.

    REJECTED when the header is there twice: two servers might each believe another one (RFC 9110 §5.3).
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
