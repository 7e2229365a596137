"""The memory of verified credentials: bounded in bytes, swept, and told."""

from __future__ import annotations

import time
from typing import Any

from fastgate._core.gates.auth import AuthGate
from fastgate._core.gates.credentials import CredentialCache, weight
from fastgate._core.pipeline.context import CONTINUE
from fastgate._core.pipeline.identity import Identity
from fastgate._core.shm.metric import MetricTable
from fastgate.auth.scheme import LATER, REASON_OF, REJECTED, RESPONDED, Scheme, Unavailable
from fastgate.errors import REASONS
from tests.auth.requests import request


class Everybody(Scheme):
    """Every token is good, and brings claims of some kilobytes."""

    name = "everybody"
    cacheable = True
    asked = 0
    lives_s = 3600.0

    def verify(self, ctx: Any) -> Identity:
        self.asked += 1
        token = ctx.headers.get("authorization")
        claims = {"sub": token, "roles": [f"role-{number}-{token}" for number in range(40)]}
        return Identity(token, claims=claims, expires_ns=time.time_ns() + int(self.lives_s * 1e9))


def gate(cache: CredentialCache, scheme: Scheme) -> AuthGate:
    return AuthGate(
        [scheme],
        cache=cache,
        directory=None,
        family=1,
        forward=True,
        rejected=REJECTED,
        later=LATER,
        responded=RESPONDED,
        unavailable_error=Unavailable,
        reasons={outcome: REASONS[label] for outcome, label in REASON_OF.items()},
        unavailable=REASONS["auth_unavailable"],
    )


def use(one: AuthGate, token: str) -> None:
    assert one.decide(request(("Authorization", token))) == CONTINUE


def test_a_known_credential_asks_nobody() -> None:
    cache, scheme = CredentialCache(), Everybody()
    one = gate(cache, scheme)
    for _ in range(5):
        use(one, "a")

    assert (scheme.asked, len(cache)) == (1, 1)


def test_it_never_weighs_more_than_its_bound_and_keeps_the_rest() -> None:
    metrics = MetricTable()
    cache = CredentialCache(max_bytes=300_000, metrics=metrics, worker="7")
    one = gate(cache, Everybody())
    for number in range(2000):
        use(one, f"token-{number}")
        assert cache.bytes <= 300_000
    cache.tell()

    assert 20 < len(cache) < 200
    told = {(name, labels): value for name, labels, _kind, value in _read(metrics)}
    assert told["fastgate_auth_cache_bytes", 'worker="7"'] == cache.bytes
    assert told["fastgate_auth_cache_entries", 'worker="7"'] == len(cache)
    assert told["fastgate_auth_cache_evictions_total", ""] == 2000 - len(cache)


def _read(metrics: MetricTable) -> list[tuple[str, str, str, int]]:
    return [(name, labels.strip("{}"), kind, value) for name, labels, kind, value in metrics.read()]


def test_what_has_expired_is_swept_and_the_table_shrinks() -> None:
    cache, scheme = CredentialCache(), Everybody()
    one = gate(cache, scheme)
    for number in range(3000):
        use(one, f"token-{number}")
    assert cache.capacity > 1024
    now_ns = 0  # the clock of these requests

    while not cache.sweep(now_ns):
        pass
    assert len(cache) > 2000

    for _ in range(20):
        while not cache.sweep(now_ns + 2 * 3600 * 10**9):
            pass

    assert (len(cache), cache.bytes, cache.capacity) == (0, 0, 1024)


def test_one_that_would_push_out_all_others_is_not_kept() -> None:
    cache, scheme = CredentialCache(max_bytes=20_000), Everybody()
    one = gate(cache, scheme)
    use(one, "x" * 200)

    assert len(cache) == 0


def test_a_weight_is_about_what_the_value_takes() -> None:
    small, large = weight({"a": 1}), weight({"a": [{"b": "c" * 100}] * 50})

    assert small < 500
    assert 50 * 100 < large < 50 * 1000
