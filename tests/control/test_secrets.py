"""Secrets over the admin API: sealed at rest, masked everywhere."""

from __future__ import annotations

import json
from pathlib import Path

from tests.auth.test_api_keys import make, use
from tests.control.admin_client import call
from tests.gateway import Gateway

ROUTE = {"path": "/*", "respond": "in"}
SECRET = "sk-proj-0123456789abcdefghij-WXYZ"


def test_a_secret_is_told_to_nobody_and_is_sealed_on_the_disk(tmp_path: Path) -> None:
    config = {"routes": [ROUTE], "store": {"path": str(tmp_path / "a.db")}}
    with Gateway(config) as gateway:
        put = call(gateway.admin, "/api/secrets/providers/openai", "PUT", body={"value": SECRET})
        listed = call(gateway.admin, "/api/secrets").json["secrets"]

        assert (put.status, put.json) == (200, {"name": "providers/openai", "value": "…WXYZ"})
        assert [(row["name"], row["value"]) for row in listed] == [("providers/openai", "…WXYZ")]
        assert SECRET not in json.dumps(listed) + gateway.stderr_text
        assert call(gateway.admin, "/api/secrets/providers/openai").status == 405
    for path in tmp_path.iterdir():
        assert SECRET.encode() not in path.read_bytes()

    with Gateway(config) as gateway:
        assert call(gateway.admin, "/api/secrets").json["secrets"][0]["value"] == "…WXYZ"
        assert call(gateway.admin, "/api/secrets/providers/openai", "DELETE").status == 200
        assert call(gateway.admin, "/api/secrets").json["secrets"] == []
        assert call(gateway.admin, "/api/secrets/providers/openai", "DELETE").status == 404


def test_secrets_sealed_with_another_key_degrade_and_take_no_api_key_along(tmp_path: Path) -> None:
    config = {"routes": [{**ROUTE, "auth": ["api_key"]}], "store": {"path": str(tmp_path / "a.db")}}
    with Gateway(config, environ={"FASTGATE_STORE_KEY": "11" * 32}) as gateway:
        assert call(gateway.admin, "/api/secrets/a", "PUT", body={"value": SECRET}).status == 200
        assert not (tmp_path / "a.db.key").exists()
        key = make(gateway)["api_key"]

    with Gateway(
        config, environ={"FASTGATE_STORE_KEY": "22" * 32}, allow="a secret is not available"
    ) as gateway:
        health = call(gateway.admin, "/health").json["components"]["store"]
        assert health["status"] == "degraded"
        assert "'a' does not open with the key of $FASTGATE_STORE_KEY" in health["problem"]
        assert use(gateway, key) == 200
        assert call(gateway.admin, "/api/secrets").json["secrets"][0]["value"] is None


def test_bad_names_and_values_are_refused(tmp_path: Path) -> None:
    with Gateway({"routes": [ROUTE], "store": {"path": str(tmp_path / "a.db")}}) as gateway:
        assert call(gateway.admin, "/api/secrets/a%20b", "PUT", body={"value": "x"}).status == 400
        assert call(gateway.admin, "/api/secrets/a", "PUT", body={"value": ""}).status == 400
        assert call(gateway.admin, "/api/secrets/a", "PUT", body={}).status == 400
        assert list(tmp_path.iterdir()) == []
