"""The policy engine: the language, rule sets, what is wrong with a policy, violations, and all of it on
the wire."""

from __future__ import annotations

import json
import time
from typing import Any

import msgspec
import pytest

from fastgate._core.pipeline.context import CONTINUE, RequestContext
from fastgate._core.shm.directory import Directory
from fastgate._core.shm.metric import MetricTable
from fastgate._core.shm.recordring import RecordRing
from fastgate.config import check
from fastgate.features.policy.gate import Policies, PolicyGate
from fastgate.features.policy.language import ExpressionError, Language, bounded
from fastgate.features.policy.settings import PolicyConfig
from fastgate.features.policy.variables import VARIABLES
from fastgate.features.policy.violations import Violation, ViolationLog
from fastgate.state.records import consumer_digest
from tests.client import get
from tests.control.admin_client import scrape_idle
from tests.gateway import Gateway
from tests.upstream import Upstream, answer

pytest.importorskip("cel_expr_python")


@pytest.fixture(scope="module")
def language() -> Language:
    return Language()


# ---- the language


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("request.pth == 'x'", "character 8: unknown name request.pth; did you mean request.path?"),
        (
            "request.size == 'x'",
            "character 14: found no matching overload for '_==_' applied to '(int, string)'",
        ),
        ("request.path", "a condition must be a bool, this one is string"),
        ("true &&\n  nobody == 1", "line 2, character 3: unknown name nobody"),
        ("request.path.matches('^(a')", "character 22: invalid regular expression: missing )"),
        ("request == 1", "unknown name request"),
        ("request['path'] == '/a'", "unknown name request"),
        ("'\ud800' == request.path", "half of a surrogate pair"),
        ("(" * 200 + "true" + ")" * 200, "recursion"),
    ],
)
def test_a_bad_expression_says_what_and_where(language: Language, text: str, problem: str) -> None:
    with pytest.raises(ExpressionError) as caught:
        language.compile(text)

    assert problem.lower() in str(caught.value).lower()


def test_every_variable_compiles_under_its_type(language: Language) -> None:
    tests = {
        "string": "{} == ''",
        "int": "{} > 0",
        "bool": "{}",
        "timestamp": "{}.getHours() == 1",
        "list(string)": "'a' in {}",
        "map(string, string)": "{}['a'] == 'b'",
        "map(string, dyn)": "{}.a == 1",
    }

    for name, (kind, _source, said) in VARIABLES.items():
        language.compile(tests[kind].format(name))
        assert said


def test_only_named_variables_are_built(language: Language) -> None:
    text = """request.path == "/" && consumer . tier != 'x' && request // a remark
        .headers["request.host"] != ''"""

    language.compile(text)

    assert Language.names(text) == {"request.path", "consumer.tier", "request.headers", "request.host"}


@pytest.mark.parametrize(
    "text",
    ["", "a", " aB\u00c9 ", "\u2003x\u0085", "\u001cx\u001f", "\u00c0\u00c9\U0001d4b3z", "\u200bq\ufeff"],
)
@pytest.mark.parametrize(
    "call",
    [
        *("lowerAscii()", "upperAscii()", "trim()", "reverse()", "charAt(0)", "charAt(1)", "charAt(9)"),
        *("charAt(-1)", "substring(0)", "substring(1)", "substring(1, 2)", "substring(2, 1)"),
        *("substring(0, 99)", "contains('a')", "contains('')", "startsWith('')", "startsWith('a')"),
        *("endsWith('')", "endsWith(' ')", "split('').join()", "split('').join('-')"),
        *("indexOf('')", "indexOf('a', 1)", "lastIndexOf('')", "replace('a', 'bb')", "matches('^a')"),
    ],
)
def test_in_loops_text_functions_do_what_those_of_the_library_do(
    language: Language, text: str, call: str
) -> None:
    expression = f"request.path.{call}"
    looped = f"[1].all(each, true) ? {expression} : {expression}"
    assert bounded(looped) != looped

    expected, found = (
        language.env.compile(each).eval(data={"request.path": text}) for each in (expression, bounded(looped))
    )

    if expected.type() == language.error:
        assert found.type() == language.error
    else:
        assert found.value() == expected.value()


