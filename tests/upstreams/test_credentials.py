"""Credentials of upstreams: every source, every way to show them, rotation, failing sources, nothing told."""

from __future__ import annotations

import base64
import http.client
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import pytest

from fastgate.config import check
from fastgate.upstream.credential import Credential
from tests.client import get
from tests.control.admin_client import call
from tests.gateway import Gateway
from tests.server.gateway_harness import until
from tests.upstream import Peer, Upstream

SECRET = "s3cret-of-the-test"


def config(upstream: Upstream, **credentials: Any) -> dict[str, Any]:
    return {
        "upstreams": {"u": {"targets": upstream.url, "credentials": credentials}},
        "routes": [{"path": "/*", "upstream": "u"}],
    }


def told(gateway: Gateway) -> str:
    """Everything the gateway says: its log and what the admin listener shows."""
    pages = [
        call(gateway.admin, path).body.decode() for path in ("/metrics", "/api/gateway/status", "/health")
    ]
    return "\n".join([gateway.stderr_text, *pages])


# ---- the bytes


def test_a_value_is_text_of_a_header() -> None:
    credential = Credential("header", "X-Key")
    assert not credential.is_usable(0)

    for bad in ("", "a\r\nb", "ä", " a", "a\x00"):
        with pytest.raises(ValueError, match="printable ASCII"):
            credential.put("X-Key", bad)
    assert not credential.is_usable(0)
    credential.put("X-Key", "a b", 50)

    assert credential.is_usable(49) and not credential.is_usable(50)
    assert "a b" not in repr(credential)


def test_the_query_keeps_what_is_not_the_parameter() -> None:
    credential = Credential("query", "api key")
    credential.put("api key", "a&b=c")

    assert credential.with_target(b"/x") == b"/x?api%20key=a%26b%3Dc"
    assert credential.with_target(b"/x?a=1&api+key=2&api%20key&b") == b"/x?a=1&b&api%20key=a%26b%3Dc"


# ---- on the wire


@pytest.mark.parametrize(
    ("send", "field", "value"),
    [
        ({}, "authorization", f"Bearer {SECRET}"),
        ({"send": "header", "name": "X-Api-Key"}, "x-api-key", SECRET),
        ({"send": "header", "name": "Authorization", "prefix": "Token "}, "authorization", f"Token {SECRET}"),
        (
            {"send": "basic", "username": "me"},
            "authorization",
            "Basic " + base64.b64encode(f"me:{SECRET}".encode()).decode(),
        ),
    ],
)
def test_the_secret_is_shown_and_the_clients_own_is_not(send: dict[str, str], field: str, value: str) -> None:
    with (
        Upstream() as upstream,
        Gateway(config(upstream, env="TEST_SECRET", **send), environ={"TEST_SECRET": SECRET}) as gateway,
    ):
        assert get(gateway.port, "/a", f"{field.upper()}: mine", f"{field}: again").status == 200

        assert [value.decode() for value in upstream.requests[0].values(field)] == [value]
        assert SECRET not in told(gateway)


def test_a_secret_in_the_query_takes_the_place_of_the_clients() -> None:
    with (
        Upstream() as upstream,
        Gateway(
            config(upstream, env="TEST_SECRET", send="query", name="key"), environ={"TEST_SECRET": SECRET}
        ) as gateway,
    ):
        get(gateway.port, "/a?x=1&key=mine&k%65y=mine")

        assert upstream.requests[0].target == f"/a?x=1&key={SECRET}".encode()


def test_a_file_is_taken_up_when_it_changes_and_kept_when_it_goes(tmp_path: Path) -> None:
    file = tmp_path / "secret"
    file.write_text("value-1\n")
    with (
        Upstream() as upstream,
        Gateway(config(upstream, file=str(file), keep="8s"), allow="credential of upstream") as gateway,
    ):

        def shown() -> str | None:
            answer = get(gateway.port)
            if answer.status == 503:
                assert json.loads(answer.body)["error"] == "The credential for the upstream is not available"
                return None
            return (upstream.requests[-1].get("authorization") or b"").decode()

        assert shown() == "Bearer value-1"
        file.with_suffix(".new").write_text("value-2")
        file.with_suffix(".new").replace(file)
        until(lambda: shown() == "Bearer value-2", "the new value")
        file.unlink()
        until(lambda: "credential of upstream" in gateway.stderr_text, "a look at the file that is gone")
        assert shown() == "Bearer value-2"
        until(lambda: shown() is None, "the end of the last good value")
        file.write_text("value-3")
        until(lambda: shown() == "Bearer value-3", "the value of the new file")

        assert "value-" not in told(gateway)


