"""build → start → requests → close, at the start, over reloads, and when a part of it fails."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fastgate.config import check
from fastgate.plugin import PLUGINS
from tests.client import Client, get, request
from tests.gateway import Gateway
from tests.plugins.conftest import PROBES, use
from tests.server.gateway_harness import until


class Life:
    """A gateway with Starters, and what they noted."""

    def __init__(self, directory: Path) -> None:
        self.record = directory / "record"
        self.record.touch()

    def config(self, *labels: str, text: str = "x", shared: str = "shared", **extra: Any) -> dict[str, Any]:
        """One route for each label, with a Starter of that label behind the one of all routes."""
        return {
            "plugins": [use("Starter", shared, self.record)],
            "routes": [
                {
                    "name": label,
                    "path": f"/{label}",
                    "respond": text,
                    "plugins": [use("Starter", label, self.record), *extra.get(label, [])],
                }
                for label in labels
            ],
        }

    def notes(self) -> list[tuple[str, str]]:
        return [tuple(json.loads(line)[:2]) for line in self.record.read_text().splitlines()]

    def reload(self, gateway: Gateway, config: dict[str, Any], outcome: str) -> str:
        """Changes the config and returns what the gateway said of it."""
        before = len(gateway.stderr_text)
        gateway.write_config(config)
        gateway.process.send_signal(signal.SIGHUP)
        until(lambda: f"config {outcome}" in gateway.stderr_text[before:], f"config {outcome}")
        return gateway.stderr_text[before:]


@pytest.fixture
def life(tmp_path: Path) -> Iterator[Life]:
    yield Life(tmp_path)


def seen_by(gateway: Gateway, path: str) -> dict[str, str]:
    """Which plugin objects a request passed, by label."""
    values = get(gateway.port, path).values("x-seen-by")
    return dict(value.decode().split() for value in values)


def test_plugins_are_built_and_started_once_and_closed_at_the_end(life: Life) -> None:
    with Gateway(life.config("a", "b")) as gateway:
        assert life.notes() == [
            *((label, "build") for label in ("shared", "a", "b")),
            *((label, "start") for label in ("shared", "a", "b")),
        ]
        assert list(seen_by(gateway, "/a")) == ["shared", "a"]
        assert seen_by(gateway, "/a")["shared"] == seen_by(gateway, "/b")["shared"]

    assert sorted(life.notes()[6:]) == [("a", "close"), ("b", "close"), ("shared", "close")]


def test_build_is_told_its_name_and_route(life: Life) -> None:
    with Gateway(life.config("a")):
        pass

    built = [json.loads(line) for line in life.record.read_text().splitlines()][:2]
    name = f"{PROBES}:Starter"
    assert [line[3:] for line in built] == [[name, None], [name, "a"]]


def test_unchanged_plugins_are_kept_over_a_reload(life: Life) -> None:
    with Gateway(life.config("a", "b")) as gateway:
        before = seen_by(gateway, "/a") | seen_by(gateway, "/b")
        life.record.write_text("")

        changed = life.config("a", "b", "c", text="changed")
        changed["routes"][1]["plugins"][0]["bound"] = "1B"
        life.reload(gateway, changed, "in use")

        after = seen_by(gateway, "/a") | seen_by(gateway, "/b") | seen_by(gateway, "/c")
        assert {label: after[label] == before[label] for label in before} == {
            "shared": True, "a": True, "b": False,
        }  # fmt: skip
        until(lambda: ("b", "close") in life.notes(), "the old b is closed")
        assert sorted(life.notes()) == [
            ("b", "build"), ("b", "close"), ("b", "start"), ("c", "build"), ("c", "start"),
        ]  # fmt: skip


def test_a_plugin_no_longer_used_is_closed_after_its_last_request(life: Life) -> None:
    waiter = use("Waiter", "W", life.record)
    with Gateway(life.config("a", "b", a=[waiter])) as gateway, Client(gateway.port) as client:
        client.send(request("/a", "GET", "X-W: request=wait"))
        until(lambda: ("W", "request") in life.notes(), "the plugin waits")

        life.reload(gateway, life.config("b"), "in use")
        assert get(gateway.port, "/a").status == 404
        assert ("a", "close") not in life.notes()

        client.close()
        until(lambda: ("a", "close") in life.notes(), "closed when its request was over")
        assert ("W", "cancelled") in life.notes()


def test_a_plugin_is_not_closed_under_a_request_of_an_earlier_plan(life: Life) -> None:
    waiter = use("Waiter", "W", life.record)
    with Gateway(life.config("a", "b", a=[waiter])) as gateway, Client(gateway.port) as client:
        client.send(request("/a", "GET", "X-W: request=wait"))
        until(lambda: ("W", "request") in life.notes(), "the plugin waits")

        life.reload(gateway, life.config("a", "b", "c", a=[waiter]), "in use")
        life.reload(gateway, life.config("b", shared="another"), "in use")
        # c was only in the plan between, which has no request
        until(lambda: ("c", "close") in life.notes(), "the plugin of no request is closed")
        assert ("a", "close") not in life.notes()
        assert ("shared", "close") not in life.notes()

        client.close()
        until(
            lambda: {("a", "close"), ("shared", "close")} <= set(life.notes()),
            "closed when its request was over",
        )


@pytest.mark.parametrize(
    ("label", "said"),
    [
        ("bad-build", "this one cannot be built"),
        ("bad-start", "this one cannot start"),
        ("no-plugin", "expected a Plugin"),
    ],
)
def test_a_plugin_that_fails_to_start_refuses_the_reload(life: Life, label: str, said: str) -> None:
    with Gateway(life.config("a"), allow=".") as gateway:
        before = seen_by(gateway, "/a")
        life.record.write_text("")

        told = life.reload(gateway, life.config("a", "late", label), "refused")

        assert said in told
        assert seen_by(gateway, "/a") == before
        assert get(gateway.port, "/late").status == 404
        # What was new is closed again, even what had not started; what is in use is not touched.
        if label == "bad-start":
            until(lambda: (label, "close") in life.notes(), "the half-started one is closed")
            assert ("late", "close") in life.notes()
        assert ("a", "close") not in life.notes()

        life.reload(gateway, life.config("a", "late"), "in use")
        assert get(gateway.port, "/late").status == 200


@pytest.mark.parametrize("label", ["bad-build", "bad-start"])
def test_a_plugin_that_fails_to_start_refuses_the_start(life: Life, label: str) -> None:
    with pytest.raises(AssertionError, match="this one cannot"):
        Gateway(life.config(label)).start()


def test_a_failing_close_is_told_and_keeps_no_other_from_closing(life: Life) -> None:
    with Gateway(life.config("a", "bad-close"), allow=".") as gateway:
        life.reload(gateway, life.config("b"), "in use")
        until(lambda: ("a", "close") in life.notes(), "the other is closed")
        until(lambda: "failed in close" in gateway.stderr_text, "the failure is told")
        assert get(gateway.port, "/b").status == 200


def test_settings_of_plugins_are_checked_with_their_path() -> None:
    text = f"""
        plugins:
          - {{use: "{PROBES}:Starter", label: a, record: /x, bound: 7}}
        routes:
          - path: /
            respond: x
            plugins:
              - {{use: "{PROBES}:Starter", label: 5, recrod: /x}}
              - {{use: "{PROBES}:Starter", label: a, record: /x, enforce: maybe}}
              - {{use: "{PROBES}:Nothing"}}
              - {{use: "{PROBES}:REASONS"}}
    """

    loaded, errors = check(text, "yaml", {})

    assert loaded is None
    told = {error.path: str(error) for error in errors}
    assert "bound" in told["$.plugins[0].bound"]
    assert set(told) >= {
        "$.routes[0].plugins[0].label",
        "$.routes[0].plugins[1].enforce",
        "$.routes[0].plugins[2]",
        "$.routes[0].plugins[3]",
    }
    assert any("recrod" in text and "record" in text for text in told.values())
    assert "has no 'Nothing'" in told["$.routes[0].plugins[2]"]
    assert "not a subclass" in told["$.routes[0].plugins[3]"]


def test_the_registry_says_what_is_wrong_with_a_name() -> None:
    with pytest.raises(LookupError, match="there is no plugin named 'nothing'"):
        PLUGINS.load("nothing")
    with pytest.raises(LookupError, match="cannot import 'no_such_module'"):
        PLUGINS.load("no_such_module:Thing")
    with pytest.raises(LookupError, match="has no 'Missing'"):
        PLUGINS.load(f"{PROBES}:Missing")
    with pytest.raises(TypeError, match="is not a subclass"):
        PLUGINS.load("json:loads")
    assert PLUGINS.load(f"{PROBES}:Starter").__name__ == "Starter"
