"""A revocation on a full disk: in effect at once, shown as pending, kept through a crash, stored later."""

from __future__ import annotations

import os
import resource
import signal
from pathlib import Path
from typing import Any

from fastgate.state.backlog import FILE_BYTES
from tests.auth.test_api_keys import ROUTE, make, statuses
from tests.control.admin_client import call, scrape, value
from tests.gateway import Gateway
from tests.server.gateway_harness import until


def controller_of(gateway: Gateway) -> int:
    return int(call(gateway.admin, "/api/gateway/status").json["controller_pid"])


def fill_disk(gateway: Gateway) -> None:
    """Lets no file of the controller grow beyond what the store's log has already: only writes in place
    succeed, as on a full disk."""
    pid = controller_of(gateway)
    log = Path(gateway.path.parent / "fastgate.db-wal")
    while log.stat().st_size <= FILE_BYTES + 100_000:
        make(gateway, metadata={"filling": "x" * 4000})
    hard = resource.prlimit(pid, resource.RLIMIT_FSIZE)[1]
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (FILE_BYTES + 1000, hard))


def test_a_key_revoked_on_a_full_disk_does_not_come_back() -> None:
    with Gateway(
        {"routes": [ROUTE], "consumers": {}},
        workers=2,
        allow="store cannot be written",
        check_descriptors=False,
    ) as gateway:
        key, other = make(gateway), make(gateway)
        fill_disk(gateway)

        ended = call(gateway.admin, f"/api/keys/{key['key_id']}", "DELETE")

        assert (ended.status, ended.json["pending_write"]) == (507, True)
        assert "The key is refused from now on" in ended.json["error"]
        assert statuses(gateway, key["api_key"]) == {401}
        shown = call(gateway.admin, f"/api/keys/{key['key_id']}").json
        assert (shown["state"], shown["pending_write"]) == ("revoked", True)
        revoked = call(gateway.admin, "/api/keys?state=revoked").json
        assert ([row["key_id"] for row in revoked["keys"]], revoked["total"]) == ([key["key_id"]], 1)
        health: dict[str, Any] = call(gateway.admin, "/health").json
        assert (health["status"], health["components"]["store"]["pending_writes"]) == ("degraded", 1)
        assert value(scrape(gateway.admin), "fastgate_store_pending_writes") == 1
        assert call(gateway.admin, "/api/auth/api-key", "POST", body={"consumer": "x"}).status == 507
        disabled = call(gateway.admin, "/api/consumers", "POST", body={"name": "acme", "disabled": True})
        assert (disabled.status, disabled.json["pending_write"]) == (507, True)
        assert statuses(gateway, other["api_key"]) == {401}

        waiting = call(gateway.admin, "/api/gateway/status").json["pending_changes"]
        assert waiting == [
            {"change": "revoke key", "name": key["key_id"], "survives_restart": True},
            {"change": "disable consumer", "name": "acme", "survives_restart": True},
        ]
        assert health["components"]["store"]["pending_in_memory_only"] == 0

        pid = controller_of(gateway)
        os.kill(pid, signal.SIGKILL)  # the next one has no bound: the disk has room again

        until(lambda: controller_of(gateway) != pid, "another controller")
        until(
            lambda: call(gateway.admin, "/health").json["components"]["store"]["pending_writes"] == 0,
            "what waited is stored",
        )
        shown = call(gateway.admin, f"/api/keys/{key['key_id']}").json
        assert (shown["state"], shown["pending_write"]) == ("revoked", False)
        assert statuses(gateway, key["api_key"]) == statuses(gateway, other["api_key"]) == {401}


def test_a_change_that_only_memory_has_is_told_to_be_lost_with_the_controller() -> None:
    with Gateway({"routes": [ROUTE]}, allow="store cannot be written", check_descriptors=False) as gateway:
        keys = [make(gateway) for _ in range(2)]
        fill_disk(gateway)
        pid = controller_of(gateway)
        hard = resource.prlimit(pid, resource.RLIMIT_FSIZE)[1]
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (0, hard))  # not even in place

        ended = [call(gateway.admin, f"/api/keys/{key['key_id']}", "DELETE") for key in keys]

        assert [one.status for one in ended] == [507, 507]
        assert all("it ends with the controller" in one.json["error"] for one in ended)
        store = call(gateway.admin, "/health").json["components"]["store"]
        assert (store["pending_writes"], store["pending_in_memory_only"]) == (2, 2)
        assert "2 of them will be lost when the controller ends" in store["problem"]
        waiting = call(gateway.admin, "/api/gateway/status").json["pending_changes"]
        assert [one["survives_restart"] for one in waiting] == [False, False]

        resource.prlimit(pid, resource.RLIMIT_FSIZE, (hard, hard))
        until(
            lambda: call(gateway.admin, "/api/gateway/status").json["pending_changes"] == [],
            "what waited is stored",
        )
        assert call(gateway.admin, "/health").json["status"] == "healthy"


def test_what_waits_is_stored_when_there_is_room_again() -> None:
    with Gateway({"routes": [ROUTE]}, allow="store cannot be written", check_descriptors=False) as gateway:
        key = make(gateway)
        fill_disk(gateway)
        assert call(gateway.admin, f"/api/keys/{key['key_id']}", "DELETE").status == 507

        pid = controller_of(gateway)
        hard = resource.prlimit(pid, resource.RLIMIT_FSIZE)[1]
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (hard, hard))

        until(
            lambda: call(gateway.admin, "/health").json["components"]["store"]["pending_writes"] == 0,
            "what waited is stored",
        )
        assert call(gateway.admin, "/health").json["status"] == "healthy"
        assert not call(gateway.admin, f"/api/keys/{key['key_id']}").json["pending_write"]
