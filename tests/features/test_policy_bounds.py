"""Policies against clients that want to be judged by less than they send, or to keep a worker busy."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.client import get
from tests.gateway import Gateway, cpu_ns
from tests.upstream import Upstream, answer

pytest.importorskip("cel_expr_python")

SLOW = 'request.headers["x"].split(",").exists(p, p.matches("^(foo|bar)[0-9]{1,1000}$"))'
X = "request.headers['x']"
GROWING = '.replace("a", "aaaaaaaaaa")'


def served(when: str, **more: Any) -> Gateway:
    policy = {"name": "p", "when": when, **more}
    return Gateway({"routes": [{"path": "/*", "respond": "ok", "policies": [policy]}]})


READS = {
    "parameter": ("request.query_params['role'] == 'admin'", "/?role=user&role=admin", ()),
    "encoded": ("request.query_params['role'] == 'admin'", "/?role=user&r%6fle=admin", ()),
    "field": ("request.headers['x-role'] == 'admin'", "/", ("X-Role: user", "X-Role: admin")),
    "cookie": ("request.cookies['role'] == 'admin'", "/", ("Cookie: role=user; role=admin",)),
    "dotted": ("request.cookies.role == 'admin'", "/", ("Cookie: role=user", "Cookie: role=admin")),
    "loop": ("request.query_params.exists(k, request.query_params[k] == 'admin')", "/?a=user&a=admin", ()),
}


@pytest.mark.parametrize("case", READS)
@pytest.mark.parametrize("on_error", ["deny", "skip"])
def test_a_value_that_is_there_twice_hides_nothing(case: str, on_error: str) -> None:
    when, target, fields = READS[case]
    with served(f"{when}", on_error=on_error) as gateway:
        assert get(gateway.port, target, *fields).status == 403


@pytest.fixture(scope="module")
def reading() -> Iterator[Gateway]:
    when = (
        "request.query_values['role'].exists(r, r == 'admin') || 'x-bad' in request.headers"
        " || request.headers['accept'].contains('evil')"
    )
    with served(when, on_error="skip") as gateway:
        yield gateway


@pytest.mark.parametrize(
    ("target", "fields", "expected"),
    [
        ("/?role=user&role=admin", ("Accept: a",), 403),
        ("/?role=user&role=guest&x=1&x=2", ("Accept: a", "X-Other: 1", "X-Other: 2"), 200),
        ("/?role=user", ("Accept: a", "X-Bad: 1", "X-Bad: 2"), 403),
        ("/?role=user", ("Accept: a", "Accept: evil"), 403),
        ("/?role=user", ("Accept: a", "Accept: b"), 200),
    ],
)
def test_several_values_are_read_where_several_are_meant(
    reading: Gateway, target: str, fields: tuple[str, ...], expected: int
) -> None:
    assert get(reading.port, target, *fields).status == expected


@pytest.mark.parametrize("count", [10, 255, 256, 257, 1500])
def test_no_parameter_stands_too_far_behind(count: int) -> None:
    padding = "&".join(f"p{number}" for number in range(count))
    with served("request.query_params['role'] == 'admin'", on_error="skip") as gateway:
        assert get(gateway.port, f"/?{padding}&role=admin").status == 403
        assert get(gateway.port, f"/?{padding}&role=user").status == 200


@pytest.mark.parametrize("count", [10, 300, 1500])
def test_a_route_is_chosen_by_every_parameter(count: int) -> None:
    padding = "&".join(f"p{number}" for number in range(count))
    routes = [
        {"path": "/*", "query": {"debug": "1"}, "respond": {"status": 403}},
        {"path": "/*", "respond": "ok"},
    ]
    with Gateway({"routes": routes}) as gateway:
        assert get(gateway.port, f"/?{padding}&debug=1").status == 403


def test_a_route_is_chosen_by_every_field_of_a_name() -> None:
    routes = [
        {"path": "/*", "headers": {"X-Internal": "1"}, "respond": {"status": 403}},
        {"path": "/*", "respond": "ok"},
    ]
    with Gateway({"routes": routes}) as gateway:
        assert get(gateway.port, "/", "X-Internal: 0", "X-Internal: 1").status == 403
        assert get(gateway.port, "/", "X-Internal: 0").status == 200


@pytest.mark.parametrize("on_error", ["deny", "skip"])
@pytest.mark.parametrize(
    ("when", "value"),
    [
        (SLOW, ",".join("a" * 7500)),
        (SLOW, ",".join(["foo" + "1" * 10] * 1000)),
        (f"request.headers['x']{GROWING * 4} == ''", "a" * 15_000),
        ("request.headers['x'].split(',').map(p, p).size() > 9", ",".join("a" * 7500)),
        (
            "request.headers['x'].split(',').all(p, request.headers['x'].split(',').all(q, p == q))",
            "a," * 1000,
        ),
        (
            "request.headers['x'].split(',').exists(p, request.headers['x'].replace('a', 'bc') == p)",
            "a," * 1000,
        ),
        ("request.headers['x'].split('').exists(p, request.headers['x'].indexOf('zz') == 7)", "a" * 1000),
        (
            "request.headers['x'].split(',').exists(p, request.path.matches(p))",
            ",".join(f"[a-z]{{{n}}}Z" for n in range(100, 1000)),
        ),
        *(
            (
                f"request.headers['x'].split(',').exists(p, request.headers['x'].split(',')"
                f".exists(q, request.headers['x'].{call}))",
                "a," * 100 + "b" * 14_000,
            )
            for call in ("lowerAscii() == q", "contains('c' + q)", "trim() == q", "substring(1) == q")
        ),
        ("request.path.matches(request.headers['x'])", "((((){1000}){1000}){1000}){1000}"),
    ],
    ids=[
        *("patterns", "patterns-that-match", "growing", "map", "loops", "replace", "index"),
        *("patterns-of-requests", "lower", "contains", "trim", "substring", "repetitions-of-nothing"),
    ],
)
def test_no_request_keeps_a_worker_busy(when: str, value: str, on_error: str) -> None:
    cheap = "indexOf" in when or ".all(" in when  # within the bounds: it may be decided
    with served(when, on_error=on_error) as gateway:
        assert get(gateway.port, "/", "X: a").status in (200, 403)
        (worker,) = gateway.worker_pids()
        before_ns = cpu_ns(worker)
        answered = get(gateway.port, "/", f"X: {value}")
        took_s = (cpu_ns(worker) - before_ns) / 1e9

    assert answered.status == 403 or (answered.status == 200 and cheap)
    assert took_s < 5  # of CPU: some 40 ms; it was 160 s


def test_a_rule_in_shadow_mode_spends_nothing_of_the_others() -> None:
    costly = "request.headers['x'].split(',').exists(p, request.headers['x'].replace('a', 'bc') == p)"
    config = {
        "routes": [
            {
                "path": "/*",
                "respond": "ok",
                "policies": [
                    {"name": "watched", "when": costly, "enforce": False, "priority": 9},
                    {"name": "real", "when": "request.headers['x'].matches('^evil')"},
                ],
            }
        ]
    }
    with Gateway(config) as gateway:
        assert get(gateway.port, "/", "X: " + "a," * 1000).status == 200
        assert get(gateway.port, "/", "X: evil" + "a," * 1000).status == 403


def test_as_many_edits_as_the_config_has_reach_the_upstream() -> None:
    edits = {"set": {f"X-Set-{number}": "1" for number in range(60)}}
    with Upstream(answer()) as upstream:
        route = {"path": "/*", "upstream": upstream.url, "request_headers": edits, "response_headers": edits}
        with Gateway({"server": {"max_headers": 256}, "routes": [route]}) as gateway:
            answered = get(gateway.port, "/", *(f"X-{number}: 1" for number in range(250)))
            assert answered.status == 200
            assert all(answered.get(f"x-set-{number}") == b"1" for number in range(60))
        seen = upstream.requests[-1]
    assert all(seen.get(f"x-set-{number}") == b"1" for number in range(60))
    assert all(seen.get(f"x-{number}") == b"1" for number in range(250))