def test_a_command_prints_it_and_a_failing_one_is_a_503(tmp_path: Path) -> None:
    script = tmp_path / "print"
    script.write_text(
        f"#!{sys.executable}\nimport os\nprint('printed-' + str(os.path.exists('{tmp_path}/flag')))\n"
    )
    script.chmod(0o700)
    with Upstream() as upstream, Gateway(config(upstream, command=[str(script)], refresh="1s")) as gateway:
        assert get(gateway.port).status == 200
        assert upstream.requests[0].get("authorization") == b"Bearer printed-False"
        (tmp_path / "flag").touch()
        until(
            lambda: (
                get(gateway.port).status == 200
                and upstream.requests[-1].get("authorization") == b"Bearer printed-True"
            ),
            "the command to be run again",
        )

    with (
        Upstream() as upstream,
        Gateway(config(upstream, command=["/bin/false"]), allow="credential of upstream") as gateway,
    ):
        assert get(gateway.port).status == 503
        assert "it ended with status 1" in gateway.stderr_text


def test_a_secret_of_the_store_is_taken_up_when_it_is_set_and_dropped_with_it(tmp_path: Path) -> None:
    with Upstream() as upstream:
        document = config(upstream, store="u-key", keep="1s")
        document["store"] = {"path": str(tmp_path / "fastgate.db")}
        with Gateway(document, workers=2, allow="credential of upstream") as gateway:
            assert get(gateway.port).status == 503
            for value in ("value-1", "value-2"):
                put_secret(gateway.admin, "PUT", value)

                def shown(value: str = value) -> bool:
                    answers = [get(gateway.port).status for _ in range(6)]
                    showed = [request.get("authorization") for request in upstream.requests[-6:]]
                    return answers == [200] * 6 and showed == [f"Bearer {value}".encode()] * 6

                until(shown, value)
            put_secret(gateway.admin, "DELETE", "")
            until(lambda: get(gateway.port).status == 503, "the end of the last good value")

            assert "value-" not in told(gateway)


def put_secret(address: str, method: str, value: str) -> None:
    connection = http.client.HTTPConnection(address, timeout=60)
    connection.request(method, "/api/secrets/u-key", json.dumps({"value": value}) if value else None)
    assert connection.getresponse().status == 200
    connection.close()


def test_a_reload_keeps_the_token_and_takes_up_other_settings(tmp_path: Path) -> None:
    endpoint = TokenEndpoint(3600)
    with Upstream() as upstream, Upstream(endpoint) as issuer:
        oauth = {"token_url": f"{issuer.url}/token", "client_id": "me", "env": "TEST_SECRET"}
        document = config(upstream, oauth=oauth)
        with Gateway(document, environ={"TEST_SECRET": SECRET}) as gateway:
            get(gateway.port)
            for name, credentials, wanted in (
                ("same", {"oauth": oauth}, b"Bearer token-1"),
                ("other", {"env": "TEST_SECRET"}, f"Bearer {SECRET}".encode()),
            ):
                document["upstreams"]["u"]["credentials"] = credentials
                document["routes"][0]["name"] = name
                gateway.write_config(document)
                assert call(gateway.admin, "/api/gateway/reload", "POST").status == 200
                assert get(gateway.port).status == 200
                assert upstream.requests[-1].get("authorization") == wanted
            assert endpoint.given == 1


class TokenEndpoint:
    """Gives tokens that live for a while, and remembers how it was asked."""

    def __init__(self, life_s: float | None) -> None:
        self.life_s, self.given, self.fails = life_s, 0, False
        self.asked: list[tuple[bytes, dict[str, list[str]]]] = []

    def __call__(self, peer: Peer) -> None:
        while True:
            request = peer.read_request()
            self.asked.append((request.get("authorization") or b"", parse_qs(request.body.decode())))
            self.given += 1
            body: dict[str, Any] = {"access_token": f"token-{self.given}", "token_type": "bearer"}
            if self.life_s is not None:
                body["expires_in"] = self.life_s
            status, body = (400, {"error": "invalid_client"}) if self.fails else (200, body)
            data = json.dumps(body).encode()
            peer.send(b"HTTP/1.1 %d X\r\nContent-Length: %d\r\n\r\n%s" % (status, len(data), data))


