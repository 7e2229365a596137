"""Signed requests through real sockets: replays on any number of workers, bodies, config errors, and the
snippets of the documentation as they stand there."""

from __future__ import annotations

import base64
import hashlib
import hmac
import http.client
import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from http_message_signatures import HTTPMessageSigner, HTTPSignatureKeyResolver, algorithms

from fastgate.config import InvalidConfig, load
from tests.client import Client, request
from tests.gateway import Gateway
from tests.server.gateway_harness import until
from tests.strict import Message
from tests.upstream import Upstream, echo

DOCS = Path(__file__).resolve().parent.parent.parent / "docs" / "auth"
SECRET = "a secret that nobody can guess"
NONCES = itertools.count()


def config(upstream: str, **settings: Any) -> dict[str, Any]:
    return {
        "auth": {
            "hmac": {"keys": {"acme-2": {"consumer": "acme", "secret": SECRET}}, "max_body": "10KB"},
            "signatures": {
                "keys": {"shared": {"algorithm": "hmac-sha256", "consumer": "acme", "secret": SECRET}}
            },
        },
        "consumers": {"acme": {"hmac_secret": SECRET}, "off": {"hmac_secret": SECRET, "disabled": True}},
        "upstreams": {"origin": {"targets": [upstream]}},
        "routes": [
            {"path": "/hmac/*", "upstream": "origin", "auth": ["hmac"]},
            {"path": "/both/*", "upstream": "origin", "auth": ["hmac", "signatures"]},
            {"path": "/sig/*", "upstream": "origin", "auth": ["signatures"]},
            {"path": "/shadow/*", "upstream": "origin", "auth": {"schemes": ["hmac"], "enforce": False}},
        ],
        **settings,
    }


@pytest.fixture(scope="module")
def gateway() -> Iterator[Gateway]:
    with Upstream(echo) as upstream, Gateway(config(upstream.url)) as running:
        yield running


def hmac_request(
    target: str,
    method: str = "GET",
    *,
    key: str = "acme",
    body: bytes = b"",
    digest: str | None = None,
    chunked: bool = False,
) -> bytes:
    """The bytes of a signed request."""
    ts, nonce = str(int(time.time())), f"nonce-{time.monotonic_ns()}-{next(NONCES)}"
    path, _, query = target.partition("?")
    if digest is None:
        sha256 = base64.b64encode(hashlib.sha256(body).digest()).decode()
        digest = f"sha-256=:{sha256}:" if body else ""
    lines = ["HMAC-SHA256", ts, nonce, method, "gateway.test", path, query, digest]
    signature = base64.b64encode(hmac.digest(SECRET.encode(), "\n".join(lines).encode(), "sha256")).decode()
    fields = [f'Authorization: HMAC-SHA256 key="{key}", ts="{ts}", nonce="{nonce}", signature="{signature}"']
    if digest:
        fields.append(f"Content-Digest: {digest}")
    if chunked:
        data = request(target, method, *fields, "Transfer-Encoding: chunked")
        return data + b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)
    return request(target, method, *fields, body=body)


def send(port: int, data: bytes) -> Message:
    with Client(port) as client:
        client.send(data)
        return client.read_response()


def counted(gateway: Gateway, name: str, **labels: str) -> int:
    connection = http.client.HTTPConnection(gateway.admin, timeout=60)
    connection.request("GET", "/metrics")
    text = connection.getresponse().read().decode()
    connection.close()
    total = 0
    for line in text.splitlines():
        if line.startswith(name + "{") and all(f'{key}="{value}"' in line for key, value in labels.items()):
            total += int(float(line.rpartition(" ")[2]))
    return total


@pytest.mark.parametrize("key", ["acme", "acme-2"])
@pytest.mark.parametrize("chunked", [False, True])
def test_a_signed_body_passes_whole(gateway: Gateway, key: str, chunked: bool) -> None:
    message = send(
        gateway.port, hmac_request("/hmac/a?b=1", "POST", key=key, body=b"payload", chunked=chunked)
    )

    assert (message.status, message.body) == (200, b"payload")