def test_expensive_expressions_end(language: Language) -> None:
    rules = [
        "request.headers.all(a, request.headers.all(b, request.headers.all(c, a + b + c != '')))",
        "request.path.matches('(a+)+$')",
    ]
    data = {"request.headers": {f"h{n}": "v" for n in range(128)}, "request.path": "a" * 8000 + "b"}

    for rule in rules:
        program = language.compile(rule)
        began = time.thread_time()  # of this thread: what a loaded machine adds does not count
        try:
            outcome = program.eval(data=data).value()
        except RuntimeError as error:
            outcome = str(error)

        assert outcome is False or "budget" in str(outcome)
        assert time.thread_time() - began < 0.5


def test_an_address_is_looked_up_in_a_range(language: Language) -> None:
    inside = language.compile("in_cidr(request.client_ip, '10.0.0.0/8')")

    assert inside.eval(data={"request.client_ip": "10.1.2.3"}).value() is True
    assert inside.eval(data={"request.client_ip": "11.1.2.3"}).value() is False
    wrong = language.compile("in_cidr(request.client_ip, 'nonsense')").eval(
        data={"request.client_ip": "1.1.1.1"}
    )
    assert wrong.type() == language.error


# ---- the config


def wrong(document: dict[str, Any]) -> list[str]:
    config, errors = check(json.dumps(document), "json", {})
    assert config is None
    return [str(error) for error in errors]


def site(*policies: dict[str, Any], **route: Any) -> dict[str, Any]:
    return {
        "policies": list(policies),
        "upstreams": {"a": {"targets": "http://127.0.0.1:9"}},
        "routes": [{"name": "r", "path": "/*", "upstream": "a", **route}],
    }


@pytest.mark.parametrize(
    ("document", "path", "problem"),
    [
        (
            site({"name": "p", "when": "request.pth == ''", "routes": "*"}),
            "$.policies[0].when",
            "request.pth",
        ),
        (site({"name": "p", "when": "true", "routes": "x*"}), "$.policies[0].routes[0]", "name of a route"),
        (site(policies=["nobody"]), "$.routes[0].policies[0]", "name of a policy"),
        (site(policies=[{"name": "p", "when": "1"}]), "$.routes[0].policies[0].when", "this one is int"),
        (
            site(policies=[{"name": "p", "when": "true", "routes": "*"}]),
            "$.routes[0].policies[0].routes",
            "that route only",
        ),
        (
            site({"name": "p", "when": "true"}, {"name": "p", "when": "true"}),
            "$.policies[1].name",
            "already has it",
        ),
        (site({"name": "p", "when": "true", "action": "tag"}), "$.policies[0].tags", "missing key"),
        (site({"name": "p", "when": "true", "action": "route"}), "$.policies[0].upstream", "missing key"),
        (site({"name": "p", "when": "true", "action": "limit"}), "$.policies[0].limit", "missing key"),
        (
            site({"name": "p", "when": "true", "action": "allow", "status": 451}),
            "$.policies[0].status",
            "deny",
        ),
        (
            site({"name": "p", "when": "true", "action": "route", "upstream": "b"}),
            "$.policies[0].upstream",
            "name of an upstream",
        ),
    ],
)
def test_what_is_wrong_is_said_with_its_path(document: dict[str, Any], path: str, problem: str) -> None:
    errors = wrong(document)

    assert len(errors) == 1, errors
    assert errors[0].startswith(f"config:1: {path}") or path in errors[0]
    assert problem in errors[0]


# ---- violations


