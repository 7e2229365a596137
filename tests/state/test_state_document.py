"""The State document through the whole gateway: in effect on every worker, or refused and nothing changed,
whoever is killed meanwhile.
"""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import sqlite3
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.client import get
from tests.control.admin_client import Answer, call
from tests.gateway import Gateway
from tests.server.gateway_harness import until
from tests.state.workers import ask_every_worker, gateway_with, named

HOLD = """
import asyncio
import os

from fastgate.plugin import Plugin, Settings


class HoldSettings(Settings):
    until: str


class Hold(Plugin):
    Config = HoldSettings

    @classmethod
    def build(cls, settings, env):
        plugin = cls()
        plugin.until = settings.until
        return plugin

    async def start(self):
        if self.until == "fails":
            raise RuntimeError("this plugin does not start")
        open(f"{self.until}.{os.getpid()}", "w").close()
        while not os.path.exists(self.until):
            await asyncio.sleep(0.01)
"""


def fixed(name: str, body: str, **more: Any) -> dict[str, Any]:
    return named({"name": name, "path": f"/{name}", "respond": {"body": body}, **more})


BASE: dict[str, Any] = {"routes": [fixed("a", "a of the file"), fixed("b", "b of the file")]}


def document(*routes: dict[str, Any]) -> dict[str, Any]:
    return {"routes": list(routes)}


def put(gateway: Gateway, base: int, state: dict[str, Any]) -> Answer:
    return call(gateway.admin, "/api/state", "PUT", body={"base": base, "document": state})


def done(answer: Answer) -> int:
    """The version of a document that was put."""
    assert answer.status == 200, answer.body
    return int(answer.json["version"])


def current(gateway: Gateway) -> int:
    return int(call(gateway.admin, "/api/state").json["version"])


def reload(gateway: Gateway, folder: Path, config: dict[str, Any]) -> Answer:
    gateway.write_config({"store": {"path": str(folder / "fastgate.db")}, **config})
    return call(gateway.admin, "/api/gateway/reload", "POST")


def everywhere(gateway: Gateway, target: str) -> tuple[int, bytes]:
    """What every worker responds: the same."""
    told = set(ask_every_worker(gateway, target).values())
    assert len(told) == 1, told
    return told.pop()


def is_found(gateway: Gateway, name: str) -> bool:
    """Whether the workers have this route. Without it no plugin names the worker: all are asked by chance."""
    statuses = {get(gateway.port, f"/{name}").status for _ in range(30)}
    assert statuses in ({200}, {404})
    return statuses == {200}


def kill_worker(gateway: Gateway, number: int = 0) -> None:
    before = gateway.worker_pids()
    os.kill(before[number], signal.SIGKILL)
    until(lambda: set(gateway.worker_pids()) - set(before), "another worker")


def kill_controller(gateway: Gateway) -> None:
    os.kill(call(gateway.admin, "/api/gateway/status").json["controller_pid"], signal.SIGKILL)


@pytest.mark.parametrize("workers", [1, 2, 4])
def test_versions_are_in_effect_everywhere_and_kept(tmp_path: Path, workers: int) -> None:
    with gateway_with(tmp_path, BASE, workers) as gateway:
        assert (current(gateway), is_found(gateway, "new")) == (0, False)
        first = done(put(gateway, 0, document(fixed("new", "one"))))
        assert everywhere(gateway, "/new") == (200, b"one")

        second = done(put(gateway, first, document(fixed("new", "two"), {"name": "a", "enabled": False})))
        assert everywhere(gateway, "/new") == (200, b"two")
        assert not is_found(gateway, "a")

        kill_worker(gateway)
        assert everywhere(gateway, "/new") == (200, b"two")
        changed = {"routes": [*BASE["routes"], fixed("c", "c of the file")]}
        assert reload(gateway, tmp_path, changed).json["kind"] == "hot"
        assert everywhere(gateway, "/c") == (200, b"c of the file")
        assert everywhere(gateway, "/new") == (200, b"two")
        assert not is_found(gateway, "a")

        kill_controller(gateway)
        assert current(gateway) == second
        versions = call(gateway.admin, "/api/state/versions").json["versions"]
        assert [row["version"] for row in versions] == [second, first]
        old = call(gateway.admin, f"/api/state/versions/{first}").json["document"]
        third = done(put(gateway, second, old))
        assert everywhere(gateway, "/a") == (200, b"a of the file")
        assert everywhere(gateway, "/new") == (200, b"one")

    with gateway_with(tmp_path, BASE, workers) as gateway:
        assert current(gateway) == third
        assert everywhere(gateway, "/new") == (200, b"one")
        assert done(put(gateway, third, {})) == third + 1
        assert not is_found(gateway, "new")


