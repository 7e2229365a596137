"""Short forms of common settings, file names relative to the config, and hints for keys of other gateways."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import msgspec
import pytest

from fastgate.cli.explain import explain_request
from fastgate.config import Config, check, load
from fastgate.config.foreign import FOREIGN
from fastgate.config.schema import sections
from fastgate.settings import SECOND

ROUTES = "routes: [{path: /, upstream: 'http://127.0.0.1:9000'}]\n"


def good(text: str, environ: dict[str, str] | None = None) -> Config:
    config, errors = check(text if "routes:" in text else text + "\n" + ROUTES, "yaml", environ or {})
    assert config is not None, "\n".join(map(str, errors))
    return config


def bad(text: str) -> str:
    config, errors = check(text if "routes:" in text else text + "\n" + ROUTES, "yaml", {})
    assert config is None
    return "\n".join(map(str, errors))


def route(settings: str) -> Any:
    config = good(f"routes: [{{path: /, upstream: 'http://127.0.0.1:9000', {settings}}}]")
    return next(config.each_route())


@pytest.mark.parametrize(
    ("text", "addresses"),
    [
        ("listen: 8080", [":8080"]),
        ("listen: [8080, '127.0.0.1:8081', {address: ':8082'}]", [":8080", "127.0.0.1:8081", ":8082"]),
        ("listen: ${PORT}", [":7000"]),
    ],
)
def test_a_bare_port_listens_on_every_interface(text: str, addresses: list[str]) -> None:
    config = good(text, {"PORT": "7000"})

    assert [listener.address for listener in config.listen] == addresses


def test_a_bare_port_of_the_admin_api_stays_on_loopback() -> None:
    assert good("admin: 9902").admin.listen == "127.0.0.1:9902"
    assert good("admin: {listen: 9903}".replace("9903", "'127.0.0.1:9903'")).admin.listen == "127.0.0.1:9903"
    assert good("admin: false").admin.listen == "off"
    assert good("admin: true").admin == good("").admin


def test_switches_and_single_values_stand_for_their_section() -> None:
    assert good("store: keys.db").store.path == "keys.db"
    assert good("access_log: false").access_log.output == "off"
    assert good("access_log: true").access_log.output == "stdout"
    assert good("security_headers: true").security_headers.preset == "basic"  # type: ignore[union-attr]
    assert route("cache: 60s").cache.ttl_ns == 60 * SECOND
    assert (route("cache: true").cache.enabled, route("cache: false").cache.enabled) == (True, False)
    assert route("cors: true").cors.origins == ("*",)
    assert route("cors: true").cors.enabled
    assert not route("cors: false").cors.enabled
    assert next(good("routes: [{path: /, respond: 204}]").each_route()).respond.status == 204  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("listen: 99999", "$.listen[0]: expected host:port with a port from 0 to 65535"),
        ("listen: -1", "host:port"),
        ("listen: 80.5", "a mapping, or its `address` alone"),
        ("store: 5", "$.store: expected a mapping, or its `path` alone, got the number 5"),
        ("cors: 5", "$.cors: expected a mapping, or its `origins` alone, got the number 5"),
        ("routes: [{respond: 42}]", "from 200 to 599"),
        ("routes: [{path: /, upstream: 9000}]", "write http://127.0.0.1:9000"),
        ("upstreams: {a: {targets: [9000]}}", "write http://127.0.0.1:9000"),
        ("upstreams: [{name: orders, url: x}]", "the names are the keys: orders: {…}"),
        ("consumers: [{name: alice}]", "the names are the keys: alice: {…}"),
        ("routes: {a: {path: /}}", "write - path: /* for each route"),
    ],
)
def test_a_wrong_short_form_says_what_is_right(text: str, said: str) -> None:
    assert said in bad(text)
    assert "put it in quotes" not in bad(text)


def test_a_value_that_would_be_good_in_quotes_says_so() -> None:
    assert 'put it in quotes: "7"' in bad("routes: [{path: /, respond: x, name: 7}]")
    assert 'put it in quotes: "true"' in bad(
        "routes: [{path: /, respond: x, response_headers: {set: {X-A: true}}}]"
    )


@pytest.mark.parametrize("struct", sorted(FOREIGN))
def test_a_hint_names_keys_that_are_there(struct: str) -> None:
    structs: dict[str, Any] = {cls.__name__: cls for cls in sections()}
    here = set(structs[struct].__struct_encode_fields__)
    anywhere = set(Config.__struct_encode_fields__)
    for key, hint in FOREIGN[struct].items():
        assert key == key.lower()
        assert key not in here or struct == "Config", f"{struct}.{key} is a key of ours"
        if hint.startswith("write "):
            for name in re.match(r"write ([a-z_]+)", hint).groups():  # type: ignore[union-attr]
                elsewhere = re.search(r"at (?:a route|an entry|the root|the upstream|a target)", hint)
                known = (
                    here
                    if not elsewhere
                    else here
                    | anywhere
                    | {field for cls in structs.values() for field in cls.__struct_encode_fields__}
                )
                assert name in known, f"{struct}.{key}: {hint}"
        elif not hint.startswith(("leave it out", "there ", "it belongs")):
            raise AssertionError(hint)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("servers: []", "$.servers: unknown key (write routes"),
        ("backend: x", "$.backend: unknown key (write upstreams"),
        ("services: []", "$.services: unknown key (write upstreams"),
        ("location: /", "$.location: unknown key (write routes"),
        ("proxy_pass: x", "$.proxy_pass: unknown key (write upstream at a route"),
        ("entryPoints: {}", "$.entryPoints: unknown key (write listen"),
        ("model_list: []", "write upstreams at the root: an entry for each provider"),
        ("worker_processes: 4", "write workers"),
        ("port: 80", "write listen"),
        ("tls: {}", "write tls at an entry of listen"),
        ("routes: [{location: /, respond: x}]", "write path"),
        ("routes: [{respond: x, retries: 3}]", "write retry: {attempts: 3}"),
        ("routes: [{path: /, backend: x}]", "write upstream"),
        ("routes: [{path: /, servers: [x]}]", "write upstream"),
        ("routes: [{path: /, respond: x, stripPrefix: /a}]", "write rewrite: {strip_prefix: /prefix}"),
        ("routes: [{path: /, respond: x, rate-limit: 5}]", "write limits: {per_minute: 100}"),
        ("upstreams: {a: {servers: [x]}}", "write targets"),
        ("upstreams: {a: {targets: ['http://a:1'], health_check: {}}}", "there are no active health checks"),
        ("upstreams: {a: {targets: [{server: 'http://a:1'}]}}", "write url: http://host:port"),
        ("listen: {port: 80}", "write address"),
        ("server: {listen: 80}", "write listen at the root"),
        ("upstreams: {a: {targets: ['http://a:1'], timeouts: {read: 5s}}}", "write between_bytes"),
        ("routes: [{respond: x, limits: {requests: 5}}]", "write per_second, per_minute"),
        ("routes: [{handle: {handler: reverse_proxy}}]", "write upstream, redirect or respond"),
        ("routes: [{respond: x, ip_whitelist: [10.0.0.0/8]}]", "write access: {allow: [10.0.0.0/8]"),
        ("policies: [{name: a, deny: 'true'}]", "write when: the condition, and action: deny"),
        ("gzip: on", "leave it out: responses are not compressed here"),
    ],
)
def test_a_key_of_another_gateway_says_what_to_write(text: str, said: str) -> None:
    assert said in bad(text)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("routes: [{path: /, upstream: ['http://a:1']}]", "write upstreams: {name: {targets: […]}}"),
        ("routes: [{path: /, upstream: {url: 'http://a:1'}}]", "write it under upstreams at the root"),
        ("routes: [{path: /, upstream: 'http://a:1', rewrite: /x/$1}]", "write rewrite: {path: /new/{name}}"),
        ("upstreams: {api: ['http://a:1']}", "a mapping such as {targets: [http://host:port]}"),
        ("routes: [{path: /, respond: x, auth: true}]", "write auth: [api_key]"),
        ("routes: [{path: /, respond: x, auth: key-auth}]", "(write api_key)"),
        ("routes: [{path: /, respond: x, auth: oauth2}]", "(write jwt; for tokens that only"),
        ("routes: [{path: /, respond: x, auth: jwt}]", "(write auth: {jwt: {…}} at the root)"),
        ("routes: [{path: /, respond: x, plugins: [jwt]}]", "(write auth: [jwt] at the route"),
        ("routes: [{path: /, respond: x, plugins: [{rate-limiting: {}}]}]", "write limits: {per_minute"),
        ("routes: [{path: '~ ^/y', respond: x}]", "(write ~^/y)"),
        ("routes: [{path: '~* [.]php$', respond: x}]", "(write ~(?i)[.]php$)"),
        ("routes: [{path: '= /exact', respond: x}]", "(write /exact)"),
        ("routes: [{path: '^~ /images/', respond: x}]", "(write /images/*)"),
        ("routes: [{path: '^/y$', respond: x}]", "(write ~^/y$)"),
        ("routes: [{path: 'api/*', respond: x}]", "(write /api/*)"),
        ("routes: [{path: '/api/**', respond: x}]", "(write /api/*)"),
        ("routes: [{path: '/users/:id/orders', respond: x}]", "(a parameter is written {id}, not :id)"),
        ("routes: [{path: '/users/{id:[0-9]+}', respond: x}]", "(write {id}, or a regular expression: ~"),
        ("listen: 443 ssl http2", "(write address: ':443', with tls"),
        ("listen: '80, 443'", "(write a list: [':80', ':443'])"),
    ],
)
def test_a_value_in_the_spelling_of_another_gateway_says_what_to_write(text: str, said: str) -> None:
    assert said in bad(text)


def test_settings_of_a_plugin_have_no_names_of_other_gateways() -> None:
    said = bad("routes: [{path: /, respond: x, plugins: [{use: 'examples.tenant_plugin:Tenant', user: 1}]}]")

    assert "user: unknown key" in said
    assert "leave it out" not in said


def test_a_plugin_whose_class_stands_behind_a_dot_says_so() -> None:
    assert "write examples.tenant_plugin:Tenant" in bad(
        "routes: [{path: /, respond: x, plugins: [examples.tenant_plugin.Tenant]}]"
    )


@pytest.mark.parametrize("path", ["~(?i)[.]php$", "/users:batch", "~^/:id$", "/a/b:c/{id}"])
def test_what_a_hint_says_and_what_looks_like_one_are_good(path: str) -> None:
    assert good(f"routes: [{{path: '{path}', respond: x}}]")


def test_file_names_are_relative_to_the_folder_of_the_config(tmp_path: Path) -> None:
    folder = tmp_path / "conf"
    (folder / "data").mkdir(parents=True)
    (folder / "schema.json").write_text("{}")
    file = folder / "gateway.yaml"
    file.write_text(
        "store: data/keys.db\n"
        "access_log: ${LOG}\n"
        "credentials: {a: {file: secret.txt}, b: {file: /run/secret}}\n"
        "routes:\n"
        "  - {path: /, upstream: 'http://127.0.0.1:9000', validation: {schema_file: schema.json}}\n"
    )

    config = load(file, {"LOG": "data/access.log"})

    assert config.store.path == str(folder / "data/keys.db")
    assert config.access_log.output == str(folder / "data/access.log")
    assert [config.credentials[name].file for name in "ab"] == [str(folder / "secret.txt"), "/run/secret"]
    assert next(config.each_route()).validation.schema_file == str(folder / "schema.json")  # type: ignore[union-attr]


def test_every_key_that_takes_a_file_is_marked() -> None:
    """A description that says `File with …` belongs to a key whose names are relative to the config."""
    for cls in sections():
        for field in msgspec.structs.fields(cls):  # type: ignore[arg-type]
            text = repr(field.type)
            if re.search(r"description=['\"](File with|A file with|A SQLite file)", text) or (
                field.name.endswith("_file")
            ):
                assert "'file': " in text, f"{cls.__name__}.{field.name}"


def test_words_in_place_of_a_file_stay_words(tmp_path: Path) -> None:
    file = tmp_path / "gateway.yaml"
    for word in ("stdout", "off"):
        file.write_text(f"access_log: {word}\n{ROUTES}")
        assert load(file, {}).access_log.output == word


def test_cors_false_switches_the_roots_cors_off_for_a_route() -> None:
    config = good(
        "cors: true\nroutes: [{path: /a, respond: x}, {path: /b, respond: x, cors: false}]",
    )
    origin = [("Origin", "https://app.test")]

    assert "Access-Control-Allow-Origin: *" in explain_request(config, "GET", "/a", origin).response
    assert "Access-Control" not in explain_request(config, "GET", "/b", origin).response
