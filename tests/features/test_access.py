"""Allow and deny lists through a real socket."""

from __future__ import annotations

from typing import Any

import pytest

from tests.client import get
from tests.control.admin_client import scrape_idle, value
from tests.gateway import Gateway


def gateway(root: Any = None, route: Any = None) -> Gateway:
    routes = [
        {"name": "main", "path": "/*", "respond": "ok", **({"access": route} if route else {})},
        {"name": "other", "path": "/other", "respond": "ok"},
    ]
    return Gateway({"trusted_proxies": ["127.0.0.1"], "routes": routes, **({"access": root} if root else {})})


@pytest.mark.parametrize(
    ("root", "route", "client", "expected"),
    [
        (None, {"deny": ["10.0.0.0/8"]}, "10.1.2.3", 403),
        (None, {"deny": ["10.0.0.0/8"]}, "11.1.2.3", 200),
        (None, {"deny": ["10.0.0.0/8"]}, "::ffff:10.1.2.3", 403),
        (None, {"allow": ["10.0.0.0/8", "2001:db8::/32"]}, "10.1.2.3", 200),
        (None, {"allow": ["10.0.0.0/8", "2001:db8::/32"]}, "2001:db8::1", 200),
        (None, {"allow": ["10.0.0.0/8"]}, "11.1.2.3", 403),
        (None, {"allow": ["10.0.0.0/8"], "deny": ["10.1.0.0/16"]}, "10.1.2.3", 403),
        ({"deny": ["10.0.0.0/8"]}, None, "10.1.2.3", 403),
        ({"allow": ["10.0.0.0/8"]}, {"allow": ["10.1.0.0/16"]}, "10.2.2.3", 403),
        ({"allow": ["10.0.0.0/8"]}, {"allow": ["10.1.0.0/16"]}, "10.1.2.3", 200),
        ({"deny": ["10.0.0.0/8"]}, {"allow": ["10.1.0.0/16"]}, "10.1.2.3", 403),
    ],
)
def test_lists(root: Any, route: Any, client: str, expected: int) -> None:
    with gateway(root, route) as served:
        answered = get(served.port, "/", f"X-Forwarded-For: {client}")

        assert answered.status == expected
        if expected == 403:
            samples = scrape_idle(served.admin)
            assert value(samples, "fastgate_refusals_total", route="main", reason="address_denied") == 1
            assert value(samples, "fastgate_access_denied_total") == 1


def test_the_lists_of_a_route_are_its_own() -> None:
    with gateway(None, {"deny": ["0.0.0.0/0"]}) as served:
        assert get(served.port, "/").status == 403
        assert get(served.port, "/other").status == 200


def test_a_forged_address_from_an_untrusted_peer_opens_nothing() -> None:
    config = {"routes": [{"path": "/*", "respond": "ok", "access": {"allow": ["10.0.0.0/8"]}}]}
    with Gateway(config) as served:
        assert get(served.port, "/", "X-Forwarded-For: 10.0.0.1").status == 403


def test_shadow_mode_lets_pass_and_counts() -> None:
    with gateway(None, {"deny": ["0.0.0.0/0"], "enforce": False}) as served:
        assert get(served.port, "/").status == 200
        samples = scrape_idle(served.admin)
        assert value(samples, "fastgate_shadow_refusals_total", route="main") == 1
        assert value(samples, "fastgate_access_denied_total") == 1
