"""Forward-auth, introspection, basic, client certificates and anonymous through the whole gateway."""

from __future__ import annotations

import base64
import hashlib
import json
import ssl
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from fastgate.auth import passwords
from fastgate.config import InvalidConfig, load
from tests.auth.test_introspection import Server
from tests.authority import Authority
from tests.client import Client, request
from tests.gateway import Gateway
from tests.strict import Message
from tests.upstream import Peer, Upstream


def ask(
    gateway: Gateway, *lines: str, target: str = "/orders?x=1", tls: ssl.SSLContext | None = None
) -> Message:
    with Client(gateway.port, tls=tls) as client:
        client.send(request(target, "GET", *lines))
        return client.read_response()


def route(upstream: Upstream, *schemes: str, **more: Any) -> dict[str, Any]:
    return {"path": "/*", "upstream": upstream.url, "auth": {"schemes": list(schemes), **more}}


class Judge(Upstream):
    """A service that forward-auth asks: its answer, and what it was asked."""

    def __init__(self, status: int = 200, *fields: str, body: bytes = b"") -> None:
        super().__init__(self._serve)
        self.status, self.fields, self.body = status, fields, body
        self.mute = threading.Event()

    def _serve(self, peer: Peer) -> None:
        while True:
            peer.read_request()
            if self.mute.is_set():
                peer.wait_closed()
                return
            head = "".join(f"{field}\r\n" for field in self.fields)
            peer.send(
                f"HTTP/1.1 {self.status} X\r\n{head}Content-Length: {len(self.body)}\r\n\r\n".encode()
                + self.body
            )


def forwarded(judge: Upstream, upstream: Upstream, *before: str, **more: Any) -> dict[str, Any]:
    return {
        "auth": {"forward": {"url": judge.url + "/check?a=b", "timeout": "60s", **more}},
        "routes": [route(upstream, *before, "forward")],
    }


# forward-auth


def test_the_service_is_told_what_is_asked_and_what_it_says_goes_upstream() -> None:
    with Judge(200, "X-User: alice", "X-Plan: gold", "X-Roles: a b") as judge, Upstream() as upstream:
        settings = {
            "upstream_headers": ["X-User"],
            "consumer_header": "X-User",
            "roles_header": "X-Roles",
        }
        with Gateway(forwarded(judge, upstream, **settings)) as gateway:
            lines = ("Cookie: a=b", "X-Other: c", "X-User: admin", "X_User: admin", "X-Forwarded-Uri: /evil")
            assert ask(gateway, *lines).status == 200

    asked, passed = judge.requests[0], upstream.requests[0]
    assert (asked.method, asked.target) == (b"GET", b"/check?a=b")
    assert asked.get("x-forwarded-method") == b"GET"
    assert asked.get("x-forwarded-uri") == b"/orders?x=1"
    assert asked.get("x-forwarded-for") == b"127.0.0.1"
    assert asked.get("x-forwarded-host") is not None
    assert asked.get("cookie") == b"a=b"
    assert asked.get("x-other") is None
    assert asked.get("x-user") is None
    assert passed.get("x-user") == b"alice"
    assert passed.get("x_user") is None
    assert passed.get("x-consumer-id") == b"alice"
    assert passed.get("x-consumer-roles") is not None


def test_what_the_service_should_say_cannot_be_said_by_a_client_that_needs_no_service() -> None:
    # A request that another method lets in never meets the service, and must not bring its answer along.
    hashed = passwords.hash_password("p")
    with Judge(200, "X-User: alice") as judge, Upstream() as upstream:
        config = forwarded(judge, upstream, "basic", upstream_headers=["X-User"])
        config["consumers"] = {"bob": {"basic_password_hash": hashed}}
        with Gateway(config) as gateway:
            credential = base64.b64encode(b"bob:p").decode()
            for _ in range(2):
                assert ask(gateway, f"Authorization: Basic {credential}", "X-User: admin").status == 200

    assert judge.requests == []
    assert [one.get("x-user") for one in upstream.requests] == [None, None]