def violation(**changed: Any) -> Violation:
    values: dict[str, Any] = {
        "realtime_ns": 1,
        "policy": "p",
        "action": "deny",
        "enforced": True,
        "route": "r",
        "consumer": "acme",
        "client_ip": "10.0.0.1",
        "method": "GET",
        "path": "/a",
        "request_id": "0" * 32,
        "worker": 3,
    }
    return Violation(**{**values, **changed})


def test_a_violation_comes_back_as_it_was_and_a_long_one_cut() -> None:
    log = ViolationLog(RecordRing(8))
    long = violation(
        path="/" + "ä" * 5000, route="r" * 128, consumer="c" * 500, detail="x" * 900, policy="p" * 64
    )

    log.note(violation())
    log.note(long)

    (_, newest), (number, first) = log.recent()
    assert (number, first) == (1, violation())
    assert newest.policy == "p" * 64
    assert newest.path.endswith("…") or newest.path == ""
    assert log.total == 2


# ---- policies set at run time


def test_policies_set_at_run_time_take_the_place_of_the_configs() -> None:
    directory = Directory(64, 100_000)
    root = (
        PolicyConfig(name="a", when="false", routes=("*",)),
        PolicyConfig(name="b", when="request.method == 'GET'", routes=("orders*",)),
    )
    policies = Policies(root, directory=directory)
    gate, other = PolicyGate(policies, "orders-1", ()), PolicyGate(policies, "x", ())
    assert [rule.name for rule in gate._rules.rules] == ["a", "b"]
    assert [rule.name for rule in other._rules.rules] == ["a"]

    document = (
        PolicyConfig(name="a", when="true", priority=-1, routes=("*",)),
        PolicyConfig(name="c", when="true", routes=("x",)),
    )
    directory.put(Policies.DOCUMENT, msgspec.msgpack.encode(document))
    gate.refresh()
    other.refresh()

    assert [(rule.name, rule.config.when) for rule in gate._rules.rules] == [
        ("b", "request.method == 'GET'"),
        ("a", "true"),
    ]
    assert [rule.name for rule in other._rules.rules] == ["c", "a"]
    directory.remove(Policies.DOCUMENT)
    other.refresh()
    assert [rule.config.when for rule in other._rules.rules] == ["false"]


def test_a_change_of_anything_else_does_not_make_a_gate_read_its_policies() -> None:
    directory = Directory(64, 100_000)
    directory.put(consumer_digest("a"), b"1")
    metrics = MetricTable(64)
    reads = metrics.counter("fastgate_document_reads_total", document="policies")
    gate = PolicyGate(Policies((), directory=directory, counter=metrics.counter), "x", ())
    ctx = RequestContext()
    before = reads.value

    for i in range(50):
        directory.put(consumer_digest(f"consumer {i}"), b"1")
        assert gate.decide(ctx) == CONTINUE
    assert reads.value == before
    directory.put(Policies.DOCUMENT, msgspec.msgpack.encode(()))
    for _ in range(3):
        assert gate.decide(ctx) == CONTINUE

    assert reads.value == before + 1


def test_a_document_that_cannot_be_read_leaves_the_configs_policies(caplog: pytest.LogCaptureFixture) -> None:
    directory = Directory(64, 100_000)
    directory.put(Policies.DOCUMENT, b"\xc1")

    policies = Policies((PolicyConfig(name="a", when="true", routes=("*",)),), directory=directory)

    assert [rule.name for rule in policies.of_route("r", ()).rules] == ["a"]
    assert "cannot be read" in caplog.text


# ---- on the wire