@pytest.mark.parametrize("workers", [1, 2, 4])
def test_what_cannot_be_built_is_refused_and_changes_no_worker(tmp_path: Path, workers: int) -> None:
    (tmp_path / "hold.py").write_text(HOLD)
    with gateway_with(tmp_path, BASE, workers, allow="config refused|state refused") as gateway:
        first = done(put(gateway, 0, document(fixed("new", "one"))))
        before = set(gateway.worker_pids())

        refused = put(gateway, first, document(fixed("new", "two", upstream="nowhere")))
        assert refused.status == 422
        places = [(error["path"], error["where"]) for error in refused.json["errors"]]
        assert ("$.routes[2]", f"state version {first + 1} $.routes[0]") in places, places
        failing = {"use": "hold:Hold", "until": "fails"}
        refused = put(gateway, first, document({"name": "a", "plugins": [failing]}))
        assert refused.status == 422
        assert "this plugin does not start" in refused.json["errors"][0]["text"]
        assert put(gateway, first, {"workers": 3}).status == 422
        assert put(gateway, first + 1, {}).status == 409
        assert put(gateway, 0, {}).json["version"] == first

        assert set(gateway.worker_pids()) == before
        assert current(gateway) == first
        assert everywhere(gateway, "/new") == (200, b"one")
        rows = call(gateway.admin, "/api/state/versions").json["versions"]
        assert [row["version"] for row in rows] == [first]
        for missing in (first + 1, first + 2, 99, 1 << 63, "9" * 5000, "x"):
            assert call(gateway.admin, f"/api/state/versions/{missing}").status == 404


def with_hold(folder: Path, config: dict[str, Any]) -> dict[str, Any]:
    """The config with a route that has the plugin `Hold`, so that the workers have loaded its code."""
    (folder / "open").touch()
    plugin = {"use": "hold:Hold", "until": str(folder / "open")}
    return {
        **config,
        "routes": [*config["routes"], {"name": "h", "path": "/h", "respond": "", "plugins": [plugin]}],
    }


def builders(gate: Path) -> list[int]:
    """The workers that have begun to build the plan that is held up."""
    return [int(path.suffix[1:]) for path in gate.parent.glob(f"{gate.name}.*")]


def held(gateway: Gateway, gate: Path, workers: int) -> None:
    """Waits until so many workers build the plan that is held up."""
    until(lambda: len(builders(gate)) >= workers, "workers that build the plan")


def hold_up(gate: Path) -> dict[str, Any]:
    return document(
        {
            "name": "a",
            "respond": {"body": "held"},
            "plugins": ["worker_name:Named", {"use": "hold:Hold", "until": str(gate)}],
        }
    )


@pytest.mark.parametrize("workers", [1, 2, 4])
@pytest.mark.parametrize("kind", ["hot", "generation"])
def test_a_worker_killed_while_it_builds_neither_stalls_nor_misses_a_version(
    tmp_path: Path, kind: str, workers: int
) -> None:
    gate = tmp_path / "gate"
    # Code of a plugin that no worker has loaded yet needs new workers.
    config = with_hold(tmp_path, BASE) if kind == "hot" else BASE
    (tmp_path / "hold.py").write_text(HOLD)
    with gateway_with(tmp_path, config, workers) as gateway, ThreadPoolExecutor() as pool:
        before = set(gateway.worker_pids())
        putting = pool.submit(put, gateway, 0, hold_up(gate))
        held(gateway, gate, workers)
        assert everywhere(gateway, "/a") == (200, b"a of the file")
        victim = builders(gate)[0]
        assert (victim in before) == (kind == "hot")
        os.kill(victim, signal.SIGKILL)
        until(lambda: victim not in gateway.worker_pids(), "the end of the worker")
        assert not putting.done()
        gate.touch()

        assert done(putting.result()) == 1
        assert everywhere(gateway, "/a") == (200, b"held")
        status = call(gateway.admin, "/api/gateway/status").json
        versions = {worker["config_version"] for worker in status["workers"] if worker["state"] == "ready"}
        assert versions == {status["config_version"]}
        assert status["last_reload"]["kind"] == kind