def test_refusals_of_the_service_reach_the_client() -> None:
    with Upstream() as upstream:
        for status, field in (
            (401, "WWW-Authenticate: Custom a=b"),
            (403, "X-Ignored: a"),
            (302, "Location: /login"),
        ):
            with (
                Judge(status, field, "Set-Cookie: a=1", "Set-Cookie: b=2", body=b"no") as judge,
                Gateway(forwarded(judge, upstream)) as gateway,
            ):
                answer = ask(gateway)
                assert (answer.status, answer.body) == (status, b"no")
                assert answer.values("set-cookie") == [b"a=1", b"b=2"]
                name, _, value = field.partition(": ")
                assert answer.get(name.lower()) == (None if name == "X-Ignored" else value.encode())
    assert upstream.requests == []


def test_refusals_can_be_the_gateways_own() -> None:
    with (
        Judge(403, body=b"secret reason") as judge,
        Upstream() as upstream,
        Gateway(forwarded(judge, upstream, relay_refusals=False)) as gateway,
    ):
        answer = ask(gateway)
    assert answer.status == 401
    assert b"secret reason" not in answer.raw


@pytest.mark.parametrize("how", ["500", "404", "302", "mute", "away"])
@pytest.mark.parametrize("on_error", ["deny", "allow"])
def test_a_service_that_does_not_answer(how: str, on_error: str) -> None:
    with Judge(200, "X-User: a") as judge, Upstream() as upstream:
        if how == "mute":
            judge.mute.set()
        elif how == "away":
            judge.stop_listening()
        else:
            judge.status = int(how)
        config = forwarded(judge, upstream, on_error=on_error, upstream_headers=["X-User"])
        if how == "mute":
            config["auth"]["forward"]["timeout"] = "400ms"
        with Gateway(config, allow="forward") as gateway:
            answer = ask(gateway, "X-User: admin")
            assert answer.status == (503 if on_error == "deny" else 200)
            for _ in range(5):
                ask(gateway)
            assert gateway.stderr_text.count("auth forward: ") == 1  # and not once per request
    assert all(one.get("x-user") is None for one in upstream.requests)


def test_requests_without_the_needed_headers_are_left_to_other_methods() -> None:
    with Judge(200) as judge, Upstream() as upstream:
        config = forwarded(judge, upstream, required_headers=["X-Session"])
        config["routes"][0]["auth"]["schemes"].append("anonymous")
        with Gateway(config) as gateway:
            assert ask(gateway).status == 200
            assert judge.requests == []
            assert ask(gateway, "X-Session: a").status == 200
    assert len(judge.requests) == 1
    assert [one.get("x-consumer-id") for one in upstream.requests] == [b"anonymous", b"forward-auth"]


# introspection


def test_introspection_lets_in_and_asks_once() -> None:
    with Server(good={"active": True, "client_id": "app", "scope": "a"}) as server, Upstream() as upstream:
        settings = {"url": server.url, "client_id": "g", "client_secret": "s"}
        config = {
            "auth": {"introspection": settings},
            "routes": [route(upstream, "api_key", "introspection")],
        }
        with Gateway(config) as gateway:
            for _ in range(5):
                assert ask(gateway, "Authorization: Bearer good").status == 200
                assert ask(gateway, "Authorization: Bearer bad").status == 401
            assert ask(gateway).status == 401
    assert sorted(server.asked) == ["bad", "good"]
    assert upstream.requests[0].get("x-consumer-id") == b"app"


# basic and anonymous


