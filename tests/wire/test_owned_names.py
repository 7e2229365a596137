"""Names that only the gateway may say: in every spelling that an upstream could take for them, and wherever a
name can stand.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.client import Client, request
from tests.gateway import Gateway
from tests.strict import Message
from tests.upstream import Upstream, answer

ALLOWED = b"HTTP/1.1 200 OK\r\nX-Auth-User: ada\r\nContent-Length: 0\r\n\r\n"

OURS = {
    "X-Consumer": None,
    "X-Consumer-Id": "ada",
    "X-Consumer-Anything": None,
    "X-Auth-User": "ada",
    "X-Tenant": "acme",
    "X-Removed": None,
    "X-Deadline-Ms": "left",
    "X-Upstream-Token": "s3cret",
    "X-Request-ID": "id",
    "X-Real-IP": None,
    "X-Forwarded-For": "127.0.0.1",
    "X-Forwarded-Proto": "http",
    "X-Forwarded-Host": "gateway.test",
    "X-Forwarded-Port": None,
    "X-Forwarded-Prefix": None,
    "X-Forwarded-Server": None,
    "X-Forwarded-Uri": None,
    "X-Forwarded-Ssl": None,
    "X-Forwarded-Scheme": None,
    "X-Forwarded-Client-Cert": None,
    "Forwarded": "for=127.0.0.1",
}
"""Name, and a part of what the gateway itself says under it (None: nothing)."""


RENAMES = """
from fastgate.plugin import Plugin


class Renames(Plugin):
    @classmethod
    def build(cls, settings, env):
        return cls()

    def upstream_request(self, ctx, head):
        head.headers.rename("X-A", "X-Consumer-Id")
