"""Reads and resets the counts of one client, for the admin API."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from fastgate._core.clock import monotonic_ns
from fastgate._core.gates.client_key import client_key
from fastgate._core.gates.limit_rule import LimitRule
from fastgate._core.limits.penalty import PenaltyBox
from fastgate._core.pipeline.identity import Identity
from fastgate.features.ratelimit.build import _section_rules, _Tiers
from fastgate.features.ratelimit.settings import tiers_of
from fastgate.settings import DAY

__all__ = ["ClientLimits"]


class ClientLimits:
    """Reads and resets the counts of one client, for the admin API and the command line.

    A client is identified by the known parts: `consumer` (with its tier and own limits), `key` (key id),
    `ip`. Rules that count by anything else, such as a header, are left out.
    """

    def __init__(self, config: Any, memory: Any) -> None:
        self._config = config
        self._memory = memory
        self._sections: list[tuple[str, str, LimitRule]] = []  # (place, route, rule)
        table, inflight = memory.limits, memory.inflight
        if config.limits is not None:
            rules = _section_rules(config.limits, "gateway", "root", "", False, table, inflight)
            self._sections += [("gateway", "", rule) for rule in rules]
        for route in config.each_route():
            if route.limits is not None:
                scope = f"route:{route.name}"
                rules = _section_rules(route.limits, "route", scope, route.name, False, table, inflight)
                self._sections += [("route", route.name, rule) for rule in rules]
        unknown = memory.metrics.counter("fastgate_limits_unknown_tier_total")
        self._tiers = _Tiers(tiers_of(config), "deny", table, inflight, unknown)

    def read(
        self,
        *,
        consumer: str | None = None,
        tier: str = "",
        limits: dict[str, Any] | None = None,
        key: str | None = None,
        ip: str | None = None,
    ) -> list[dict[str, Any]]:
        """Per rule: {rule, route, limits: [{limit_type, limit, remaining, reset_s}], requests, cost}."""
        found = []
        for place, route, rule, parts in self._rules(consumer, tier, limits, key, ip):
            found.append(
                {
                    "rule": f"{place}.{rule.name}" if place != "tier" else "tier",
                    "route": route,
                    **rule.read(parts),
                }
            )
        return found

    def reset(
        self,
        *,
        consumer: str | None = None,
        tier: str = "",
        limits: dict[str, Any] | None = None,
        key: str | None = None,
        ip: str | None = None,
    ) -> int:
        """Resets the counts and returns the number of rules that had any. Requests in flight still count."""
        return sum(rule.reset(parts) for _, _, rule, parts in self._rules(consumer, tier, limits, key, ip))

    def ban(self, client: str, for_s: float, by: str = "ip") -> None:
        """Bans an address, a consumer or a key id for `for_s` seconds, on every route with a `penalty` by the
        same kind of client. RuntimeError: the table is full."""
        if not self._box(by).ban(_penalty_key(client, by), for_s):
            raise RuntimeError("memory.limiter_keys: no free entry for the ban")

    def pardon(self, client: str, by: str = "ip") -> bool:
        """Ends a ban and clears the violations. True if there were any."""
        return self._box(by).pardon(_penalty_key(client, by))

    def banned_s(self, client: str, by: str = "ip") -> float:
        """Remaining seconds of a ban; 0 if there is none."""
        return self._box(by).banned(_penalty_key(client, by), monotonic_ns()) / 1e9

    def statistics(self) -> dict[str, int]:
        """Statistics of the table that holds the counts of all limits."""
        return {**self._memory.limits.statistics(), "in_flight": self._memory.inflight.in_use}

    def _box(self, by: str) -> PenaltyBox:
        # Entries that exceed the longest ban are ignored, so this is the maximum that any config allows.
        return PenaltyBox(
            1_000_000,
            1,
            [30 * DAY / 1e9],
            table=self._memory.limits,
            scope=f"penalty by {by}",
            when_full="evict",  # an operator's ban takes precedence over the entries of clients
        )

    def _rules(
        self,
        consumer: str | None,
        tier: str,
        limits: dict[str, Any] | None,
        key: str | None,
        ip: str | None,
    ) -> Iterator[tuple[str, str, LimitRule, list[Any]]]:
        if consumer is not None:
            own = self._tiers.rule(Identity(consumer, tier=tier, limits=limits))
            if own is not None:
                yield "tier", "", own, [consumer.encode()]
        for place, route, rule in self._sections:
            parts = _parts(rule, consumer, key, ip)
            if parts is not None:
                yield place, route, rule, parts


def _penalty_key(client: str, by: str) -> bytes:
    return client_key(client) if by == "ip" else client.encode()


def _parts(rule: LimitRule, consumer: str | None, key: str | None, ip: str | None) -> list[Any] | None:
    """The parts of a rule's key for this client; None if the rule counts by a part that is unknown or does
    not identify a client."""
    parts: list[Any] = []
    for part in rule.by:
        if part == "ip" and ip is not None:
            parts.append(client_key(ip, rule.v4_bits, rule.v6_bits))
        elif part in ("consumer", "key"):
            known = key if part == "key" and key is not None else consumer
            if known is not None:
                parts.append(known.encode())
            elif ip is not None:
                parts.append(("ip", client_key(ip, rule.v4_bits, rule.v6_bits)))
            else:
                return None
        elif not isinstance(part, tuple) or part[0] != "constant":
            return None
    return parts or None
