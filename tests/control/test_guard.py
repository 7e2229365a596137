"""No web page can call the admin API, however it reached the operator's browser."""

from __future__ import annotations

import pytest
from starlette.datastructures import Headers

from fastgate.control.guard import refusal_of

OWN = frozenset({"localhost", "gateway.internal"})


def refusal(
    path: str = "/api/gateway/status", token: str | None = None, **fields: str
) -> tuple[int, str] | None:
    fields.setdefault("host", "127.0.0.1:9901")
    return refusal_of(
        path, Headers({key.replace("_", "-"): text for key, text in fields.items()}), token, OWN
    )


@pytest.mark.parametrize(
    "host", ["127.0.0.1:9901", "localhost:9901", "LOCALHOST", "[::1]:9901", "10.1.2.3", "gateway.internal:1"]
)
def test_addresses_and_own_names_are_taken(host: str) -> None:
    assert refusal(host=host) is None


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:9901", "", "localhost.evil.example", "127.0.0.1.evil.example"]
)
def test_a_rebound_name_is_refused(host: str) -> None:
    found = refusal(host=host)

    assert found is not None
    assert found[0] == 403


@pytest.mark.parametrize("host", ["gateway:9901", "fastgate.default.svc:9901", "evil.example"])
def test_any_name_is_taken_with_the_token_and_none_without(host: str) -> None:
    assert refusal(host=host, token="secret-token", authorization="Bearer secret-token") is None
    assert refusal(host=host, token="secret-token") == (401, "The admin token is missing or wrong")
    found = refusal(host=host, token="secret-token", authorization="Bearer secret-token", origin="http://x")
    assert found is not None
    assert found[0] == 403


@pytest.mark.parametrize("path", ["/live", "/ready", "/health"])
def test_probes_come_with_any_host_and_without_token(path: str) -> None:
    assert refusal(path, token="secret-token", host="pod.cluster.local") is None


@pytest.mark.parametrize(
    "fields",
    [
        {"origin": "https://evil.example"},
        {"origin": "null"},
        {"origin": "http://127.0.0.1:8080"},
        {"sec_fetch_site": "cross-site"},
        {"sec_fetch_site": "same-site"},
    ],
)
@pytest.mark.parametrize("path", ["/live", "/api/gateway/reload"])
def test_requests_of_other_pages_are_refused(path: str, fields: dict[str, str]) -> None:
    found = refusal(path, **fields)

    assert found is not None
    assert found[0] == 403


def test_the_own_page_may_call() -> None:
    assert refusal(origin="http://127.0.0.1:9901", sec_fetch_site="same-origin") is None


@pytest.mark.parametrize(
    ("authorization", "status"),
    [
        (None, 401),
        ("Bearer wrong-token", 401),
        ("Basic secret-token", 401),
        ("Bearer schlüssel", 401),
        ("Bearer secret-token", None),
        ("bearer secret-token", None),
    ],
)
def test_the_token_is_needed_when_one_is_set(authorization: str | None, status: int | None) -> None:
    fields = {} if authorization is None else {"authorization": authorization}

    found = refusal(token="secret-token", **fields)

    assert (found and found[0]) == status
