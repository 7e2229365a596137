"""`balance`, `ejection`, `breaker` and `locality`: what is taken, and what is rejected with its path."""

from __future__ import annotations

import json
from typing import Any

import pytest

from fastgate.config.load import check
from fastgate.upstream.balancing import tiers_of

A, B, C = "http://10.0.0.1:80", "http://10.0.0.2:80", "http://10.0.0.3:80"


def read(root: dict[str, Any] | None = None, **upstream: Any) -> tuple[Any, list[str]]:
    tree = {
        "upstreams": {"orders": {"targets": [A, B], **upstream}},
        "routes": [{"path": "/", "upstream": "orders"}],
        **(root or {}),
    }
    config, errors = check(json.dumps(tree), "json")
    return config, [str(error) for error in errors]


@pytest.mark.parametrize(
    "settings",
    [
        {"balance": "p2c_ewma"},
        {"balance": {"strategy": "least_requests", "choices": 3}},
        {"balance": {"strategy": "hash", "by": "ip"}},
        {
            "balance": {
                "strategy": "hash",
                "by": ["consumer", "key", "header:X-A", "cookie:a"],
                "load_factor": 1.25,
            }
        },
        {"balance": {"strategy": "intelligent", "latency": 2, "cost": 0, "health": 1.5, "quality": 0.5}},
        {"ejection": {}},
        {"ejection": {"consecutive_failures": 0, "error_rate": "12.5%", "max_ejected": "100%"}},
        {"ejection": {"slow_call": "1s", "slow_rate": "50%", "window": "30s", "min_requests": 5}},
        {"breaker": {}},
        {"breaker": {"backoff": "fibonacci", "adaptive": True, "half_open_requests": 3}},
        {"failure_statuses": []},
        {"failure_statuses": [429, 503]},
    ],
)
def test_good_settings_are_taken(settings: dict[str, Any]) -> None:
    config, errors = read(**settings)

    assert errors == []
    assert config is not None


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"balance": "fastest"},
            "$.upstreams.orders.balance: expected one of cost, hash, intelligent,",
        ),
        ({"balance": {"strategy": "hash"}}, "$.upstreams.orders.balance.by: missing key"),
        (
            {"balance": {"strategy": "hash", "by": ["X-User"]}},
            "$.upstreams.orders.balance.by[0]: expected one of",
        ),
        (
            {"balance": {"strategy": "hash", "by": ["header:"]}},
            "$.upstreams.orders.balance.by[0]: expected one of",
        ),
        (
            {"balance": {"strategy": "hash", "by": ["ip:x"]}},
            "$.upstreams.orders.balance.by[0]: expected one of",
        ),
        (
            {"balance": {"by": ["ip"]}},
            "$.upstreams.orders.balance.by: expected a strategy that uses it (hash)",
        ),
        (
            {"balance": {"strategy": "random", "choices": 3}},
            "$.upstreams.orders.balance.choices: expected a strategy",
        ),
        (
            {"balance": {"strategy": "hash", "by": "ip", "load_factor": 1}},
            "$.upstreams.orders.balance.load_factor",
        ),
        (
            {"ejection": {"max_ejected": "0%"}},
            "$.upstreams.orders.ejection.max_ejected: expected a share from",
        ),
        (
            {"ejection": {"max_ejected": "101%"}},
            "$.upstreams.orders.ejection.max_ejected: expected a share from",
        ),
        ({"ejection": {"max_ejected": 50}}, "add the unit: 50%"),
        ({"ejection": {"max_ejected": "half"}}, "expected a share such as 20% or 0.5%"),
        (
            {"ejection": {"consecutive_failures": 0}},
            "$.upstreams.orders.ejection: expected one of consecutive_failures",
        ),
        ({"ejection": {"slow_rate": "5%"}}, "$.upstreams.orders.ejection.slow_call: missing key"),
        (
            {"ejection": {"time": "10s", "max_time": "5s"}},
            "$.upstreams.orders.ejection.max_time: expected at least time",
        ),
        ({"breaker": {"slow_call": "1s"}}, "$.upstreams.orders.breaker.slow_rate: missing key"),
        (
            {"breaker": {"failure_threshold": 0}},
            "$.upstreams.orders.breaker: expected one of failure_threshold",
        ),
        (
            {"breaker": {"recovery_timeout": "30s", "max_recovery_timeout": "10s"}},
            "$.upstreams.orders.breaker.max_recovery_timeout: expected at least recovery_timeout (30s)",
        ),
        ({"failure_statuses": [200]}, "$.upstreams.orders.failure_statuses[0]"),
        ({"targets": [A, B, A]}, "$.upstreams.orders.targets[2]: expected each target once"),
        (
            {"targets": [{"url": A, "weight": 0}]},
            "$.upstreams.orders.targets: expected at least one target with a",
        ),
        ({"targets": [{"url": A, "quality": 2}]}, "$.upstreams.orders.targets[0].quality"),
        ({"targets": [{"url": A, "backup": True}]}, "write priority: 1"),
    ],
)
def test_bad_settings_are_named_with_their_path(settings: dict[str, Any], message: str) -> None:
    config, errors = read(**settings)

    assert config is None
    assert any(message in error for error in errors), errors


def test_a_config_with_more_targets_than_rows_is_rejected() -> None:
    targets = [f"http://10.0.1.{i}:80" for i in range(40)]
    config, errors = read({"memory": {"health_rows": 64}}, targets=targets)

    assert config is None
    assert len(errors) == 1
    assert "$.memory.health_rows: expected at least 82, twice the number of targets and" in errors[0]


@pytest.mark.parametrize(
    ("balance", "targets", "here", "tiers"),
    [
        ("round_robin", [A, B, C], {}, [0, 0, 0]),
        ("round_robin", [{"url": A, "priority": 5}, B, {"url": C, "priority": 9}], {}, [1, 0, 2]),
        ("priority", [A, B, C], {}, [0, 1, 2]),
        ("priority", [{"url": A, "priority": 1}, B, C], {}, [1, 0, 0]),
        ("cost", [{"url": A, "cost": 3}, {"url": B, "cost": 1}, {"url": C, "cost": 1}], {}, [1, 0, 0]),
        (
            "round_robin",
            [{"url": A, "zone": "us-1", "region": "us"}, {"url": B, "zone": "eu-2", "region": "eu"}, C],
            {"zone": "eu-1", "region": "eu"},
            [2, 1, 0],
        ),
        ("round_robin", [{"url": A, "zone": "us-1", "region": "us"}, B], {}, [0, 0]),
        ("round_robin", [{"url": A, "region": "us"}, {"url": B, "region": "eu"}], {"region": "eu"}, [1, 0]),
    ],
)
def test_targets_are_sorted_into_tiers(
    balance: str, targets: list[Any], here: dict[str, str], tiers: list[int]
) -> None:
    config, errors = read({"locality": here}, balance=balance, targets=targets)

    assert errors == []
    upstream = config.upstreams["orders"]
    assert tiers_of(upstream, upstream.targets, config.locality) == tiers