def test_basic_and_anonymous() -> None:
    hashed = passwords.hash_password("right")
    with Upstream() as upstream:
        config = {
            "consumers": {"alice": {"basic_password_hash": hashed, "tier": "premium"}},
            "routes": [
                {**route(upstream, "basic", "anonymous"), "path": "/open/*"},
                {**route(upstream, "basic"), "path": "/closed/*"},
            ],
        }
        with Gateway(config) as gateway:
            right = "Authorization: Basic " + base64.b64encode(b"alice:right").decode()
            wrong = "Authorization: Basic " + base64.b64encode(b"alice:wrong").decode()
            assert ask(gateway, right, target="/open/a").status == 200
            assert ask(gateway, target="/open/a").status == 200
            assert ask(gateway, wrong, target="/open/a").status == 401  # wrong is not absent
            assert ask(gateway, right, target="/closed/a").status == 200
            refused = ask(gateway, target="/closed/a")
            assert refused.status == 401
            assert refused.get("www-authenticate") == b'Basic realm="fastgate", charset="UTF-8"'
    said = [(one.get("x-consumer-id"), one.get("x-consumer-tier")) for one in upstream.requests]
    assert said == [(b"alice", b"premium"), (b"anonymous", b"free"), (b"alice", b"premium")]


# client certificates


def tls_listener(authority: Authority, *, proxy: bool = False, required: bool = False) -> dict[str, Any]:
    server = authority.issue("www", ["localhost"])
    return {
        "address": "127.0.0.1:0",
        "proxy_protocol": proxy,
        "tls": {
            "certificates": {"certificate": server.certificate, "key": server.key},
            "client_ca": authority.certificate,
            "client_certificate": "required" if required else "optional",
        },
    }


def client_context(authority: Authority, name: str | None, names: tuple[str, ...] = ()) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=authority.certificate)
    if name is not None:
        context.load_cert_chain(*authority.issue(name, names))
    return context


def fingerprint(path: Path) -> str:
    return hashlib.sha256(ssl.PEM_cert_to_DER_cert(path.read_text())).hexdigest()