def test_a_token_is_fetched_kept_and_renewed_ahead() -> None:
    endpoint = TokenEndpoint(4)
    with Upstream() as upstream, Upstream(endpoint) as issuer:
        oauth = {
            "token_url": f"{issuer.url}/token",
            "client_id": "me:you",
            "env": "TEST_SECRET",
            "scopes": ["a", "b"],
            "parameters": {"audience": "x"},
        }
        with Gateway(
            config(upstream, oauth=oauth), environ={"TEST_SECRET": SECRET}, allow="credential of upstream"
        ) as gateway:
            assert all(get(gateway.port).status == 200 for _ in range(5))
            assert {request.get("authorization") for request in upstream.requests} == {b"Bearer token-1"}
            shown, form = endpoint.asked[0]
            assert base64.b64decode(shown.removeprefix(b"Basic ")) == f"me%3Ayou:{SECRET}".encode()
            assert form == {"grant_type": ["client_credentials"], "scope": ["a b"], "audience": ["x"]}

            def latest() -> bytes | None:
                assert get(gateway.port).status == 200, "renewed before it expires"
                return upstream.requests[-1].get("authorization")

            until(lambda: latest() == b"Bearer token-2", "the second token")
            endpoint.fails = True
            until(lambda: get(gateway.port).status == 503, "the end of the token's life")
            endpoint.fails = False
            until(lambda: get(gateway.port).status == 200, "the endpoint to be asked again")

            said = told(gateway)
            assert "answered 400: invalid_client" in said
            assert SECRET not in said and "token-" not in said


def test_explain_shows_a_mask(tmp_path: Path) -> None:
    path = tmp_path / "gateway.json"
    path.write_text(
        json.dumps(
            {
                "admin": {"listen": "off"},  # a gateway that happens to run on this machine would answer
                "upstreams": {"u": {"targets": "http://127.0.0.1:9", "credentials": {"env": "TEST_SECRET"}}},
                "routes": [{"path": "/*", "upstream": "u"}],
            }
        )
    )

    done = subprocess.run(
        [sys.executable, "-m", "fastgate", "explain", "GET", "http://x/", "-c", str(path)],
        env={**os.environ, "TEST_SECRET": SECRET, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        check=True,
    )

    assert SECRET not in done.stdout + done.stderr
    assert "Authorization: ********" in done.stdout


# ---- the config


def site(credentials: Any, named: dict[str, Any] | None = None) -> dict[str, Any]:
    return {
        "credentials": named or {},
        "upstreams": {"u": {"targets": "http://127.0.0.1:9", "credentials": credentials}},
        "routes": [{"path": "/*", "upstream": "u"}],
    }


OAUTH = {"token_url": "http://127.0.0.1:9/t", "client_id": "a", "env": "X"}


@pytest.mark.parametrize(
    ("credentials", "path", "problem"),
    [
        ({}, "$.upstreams.u.credentials", "exactly one of"),
        ({"env": "A", "file": "b"}, "$.upstreams.u.credentials", "exactly one of"),
        ("nobody", "$.upstreams.u.credentials", "entry of $.credentials"),
        ({"env": "A", "send": "header"}, "$.upstreams.u.credentials.name", "missing key"),
        ({"env": "A", "send": "header", "name": "Host"}, "$.upstreams.u.credentials.name", "header name"),
        ({"env": "A", "name": "X"}, "$.upstreams.u.credentials.name", "without effect"),
        ({"env": "A", "username": "X"}, "$.upstreams.u.credentials.username", "send: basic"),
        ({"oauth": {**OAUTH, "env": None}}, "$.upstreams.u.credentials.oauth", "client's secret"),
        ({"oauth": {**OAUTH, "token_url": "ftp://x"}}, "$.upstreams.u.credentials.oauth.token_url", "http"),
        (
            {"oauth": {**OAUTH, "parameters": {"scope": "x"}}},
            "$.upstreams.u.credentials.oauth.parameters.scope",
            "gateway sets it",
        ),
    ],
)
def test_what_is_wrong_is_said_with_its_path(credentials: Any, path: str, problem: str) -> None:
    loaded, errors = check(json.dumps(site(credentials)), "json", {})

    assert loaded is None
    assert len(errors) == 1, errors
    assert errors[0].path == path and problem in str(errors[0])


def test_a_name_stands_for_the_settings() -> None:
    loaded, errors = check(json.dumps(site("shared", {"shared": {"env": "A"}})), "json", {})

    assert loaded is not None, errors
    assert loaded.upstreams["u"].credentials == loaded.credentials["shared"]