def test_wrong_and_unknown_credentials_get_the_same_answer(gateway: Gateway) -> None:
    good = hmac_request("/hmac/a")
    tries = [
        good.replace(b"GET ", b"PUT "),
        hmac_request("/hmac/a", key="nobody"),
        hmac_request("/hmac/a", key="off"),
        good.replace(b"HMAC-SHA256 key", b"HMAC-SHA256 yek"),
        hmac_request("/hmac/a", "POST", body=b"x", digest=""),
        hmac_request("/hmac/a", "POST", body=b"x", digest="sha-256=:AAAA:"),
    ]

    answers = {
        (
            (message := send(gateway.port, data)).status,
            re.sub(rb'"request_id":"[^"]*"', b"", message.body),
            message.get("www-authenticate"),
        )
        for data in tries
    }

    assert len({answer[:2] for answer in answers}) == 1, answers
    status, body, _ = next(iter(answers))
    assert (status, b"credentials_invalid" in body) == (401, True)
    missing = send(gateway.port, request("/hmac/a"))
    assert (missing.status, b"credentials_missing" in missing.body) == (401, True)
    assert missing.get("www-authenticate") == b'HMAC-SHA256 realm="fastgate"'


@pytest.mark.parametrize("chunked", [False, True])
def test_a_body_that_is_not_the_signed_one_never_reaches_the_upstream(
    gateway: Gateway, chunked: bool
) -> None:
    data = hmac_request("/hmac/a", "POST", body=b"pay 10 to bob", chunked=chunked)
    before = counted(gateway, "fastgate_auth_total", method="hmac", outcome="digest")

    message = send(gateway.port, data.replace(b"to bob", b"to eve"))

    assert message.status == 401
    assert b"eve" not in message.body
    until(
        lambda: counted(gateway, "fastgate_auth_total", method="hmac", outcome="digest") == before + 1,
        "the count",
    )


def test_a_digest_of_another_body_is_refused_without_a_body_too(gateway: Gateway) -> None:
    empty = "sha-256=:47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=:"
    assert send(gateway.port, hmac_request("/hmac/a", digest=empty)).status == 200
    other = base64.b64encode(hashlib.sha256(b"x").digest()).decode()

    assert send(gateway.port, hmac_request("/hmac/a", digest=f"sha-256=:{other}:")).status == 401


def test_a_signed_body_has_a_bound(gateway: Gateway) -> None:
    assert send(gateway.port, hmac_request("/hmac/a", "POST", body=b"x" * 10_001)).status == 413
    assert send(gateway.port, hmac_request("/hmac/a", "POST", body=b"x" * 10_000)).status == 200


def test_shadow_mode_lets_everything_pass(gateway: Gateway) -> None:
    assert send(gateway.port, request("/shadow/a")).status == 200
    data = hmac_request("/shadow/a", "POST", body=b"pay bob").replace(b"pay bob", b"pay eve")
    assert (message := send(gateway.port, data)).status == 200
    assert message.body == b"pay eve"


def test_shadow_mode_refuses_no_long_body_either(gateway: Gateway) -> None:
    for chunked in (False, True):
        data = hmac_request("/shadow/a", "POST", body=b"x" * 20_000, chunked=chunked)
        assert send(gateway.port, data).status == 200


def test_a_secret_made_at_run_time_works_and_ends_at_once(gateway: Gateway) -> None:
    def admin(method: str, body: str | None = None) -> int:
        connection = http.client.HTTPConnection(gateway.admin, timeout=60)
        connection.request(method, "/api/secrets/hmac/acme/2", body, {"Content-Type": "application/json"})
        status = connection.getresponse().status
        connection.close()
        return status

    assert send(gateway.port, hmac_request("/hmac/a", key="acme/2")).status == 401
    assert admin("PUT", json.dumps({"value": SECRET})) == 200
    assert send(gateway.port, hmac_request("/hmac/a", key="acme/2")).status == 200
    assert admin("DELETE") == 200
    assert send(gateway.port, hmac_request("/hmac/a", key="acme/2")).status == 401


class Resolver(HTTPSignatureKeyResolver):
    """The signer's key."""

    def resolve_public_key(self, key_id: str) -> Any:
        raise NotImplementedError

    def resolve_private_key(self, key_id: str) -> Any:
        return SECRET.encode()