def test_a_client_certificate_is_its_consumer(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    contexts = {
        name: client_context(authority, name, (f"{name}.internal",))
        for name in ("orders", "billing", "other")
    }
    with Upstream() as upstream:
        config: Mapping[str, Any] = {
            "listen": tls_listener(authority),
            "auth": {"mtls": {"certificates": {"dns:billing.internal": "money"}}},
            "consumers": {
                "shop": {
                    "certificate": "sha256:" + fingerprint(tmp_path / "orders.pem").upper(),
                    "tier": "premium",
                },
                "by-subject": {"certificate": "CN=somebody"},
                "unlisted": {},
            },
            "routes": [route(upstream, "mtls")],
        }
        with Gateway(config) as gateway:
            assert ask(gateway, tls=contexts["orders"]).status == 200
            assert ask(gateway, tls=contexts["billing"]).status == 200
            assert ask(gateway, tls=contexts["other"]).status == 401
            assert ask(gateway, tls=client_context(authority, None)).status == 401
            assert ask(gateway, tls=client_context(authority, "somebody")).status == 200
            # a name in the certificate that is a consumer's name
            assert ask(gateway, tls=client_context(authority, "unlisted")).status == 200
            # but not of one with certificates of its own
            assert ask(gateway, tls=client_context(authority, "shop")).status == 401
            assert ask(gateway, tls=client_context(authority, "any", ("shop",))).status == 401
            assert ask(gateway, tls=client_context(authority, "money")).status == 401
            assert ask(gateway, tls=client_context(authority, "unlisted", ("shop",))).status == 401
    assert [one.get("x-consumer-id") for one in upstream.requests] == [
        b"shop",
        b"money",
        b"by-subject",
        b"unlisted",
    ]


def test_a_client_certificate_behind_a_proxy_header(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    context = client_context(authority, "orders")
    with Upstream() as upstream:
        config = {
            "listen": tls_listener(authority, proxy=True),
            "auth": {"mtls": {"allow_unknown": True}},
            "routes": [route(upstream, "mtls")],
        }
        with Gateway(config) as gateway, Client(gateway.port) as client:
            client.send(b"PROXY TCP4 192.0.2.7 192.0.2.8 1000 443\r\n")
            client.sock = context.wrap_socket(client.sock, server_hostname="localhost")
            client.send(request("/"))
            assert client.read_response().status == 200
    assert upstream.requests[0].get("x-consumer-id") == b"orders"


def test_the_anonymous_are_limited_by_address_and_not_together() -> None:
    with Upstream() as upstream:
        config = {
            "trusted_proxies": "127.0.0.1",
            "tiers": {"free": {"per_minute": 2}},
            "routes": [route(upstream, "anonymous")],
        }
        with Gateway(config) as gateway:
            for address in ("192.0.2.1", "192.0.2.2"):
                said = [ask(gateway, f"X-Forwarded-For: {address}").status for _ in range(4)]
                assert said == [200, 200, 429, 429]


# the config


@pytest.mark.parametrize(
    ("auth", "consumers", "path"),
    [
        ({"jwt": {"issuers": [{"issuer": "a"}]}}, {}, "$.auth.jwt.issuers[0]"),
        ({"jwt": {"issuers": [{"issuer": "a", "secret": "short"}]}}, {}, "$.auth.jwt.issuers[0].secret"),
        (
            {"jwt": {"issuers": [{"issuer": "a", "jwks_url": "ftp://a"}]}},
            {},
            "$.auth.jwt.issuers[0].jwks_url",
        ),
        (
            {"jwt": {"issuers": [{"issuer": "a", "jwks_file": "/gone"}]}},
            {},
            "$.auth.jwt.issuers[0].jwks_file",
        ),
        ({"jwt": {"issuers": [{"discovery": True}]}}, {}, "$.auth.jwt.issuers[0].issuer"),
        (
            {"jwt": {"issuers": [{"issuer": "a", "jwks_url": "https://a/k", "algorithms": "HS256"}]}},
            {},
            "$.auth.jwt.issuers[0].algorithms",
        ),
        (
            {"jwt": {"issuers": [{"issuer": "a", "secret": "x" * 32}, {"issuer": "a", "secret": "y" * 32}]}},
            {},
            "$.auth.jwt.issuers[1].issuer",
        ),
        (
            {"introspection": {"url": "a", "client_id": "b", "client_secret": "c"}},
            {},
            "$.auth.introspection.url",
        ),
        ({"forward": {"url": "http://a b"}}, {}, "$.auth.forward.url"),
        (
            {"forward": {"url": "http://a", "request_headers": ["a b"]}},
            {},
            "$.auth.forward.request_headers[0]",
        ),
        (
            {"forward": {"url": "http://a", "request_headers": ["X-A", "Host"]}},
            {},
            "$.auth.forward.request_headers[1]",
        ),
        (
            {"forward": {"url": "http://a", "upstream_headers": ["Host"]}},
            {},
            "$.auth.forward.upstream_headers[0]",
        ),
        ({"basic": {"users": {"a": "password"}}}, {}, "$.auth.basic.users.a"),
        ({}, {"a": {"basic_password_hash": "x"}}, "$.consumers.a.basic_password_hash"),
        ({"mtls": {"certificates": {"sha256:12": "a"}}}, {}, "$.auth.mtls.certificates"),
        ({}, {"a": {"certificate": "CN=x"}, "b": {"certificate": "CN=x"}}, "$.consumers.b.certificate"),
        ({}, {}, "$.routes[0].auth"),
    ],
)
def test_mistakes_are_found_with_their_path(
    tmp_path: Path, auth: dict[str, Any], consumers: dict[str, Any], path: str
) -> None:
    file = tmp_path / "gateway.json"
    schemes = ["forward"] if not auth and not consumers else ["api_key"]
    config = {
        "auth": auth,
        "consumers": consumers,
        "routes": [{"path": "/*", "respond": "a", "auth": schemes}],
    }
    file.write_text(json.dumps(config))

    with pytest.raises(InvalidConfig) as caught:
        load(file)

    assert any(error.path.startswith(path) for error in caught.value.errors), caught.value.errors
    assert "password" not in "".join(error.found for error in caught.value.errors)