@pytest.mark.parametrize("workers", [1, 2, 4])
def test_versions_while_workers_are_killed_at_any_moment(tmp_path: Path, workers: int) -> None:
    seed = random.randrange(1 << 30)
    print("seed", seed)
    rng = random.Random(seed)
    version = 0
    with gateway_with(tmp_path, BASE, workers) as gateway:
        for round_ in range(8):
            go_on = threading.Event()

            def kill(go_on: threading.Event = go_on) -> None:
                # Not faster than they start: one that never lives long enough to build a plan proves nothing.
                go_on.wait(rng.random() * 0.3)
                pids = gateway.worker_pids()
                if pids:
                    with contextlib.suppress(ProcessLookupError):  # a reload has ended it meanwhile
                        os.kill(rng.choice(pids), signal.SIGKILL)

            killer = threading.Thread(target=kill)
            killer.start()
            if round_ % 3 == 2:
                answer = reload(gateway, tmp_path, BASE)
                assert answer.status == 200, answer.body
            else:
                version = done(put(gateway, version, document({"name": "a", "respond": f"{round_}"})))
                expected = b"%d" % round_
            go_on.set()
            killer.join()
            until(lambda: len(gateway.worker_pids()) == workers, "all workers")
            until(
                lambda: all(
                    worker["state"] == "ready"
                    for worker in call(gateway.admin, "/api/gateway/status").json["workers"]
                ),
                "workers that are ready",
            )

            assert everywhere(gateway, "/a") == (200, expected), round_
            assert current(gateway) == version


@pytest.mark.parametrize("fate", ["commits", "is refused"])
def test_a_version_whose_controller_died_is_adopted_by_the_next_or_forgotten(
    tmp_path: Path, fate: str
) -> None:
    (tmp_path / "hold.py").write_text(HOLD)
    gate = tmp_path / "gate"
    with gateway_with(tmp_path, BASE, 2, allow="refused|does not") as gateway:
        first = done(put(gateway, 0, document(fixed("new", "one"))))
        state = hold_up(gate)
        with ThreadPoolExecutor() as pool:
            putting = pool.submit(put, gateway, first, state)
            held(gateway, gate, 2)
            kill_controller(gateway)
            with pytest.raises((OSError, Exception)):
                putting.result()
        assert current(gateway) == first
        if fate == "commits":
            gate.touch()
            until(lambda: current(gateway) == first + 1, "the version is in effect")
            assert everywhere(gateway, "/a") == (200, b"held")
            version = first + 1
        else:
            # A change that was asked for meanwhile waits, and then does not apply to what is in effect.
            later = ThreadPoolExecutor()
            waiting = later.submit(put, gateway, first, document(fixed("new", "lost")))
            gate.touch()
            assert waiting.result().status == 409
            later.shutdown()
            version = first + 1
        rows = call(gateway.admin, "/api/state/versions").json["versions"]
        assert [row["version"] for row in rows] == [version, first]
        changed = done(put(gateway, version, document(fixed("new", "three"))))
        assert changed > version

    with gateway_with(tmp_path, BASE, 2) as gateway:
        assert current(gateway) == changed
        assert everywhere(gateway, "/new") == (200, b"three")


def test_two_changes_at_once_of_the_same_version_are_one_change_and_one_conflict(tmp_path: Path) -> None:
    with gateway_with(tmp_path, BASE, 2) as gateway, ThreadPoolExecutor() as pool:
        asked = [pool.submit(put, gateway, 0, document(fixed(f"n{i}", f"{i}"))) for i in range(5)]
        statuses = sorted(answer.result().status for answer in asked)

        assert statuses == [200, 409, 409, 409, 409]
        version = current(gateway)
        routes = call(gateway.admin, "/api/state").json["document"]["routes"]
        assert everywhere(gateway, f"/{routes[0]['name']}")[0] == 200
        assert [row["version"] for row in call(gateway.admin, "/api/state/versions").json["versions"]] == [
            version
        ]


def test_a_version_is_put_over_the_file_in_use_and_not_over_the_one_on_disk(tmp_path: Path) -> None:
    with gateway_with(tmp_path, BASE, 2, allow="config refused") as gateway:
        assert reload(gateway, tmp_path, {"routes": [{"path": "bad"}]}).status == 422

        version = done(put(gateway, 0, document(fixed("new", "one"))))

        assert everywhere(gateway, "/new") == (200, b"one")
        assert everywhere(gateway, "/b") == (200, b"b of the file")
        refused = reload(gateway, tmp_path, {"routes": [fixed("new", "file"), {"path": "bad"}]})
        assert refused.status == 422
        assert reload(gateway, tmp_path, {"routes": [fixed("b", "other")]}).status == 200
        assert everywhere(gateway, "/b") == (200, b"other")
        assert everywhere(gateway, "/new") == (200, b"one")
        assert current(gateway) == version


