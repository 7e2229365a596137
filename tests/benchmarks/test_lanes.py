"""Each lane of connections, TLS, bodies, events and WebSockets yields a figure for every peer that is
installed, and a gateway that does not do what is measured yields none.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from benchmarks.gateway import servers
from benchmarks.gateway.both_ends import BothEnds
from benchmarks.gateway.connections import CONNECTIONS, Handshakes, fixed
from benchmarks.gateway.ladder import Ladder, Options, Result, measure_ladder
from benchmarks.gateway.load import Load, Traffic
from benchmarks.gateway.paths import PATHS
from benchmarks.gateway.scenarios import LADDERS
from benchmarks.gateway.servers import BODY, Server
from benchmarks.gateway.streams import STREAMS, Bodies, Events, Messages

SHORT = Options(rounds=1, seconds=0.2)
LONG_S = 60  # a machine on which not one response comes in this time is broken
LANES = {**CONNECTIONS, **STREAMS}
HAS_WRK = servers.version("wrk") is not None


def needing(load: Load, *values: Any) -> Any:
    """A parameter that is skipped when the load cannot be made here."""
    lacks = load.program is not None and servers.version(load.program) is None
    marks = [pytest.mark.skip(reason=f"the load needs {load.program}")] if lacks else []
    return pytest.param(*values, marks=marks)


@contextmanager
def running(start: Callable[[], Server]) -> Iterator[Server]:
    server = start()
    try:
        yield server
    finally:
        server.stop()


def figures_of(ladder: Ladder) -> Result:
    """One round, as short as this machine allows: on a busy one no handshake may be over in a short one."""
    options = SHORT
    while True:
        try:
            return measure_ladder(ladder, options, lambda _: None)
        except RuntimeError as error:
            if ": 0 of 0 responses" not in str(error) or options.seconds > LONG_S:
                raise
            options = Options(rounds=1, seconds=options.seconds * 4)


@pytest.mark.parametrize("name", [needing(ladder.traffic, name) for name, ladder in LANES.items()])
def test_a_lane_yields_a_figure_for_every_peer(name: str) -> None:
    assert LADDERS[name] is LANES[name]

    result = figures_of(LANES[name])

    figures = result["peers"]
    absent = {line.partition(":")[0] for line in result["missing"]}
    assert figures.keys() | absent == LANES[name].peers(1).keys()
    assert "fastgate" in figures
    for peer, measured in figures.items():
        assert measured["cpu_us"] > 0, peer
        assert measured["per_s"] > 0, peer


def test_every_lane_can_be_compared_and_counted() -> None:
    assert LANES.keys() <= PATHS.keys()


@pytest.mark.parametrize("name", ["tls-handshake", "tls-resumed", "events", "websocket", "upload-1m-chunked"])
def test_a_load_makes_as_many_units_as_it_is_told(name: str) -> None:
    path = PATHS[name]

    with (
        path.origin() as origin,
        running(lambda: path.start(origin)) as server,
        path.load.one_by_one(server, origin) as talk,
    ):
        talk(3)
        talk(1)


def unavailable(status: int) -> dict[str, Any]:
    return {"routes": [{"path": "/{rest...}", "respond": {"status": status, "body": "closed for today"}}]}


@pytest.mark.parametrize(
    ("load", "says"),
    [
        (Traffic(), "is 'HTTP/1.1 503 Service Unavailable', not 200"),
        (Bodies(1000, 1000), "is 'HTTP/1.1 503 Service Unavailable', not 200"),
        (Events(), "is 'HTTP/1.1 503 Service Unavailable', not 200"),
        (Messages(), "is 'HTTP/1.1 503 Service Unavailable', not 101"),
    ],
)
def test_a_response_that_is_not_the_expected_one_gives_no_figure(load: Load, says: str) -> None:
    with (
        BothEnds() as origin,
        running(lambda: servers.fastgate(unavailable(503))) as server,
        pytest.raises(RuntimeError, match=says),
    ):
        load.drive(server, origin, 0.2)


@pytest.mark.parametrize(
    ("load", "says"),
    [
        (Traffic("GET"), "a body of 16 bytes, not 64"),
        (Bodies(1000, 1000), "byte 0 of the body"),
        (Events(), "byte 0 of the body"),
    ],
)
def test_another_body_gives_no_figure(load: Load, says: str) -> None:
    with (
        BothEnds() as origin,
        running(lambda: servers.fastgate(unavailable(200))) as server,
        pytest.raises(RuntimeError, match=says),
    ):
        load.drive(server, origin, 0.2)


@pytest.mark.parametrize(
    ("respond", "says"),
    [
        ({"status": 404, "body": BODY}, "is 'HTTP/1.1 404 Not Found', not 200"),
        ({"body": BODY[:-1]}, "63 of 64 bytes of the body arrived"),
    ],
)
def test_a_handshake_counts_only_with_its_response(respond: dict[str, Any], says: str) -> None:
    config = {"routes": [{"path": "/{rest...}", "respond": respond}]}

    with (
        BothEnds() as origin,
        running(lambda: servers.fastgate(config, is_tls=True)) as server,
        pytest.raises(RuntimeError, match=says),
    ):
        Handshakes().drive(server, origin, 0.2)


def test_a_peer_that_resumes_no_session_has_no_figure_for_resumed_handshakes() -> None:
    pair = {"certificate": "{directory}/certificate.pem", "key": "{directory}/key.pem"}
    tls = {"certificates": pair, "client_ca": pair["certificate"], "client_certificate": "optional"}
    config = {**fixed(), "listen": {"address": "127.0.0.1:0", "tls": tls}}

    with (
        BothEnds() as origin,
        running(lambda: servers.fastgate(config, is_tls=True)) as server,
        pytest.raises(RuntimeError, match="no session ticket"),
    ):
        Handshakes(is_resumed=True).drive(server, origin, 0.2)


@pytest.mark.skipif(not HAS_WRK, reason="the load needs wrk")
def test_one_refused_response_of_many_gives_no_figure() -> None:
    config = {"routes": [{"path": "/{rest...}", "respond": BODY, "limits": {"per_minute": 20}}]}
    says = r"\d+ of \d+ responses were not 200, 0 connections failed"

    with (
        BothEnds() as origin,
        running(lambda: servers.fastgate(config)) as server,
        pytest.raises(RuntimeError, match=says),
    ):
        Traffic("GET").drive(server, origin, 1)


@pytest.mark.skipif(not HAS_WRK, reason="the load needs wrk")
def test_a_lane_that_fails_says_which_peer_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.gateway.load.START_S", 0)
    ladder = LANES["connect"]
    broken = {"fastgate": lambda: servers.fastgate(unavailable(200))}

    with pytest.raises(RuntimeError, match=r"^fastgate: a body of 16 bytes, not 64"):
        measure_ladder(type(ladder)("broken", lambda _: broken, ladder.traffic), SHORT, lambda _: None)
