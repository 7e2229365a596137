"""Checks of request bodies through real sockets: what is refused, with which words, and what still passes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fastgate.features.validation.build import JsonConfig, ValidationConfig, compile_schema, json_fault
from tests.client import Client, get, request
from tests.gateway import Gateway
from tests.strict import Message
from tests.upstream import Upstream, echo

JSON = "Content-Type: application/json"
ORDER = {
    "type": "object",
    "required": ["id", "items"],
    "properties": {
        "id": {"type": "string", "format": "uuid"},
        "items": {"type": "array", "items": {"type": "object", "properties": {"n": {"type": "integer"}}}},
    },
}
GOOD = {"id": "123e4567-e89b-12d3-a456-426614174000", "items": [{"n": 1}]}


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    file = tmp_path_factory.mktemp("schemas") / "order.json"
    file.write_text(json.dumps(ORDER))
    with Upstream(echo) as upstream:

        def route(path: str, **validation: Any) -> dict[str, Any]:
            return {"path": path, "upstream": "origin", "validation": validation}

        config = {
            "upstreams": {"origin": {"targets": [upstream.url]}},
            "routes": [
                route("/types", content_types=["image/png", "text/*", "application/*+json"], max_body="100B"),
                route("/json", json=True, max_body="10KB"),
                route("/deep", json={"max_depth": 3, "duplicate_keys": "allowed"}, max_body="2MB"),
                route("/schema", schema=ORDER, required=True),
                route("/file", schema_file=str(file)),
                route("/shadow", json=True, enforce=False, max_body="100B"),
            ],
        }
        with Gateway(config) as running:
            yield running


def post(gateway: Gateway, path: str, body: bytes | Any, *fields: str) -> Message:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    return get(gateway.port, path, *(fields or (JSON,)), method="POST", body=data)


def said(message: Message) -> dict[str, Any]:
    found = json.loads(message.body)
    assert isinstance(found, dict)
    assert found.pop("request_id")
    assert found.pop("code")
    return found


@pytest.mark.parametrize(
    "content_type", ["image/png", "IMAGE/PNG; q=1", "text/csv", "application/problem+json ; charset=utf-8"]
)
def test_listed_types_pass(gateway: Gateway, content_type: str) -> None:
    message = post(gateway, "/types", b"data", f"Content-Type: {content_type}")

    assert (message.status, message.body) == (200, b"data")


@pytest.mark.parametrize(
    "fields",
    [
        ("Content-Type: image/jpeg",), ("Content-Type: text/",), ("Content-Type: application/json",),
        ("X-None: 1",),
        ("Content-Type:",), ("Content-Type: image/png", "Content-Type: image/png"),
        ("Content-Type: image/pngx",),
    ],
)  # fmt: skip
def test_other_types_are_415_and_say_what_would_do(gateway: Gateway, fields: tuple[str, ...]) -> None:
    message = post(gateway, "/types", b"data", *fields)

    assert message.status == 415
    assert message.get("accept") == b"image/png, text/*, application/*+json"
    assert said(message) == {
        "error": "Unsupported content type",
        "detail": "expected image/png, text/*, application/*+json",
    }


def test_a_request_without_a_body_passes_unless_one_is_required(gateway: Gateway) -> None:
    assert get(gateway.port, "/types").status == 200
    assert get(gateway.port, "/json", method="POST").status == 200
    message = get(gateway.port, "/schema", JSON, method="POST")
    assert (message.status, said(message)) == (400, {"error": "Request body missing"})


def test_a_longer_body_than_is_looked_into_is_413(gateway: Gateway) -> None:
    assert post(gateway, "/types", b"x" * 101, "Content-Type: text/plain").status == 413
    with Client(gateway.port) as client:
        client.send(request("/json", "POST", JSON, "Transfer-Encoding: chunked"))
        client.send(b"2711\r\n" + b" " * 0x2711 + b"\r\n0\r\n\r\n")
        assert client.read_response().status == 413


@pytest.mark.parametrize("body", [b'{"a":[1,2.5e3,null,true,"\xc3\xa9"]}', b"0", b' "x" ', b"[]"])
def test_json_passes_byte_by_byte(gateway: Gateway, body: bytes) -> None:
    message = post(gateway, "/json", body)

    assert (message.status, message.body) == (200, body)


def test_json_in_chunks_passes_whole(gateway: Gateway) -> None:
    with Client(gateway.port) as client:
        client.send(request("/json", "POST", JSON, "Transfer-Encoding: chunked"))
        client.send(b'3\r\n{"a\r\n5\r\n": 1}\r\n0\r\n\r\n')
        message = client.read_response()

    assert (message.status, message.body) == (200, b'{"a": 1}')


@pytest.mark.parametrize(
    ("body", "detail"),
    [
        (b'{"a":1,}', "trailing comma in object (byte 7)"),
        (b"{'a':1}", "object keys must be strings (byte 1)"),
        (b'{"a":1', "truncated"),
        (b'{"a":"\xff"}', "not UTF-8"),
        (b"[1] [2]", "trailing characters (byte 5)"),
        (b"NaN", "invalid character (byte 0)"),
        (b"\xef\xbb\xbf{}", "invalid character (byte 0)"),
        (b"[" * 5000, "nested deeper than 32"),
    ],
)
def test_what_is_no_json_is_400_and_says_where(gateway: Gateway, body: bytes, detail: str) -> None:
    message = post(gateway, "/json", body)

    assert message.status == 400
    answer = said(message)
    assert answer["error"] == "Malformed JSON body"
    assert detail in answer["detail"]


def test_a_key_that_is_there_twice_is_refused_with_its_path(gateway: Gateway) -> None:
    message = post(gateway, "/json", b'{"a":[{"role":"user","r\\u006fle":"admin"}]}')

    assert message.status == 400
    assert said(message) == {
        "error": "Malformed JSON body", "detail": "repeated key", "path": "$.a[0].role"}  # fmt: skip
    assert post(gateway, "/deep", b'{"a":1,"a":2}').status == 200


def test_a_deep_bomb_is_refused_before_it_is_parsed(gateway: Gateway) -> None:
    assert post(gateway, "/deep", [[[]]]).status == 200
    assert post(gateway, "/deep", [[[[]]]]).status == 400
    message = post(gateway, "/deep", b'{"a":' * 300_000)
    assert message.status == 400
    assert said(message) == {"error": "Malformed JSON body", "detail": "nested deeper than 3", "offset": 15}


def test_a_coded_body_cannot_be_looked_into(gateway: Gateway) -> None:
    message = post(gateway, "/json", b"\x1f\x8b", JSON, "Content-Encoding: gzip")

    assert message.status == 415
    assert message.get("accept-encoding") == b"identity"


@pytest.mark.parametrize("path", ["/schema", "/file"])
def test_a_schema_names_the_path_of_each_fault(gateway: Gateway, path: str) -> None:
    assert post(gateway, path, GOOD).status == 200
    message = post(gateway, path, {"id": "x", "items": [{"n": 1}, {"n": "2"}]})

    assert message.status == 422
    answer = said(message)
    assert answer["error"] == "Request body does not match its schema"
    assert [fault["path"] for fault in answer["errors"]] == ["$.id", "$.items[1].n"]
    assert answer["errors"][1]["message"] == '"2" is not of type "integer"'
    assert [fault["path"] for fault in said(post(gateway, path, []))["errors"]] == ["$"]


def test_at_most_five_faults_are_told(gateway: Gateway) -> None:
    message = post(gateway, "/schema", {**GOOD, "items": [{"n": "x" * 1000}] * 50})

    errors = said(message)["errors"]
    assert len(errors) == 5
    assert all(len(fault["message"]) <= 300 for fault in errors)


def test_in_shadow_mode_everything_passes_unchanged(gateway: Gateway) -> None:
    for body, fields in (
        (b"no json", (JSON,)),
        (b"{}", ("Content-Type: text/plain",)),
        (b" " * 200, (JSON,)),
        (b"[" * 90, (JSON,)),
    ):
        message = post(gateway, "/shadow", body, *fields)
        assert (message.status, message.body) == (200, body)
    with Client(gateway.port) as client:
        client.send(request("/shadow", "POST", JSON, "Transfer-Encoding: chunked"))
        client.send(b"c8\r\n" + b"x" * 200 + b"\r\n0\r\n\r\n")
        assert client.read_response().status == 200


@pytest.mark.parametrize("body", [b"9" * 5000, b"1e999", b"-", b"\\", b"", b'"\\ud800"', b'"\x00"'])
def test_no_body_is_more_than_a_fault(body: bytes) -> None:
    value, fault = json_fault(body, JsonConfig())

    assert value is None
    assert fault is not None


def test_nothing_is_fetched_for_a_schema() -> None:
    for reference in ("http://127.0.0.1:9/schema.json", "file:///etc/hostname"):
        with pytest.raises(ValueError, match="JSON Schema"):
            compile_schema(ValidationConfig(schema={"$ref": reference}))


def test_a_regular_expression_of_a_schema_cannot_run_away() -> None:
    validator = compile_schema(ValidationConfig(schema={"type": "string", "pattern": "^(a+)+$"}))

    assert not validator.is_valid("a" * 40_000 + "!")


@pytest.mark.parametrize("schema", [{"type": "nonsense"}, {"pattern": "("}, {"$ref": "#/none"}])
def test_a_bad_schema_is_a_config_error(schema: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="a JSON Schema"):
        compile_schema(ValidationConfig(schema=schema))


def test_a_schema_file_that_is_no_json_is_a_config_error(tmp_path: Path) -> None:
    file = tmp_path / "schema.json"
    file.write_text("{")

    with pytest.raises(ValueError, match="JSON"):
        compile_schema(ValidationConfig(schema_file=str(file)))
    with pytest.raises(FileNotFoundError):
        compile_schema(ValidationConfig(schema_file=str(tmp_path / "none")))
