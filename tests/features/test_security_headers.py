"""Security headers through real sockets: on every answer, once, and HSTS over https only."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from fastgate.features.security_headers.build import HstsConfig, SecurityHeadersConfig, header_fields
from fastgate.settings import DAY
from tests.client import get
from tests.gateway import Gateway
from tests.strict import Message
from tests.upstream import Upstream, answer

OWN = (
    b"HTTP/1.1 200 OK\r\nX-Frame-Options: SAMEORIGIN\r\nx-content-type-options: sniff\r\n"
    b"Content-Security-Policy: default-src *\r\nStrict-Transport-Security: max-age=1\r\n"
    b"Server: Secret/1.0\r\nX-Powered-By: PHP\r\nContent-Length: 2\r\n\r\nok"
)


@pytest.fixture(scope="module")
def gateway() -> Iterator[Gateway]:
    with Upstream(answer(OWN)) as upstream:
        config: dict[str, Any] = {
            "trusted_proxies": "127.0.0.1",
            "security_headers": "basic",
            "auth": {"hmac": {"keys": {"k": {"consumer": "c", "secret": "0123456789abcdef"}}}},
            "upstreams": {"origin": {"targets": [upstream.url]}},
            "routes": [
                {"path": "/default", "upstream": "origin"},
                {"path": "/off", "upstream": "origin", "security_headers": "none"},
                {
                    "path": "/replaced",
                    "upstream": "origin",
                    "security_headers": {
                        "preset": "api",
                        "hsts": {"max_age": "365d", "include_subdomains": True, "preload": True},
                        "permissions_policy": "camera=()",
                        "referrer_policy": "",
                        "remove": ["Server", "X-Powered-By"],
                    },
                },
                {
                    "path": "/kept",
                    "upstream": "origin",
                    "security_headers": {"preset": "strict", "upstream": "kept", "hsts": "1d"},
                },
                {
                    "path": "/kept-refused",
                    "upstream": "origin",
                    "auth": ["hmac"],
                    "security_headers": {"preset": "strict", "upstream": "kept"},
                },
                {
                    "path": "/kept-fixed",
                    "respond": {"body": "x"},
                    "security_headers": {"preset": "api", "upstream": "kept"},
                },
                {"path": "/refused", "upstream": "origin", "auth": ["hmac"], "security_headers": "api"},
                {"path": "/small", "upstream": "origin", "max_body": "1B"},
                {
                    "path": "/edited",
                    "upstream": "origin",
                    "response_headers": {"set": {"X-Edited": "1"}},
                    "security_headers": {"preset": "api", "upstream": "kept"},
                },
            ],
        }
        with Gateway(config) as running:
            yield running


def value(message: Message, name: str) -> str | None:
    found = message.get(name)  # more than one is an error
    return None if found is None else found.decode()


def test_the_roots_preset_is_on_every_answer(gateway: Gateway) -> None:
    for message, status in (
        (get(gateway.port, "/default"), 200),
        (get(gateway.port, "/small", method="POST", body=b"xx"), 413),
    ):
        assert message.status == status
        assert value(message, "x-frame-options") == "SAMEORIGIN"
        assert value(message, "x-content-type-options") == "nosniff"
        assert value(message, "referrer-policy") == "strict-origin-when-cross-origin"


def test_a_route_may_have_none(gateway: Gateway) -> None:
    message = get(gateway.port, "/off")

    assert value(message, "x-content-type-options") == "sniff"
    assert value(message, "referrer-policy") is None


def test_the_upstreams_own_are_replaced(gateway: Gateway) -> None:
    message = get(gateway.port, "/replaced")

    assert value(message, "x-frame-options") == "DENY"
    assert value(message, "x-content-type-options") == "nosniff"
    assert value(message, "content-security-policy") == "default-src 'none'; frame-ancestors 'none'"
    assert value(message, "permissions-policy") == "camera=()"
    assert value(message, "referrer-policy") is None
    assert value(message, "server") is None
    assert value(message, "x-powered-by") is None


def test_hsts_is_for_https_only_and_never_the_upstreams(gateway: Gateway) -> None:
    plain = get(gateway.port, "/replaced")
    secure = get(gateway.port, "/replaced", "X-Forwarded-Proto: https")

    assert value(plain, "strict-transport-security") is None
    assert value(secure, "strict-transport-security") == "max-age=31536000; includeSubDomains; preload"


def test_the_upstreams_own_are_kept_and_ours_fill_the_gaps(gateway: Gateway) -> None:
    message = get(gateway.port, "/kept", "X-Forwarded-Proto: https")

    assert value(message, "x-frame-options") == "SAMEORIGIN"
    assert value(message, "content-security-policy") == "default-src *"
    assert value(message, "x-content-type-options") == "sniff"
    assert value(message, "referrer-policy") == "no-referrer"
    assert value(message, "cross-origin-opener-policy") == "same-origin"
    assert value(message, "strict-transport-security") == "max-age=86400"


@pytest.mark.parametrize(
    ("path", "status"), [("/kept-refused", 401), ("/refused", 401), ("/kept-fixed", 200)]
)
def test_answers_made_here_have_them_once(gateway: Gateway, path: str, status: int) -> None:
    message = get(gateway.port, path)

    assert message.status == status
    assert value(message, "x-frame-options") == "DENY"
    assert value(message, "x-content-type-options") == "nosniff"
    assert value(message, "referrer-policy") == "no-referrer"


def test_header_edits_and_kept_ones_get_along(gateway: Gateway) -> None:
    message = get(gateway.port, "/edited")

    assert value(message, "x-edited") == "1"
    assert value(message, "x-frame-options") == "SAMEORIGIN"
    assert value(message, "referrer-policy") == "no-referrer"


def test_what_is_set_stands_in_place_of_the_presets() -> None:
    fields = dict(
        header_fields(SecurityHeadersConfig(preset="strict", nosniff=False, frame_options="SAMEORIGIN"))
    )

    assert "X-Content-Type-Options" not in fields
    assert fields["X-Frame-Options"] == "SAMEORIGIN"
    assert fields["Referrer-Policy"] == "no-referrer"


@pytest.mark.parametrize(
    ("config", "text"),
    [
        (HstsConfig(), "max-age=31536000"),
        (HstsConfig(max_age_ns=0), "max-age=0"),
        (HstsConfig(max_age_ns=730 * DAY, include_subdomains=True), "max-age=63072000; includeSubDomains"),
    ],
)
def test_hsts_is_written_as_its_rfc_says(config: HstsConfig, text: str) -> None:
    assert config.value() == text
