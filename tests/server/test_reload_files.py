"""A reload reads every file anew that the config names, also when the config itself is the same."""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path
from typing import Annotated, Any

import msgspec

from fastgate.config import Changes, decode, encode
from fastgate.config.files import named_files
from fastgate.config.load import check
from fastgate.settings import FileName
from tests.authority import Authority
from tests.control.admin_client import call
from tests.gateway import Gateway
from tests.upstream import Upstream, answer
from tests.upstreams.test_tls import server_context

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello"


def replace_unseen(path: Path, content: bytes) -> None:
    """Overwrites a file and puts its time back; with content of the same size only the bytes tell."""
    before = path.stat()
    assert len(content) == before.st_size
    path.write_bytes(content)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def status_of(gateway: Gateway, body: bytes) -> int:
    with socket.create_connection(("127.0.0.1", gateway.port), 10) as sock:
        head = f"POST / HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"
        sock.sendall(head.encode() + b"\r\nConnection: close\r\n\r\n" + body)
        answered = b"".join(iter(lambda: sock.recv(65536), b""))
    return int(answered.split(b" ")[1])


def reload(gateway: Gateway) -> dict[str, Any]:
    reply = call(gateway.admin, "/api/gateway/reload", "POST")
    assert (reply.status, reply.json["result"], reply.json["kind"]) == (200, "applied", "hot")
    return dict(call(gateway.admin, "/api/gateway/status").json)


def test_a_changed_schema_is_in_effect_after_a_reload_of_the_same_config(tmp_path: Path) -> None:
    schema = tmp_path / "schema.json"
    schema.write_text(json.dumps({"type": "object"}))
    validation = {"schema_file": str(schema)}
    with Upstream(answer(OK)) as upstream:
        config = {"routes": [{"path": "/*", "upstream": upstream.url, "validation": validation}]}
        with Gateway(config, workers=2, check_descriptors=False) as gateway:
            assert (status_of(gateway, b"{}"), status_of(gateway, b'""')) == (200, 422)
            digest = call(gateway.admin, "/api/gateway/status").json["config_digest"]

            replace_unseen(schema, json.dumps({"type": "string"}).encode())
            after = reload(gateway)

            assert after["config_digest"] != digest
            for _ in range(8):
                assert (status_of(gateway, b"{}"), status_of(gateway, b'""')) == (422, 200)
            assert reload(gateway)["config_digest"] == after["config_digest"]


def test_a_changed_ca_of_an_upstream_is_in_effect_after_a_reload_of_the_same_config(tmp_path: Path) -> None:
    ours, other = Authority(tmp_path, "ours"), Authority(tmp_path, "other")
    trusted = tmp_path / "trusted.pem"
    trusted.write_bytes(Path(ours.certificate).read_bytes())
    pair = ours.issue("upstream", ["localhost"])
    with Upstream(answer(OK), tls=server_context(pair)) as upstream:
        target = f"https://localhost:{upstream.port}"
        config = {
            "upstreams": {"x": {"targets": [target], "tls": {"ca": str(trusted)}}},
            "routes": [{"path": "/*", "upstream": "x"}],
        }
        with Gateway(config, allow="certificate", check_descriptors=False) as gateway:
            assert status_of(gateway, b"") == 200

            trusted.write_bytes(Path(other.certificate).read_bytes())
            reload(gateway)
            assert status_of(gateway, b"") == 502

            trusted.write_bytes(Path(ours.certificate).read_bytes())
            reload(gateway)
            assert status_of(gateway, b"") == 200


CONFIG = """
listen: {address: ":8080", tls: {certificates: [{certificate: FILE0, key: FILE1}]}}
upstreams:
  x:
    targets: [https://one.example]
    tls: {ca: FILE2, certificate: FILE3, key: FILE4}
    credentials: {file: FILE5}
auth:
  jwt:
    issuers:
      - {issuer: one, audience: a, public_key: FILE6}
      - {issuer: two, audience: a, jwks_file: FILE7}
routes:
  - {path: /a, upstream: x, auth: [jwt]}
"""


def test_every_file_that_the_config_names_is_part_of_its_identity(
    tmp_path: Path,
) -> None:
    authority = Authority(tmp_path, "one")
    pair = authority.issue("one", ["one.example"])
    jwks = tmp_path / "jwks.json"
    jwks.write_text('{"keys": [{"kty": "oct", "alg": "HS256", "k": "' + "a" * 43 + '"}]}')
    secret = tmp_path / "secret"
    secret.write_text("secret")
    names = [
        pair.certificate, pair.key, authority.certificate, pair.certificate, pair.key, str(secret),
        pair.certificate, str(jwks),
    ]  # fmt: skip
    text = CONFIG
    for index, name in enumerate(names):
        copy = tmp_path / f"file{index}"
        copy.write_bytes(Path(name).read_bytes())
        text = text.replace(f"FILE{index}", str(copy))
    config, errors = check(text, "yaml", {})
    assert config is not None, errors

    before = decode(encode(config))

    assert sorted(before.files) == sorted(str(tmp_path / f"file{index}") for index in range(len(names)))
    for name in before.files:
        with open(name, "ab") as file:
            file.write(b"\n")
        after = decode(encode(config))
        assert {path for path in after.files if after.files[path] != before.files[path]} == {name}
        assert Changes(before.files, after.files).concern(msgspec.msgpack.encode(config))
        before = after


def test_only_what_names_a_changed_file_is_concerned() -> None:
    changes = Changes({"/a": "1", "/b": "1"}, {"/a": "2", "/b": "1", "/c": "1"})

    assert changes.concern(msgspec.msgpack.encode({"deep": [{"ca": "/a"}]}))
    assert changes.concern(msgspec.msgpack.encode(["/c"]))
    assert not changes.concern(msgspec.msgpack.encode({"ca": "/b", "/a": 1, "text": "/a/b"}))
    assert not Changes({"/a": "1"}, {"/a": "1"}).concern(msgspec.msgpack.encode("/a"))


def test_a_file_that_cannot_be_read_has_an_identity_too(tmp_path: Path) -> None:
    fifo, missing = tmp_path / "fifo", tmp_path / "missing"
    os.mkfifo(fifo)
    config, errors = check(json.dumps({"routes": [{"path": "/", "respond": ""}]}), "json", {})
    assert config is not None, errors

    class Two(msgspec.Struct):
        one: FileName
        more: Annotated[list[str], msgspec.Meta(extra={"file": True})]

    with_files = msgspec.structs.replace(config, upstreams={"x": Two(str(fifo), [str(missing)])})  # type: ignore[dict-item]

    assert named_files(with_files) == {str(fifo): "not a regular file", str(missing): "errno 2"}
