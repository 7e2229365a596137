"""Values from the environment are text: they make no places in templates, and no message shows a part."""

from __future__ import annotations

import json
from typing import Any

import pytest

from fastgate.config import check
from tests.client import get
from tests.gateway import Gateway
from tests.upstream import Upstream, echo

SECRET = "s3cret-{client_ip}-{nonsense}-\\1-$${X}"


def errors(config: dict[str, Any], secret: str) -> str:
    found = check(json.dumps(config), "json", {"TOKEN": secret})[1]
    return "\n".join(str(error) for error in found)


def test_the_environment_makes_no_places() -> None:
    with Upstream(echo) as upstream:
        config = {
            "routes": [
                {
                    "path": "/in/{id}",
                    "upstream": upstream.url,
                    "request_headers": {"set": {"X-Token": "${TOKEN}", "X-Both": "${TOKEN}/{id}/{{}id}"}},
                    "response_headers": {"add": {"X-Out": "{id}${TOKEN}"}},
                    "rewrite": {"path": "/x/${SEGMENT}/{id}"},
                },
                {"path": "/to/{id}", "redirect": "https://shop.test/${SEGMENT}/{id}"},
                {"path": "/default", "redirect": "https://shop.test/${UNSET:-{path}}"},
            ]
        }
        with Gateway(config, environ={"TOKEN": SECRET, "SEGMENT": "{id}"}) as gateway:
            answered = get(gateway.port, "/in/7")
            redirected = get(gateway.port, "/to/7")
        seen = upstream.requests[0]

    assert seen.get("x-token") == SECRET.encode()
    assert seen.get("x-both") == SECRET.encode() + b"/7/{id}"
    assert answered.get("x-out") == b"7" + SECRET.encode()
    assert seen.target == b"/x/%7Bid%7D/7"
    assert redirected.get("location") == b"https://shop.test/{id}/7"


@pytest.mark.parametrize(
    "route",
    [
        {"path": "/{id}", "redirect": "${TOKEN}"},
        {"path": "${TOKEN}", "respond": "ok"},
        {"path": "~${TOKEN}", "respond": "ok"},
        {"path": "/{id}", "upstream": "${TOKEN}"},
        {"path": "/", "upstream": "http://127.0.0.1:1", "rewrite": {"regex": "${TOKEN}", "to": "/"}},
        {"path": "/", "upstream": "http://127.0.0.1:1", "rewrite": {"regex": "x", "to": "${TOKEN}"}},
        {"path": "/", "upstream": "http://127.0.0.1:1", "rewrite": {"path": "${TOKEN}"}},
        {"path": "/", "respond": "ok", "headers": {"X-A": "~${TOKEN}"}},
        {"path": "/", "respond": "ok", "response_headers": {"set": {"X-A": "${TOKEN}"}}},
        {"path": "/", "respond": "ok", "access": {"deny": ["${TOKEN}"]}},
        {"path": "/", "respond": "ok", "methods": ["${TOKEN}"]},
    ],
)
@pytest.mark.parametrize(
    "secret", ["hunter2-{hunter3}-hunter4(", "[hunter2-\\hunter3", "hunter2\n{hunter3}", "\\9hunter3 hunter2"]
)
def test_no_message_shows_a_part_of_it(route: dict[str, Any], secret: str) -> None:
    assert "hunter" not in errors({"routes": [route]}, secret)
