"""Loading: defaults, short forms, files, overrides, plugins, the blob for the workers, and many routes."""

from __future__ import annotations

import os
import sys
import types
from pathlib import Path
from typing import Annotated, Any

import msgspec
import pytest
from msgspec import Meta

from fastgate.config import (
    Config,
    ConfigError,
    InvalidConfig,
    ListenerConfig,
    RouteConfig,
    check,
    decode,
    encode,
    load,
    parse_address,
)
from fastgate.config.load import registered
from fastgate.settings import SECOND, Duration, Settings, Size
from fastgate.upstream.settings import TimeoutOverrides, TimeoutsConfig, parse_target

SHORT = "routes:\n  - path: /*\n    upstream: http://127.0.0.1:9000\n"


def good(text: str, form: str = "yaml", **keywords: Any) -> Config:
    config, errors = check(text, form, {}, **keywords)
    assert config is not None, "\n".join(map(str, errors))
    return config


def wrong(text: str, form: str = "yaml", **keywords: Any) -> list[str]:
    config, errors = check(text, form, {}, **keywords)
    assert config is None
    return [str(error) for error in errors]


def routes(config: Config) -> list[RouteConfig]:
    return list(config.each_route())


class LimitConfig(Settings, frozen=True, kw_only=True):
    """A plugin's settings, as another package would write them."""

    window_ns: Duration
    burst: Annotated[int, Meta(ge=1)] = 10
    max_body_bytes: Size = 1000
    nested: dict[str, list[int]] = msgspec.field(default_factory=dict)
    mode: str | int | None = None


def plugins(name: str) -> type | None:
    if name == "bare":
        return None
    if name == "limit":
        return LimitConfig
    raise LookupError(f"no plugin is called {name}")


def test_the_short_case_has_all_defaults() -> None:
    config = good(SHORT)

    assert config.listen == (ListenerConfig(address="127.0.0.1:8080"),)
    assert config.workers == 0
    assert config.admin.listen == "127.0.0.1:9901"
    assert config.server.idle_timeout_ns == 75 * SECOND
    assert routes(config)[0].path == ("/*",)


def test_a_url_makes_an_upstream_under_its_own_name() -> None:
    config = good(SHORT)

    url = routes(config)[0].upstream
    assert url == "http://127.0.0.1:9000"
    assert [target.url for target in config.upstreams[url].targets] == [url]
    assert config.upstreams[url].timeouts == TimeoutsConfig()


def test_a_single_value_stands_for_its_list_or_mapping() -> None:
    text = """
listen: unix:/run/gateway.sock
admin: unix:/run/admin.sock
access_log: "off"
trusted_proxies: 10.0.0.0/8
upstreams: {a: {targets: http://127.0.0.1:1}}
routes: [{host: a.test, path: /a, methods: GET, redirect: /b, response_headers: {remove: Server}}]
"""

    config = good(text)

    assert config.listen[0].endpoint().unix_path == "/run/gateway.sock"
    assert config.trusted_proxies == ("10.0.0.0/8",)
    assert config.access_log.output == "off"
    route = routes(config)[0]
    assert (route.host, route.path, route.methods) == (("a.test",), ("/a",), ("GET",))
    assert route.redirect is not None and route.redirect.to == "/b"
    assert route.response_headers is not None and route.response_headers.remove == ("Server",)


def test_a_pattern_with_an_empty_segment_is_refused_where_slashes_are_merged() -> None:
    text = 'routes:\n  - {path: /a, respond: x}\n  - {path: ["/a/", "/a//*"], respond: x}\n'

    (error,) = wrong(text)

    assert "$.routes[1].path[1]" in error
    assert "merge_slashes is on" in error
    good("server: {merge_slashes: false}\n" + text)


@pytest.mark.parametrize(
    "edits", ["rename: {X-A: X-Consumer-Id}", "set: {x_consumer_tier: gold}", "add: {X-Consumer: a}"]
)
def test_no_edit_makes_a_field_that_says_who_a_request_is_from(edits: str) -> None:
    (error,) = wrong(SHORT + "    request_headers: {" + edits + "}")

    assert "$.routes[0].request_headers" in error
    assert "X-Consumer-… identifies the consumer" in error
    good(SHORT + "    response_headers: {" + edits + "}")


def test_no_rename_makes_a_field_that_only_the_service_may_say() -> None:
    text = "auth: {forward: {url: 'http://a.test', upstream_headers: [X-Auth-User]}}\n" + SHORT
    edits = "    request_headers: {rename: {X-A: X_Auth-User}}"

    (error,) = wrong(f"{text}    auth: forward\n{edits}")

    assert "$.routes[0].request_headers.rename.X-A" in error
    good(text + edits)