def test_a_file_that_does_not_go_with_the_state_is_refused_at_a_reload_and_at_a_start(
    tmp_path: Path,
) -> None:
    upstreams = {"api": {"targets": "http://127.0.0.1:1"}}
    with gateway_with(tmp_path, {**BASE, "upstreams": upstreams}, 1, allow="config refused") as gateway:
        route = {"name": "proxied", "path": "/p", "upstream": "api"}
        version = done(put(gateway, 0, document(route)))

        refused = reload(gateway, tmp_path, BASE)

        assert refused.status == 422
        assert refused.json["errors"][0]["where"] == f"state version {version} $.routes[0].upstream"
        assert refused.json["errors"][0]["path"] == "$.routes[2].upstream"

    with pytest.raises(
        AssertionError, match=rf"state version {version} \$\.routes\[0\]\.upstream"
    ) as refused:
        gateway_with(tmp_path, BASE, 1).start()
    assert "start with --state 0 (the file alone)" in str(refused.value)


def test_a_gateway_is_started_with_an_older_version_or_with_the_file_alone(tmp_path: Path) -> None:
    with gateway_with(tmp_path, BASE, 1) as gateway:
        first = done(put(gateway, 0, document(fixed("new", "one"))))
        second = done(put(gateway, first, document(fixed("new", "two"))))

    for chosen, response in ((first, (200, b"one")), (0, (404, b""))):
        arguments = ("--state", str(chosen))
        with gateway_with(tmp_path, BASE, 1, allow="state not in effect", arguments=arguments) as gateway:
            kill_controller(gateway)
            until(lambda: "--state" in gateway.stderr_text, "the warning")
            assert call(gateway.admin, "/api/gateway/reload", "POST").status == 200
            assert current(gateway) == chosen
            answer = get(gateway.port, "/new")
            assert (answer.status, answer.body if chosen else b"") == response
    with sqlite3.connect(tmp_path / "fastgate.db") as db:
        db.execute(
            "INSERT INTO state (version, base, document, created_ns, adopted_ns) VALUES (?, 0, '{}', 1, 0)",
            (second + 1,),
        )
    db.close()
    off = {**BASE, "admin": {"listen": "off"}}
    for config, chosen, problem in (
        (BASE, second + 2, f"there is no state version {second + 2}"),
        (BASE, second + 1, f"state version {second + 1} was never in effect"),
        (off, first, f"--state {first} has no effect without the admin API"),
    ):
        with pytest.raises(AssertionError, match=problem):
            gateway_with(tmp_path, config, 1, arguments=("--state", str(chosen))).start()
    with gateway_with(tmp_path, BASE, 1, allow="state not in effect", arguments=("--state", "0")) as gateway:
        third = done(put(gateway, 0, document(fixed("new", "three"))))
        assert third > second

    with gateway_with(tmp_path, BASE, 1) as gateway:
        assert (current(gateway), everywhere(gateway, "/new")) == (third, (200, b"three"))


def test_a_store_that_can_be_read_later_brings_its_state_into_effect(tmp_path: Path) -> None:
    store = tmp_path / "fastgate.db"
    with gateway_with(tmp_path, BASE, 2) as gateway:
        version = done(put(gateway, 0, document(fixed("new", "one"))))
    shutil.copy(store, tmp_path / "good.db")
    store.write_bytes(b"SQLite format 3\0" + b"\xff" * 8000)

    with gateway_with(tmp_path, BASE, 2, allow="store cannot be used") as gateway:
        assert "serving without state" in gateway.stderr_text
        assert (current_or_fault(gateway), is_found(gateway, "new")) == (503, False)
        health = call(gateway.admin, "/health").json["components"]["state"]
        assert (health["status"], health["version"], health["newest"]) == ("degraded", 0, None)
        shutil.copy(tmp_path / "good.db", tmp_path / "fresh.db")
        (tmp_path / "fresh.db").replace(store)

        until(lambda: current_or_fault(gateway) == version, "the state of the store", 120)
        assert everywhere(gateway, "/new") == (200, b"one")
        health = call(gateway.admin, "/health").json["components"]["state"]
        assert health == {"status": "healthy", "version": version, "newest": version}