"""


class Harness(NamedTuple):
    gateway: Gateway
    upstream: Upstream


@pytest.fixture(scope="module")
def harness() -> Iterator[Harness]:
    with Upstream(answer(ALLOWED)) as judge, Upstream(answer()) as upstream:
        config = {
            "auth": {
                "forward": {
                    "url": judge.url,
                    "timeout": "15s",
                    "upstream_headers": ["X-Auth-User"],
                    "consumer_header": "X-Auth-User",
                }
            },
            "upstreams": {
                "one": {
                    "targets": [upstream.url],
                    "timeouts": {"total": "60s", "deadline_header": "X-Deadline-Ms"},
                    "credentials": {"env": "UPSTREAM_TOKEN", "send": "header", "name": "X-Upstream-Token"},
                }
            },
            "routes": [
                {
                    "path": "/{rest...}",
                    "upstream": "one",
                    "auth": ["forward"],
                    "request_headers": {"set": {"X-Tenant": "acme"}, "remove": ["X-Removed"]},
                }
            ],
        }
        with Gateway(config, environ={"UPSTREAM_TOKEN": "s3cret"}) as gateway:
            yield Harness(gateway, upstream)


def spellings(name: str) -> list[str]:
    return [
        name,
        name.upper(),
        name.replace("-", "_"),
        name.replace("-", "."),
        name.replace("-", "_", 1),
        name[::-1].replace("-", ".", 1)[::-1].lower(),
        name.replace("-", "~"),
    ]


def fold(name: str) -> str:
    return "".join(letter if letter.isalnum() else "-" for letter in name.lower())


def relayed(harness: Harness, data: bytes) -> Message:
    harness.upstream.script = answer()
    with Client(harness.gateway.port) as client:
        client.send(data)
        assert client.read_response().status == 200
    return harness.upstream.requests[-1]


def said(seen: Message, name: str) -> list[bytes]:
    """The values of all fields and trailers that an upstream might take for this one."""
    fields = [*seen.headers, *seen.trailers]
    return [value for key, value in fields if fold(key.decode("latin-1")) == fold(name)]


@pytest.mark.parametrize("name", OURS)
def test_no_spelling_of_our_names_passes_from_a_client(harness: Harness, name: str) -> None:
    forged = [f"{spelling}: forged" for spelling in spellings(name)]

    seen = relayed(harness, request("/a", "GET", *forged, *forged))

    ours = OURS[name]
    values = said(seen, name)
    assert b"forged" not in b" ".join(values)
    assert len(values) == (0 if ours is None else 1)
    if ours not in (None, "left", "id"):
        assert str(ours).encode() in values[0]


@pytest.mark.parametrize("name", OURS)
def test_no_spelling_of_our_names_passes_as_a_trailer(harness: Harness, name: str) -> None:
    names = spellings(name)
    trailers = "".join(f"{spelling}: forged\r\n" for spelling in names)
    body = f"2\r\nhi\r\n0\r\nX-Kept: yes\r\n{trailers}\r\n".encode()

    seen = relayed(
        harness,
        request(
            "/a",
            "POST",
            "TE: trailers",
            "Transfer-Encoding: chunked",
            f"Trailer: X-Kept, {', '.join(names)}",
            body=body,
        ),
    )

    assert [(key.lower(), value) for key, value in seen.trailers] == [(b"x-kept", b"yes")]
    assert seen.get("trailer") == b"X-Kept"
    assert b"forged" not in seen.raw


@pytest.mark.parametrize("name", [name for name, ours in OURS.items() if ours is not None])
def test_a_client_cannot_have_our_field_removed_by_listing_it(harness: Harness, name: str) -> None:
    listed = ", ".join(spellings(name))

    seen = relayed(harness, request("/a", "GET", f"Connection: {listed}", f"{name}: forged"))

    assert len(said(seen, name)) == 1
    assert b"forged" not in b" ".join(said(seen, name))


@pytest.mark.parametrize("name", ["Content-Length", "Transfer-Encoding", "Keep-Alive", "Proxy-Connection"])
def test_no_other_spelling_of_the_framing_passes(harness: Harness, name: str) -> None:
    seen = relayed(harness, request("/a", "GET", *(f"{one}: 7" for one in spellings(name)[2:])))

    assert said(seen, name) == []


def test_names_that_only_resemble_ours_pass(harness: Harness) -> None:
    names = ["X-Consumers", "XConsumer-Id", "X-Forwarder", "X-Tenants", "X_Custom", "X.Custom-Id"]

    seen = relayed(harness, request("/a", "GET", *(f"{name}: mine" for name in names)))

    assert [seen.get(name) for name in names] == [b"mine"] * len(names)


def test_a_trusted_proxy_says_the_rest_of_the_forwarding_fields_in_their_spelling_only() -> None:
    with Upstream(answer()) as upstream:
        config = {"trusted_proxies": ["127.0.0.0/8"], "routes": [{"path": "/*", "upstream": upstream.url}]}
        with Gateway(config) as gateway, Client(gateway.port) as client:
            client.send(request("/a", "GET", "X-Forwarded-Prefix: /api", "X_Forwarded-Prefix: /evil"))
            assert client.read_response().status == 200

        assert said(upstream.requests[-1], "X-Forwarded-Prefix") == [b"/api"]


def test_what_a_plugin_makes_of_a_field_never_stands_beside_the_identity(tmp_path: Path) -> None:
    (tmp_path / "renames.py").write_text(RENAMES)
    environ = {"PYTHONPATH": f"{Path(__file__).resolve().parents[2]}:{tmp_path}"}
    with Upstream(answer(ALLOWED)) as judge, Upstream(answer()) as upstream:
        config = {
            "auth": {"forward": {"url": judge.url, "timeout": "15s", "consumer_header": "X-Auth-User"}},
            "plugins": ["renames:Renames"],
            "routes": [{"path": "/*", "upstream": upstream.url, "auth": ["forward"]}],
        }
        with Gateway(config, environ=environ) as gateway:
            seen = relayed(Harness(gateway, upstream), request("/a", "GET", "X-A: forged"))

    assert said(seen, "X-Consumer-Id") == [b"ada"]