def test_groups_of_a_rewrite_are_not_written_with_a_dollar() -> None:
    (error,) = wrong(SHORT + "    rewrite: {regex: '^/a/(.*)$', to: '/b/$1'}")

    assert "$.routes[0].rewrite.to" in error
    assert "write \\1" in error


def test_routes_without_a_name_get_one_of_their_own() -> None:
    text = """
routes:
  - {path: /a, respond: x}
  - {path: /a, methods: [POST], respond: x}
  - {path: /a, headers: {A: b}, respond: x}
  - {path: /a, query: {a: b}, respond: x}
  - {host: api.test, path: [/a, /b], respond: x}
  - {name: "/a #2", path: /c, respond: x}
  - {path: "/ü", respond: x}
"""

    names = [route.name for route in routes(good(text))]

    assert names == ["/a", "POST /a", "/a #3", "/a #4", "api.test/a", "/a #2", "/?"]


def test_what_is_encoded_decodes_to_the_same_config() -> None:
    config = good(SHORT + "    timeouts: {total: 5s}\nplugins: [{limit: {window: 1s}}]", plugins=plugins)

    again = decode(encode(config, plugins=plugins))

    assert again.files == {}
    assert all(getattr(again, name) == getattr(config, name) for name in Config.__struct_fields__)
    assert routes(again) == routes(config)
    assert routes(again)[0].timeouts == TimeoutOverrides(total_ns=5 * SECOND)
    assert again.plugins[0].read(LimitConfig) == LimitConfig(window_ns=SECOND)


def test_an_unchanged_route_keeps_its_bytes() -> None:
    before = good(SHORT + "  - {path: /b, respond: x}")
    after = good(SHORT + "  - {path: /b, respond: y}")

    assert bytes(before.routes[0]) == bytes(after.routes[0])
    assert bytes(before.routes[1]) != bytes(after.routes[1])


def test_yaml_toml_and_json_give_the_same_config() -> None:
    yaml = "workers: 2\nroutes:\n  - {path: /a, respond: {json: {b: [1, null]}}, max_body: 1MB}"
    json = (
        '{"workers": 2, "routes": [{"path": "/a", "respond": {"json": {"b": [1, null]}}, "max_body": "1MB"}]}'
    )
    toml = 'workers = 2\n[[routes]]\npath = "/a"\nmax_body = "1MB"\nrespond = {json = {b = [1]}}'

    assert good(yaml) == good(json, "json")
    assert routes(good(toml, "toml"))[0].max_body_bytes == 1_000_000


def test_a_schema_reference_for_editors_is_not_a_setting() -> None:
    assert good('{"$schema": "gateway.schema.json", "routes": [{"path": "/", "respond": "x"}]}', "json")


def test_a_plugin_is_read_against_its_own_struct() -> None:
    text = """
plugins:
  - bare
  - limit: {window: 1m, burst: 5, max_body: 2KB, nested: {a: [1]}, mode: x}
  - {use: limit, window: 100ms}
  - bare: {}
  - bare:
routes: [{path: /, respond: x, plugins: [{limit: {window: 1s}}]}]
"""

    config = good(text, plugins=plugins)

    assert [use.use for use in config.plugins] == ["bare", "limit", "limit", "bare", "bare"]
    assert config.plugins[1].read(LimitConfig) == LimitConfig(
        window_ns=60 * SECOND, burst=5, max_body_bytes=2000, nested={"a": [1]}, mode="x"
    )
    assert config.plugins[2].read(LimitConfig).window_ns == SECOND // 10
    assert routes(config)[0].plugins[0].use == "limit"


def test_a_plugins_settings_are_checked_as_strictly_as_the_rest() -> None:
    text = """
plugins:
  - limit
  - limit: {window: 1, burst: 0, windw: 1s}
  - bare: {a: 1}
  - {use: limit, window: 1s, nested: {a: [x]}}
  - limit: {window: 1s, mode: []}
routes: [{path: /, respond: x, plugins: [{limt: {}}]}]
"""

    assert wrong(text, plugins=plugins) == [
        "config:3: $.plugins[0].window: missing key, expected a duration such as 30s",
        "config:4: $.plugins[1].limit.window: expected a duration such as 30s, 100ms, 5m or 1h30m, "
        "got the number 1 (add the unit: 1s)",
        "config:4: $.plugins[1].limit.burst: expected a whole number at least 1, got 0",
        "config:4: $.plugins[1].limit.windw: unknown key (did you mean window?)",
        "config:5: $.plugins[2].bare: expected nothing: bare has no settings, got a mapping",
        'config:6: $.plugins[3].nested.a[0]: expected a whole number, got "x"',
        "config:7: $.plugins[4].limit.mode: expected text or a whole number, got a list",
        "config:8: $.routes[0].plugins[0]: expected the name of a plugin, or package.module:Class, got "
        '"limt" (no plugin is called limt)',
    ]