def signature_request(target: str, method: str = "GET", body: bytes = b"", key: str = "shared") -> bytes:
    message = SimpleNamespace(method=method, url=f"http://gateway.test{target}", headers={})
    HTTPMessageSigner(signature_algorithm=algorithms.HMAC_SHA256, key_resolver=Resolver()).sign(
        message,
        key_id=key,
        nonce=f"{time.monotonic_ns()}-{next(NONCES)}",
        covered_component_ids=("@method", "@target-uri"),
        body=body or None,
    )
    return request(
        target, method, *(f"{name}: {value}" for name, value in message.headers.items()), body=body
    )


@pytest.mark.parametrize("path", ["/sig/a?x=1&y=%20", "/both/a"])
@pytest.mark.parametrize("key", ["shared", "acme"])
def test_another_implementations_signature_passes_once(gateway: Gateway, path: str, key: str) -> None:
    data = signature_request(path, "POST", b'{"n":1}', key)

    message = send(gateway.port, data)

    assert (message.status, message.body) == (200, b'{"n":1}')
    assert send(gateway.port, data).status == 401
    changed = signature_request(path, "POST", b'{"n":1}', key).replace(b'{"n":1}', b'{"n":2}')
    assert send(gateway.port, changed).status == 401


@pytest.mark.parametrize("workers", [1, 2, 4])
def test_a_nonce_serves_once_over_all_workers(workers: int) -> None:
    """Every request is sent on eight connections at once; exactly one of them may pass, whoever gets it."""
    with Upstream(echo) as upstream, Gateway(config(upstream.url), workers=workers) as gateway:
        clients = [Client(gateway.port) for _ in range(8)]
        try:
            for sign in (hmac_request, signature_request):
                path = "/hmac/a" if sign is hmac_request else "/sig/a"
                for _ in range(15):
                    data = sign(path)
                    assert _passed(clients, data) == 1
                    assert _passed(clients[:2], data) == 0
        finally:
            for client in clients:
                client.close()
        until(
            lambda: counted(gateway, "fastgate_auth_replays_total") == 2 * 15 * (7 + 2),
            "as many replays counted",
        )


def test_a_reload_and_a_dead_worker_forget_no_nonce() -> None:
    with (
        Upstream(echo) as upstream,
        # Workers that were just started still open what they need: no test of descriptors.
        Gateway(config(upstream.url), workers=2, allow=".", check_descriptors=False) as gateway,
    ):
        data = hmac_request("/hmac/a")
        assert send(gateway.port, data).status == 200
        changed = config(upstream.url)
        changed["routes"][0]["respond"] = "reloaded"
        del changed["routes"][0]["upstream"]
        gateway.write_config(changed)
        gateway.process.send_signal(signal.SIGHUP)
        until(lambda: send(gateway.port, hmac_request("/hmac/a")).body == b"reloaded", "the new config")
        assert send(gateway.port, data).status == 401
        victims = set(gateway.worker_pids())
        for pid in victims:
            os.kill(pid, signal.SIGKILL)
        until(lambda: len(set(gateway.worker_pids()) - victims) == 2, "new workers")

        assert send(gateway.port, data).status == 401
        assert send(gateway.port, hmac_request("/hmac/a")).status == 200


def _passed(clients: list[Client], data: bytes) -> int:
    statuses: list[int] = []
    barrier = threading.Barrier(len(clients))

    def ask(client: Client) -> None:
        barrier.wait()
        client.send(data)
        statuses.append(client.read_response().status)

    threads = [threading.Thread(target=ask, args=(client,)) for client in clients]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(statuses) <= {200, 401}
    return statuses.count(200)


# Config errors


@pytest.mark.parametrize(
    ("auth", "found"),
    [
        ({"hmac": {"keys": {"k": {"consumer": "acme", "secret": "short"}}}}, "$.auth.hmac.keys.k.secret"),
        ({"hmac": {"keys": {"a b": {"consumer": "acme", "secret": SECRET}}}}, "key id"),
        ({"hmac": {"keys": {"k": {"consumer": "acm", "secret": SECRET}}}}, "acme"),
        ({"hmac": {"required_headers": ["X-Tenant"]}}, "$.auth.hmac.required_headers"),
        ({"signatures": {"keys": {"k": {"consumer": "acme", "algorithm": "ed25519"}}}}, "public_key"),
        ({"signatures": {"required": ["@methd"]}}, "@method"),
        ({"signatures": {"required": ["@query-param"]}}, "$.auth.signatures.required"),
        ({"signatures": {"required_if_present": ["@method"]}}, "field name"),
    ],
)
def test_a_bad_key_is_a_config_error_with_its_path(tmp_path: Path, auth: dict[str, Any], found: str) -> None:
    file = tmp_path / "gateway.json"
    file.write_text(json.dumps({**config("http://127.0.0.1:1"), "auth": auth}))

    with pytest.raises(InvalidConfig) as caught:
        load(str(file))

    text = "\n".join(map(str, caught.value.exceptions))
    assert found in text
    assert SECRET not in text


