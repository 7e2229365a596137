"""The command line: what is printed where, and the exit status."""

from __future__ import annotations

import http.client
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from fastgate import __version__
from fastgate.cli.main import main
from tests.client import get
from tests.gateway import Gateway

GOOD = """
listen: 127.0.0.1:0
upstreams: {orders: {targets: http://127.0.0.1:9001}}
routes:
  - {name: orders, path: "/orders/{id}", methods: [GET], upstream: orders}
  - {name: other, path: /other, respond: hello}
"""
BAD = "lisen: x\nroutes: [{path: /, upstream: nowhere}]\n"


@pytest.fixture(autouse=True)
def clean_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty directory without settings in the environment."""
    monkeypatch.chdir(tmp_path)
    for name in [name for name in os.environ if name.startswith("FASTGATE_")]:
        monkeypatch.delenv(name)
    return tmp_path


def call(*arguments: str) -> Result:
    return CliRunner().invoke(main, arguments, prog_name="fastgate")


def test_help_names_every_command_and_the_first_step() -> None:
    result = call("--help")

    assert result.exit_code == 0
    assert "fastgate demo" in result.stdout
    for command in (
        "run",
        "check",
        "explain",
        "schema",
        "demo",
        "bench",
        "reload",
        "status",
        "version",
        "completion",
    ):
        assert f"  {command} " in result.stdout


def test_every_option_is_explained() -> None:
    for name, command in main.commands.items():
        assert command.help, name
        for option in command.params:
            is_argument = option.param_type_name == "argument"
            assert is_argument or getattr(option, "help", ""), f"{name} {option.name}"


@pytest.mark.parametrize("option", ["--version", "-V"])
def test_the_version_is_printed(option: str) -> None:
    assert call(option).stdout == f"fastgate {__version__}\n"


def test_version_names_what_it_stands_on() -> None:
    lines = call("version").stdout.splitlines()

    assert [line.split()[0] for line in lines] == ["fastgate", "python", "uvloop", "httptools", "msgspec"]


def test_without_a_config_the_next_step_is_shown() -> None:
    result = call("run")

    assert result.exit_code == 2
    assert result.stdout == ""
    assert "fastgate demo" in result.stderr and "upstream: http://127.0.0.1:9000" in result.stderr


def test_two_configs_in_one_place_are_not_guessed_between(clean_place: Path) -> None:
    (clean_place / "gateway.yaml").write_text(GOOD)
    (clean_place / "gateway.json").write_text("{}")

    result = call("check")

    assert result.exit_code == 2
    assert "more than one config here: gateway.yaml, gateway.json" in result.stderr


@pytest.mark.parametrize("name", ["gateway.yaml", "gateway.yml"])
def test_the_config_of_the_directory_is_taken(clean_place: Path, name: str) -> None:
    (clean_place / name).write_text(GOOD)

    result = call("check")

    assert (result.exit_code, result.stdout) == (
        0,
        f"{name}: valid (2 routes, 1 upstream, listens on 127.0.0.1:0)\n",
    )


def test_the_config_of_the_environment_is_taken(clean_place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (clean_place / "mine.yaml").write_text(GOOD)
    monkeypatch.setenv("FASTGATE_CONFIG", "mine.yaml")

    assert call("check").stdout.startswith("mine.yaml: valid")


def test_check_prints_every_error_and_exits_with_1(clean_place: Path) -> None:
    (clean_place / "gateway.yaml").write_text(BAD)

    result = call("check")

    assert result.exit_code == 1
    assert result.stdout == ""
    assert result.stderr.splitlines() == [
        "gateway.yaml:1: $.lisen: unknown key (did you mean listen?)",
        "gateway.yaml:2: $.routes[0].upstream: expected the name of an upstream or a URL, "
        'got "nowhere" (there are no upstreams)',
        "gateway.yaml: 2 errors",
    ]


def test_check_speaks_json_to_tools(clean_place: Path) -> None:
    (clean_place / "gateway.yaml").write_text(BAD)

    result = call("check", "gateway.yaml", "--format", "json")

    answer = json.loads(result.stdout)
    assert result.exit_code == 1 and answer["good"] is False
    assert answer["errors"][0] == {
        "where": "gateway.yaml:1",
        "path": "$.lisen",
        "found": "unknown key",
        "expected": "",
        "hint": "did you mean listen?",
    }


def test_check_of_a_missing_file_says_so() -> None:
    result = call("check", "nothing.yaml")

    assert result.exit_code == 1
    assert result.stderr.startswith("nothing.yaml: $: cannot read it: no such file or directory\n")


def test_schema_is_json() -> None:
    schema = json.loads(call("schema").stdout)

    assert schema["properties"]["routes"]["items"] == {"$ref": "#/$defs/RouteConfig"}
    assert json.loads(call("schema", "--compact").stdout) == schema


def test_explain_shows_the_route_and_the_bytes(clean_place: Path) -> None:
    (clean_place / "gateway.yaml").write_text(GOOD)

    result = call(
        "explain", "GET", "/orders/7", "-H", "Host: shop.test", "-H", "X-A: b", "--client", "192.0.2.1"
    )

    assert result.exit_code == 0
    lines = [line.strip() for line in result.stdout.splitlines()]
    assert "route      orders" in lines
    assert "GET /orders/7 HTTP/1.1" in lines
    assert "X-Forwarded-For: 192.0.2.1" in lines
    assert "X-Forwarded-Host: shop.test" in lines
    assert "X-A: b" in lines


def test_explain_names_what_guards_the_route(clean_place: Path) -> None:
    (clean_place / "gateway.yaml").write_text(
        "routes: [{path: /a, respond: a, auth: [api_key, anonymous], scopes: [r], limits: {per_minute: 9}}]"
    )
    said = call("explain", "/a").stdout
    assert "guards     auth=api_key, then anonymous  scopes=r  limits=yes" in said


def test_explain_takes_get_when_no_method_is_given(clean_place: Path) -> None:
    (clean_place / "gateway.yaml").write_text(GOOD)

    assert "route      other" in call("explain", "http://a.test/other").stdout


def test_explain_of_what_no_route_takes_exits_with_1(clean_place: Path) -> None:
    (clean_place / "gateway.yaml").write_text(GOOD)

    result = call("explain", "POST", "/orders/7", "--json")

    answer = json.loads(result.stdout)
    assert result.exit_code == 1
    assert (answer["route"], answer["status"]) == ("", 405)
    assert answer["candidates"] == [
        {"route": "orders", "pattern": "/orders/{id}", "refused": "method POST is not one of GET, HEAD"}
    ]


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("GET", "ftp://a/b"), "expected http://host/path"),
        (("GET", "/a b"), "percent-encode"),
        (("G T", "/"), "expected a method such as GET"),
        (("GET", "/", "-H", "no colon"), "expected 'Name: value'"),
        (("GET", "/", "-H", "A: b\r\nC: d"), "expected a header field"),
    ],
)
def test_explain_refuses_what_is_no_request(clean_place: Path, arguments: tuple[str, ...], text: str) -> None:
    (clean_place / "gateway.yaml").write_text(GOOD)

    result = call("explain", *arguments)

    assert result.exit_code == 2
    assert text in result.stderr


def test_explain_of_a_bad_config_shows_its_errors(clean_place: Path) -> None:
    (clean_place / "gateway.yaml").write_text(BAD)

    result = call("explain", "GET", "/")

    assert result.exit_code == 1
    assert "did you mean listen?" in result.stderr


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts_are_printed(shell: str) -> None:
    result = call("completion", shell)

    assert result.exit_code == 0
    assert "_FASTGATE_COMPLETE" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("bench", "http://127.0.0.1:1/", "-d", "5"), "expected a duration"),
        (("bench", "ftp://127.0.0.1:1/", "-d", "10ms"), "expected http"),
        (("bench", "http://127.0.0.1:1/", "--data", "@missing"), "missing"),
        (("no-such-command",), "No such command"),
        (("run", "--no-such-option"), "No such option"),
    ],
)
def test_wrong_use_exits_with_2(arguments: tuple[str, ...], text: str) -> None:
    result = call(*arguments)

    assert result.exit_code == 2
    assert text in result.stderr


class Admin(BaseHTTPRequestHandler):
    """An admin API that answers what the test wants."""

    status = 200
    answer: Any = None
    asked: list[tuple[str, str, str]]

    def do_GET(self) -> None:
        self.asked.append((self.command, self.path, self.headers.get("Authorization", "")))
        body = json.dumps(self.answer).encode() if not isinstance(self.answer, bytes) else self.answer
        self.send_response(self.status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_POST = do_GET

    def log_message(self, format: str, *arguments: object) -> None:
        """Quiet."""


@contextmanager
def admin(answer: Any, status: int = 200) -> Iterator[tuple[str, list[tuple[str, str, str]]]]:
    asked: list[tuple[str, str, str]] = []
    handler = type("Handler", (Admin,), {"answer": answer, "status": status, "asked": asked})
    with HTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"127.0.0.1:{server.server_port}", asked
        finally:
            server.shutdown()
            thread.join()


def test_status_shows_values_and_tables() -> None:
    answer = {"version": 3, "config": {"routes": 2}, "workers": [{"pid": 11, "state": "ready"}, {"pid": 12}]}

    with admin(answer) as (address, asked):
        result = call("status", "--admin", address)
        as_json = call("status", "--admin", f"http://{address}/", "--json")

    assert result.exit_code == 0
    assert "version: 3" in result.stdout and "routes=2" in result.stdout
    assert "ready" in result.stdout and "12" in result.stdout
    assert json.loads(as_json.stdout) == answer
    assert asked[0] == ("GET", "/api/gateway/status", "")


def test_the_admin_address_and_token_come_from_the_config(
    clean_place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with admin({}) as (address, asked):
        (clean_place / "gateway.yaml").write_text(
            f"admin: {{listen: {address}, token: from-config}}\nroutes: [{{path: /, respond: x}}]"
        )
        call("status")
        monkeypatch.setenv("FASTGATE_ADMIN_TOKEN", "from-environment")
        call("reload")

    assert asked == [
        ("GET", "/api/gateway/status", "Bearer from-config"),
        ("POST", "/api/gateway/reload", "Bearer from-environment"),
    ]


def test_status_finds_the_gateway_while_its_config_file_has_errors(clean_place: Path) -> None:
    with admin({"version": 3}) as (address, asked):
        (clean_place / "gateway.yaml").write_text(
            f"admin: {{listen: {address}, token: from-config}}\nroute: []\nroutes: [{{path: /, respnd: x}}]"
        )
        result = call("status")

    assert (result.exit_code, result.stdout) == (0, "version: 3\n")
    assert asked == [("GET", "/api/gateway/status", "Bearer from-config")]


def test_a_config_that_does_not_tell_the_admin_address_is_named(clean_place: Path) -> None:
    (clean_place / "gateway.yaml").write_text("admin: {listen: nowhere}\nroutes: [{path: /, respond: x}]")

    result = call("status")

    assert result.exit_code == 1
    assert "$.admin.listen" in result.stderr and "--admin ADDRESS" in result.stderr


def test_status_without_a_config_asks_at_the_default_address(
    clean_place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with admin({"version": 3}) as (address, _):
        port = int(address.rpartition(":")[2])
        connect = http.client.HTTPConnection.connect

        def connect_there(connection: http.client.HTTPConnection) -> None:
            assert (connection.host, connection.port) == ("127.0.0.1", 9901)
            connection.port = port
            connect(connection)

        monkeypatch.setattr(http.client.HTTPConnection, "connect", connect_there)
        result = call("status")

    assert (result.exit_code, result.stdout) == (0, "version: 3\n")


def test_the_table_of_workers_fits_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    worker = {
        "pid": 4194304, "slot": 127, "state": "draining", "generation": 3, "config_version": 12345,
        "started": "2026-01-01T00:00:00Z", "heartbeat_age_ms": 100, "loop_lag_ms": 5000, "connections": 65536,
        "requests": 65536, "tunnels": 0, "resident_bytes": 161_000_000, "private_bytes": 5, "cpu_s": 12345.67,
    }  # fmt: skip

    with admin({"workers": [worker]}) as (address, _):
        result = call("status", "--admin", address)

    assert "…" not in result.stdout
    row = "4194304 127 draining 12345 5000 65536 65536 161 MB 12345.67"
    assert [line.split() for line in result.stdout.splitlines()].count(row.split()) == 1


def test_a_refused_reload_prints_the_errors_and_exits_with_1() -> None:
    answer = {"error": "The config was refused", "errors": [{"text": "gateway.yaml:1: $.lisen: unknown key"}]}

    with admin(answer, 422) as (address, _):
        result = call("reload", "--admin", address)

    assert result.exit_code == 1
    assert result.stderr.splitlines()[0] == "gateway.yaml:1: $.lisen: unknown key"
    assert "not reloaded: 1 error; the previous config stays in effect" in result.stderr


def test_a_reload_says_what_it_did() -> None:
    with admin({"result": "applied", "version": 4, "kind": "hot"}) as (address, _):
        result = call("reload", "--admin", address)

    assert (result.exit_code, result.stdout) == (0, "reloaded result=applied version=4 kind=hot\n")


@pytest.mark.parametrize(
    ("answer", "status", "code", "text"),
    [
        ({"error": "unauthorized"}, 401, 1, "FASTGATE_ADMIN_TOKEN"),
        ({}, 500, 1, "returned 500"),
        (b"<html>", 200, 3, "is not the admin API"),
        ([1], 200, 3, "is not the admin API"),
    ],
)
def test_other_answers_of_the_admin_api(answer: Any, status: int, code: int, text: str) -> None:
    with admin(answer, status) as (address, _):
        result = call("status", "--admin", address)

    assert result.exit_code == code
    assert text in result.stderr


@pytest.mark.parametrize(
    ("address", "code", "text"),
    [
        ("127.0.0.1:1", 3, "no response from the admin API"),
        ("unix:/no/such.sock", 3, "no such file"),
        ("x", 2, "expected host:port"),
    ],
)
def test_an_admin_api_that_is_not_there(address: str, code: int, text: str) -> None:
    result = call("status", "--admin", address)

    assert result.exit_code == code
    assert text in result.stderr


def test_status_with_the_admin_api_off_says_so(clean_place: Path) -> None:
    (clean_place / "gateway.yaml").write_text('admin: "off"\nroutes: [{path: /, respond: x}]')

    result = call("status")

    assert result.exit_code == 2
    assert "the admin API is off" in result.stderr


def test_run_refuses_a_bad_config_with_all_errors(clean_place: Path) -> None:
    (clean_place / "gateway.yaml").write_text(BAD)

    result = subprocess.run(
        [sys.executable, "-m", "fastgate", "run"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    )

    assert result.returncode == 1
    assert "did you mean listen?" in result.stderr and "$.routes[0].upstream" in result.stderr
    assert "Traceback" not in result.stderr


def test_options_of_run_win_over_the_file_and_survive_a_reload() -> None:
    config = (
        "listen: 127.0.0.1:1\nadmin: 127.0.0.1:1\nworkers: 7\naccess_log: 'off'\nroutes: [{path: /, respond: "
        "one}]"
    )
    arguments = ("--listen", "127.0.0.1:0", "--workers", "1", "--admin-listen", "127.0.0.1:0")

    with Gateway(config, arguments=arguments, allow="config refused") as gateway:
        assert len(gateway.worker_pids()) == 1
        assert get(gateway.port).body == b"one"
        status = call("status", "--admin", gateway.admin, "--json")
        gateway.write_config(config.replace("one", "two"))
        reloaded = call("reload", "--admin", gateway.admin)
        after = get(gateway.port).body
        gateway.write_config(config.replace("path", "pth"))
        refused = call("reload", "--admin", gateway.admin)
        still = get(gateway.port).body

    assert status.exit_code == 0 and "workers" in json.loads(status.stdout)
    assert reloaded.exit_code == 0, reloaded.stderr
    assert after == b"two"
    assert refused.exit_code == 1 and "unknown key (did you mean path?)" in refused.stderr
    assert still == b"two"


def test_importing_the_command_line_imports_nothing_heavy() -> None:
    code = (
        "import sys, fastgate.cli.main\nprint([name for name in ('msgspec', 'yaml', 'rich', 'uvloop', "
        "'asyncio', 'starlette') if name in sys.modules])"
    )

    result = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    )

    assert result.stdout.strip() == "[]"


def test_cache_warm_asks_for_what_the_source_names(tmp_path: Path) -> None:
    source = tmp_path / "wanted"
    source.write_text("/other\n/missing\n")

    with Gateway({"routes": [{"path": "/other", "respond": "hello"}]}) as gateway:
        result = call("cache", "warm", str(source), "--to", f"http://127.0.0.1:{gateway.port}")

    assert result.exit_code == 1
    assert "2 requests in" in result.stdout and "1 failed" in result.stdout
    assert "/missing: status 404" in result.stderr


@pytest.mark.parametrize(
    ("source", "to", "says"),
    [
        ("nowhere", "http://127.0.0.1:1", "cannot read nowhere: No such file or directory"),
        ("nonsense", "http://127.0.0.1:1", "line 1: expected a URL or a path"),
        ("good", "ftp://host", "expected a URL such as"),
        (
            "http://shop.example/sitemap.xml",
            "http://127.0.0.1:1",
            "cannot read http://shop.example/sitemap.xml: /sitemap.xml:",
        ),
    ],
)
def test_cache_warm_that_cannot_be_says_why(source: str, to: str, says: str, tmp_path: Path) -> None:
    (tmp_path / "nonsense").write_text("one two\n")
    (tmp_path / "good").write_text("/a\n")

    result = call("cache", "warm", source, "--to", to)

    assert result.exit_code == 2
    assert says in " ".join(result.stderr.split())