def test_a_plugin_by_its_dotted_path_comes_from_the_registry(monkeypatch: pytest.MonkeyPatch) -> None:
    from fastgate.plugin import Plugin

    class Greeter(Plugin):
        Config = LimitConfig

    module = types.ModuleType("an_installed_plugin")
    module.Greeter = Greeter  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "an_installed_plugin", module)

    assert registered("an_installed_plugin:Greeter") is LimitConfig
    config = good(SHORT + "plugins: [{use: 'an_installed_plugin:Greeter', window: 1s}]")
    assert config.plugins[0].read(LimitConfig).window_ns == SECOND


def test_a_route_has_at_most_so_many_plugins_as_one_walk_holds() -> None:
    text = SHORT + f"plugins: [{', '.join(['bare'] * 31)}]"

    assert wrong(text, plugins=plugins) == ["config:4: $.plugins: expected at most 30, got 31 items"]


def test_a_struct_may_check_itself() -> None:
    class Range(Settings, frozen=True, kw_only=True):
        low: int = 0
        high: int = 0

        def __post_init__(self) -> None:
            if self.low > self.high:
                raise ValueError("low is above high")

    found = wrong(SHORT + "plugins: [{range: {low: 2, high: 1}}]", plugins=lambda name: Range)

    assert found == ["config:4: $.plugins[0].range: low is above high"]


@pytest.mark.parametrize(
    ("content", "name", "text"),
    [
        (None, "gateway.yaml", "cannot read it: no such file"),
        (b"routes: []", "gateway.conf", "expected a file that ends in .yaml"),
        (b"a: \xff\xfe", "gateway.yaml", "expected UTF-8 text, got byte 0xff at 3"),
        (b"#" * 20_000_000, "gateway.yaml", "expected at most 16777216, got 20000000 bytes"),
    ],
)
def test_a_file_that_cannot_be_read_says_why(
    tmp_path: Path, content: bytes | None, name: str, text: str
) -> None:
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)

    with pytest.raises(InvalidConfig) as caught:
        load(path)

    assert text in str(caught.value.errors[0])
    assert caught.value.errors[0].where == str(path)


def test_a_directory_is_not_a_config(tmp_path: Path) -> None:
    (tmp_path / "gateway.yaml").mkdir()

    with pytest.raises(InvalidConfig) as caught:
        load(tmp_path / "gateway.yaml")

    assert "is a directory" in str(caught.value.errors[0])


def test_a_file_with_a_byte_order_mark_is_read(tmp_path: Path) -> None:
    path = tmp_path / "gateway.yaml"
    path.write_bytes(b"\xef\xbb\xbf" + SHORT.encode())

    assert load(path, {}).routes


def test_all_errors_come_as_one_group(tmp_path: Path) -> None:
    path = tmp_path / "gateway.yaml"
    path.write_text("lisen: x\nroutes: [{path: /, respnd: x}]")

    with pytest.raises(InvalidConfig) as caught:
        load(path, {})

    assert [error.path for error in caught.value.errors] == ["$.lisen", "$.routes[0].respnd"]
    found, rest = caught.value.split(ConfigError)
    assert found is not None and rest is None


def test_the_command_line_wins_over_the_environment_and_that_over_the_file(tmp_path: Path) -> None:
    path = tmp_path / "gateway.yaml"
    path.write_text("workers: 1\nadmin: {listen: 127.0.0.1:1}\nserver: {idle_timeout: 1s}\n" + SHORT)
    environ = {
        "FASTGATE__WORKERS": "2",
        "FASTGATE__SERVER__IDLE_TIMEOUT": "2s",
        "FASTGATE__TRUSTED_PROXIES": '["10.0.0.0/8", "::1"]',
        "FASTGATE__ROUTES__0__TIMEOUTS__TOTAL": "9s",
        "FASTGATE__ROUTES__0__PRESERVE_HOST": "true",
        "FASTGATE_CONFIG": "not an override",
    }

    config = load(path, environ, {"workers": "3", "admin.listen": "127.0.0.1:3"})

    assert (config.workers, config.admin.listen) == (3, "127.0.0.1:3")
    assert config.server.idle_timeout_ns == 2 * SECOND
    assert config.trusted_proxies == ("10.0.0.0/8", "::1")
    assert routes(config)[0].timeouts == TimeoutOverrides(total_ns=9 * SECOND)
    assert routes(config)[0].preserve_host is True