def test_a_version_survives_a_store_that_is_recreated(tmp_path: Path) -> None:
    with gateway_with(tmp_path, BASE, 2, allow="state is no longer in the store|refused") as gateway:
        version = done(put(gateway, 0, document(fixed("new", "one"))))
        with sqlite3.connect(tmp_path / "fastgate.db") as db:
            db.executescript("DELETE FROM state; DELETE FROM sqlite_sequence;")
        db.close()
        assert put(gateway, version, document(fixed("new", "two", upstream="nowhere"))).status == 422

        until(lambda: call(gateway.admin, "/api/state").status == 200, "the version is stored again")

        assert everywhere(gateway, "/new") == (200, b"one")
        second = done(put(gateway, version, document(fixed("new", "two"))))
        assert second > version

    with gateway_with(tmp_path, BASE, 2) as gateway:
        assert current(gateway) == second
        assert everywhere(gateway, "/new") == (200, b"two")


def current_or_fault(gateway: Gateway) -> int:
    answer = call(gateway.admin, "/api/state")
    return answer.status if answer.status == 503 else int(answer.json["version"])


def test_another_store_brings_its_own_state(tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    with gateway_with(tmp_path, BASE, 2) as gateway:
        first = done(put(gateway, 0, document(fixed("new", "one"))))

        assert reload(gateway, other, BASE).status == 200
        assert not is_found(gateway, "new")
        until(lambda: current_or_fault(gateway) == 0, "the other store is open")
        assert done(put(gateway, 0, document(fixed("new", "other")))) == 1
        assert everywhere(gateway, "/new") == (200, b"other")

        assert reload(gateway, tmp_path, BASE).status == 200
        assert everywhere(gateway, "/new") == (200, b"one")
        until(lambda: current_or_fault(gateway) == first, "the first store is open")


@pytest.mark.parametrize("workers", [1, 2, 4])
def test_the_three_forms_of_state_together(tmp_path: Path, workers: int) -> None:
    """Structure, a switch and a document, through killed workers, a reload and a killed controller."""
    pytest.importorskip("cel_expr_python")
    (tmp_path / "hold.py").write_text(HOLD)
    gate = tmp_path / "gate"
    switched = {"name": "switched", "when": "'x-switch' in request.headers", "routes": "*"}
    config = {**with_hold(tmp_path, BASE), "policies": [switched]}
    stored = {"name": "stored", "when": "'x-document' in request.headers", "routes": "*"}

    def check(body: bytes, switch: int, document: int) -> None:
        assert everywhere(gateway, "/a") == (200, body)
        told = ask_every_worker(gateway, "/a", "x-switch: 1")
        assert {status for status, _body in told.values()} == {switch}
        told = ask_every_worker(gateway, "/a", "x-document: 1")
        assert {status for status, _body in told.values()} == {document}

    with gateway_with(tmp_path, config, workers) as gateway:
        switch = "/api/runtime/policy/switched/enabled"
        check(b"a of the file", 403, 200)
        assert call(gateway.admin, switch, "PUT", body={"value": 0}).status == 200
        assert call(gateway.admin, "/api/policies", "PUT", body={"policies": [stored]}).status == 200
        version = done(put(gateway, 0, document({"name": "a", "respond": "one"})))
        check(b"one", 200, 403)

        kill_worker(gateway)
        check(b"one", 200, 403)
        with ThreadPoolExecutor() as pool:
            putting = pool.submit(put, gateway, version, hold_up(gate))
            held(gateway, gate, workers)
            victim = builders(gate)[-1]
            os.kill(victim, signal.SIGKILL)
            until(lambda: victim not in gateway.worker_pids(), "the end of the worker")
            assert call(gateway.admin, switch, "PUT", body={"value": 1}).status == 200
            check(b"one", 403, 403)
            assert call(gateway.admin, switch, "PUT", body={"value": 0}).status == 200
            gate.touch()
            version = done(putting.result())
        check(b"held", 200, 403)

        assert reload(gateway, tmp_path, {**config, "trusted_proxies": ["10.0.0.0/8"]}).status == 200
        check(b"held", 200, 403)
        kill_controller(gateway)
        kill_worker(gateway)
        check(b"held", 200, 403)
        assert call(gateway.admin, switch, "DELETE").status == 200
        assert call(gateway.admin, "/api/policies", "DELETE").status == 200
        assert done(put(gateway, version, {})) > version
        check(b"a of the file", 403, 200)