POLICIES = [
    {
        "name": "friends",
        "when": "request.headers['x-friend'] == 'yes'",
        "action": "allow",
        "priority": 10,
        "on_error": "skip",
    },
    {"name": "no-delete", "when": "request.method == 'DELETE'", "status": 451, "message": "Not here"},
    {"name": "shy", "when": "request.path == '/shy'", "enforce": False},
    {"name": "fails", "when": "request.path == '/fails' && request.headers['x-none'] == '1'"},
    {
        "name": "passes",
        "when": "request.path == '/passes' && request.headers['x-none'] == '1'",
        "on_error": "skip",
    },
    {
        "name": "blue",
        "when": "request.query_params['to'] == 'blue'",
        "action": "route",
        "upstream": "blue",
        "on_error": "skip",
    },
    {
        "name": "few",
        "when": "request.path == '/few'",
        "action": "limit",
        "limit": {"requests": 3, "per": "1h", "by": "all"},
    },
    {"name": "busy", "when": "request.path == '/busy' && counters.client_per_minute > 30"},
]


def config(green: Upstream, blue: Upstream) -> dict[str, Any]:
    for policy in POLICIES:
        policy["routes"] = "*"
    return {
        "upstreams": {"green": {"targets": green.url}, "blue": {"targets": blue.url}},
        "policies": POLICIES,
        "routes": [{"name": "all", "path": "/*", "upstream": "green"}],
    }


BLUE = b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nblue"
GREEN = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\ngreen"


def test_each_action_on_the_wire() -> None:
    with (
        Upstream(answer(GREEN)) as green,
        Upstream(answer(BLUE)) as blue,
        Gateway(config(green, blue), workers=2) as gateway,
    ):
        port = gateway.port
        assert get(port, "/").body == b"green"
        denied = get(port, "/", method="DELETE")
        assert (denied.status, json.loads(denied.body)["error"]) == (451, "Not here")
        assert get(port, "/", "X-Friend: yes", method="DELETE").body == b"green"
        assert get(port, "/shy").status == 200
        failed = get(port, "/fails")
        assert (failed.status, json.loads(failed.body)["error"]) == (403, "Forbidden")
        assert "x-none" not in failed.body.decode()
        assert get(port, "/passes").status == 200
        assert get(port, "/?to=blue").body == b"blue"
        assert get(port, "/?to=red").body == b"green"
        few = [get(port, "/few") for _ in range(8)]
        assert sorted(answer.status for answer in few) == [200] * 3 + [429] * 5
        refused = next(answer for answer in few if answer.status == 429)
        assert json.loads(refused.body)["limit_type"] == "few"
        assert int(refused.get("retry-after") or 0) > 0
        busy = [get(port, "/busy").status for _ in range(40)]
        assert 200 in busy and busy[-1] == 403

        samples = scrape_idle(gateway.admin)
        for policy, action, outcome, count in (
            ("no-delete", "deny", "matched", 1),
            ("shy", "deny", "shadow", 1),
            ("fails", "deny", "error", 1),
            ("few", "limit", "matched", 5),
        ):
            labels = frozenset({"policy": policy, "action": action, "outcome": outcome}.items())
            assert samples["fastgate_policy_total", labels] == count, policy


def test_what_goes_to_another_upstream_is_not_cached_as_the_routes_own() -> None:
    with (
        Upstream(answer(GREEN)) as green,
        Upstream(answer(BLUE)) as blue,
        Gateway(
            {
                "upstreams": {"green": {"targets": green.url}, "blue": {"targets": blue.url}},
                "policies": [
                    {
                        "name": "blue",
                        "when": "'x-blue' in request.headers",
                        "action": "route",
                        "upstream": "blue",
                        "routes": "*",
                    }
                ],
                "routes": [{"name": "all", "path": "/*", "upstream": "green", "cache": {"ttl": "60s"}}],
            }
        ) as gateway,
    ):
        port = gateway.port
        assert [get(port, "/1", "X-Blue: 1").body, get(port, "/1").body] == [b"blue", b"green"]
        assert [get(port, "/2").body, get(port, "/2", "X-Blue: 1").body] == [b"green", b"blue"]
        assert get(port, "/2").body == b"green" and len(green.requests) == 2


def test_any_number_of_patterns_that_only_re2_reads_can_be_checked() -> None:
    language = Language()
    for number in range(100):
        language.compile(f"request.path.matches('\\\\bx{number}')")