def test_a_wrong_option_is_named_by_the_option(tmp_path: Path) -> None:
    path = tmp_path / "gateway.yaml"
    path.write_text(SHORT)

    with pytest.raises(InvalidConfig) as caught:
        load(path, {}, {"admin.listen": "nowhere", "workers": "x"})

    assert sorted(error.where for error in caught.value.errors) == ["--admin-listen", "--workers"]


def test_no_message_shows_what_came_from_the_environment() -> None:
    text = """
listen: ${SECRET}
trusted_proxies: ${SECRET}
upstreams: {a: {targets: "http://u:${SECRET}@a"}}
routes:
  - {path: "${SECRET}", upstream: "http://${SECRET}:x@h", host: "${SECRET}", methods: "${SECRET} x"}
  - path: "~(${SECRET}"
    redirect: "${SECRET}"
    headers: {A: "~(${SECRET}"}
    request_headers: {set: {A: "${SECRET}\\n"}}
"""

    config, errors = check(text, "yaml", {"SECRET": "hunter2 "})

    assert config is None and len(errors) >= 8
    assert not [str(error) for error in errors if "hunter2" in str(error)]
    assert all("${SECRET}" in str(error) for error in errors if "$.listen" in str(error))


def test_five_thousand_routes_are_checked_one_by_one() -> None:
    text = "".join(
        f"  - {{path: '/v{n}/{{id}}', methods: [GET], upstream: 'http://127.0.0.1:{n % 50 + 9000}'}}\n"
        for n in range(5000)
    )

    config = good("routes:\n" + text)
    errors = wrong("routes:\n" + text.replace("upstream", "upsteam"))

    assert len(config.routes) == 5000 and len(config.upstreams) == 50
    assert len(errors) == 5000
    assert errors[4999] == "config:5001: $.routes[4999].upsteam: unknown key (did you mean upstream?)"


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("127.0.0.1:80", ("127.0.0.1", 80, "")),
        (":80", ("", 80, "")),
        ("*:80", ("", 80, "")),
        ("[::1]:80", ("::1", 80, "")),
        ("localhost:0", ("localhost", 0, "")),
        ("unix:/a b", ("", 0, "/a b")),
    ],
)
def test_addresses_are_taken_apart(text: str, address: tuple[str, int, str]) -> None:
    assert tuple(parse_address(text)) == address


@pytest.mark.parametrize(
    "text",
    ["", "80", "a", "a:", "a:b", "a:65536", "::1:80", "[::1]", "[x]:1", "a b:1", "unix:", "unix:a", "a:-1"],
)
def test_other_addresses_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r".+"):
        parse_address(text)


def test_an_address_prints_as_it_is_written() -> None:
    for text in ("127.0.0.1:80", "[::1]:80", "unix:/a", ":80"):
        assert str(parse_address(text)) == text


@pytest.mark.parametrize(
    ("url", "endpoint"),
    [
        ("http://a", (False, "a", 80, "", "a")),
        ("http://a/", (False, "a", 80, "", "a")),
        ("https://a.test", (True, "a.test", 443, "", "a.test")),
        ("http://a:8080", (False, "a", 8080, "", "a:8080")),
        ("https://a:443", (True, "a", 443, "", "a")),
        ("http://[::1]:81", (False, "::1", 81, "", "[::1]:81")),
        ("unix:/run/a.sock", (False, "", 0, "/run/a.sock", "localhost")),
    ],
)
def test_targets_are_taken_apart(url: str, endpoint: tuple[bool, str, int, str, str]) -> None:
    assert tuple(parse_target(url)) == endpoint


@pytest.mark.parametrize(
    "url",
    [(
        ""
    ), (
        "a"
    ), (
        "http://"
    ), (
        "http://a/b"
    ), (
        "http://a?b"
    ), (
        "http://u@a"
    ), (
        "ftp://a"
    ), (
        "http://a:0"
    ), (
        "http://[x]"
    ), (
        "unix:a"
    ),
     "http://a b", "HTTP://a", "http://a:1:2", "http://a#b"],
)  # fmt: skip
def test_other_targets_are_refused(url: str) -> None:
    with pytest.raises(ValueError, match=r".+"):
        parse_target(url)


def test_a_route_overrides_only_the_timeouts_it_names() -> None:
    ours = TimeoutsConfig(connect_ns=1, total_ns=2, deadline_header="X-A")

    assert ours.overridden(None) is ours
    assert ours.overridden(TimeoutOverrides(total_ns=0)) == TimeoutsConfig(
        connect_ns=1, total_ns=0, deadline_header="X-A"
    )


def test_checking_leaves_the_process_as_it_was() -> None:
    import gc

    before = dict(os.environ)
    good(SHORT)
    wrong("routes: 7")

    assert gc.isenabled() and dict(os.environ) == before