# The documentation


def snippet(page: str, language: str, marker: str) -> str:
    """The code block of this language that holds the marker."""
    blocks = re.findall(rf"```{language}\n(.*?)```", (DOCS / page).read_text(), re.S)
    found = [block for block in blocks if marker in block]
    assert len(found) == 1, f"{len(found)} {language} blocks with {marker} in {page}"
    return str(found[0])


def test_the_python_snippet_of_the_page_signs_what_the_gateway_takes(
    gateway: Gateway, tmp_path: Path
) -> None:
    code = snippet("hmac.md", "python", "def sign(")
    code += f"""
url = "http://127.0.0.1:{gateway.port}/hmac/orders?b=2&a=1"
for method, body in (("GET", b""), ("POST", b'{{"n": 1}}')):
    headers = sign(method, url, key="acme", secret=b"{SECRET}", body=body, headers={{"X-Tenant": "t"}})
    request = urllib.request.Request(url, data=body or None, method=method, headers=headers)
    with urllib.request.urlopen(request) as answer:
        assert answer.read() == body, method
"""
    file = tmp_path / "client.py"
    file.write_text(code)

    done = subprocess.run([sys.executable, str(file)], capture_output=True, text=True, timeout=60)

    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(
    not (shutil.which("curl") and shutil.which("openssl")), reason="the page's snippet needs curl and openssl"
)
def test_the_curl_snippet_of_the_page_signs_what_the_gateway_takes(gateway: Gateway, tmp_path: Path) -> None:
    code = snippet("hmac.md", "sh", "openssl dgst")
    code = re.sub(r"(?m)^KEY=.*$", "KEY=acme", code)
    code = re.sub(r"(?m)^SECRET=.*$", f"SECRET='{SECRET}'", code)
    code = re.sub(r"(?m)^HOST=.*$", f"HOST=127.0.0.1:{gateway.port}", code)
    code = re.sub(r"(?m)^TARGET=.*$", "TARGET='/hmac/orders?b=2&a=1'", code)
    code = code.replace("https://$HOST", "http://$HOST").replace("curl ", "curl -sS --fail ")
    file = tmp_path / "client.sh"
    file.write_text("set -eu\n" + code)

    done = subprocess.run(["sh", str(file)], capture_output=True, text=True, timeout=60)

    assert done.returncode == 0, done.stderr
    assert done.stdout == '{"sku":"A-1"}'


def test_the_signature_snippet_of_the_page_signs_what_the_gateway_takes(tmp_path: Path) -> None:
    code = snippet("signatures.md", "python", "HTTPMessageSigner")
    match = re.search(r"```yaml\n(auth:.*?)```", (DOCS / "signatures.md").read_text(), re.S)
    assert match is not None
    keys = tmp_path / "keys.py"
    keys.write_text(snippet("signatures.md", "python", "Ed25519PrivateKey.generate"))
    done = subprocess.run(
        [sys.executable, "keys.py"], capture_output=True, text=True, timeout=60, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    with Upstream(echo) as upstream:
        text = (
            match[1]
            .replace("/etc/fastgate/", f"{tmp_path}/")
            .replace("http://orders.internal:8080", upstream.url)
        )
        text = f"listen: 127.0.0.1:0\nworkers: 1\nadmin: {{listen: 127.0.0.1:0}}\naccess_log: 'off'\n{text}"
        with Gateway(text) as gateway:
            code = code.replace("https://api.example.com", f"http://127.0.0.1:{gateway.port}")
            (tmp_path / "client.py").write_text(code)
            done = subprocess.run(
                [sys.executable, "client.py"], capture_output=True, text=True, timeout=60, cwd=tmp_path
            )

    assert done.returncode == 0, done.stderr
    assert '{"sku":"A-1"}' in done.stdout
