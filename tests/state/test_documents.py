"""Documents in the directory: each is read again when it has changed, and not when another has."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest

from fastgate._core.shm.directory import Directory
from fastgate.auth.consumers import Consumers
from fastgate.state.records import CONSUMERS, ConsumerRecord, consumer_digest, encode_record, key_digest
from tests.control.admin_client import call, scrape
from tests.gateway import Gateway
from tests.server.gateway_harness import until
from tests.state.workers import ask_every_worker, gateway_with, named

DENY = {"name": "no-delete", "when": "request.method == 'DELETE'", "routes": "*"}
READS = ("fastgate_document_reads_total", frozenset({("document", "policies")}))


def make_keys(gateway: Gateway, count: int) -> None:
    for _ in range(count):
        assert call(gateway.admin, "/api/keys", "POST", body={"consumer": "c"}).status == 201


def reads(gateway: Gateway, keys: int) -> float:
    """Reads of the policies by all workers, from a scrape that knows of this many keys: one may be old."""
    created = ("fastgate_keys_changed_total", frozenset({("action", "created")}))
    samples: dict[Any, float] = until(
        lambda: sample if (sample := scrape(gateway.admin)).get(created) == keys else None, "a new scrape"
    )
    return samples[READS]


@pytest.mark.parametrize("workers", [1, 2, 4])
def test_a_key_makes_no_worker_read_the_policies(tmp_path: Path, workers: int) -> None:
    pytest.importorskip("cel_expr_python")
    config: dict[str, Any] = {"routes": [named({"name": "r", "path": "/*", "respond": {"body": "hello"}})]}
    with gateway_with(tmp_path, config, workers) as gateway:
        put = call(gateway.admin, "/api/policies", "PUT", body={"policies": [DENY]})
        assert put.status == 200
        told = ask_every_worker(gateway, method="DELETE")
        assert {status for status, _body in told.values()} == {403}
        make_keys(gateway, 1)
        before = reads(gateway, 1)

        make_keys(gateway, 20)
        ask_every_worker(gateway)
        assert reads(gateway, 21) == before

        assert call(gateway.admin, "/api/policies", "DELETE").status == 200
        told = ask_every_worker(gateway, method="DELETE")
        assert {status for status, _body in told.values()} == {200}
        make_keys(gateway, 1)
        assert reads(gateway, 22) == before + workers

        os.kill(gateway.worker_pids()[0], signal.SIGKILL)
        until(lambda: set(gateway.worker_pids()) - set(told), "a replacement")
        told = ask_every_worker(gateway, method="DELETE")
        assert {status for status, _body in told.values()} == {200}


def test_a_key_leaves_the_identities_of_undeclared_consumers_as_they_are() -> None:
    directory = Directory(100, 100_000)
    directory.put(key_digest(b"first"), b"1")
    consumers = Consumers({}, directory)
    identity = consumers.identity("anna", method="jwt")
    assert identity is not None

    directory.put(key_digest(b"second"), b"1")
    again = consumers.identity("anna", method="jwt")
    assert again is not None
    assert (again.record, again.version) == (identity.record, identity.version)

    directory.put(consumer_digest("anna"), encode_record(ConsumerRecord(tier="gold")))
    directory.announce(CONSUMERS)
    declared = consumers.identity("anna", method="jwt")
    assert declared is not None
    assert declared.tier == "gold" and declared.record >= 0
    other = consumers.identity("berta", method="jwt")
    assert other is not None
    assert other.record == identity.record and other.version != identity.version
