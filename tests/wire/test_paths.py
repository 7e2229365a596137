"""One reading of the path: what is matched is what goes upstream, and what others could read otherwise is
refused.
"""

from __future__ import annotations

import re
import urllib.parse
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from tests.client import Client, get
from tests.gateway import Gateway
from tests.strict import Message
from tests.upstream import Upstream, echo


def serve(upstream: Upstream, routes: list[dict[str, Any]], **more: Any) -> Gateway:
    upstreams = {"origin": {"targets": [upstream.url], "pool": {"max_requests": 1}}}
    return Gateway({"upstreams": upstreams, "routes": routes, **more})


GUARDED = [
    {"path": "/admin/*", "respond": {"status": 403}},
    {"path": "/café/*", "respond": {"status": 403}},
    {"path": "/users/@root/{rest...}", "respond": {"status": 403}},
    {"path": "/files/{name}", "upstream": "origin", "allow_encoded_slashes": True},
    {"path": "/strict/{name}", "upstream": "origin"},
    {"path": "~^/v[0-9]+/é", "respond": {"status": 403}},
    {"path": "/*", "upstream": "origin"},
]


@pytest.fixture(scope="module")
def guarded() -> Iterator[tuple[Gateway, Upstream]]:
    with Upstream(echo) as upstream, serve(upstream, GUARDED) as gateway:
        yield gateway, upstream


def ask(pair: tuple[Gateway, Upstream], target: str) -> tuple[Message, bytes | None]:
    """The answer, and the target that the upstream saw."""
    before = len(pair[1].requests)
    answered = get(pair[0].port, target)
    after = pair[1].requests[before:]
    return answered, after[0].target if after else None


@pytest.mark.parametrize(
    "target",
    [
        *(
            "//admin/x",
            "/admin//x",
            "///admin/x",
            "/./admin/x",
            "/x/../admin/x",
            "/%61dmin/x",
            "/x/%2e%2e/admin/x",
        ),
        *("/caf%c3%a9/x", "/caf%C3%A9/x", "/%63af%c3%a9/x", "//caf%c3%a9/x", "/v1/%c3%a9", "/v1/%C3%A9"),
    ],
)
def test_every_spelling_of_a_guarded_path_is_guarded(guarded: tuple[Gateway, Upstream], target: str) -> None:
    assert ask(guarded, target)[0].status == 403


@pytest.mark.parametrize(
    "target",
    [
        *("/admin%2fx", "/admin%2Fx", "/%2fadmin/x", "/a/..%2fadmin/x", "/a%2f..%2fadmin/x", "/..%2fadmin/x"),
        *(
            "/admin%5cx",
            "/admin\\x",
            "/%5cadmin/x",
            "/a/..%5cadmin/x",
            "/a\\..\\admin\\x",
            "\\admin/x"[1:] and "/\\admin/x",
        ),
        *("/admin;x/y", "/admin;/y", "/;/admin/x", "/a/..;/admin/x", "/admin%3bx/y", "/a/..%3b/admin/x"),
        *("/%252fadmin/x", "/a/%252e%252e/admin/x", "/%2561dmin/x", "/%25252fadmin/x", "/admin%252fx"),
        *("/%c0%afadmin/x", "/a/%c0%ae%c0%ae/admin/x", "/a;%2f/../admin/x", "/a;b%2f..%2f..%2fadmin/x"),
        *(
            "/users/%40root/x",
            "/users/@root%2fx",
            "/strict/a%2fb",
            "/strict/a%5cb",
            "/strict/..%2f..%2fadmin%2fx",
        ),
        *("/a%2500", "/files/..%3b/admin/x"),
    ],
)
def test_what_others_would_take_for_another_route_is_refused(
    guarded: tuple[Gateway, Upstream], target: str
) -> None:
    answered, seen = ask(guarded, target)

    assert answered.status in (400, 403)
    assert answered.status == 403 or b"Ambiguous path" in answered.body
    assert seen is None


@pytest.mark.parametrize(
    ("target", "upstream"),
    [
        ("/a%2fb", b"/a%2Fb"),
        ("/a%5cb", b"/a%5Cb"),
        ("/a\\b", b"/a%5Cb"),
        ("/a;v=1/b;w", b"/a;v=1/b;w"),
        ("/a%40b@c", b"/a%40b@c"),
        ("/a%20b%7e%C3%a4", b"/a%20b~%C3%A4"),
        ("/a%25b", b"/a%25b"),
        ("/a|b", b"/a%7Cb"),
        ("//a//b/", b"/a/b/"),
        ("/a/./b/../c/", b"/a/c/"),
        ("/files/a%2fb", b"/files/a%2Fb"),
        ("/files/a%252fb", b"/files/a%252fb"),
        ("/files/..%2f..%2fadmin%2fx", b"/files/..%2F..%2Fadmin%2Fx"),
        ("/x?/../admin//x;%2f", b"/x?/../admin//x;%2f"),
    ],
)
def test_the_normal_form_goes_upstream(
    guarded: tuple[Gateway, Upstream], target: str, upstream: bytes
) -> None:
    answered, seen = ask(guarded, target)

    assert (answered.status, seen) == (200, upstream)


@pytest.mark.parametrize("target", ["/%", "/%zz", "/%00", "/a b", "/a#b", "/caf\xe9", "/%u002f"])
def test_malformed_targets_are_refused(guarded: tuple[Gateway, Upstream], target: str) -> None:
    with Client(guarded[0].port) as client:
        client.send(b"GET " + target.encode("latin-1") + b" HTTP/1.1\r\nHost: gateway.test\r\n\r\n")
        assert client.read_response().status == 400


def test_empty_segments_are_kept_when_asked_unless_they_matter() -> None:
    routes = [{"path": "/admin/*", "respond": {"status": 403}}, {"path": "/*", "upstream": "origin"}]
    with Upstream(echo) as upstream, serve(upstream, routes, server={"merge_slashes": False}) as gateway:
        pair = (gateway, upstream)
        assert ask(pair, "/proxy/https://shop.test/x")[1] == b"/proxy/https://shop.test/x"
        assert ask(pair, "//admin/x")[0].status == 400
        assert ask(pair, "/a/..//admin/x")[0].status == 400
        assert ask(pair, "/admin//x")[0].status == 403


@pytest.mark.parametrize(
    "host", ["admin.test", "ADMIN.test", "admin.test.", "admin.test:80", "a.wild.test", "a.wild.test."]
)
def test_hosts_have_one_form(host: str) -> None:
    routes = [
        {"host": ["admin.test", "*.wild.test."], "path": "/*", "respond": {"status": 403}},
        {"path": "/*", "respond": "open"},
    ]
    with Gateway({"routes": routes}) as gateway, Client(gateway.port) as client:
        client.send(
            f"GET / HTTP/1.1\r\nHost: {host}\r\n\r\nGET http://{host}/ HTTP/1.1\r\nHost: x\r\n\r\n".encode()
        )
        assert [client.read_response().status for _ in range(2)] == [403, 403]


# rewrites


@pytest.mark.parametrize("target", ["/caf%c3%a9/~ada", "/caf%C3%A9/%7eada"])
@pytest.mark.parametrize("regex", ["^/caf%c3%a9/%7E(.+)$", "^/caf%C3%A9/~(.+)$"])
def test_the_expression_of_a_rewrite_is_read_in_the_form_of_paths(regex: str, target: str) -> None:
    routes = [{"path": "/*", "upstream": "origin", "rewrite": {"regex": regex, "to": "/users/\\1"}}]
    with Upstream(echo) as upstream, serve(upstream, routes) as gateway:
        assert ask((gateway, upstream), target)[1] == b"/users/ada"


REWRITTEN = [
    {"path": "/api/admin/*", "respond": {"status": 403}},
    {"path": "/api/*", "upstream": "origin", "rewrite": {"strip_prefix": "/api"}},
    {"path": "/v1/v1/*", "respond": {"status": 403}},
    {"path": "/v1/*", "upstream": "origin", "rewrite": {"strip_prefix": "/v1/"}},
    {"path": "/caf%c3%a9/*", "upstream": "origin", "rewrite": {"strip_prefix": "/caf%c3%a9"}},
    {"path": "~^/dot-(?P<name>.*)$", "upstream": "origin", "rewrite": {"path": "/data/{name}"}},
    {"path": "~^/re-", "upstream": "origin", "rewrite": {"regex": "^/re-(.*)$", "to": "/data/\\1"}},
    {"path": "/tail/{rest...}", "upstream": "origin", "rewrite": {"path": "/x/{rest}/y"}},
    {"path": "/ask/{id}", "upstream": "origin", "rewrite": {"path": "/by/{query}/{id}"}},
]


@pytest.fixture(scope="module")
def rewritten() -> Iterator[tuple[Gateway, Upstream]]:
    with Upstream(echo) as upstream, serve(upstream, REWRITTEN) as gateway:
        yield gateway, upstream


@pytest.mark.parametrize(
    ("target", "upstream"),
    [
        ("/api/x", b"/x"),
        ("/api//x", b"/x"),
        ("/api/a%2fb", b"/a%2Fb"),
        ("/api/%2fadmin/x", None),
        ("/api//admin/x", None),
        ("/api/admin%2fx", None),
        ("/api/..%2fx", None),
        ("/api/a/..%2fadmin/x", None),
        ("/v1/x", b"/x"),
        ("/v1/..%2fv1/x", None),
        ("/v1/x/..%2f..%2fv1/y", None),
        ("/caf%C3%A9/x", b"/x"),
        ("/dot-a.b/c", b"/data/a.b/c"),
        ("/dot-../admin", b"/admin") if False else ("/dot-..", None),
        ("/dot-./x", None),
        ("/re-../x", None),
        ("/re-x/y", b"/data/x/y"),
        ("/re-/y", b"/data/y"),
        ("/tail/", b"/x/y"),
        ("/tail/a/b", b"/x/a/b/y"),
        ("/ask/7?a/../../b", b"/by/a%2F..%2F..%2Fb/7?a/../../b"),
    ],
)
def test_a_rewrite_makes_no_second_reading(
    rewritten: tuple[Gateway, Upstream], target: str, upstream: bytes | None
) -> None:
    answered, seen = ask(rewritten, target)

    assert seen == upstream
    assert upstream is not None or answered.status in (400, 403)


# redirects


@pytest.mark.parametrize(
    ("to", "path", "target", "location"),
    [
        ("/{rest}", "/to/{rest...}", "/to/a/b", b"/a/b"),
        ("/{rest}", "/to/{rest...}", "/to//evil.test", b"/evil.test"),
        ("/{rest}", "/to/{rest...}", "/to/\\evil.test", b"/%5Cevil.test"),
        ("/{rest}", "~^/to(?P<rest>.*)$", "/to/evil.test", b"/evil.test"),
        ("/{query}", "/to", "/to?/evil.test", b"/evil.test?/evil.test"),
        ("/{query}", "/to", "/to?\\evil.test", b"/evil.test?\\evil.test"),
        ("{rest}", "~^/to(?P<rest>.*)$", "/to/evil.test", b"/evil.test"),
        ("{rest}", "/to/{rest...}", "/to/https://evil.test", None),
        ("{rest}", "/to/{rest...}", "/to/javascript:alert(1)", None),
        ("{scheme}:{rest}", "~^/to(?P<rest>.*)$", "/to/evil.test", None),
        ("https://shop.test{rest}", "~^/to(?P<rest>.*)$", "/to/x", b"https://shop.test/x"),
        ("https://shop.test{rest}", "~^/to(?P<rest>.*)$", "/to.evil.test", None),
        ("https://shop.test{rest}", "~^/to(?P<rest>.*)$", "/to@evil.test", None),
        ("https://shop.test{rest}", "~^/to(?P<rest>.*)$", "/to:evil", None),
        ("https://{shop}.shop.test/x", "/to/{shop}", "/to/blue", b"https://blue.shop.test/x"),
        ("https://{shop}.shop.test/x", "/to/{shop}", "/to/evil.test%2f", None),
        ("https://{shop}.shop.test/x", "/to/{shop}", "/to/evil.test:80", None),
        ("https://{shop}.shop.test/x", "/to/{shop}", "/to/a@b", None),
        ("{scheme}://{host}{path}", "/to/*", "/to/x", b"http://gateway.test/to/x"),
    ],
)
def test_a_request_does_not_choose_where_a_redirect_leads(
    to: str, path: str, target: str, location: bytes | None
) -> None:
    with Gateway(
        {"routes": [{"path": path, "redirect": to}, {"path": "/*", "respond": {"status": 418}}]}
    ) as gateway:
        answered = get(gateway.port, target)

    assert answered.get("location") == location
    assert answered.status == (302 if location else 400)


def test_the_slash_after_a_redirect_stays_one_without_merging() -> None:
    routes = [{"path": "/to/{rest...}", "redirect": "/{rest}"}, {"path": "/p/*", "redirect": "{path}"}]
    with Gateway({"routes": routes, "server": {"merge_slashes": False}}) as gateway:
        assert get(gateway.port, "/to//evil.test").get("location") == b"/evil.test"
        assert get(gateway.port, "/to///evil.test").get("location") == b"/evil.test"


# whatever a client sends, no usual upstream serves the guarded page for it


def decoded(path: str) -> str:
    return urllib.parse.unquote(path, "latin-1")


def resolved(path: str) -> str:
    out: list[str] = []
    for segment in path.split("/")[1:]:
        if segment == "..":
            del out[-1:]
        elif segment != ".":
            out.append(segment)
    return "/" + "/".join(out)


def merged(path: str) -> str:
    return re.sub("/+", "/", path)


def stripped(path: str) -> str:
    return re.sub(r";[^/]*", "", path)


UPSTREAMS: dict[str, Callable[[str], str]] = {
    "decodes": lambda path: resolved(decoded(path)),
    "decodes and merges": lambda path: merged(resolved(decoded(path))),
    "merges and decodes": lambda path: resolved(merged(decoded(path))),
    "decodes twice": lambda path: merged(resolved(decoded(decoded(path)))),
    "takes backslashes for slashes": lambda path: merged(resolved(decoded(path).replace("\\", "/"))),
    "strips parameters, then decodes": lambda path: merged(resolved(decoded(stripped(path)))),
    "decodes, then strips parameters": lambda path: merged(resolved(stripped(decoded(path)))),
    "does all": lambda path: merged(resolved(stripped(decoded(decoded(stripped(path))).replace("\\", "/")))),
    "decodes nothing": lambda path: merged(resolved(path)),
}

SPELLINGS = st.sampled_from(
    [
        *(
            "/",
            "//",
            "%2f",
            "%2F",
            "%252f",
            "\\",
            "%5c",
            "%255C",
            ";",
            ";x",
            "%3b",
            "%3B=",
            "%253b",
            ".",
            "..",
            "%2e",
        ),
        *(
            "%2e%2e",
            "%252e",
            "admin",
            "%61dmin",
            "adm%69n",
            "%2561dmin",
            "x",
            "api",
            "%c0%af",
            "%c0%ae",
            "%25",
            "?",
        ),
    ]
)
TARGETS = st.lists(SPELLINGS, min_size=1, max_size=9).map(lambda pieces: "/" + "".join(pieces))


@pytest.fixture(scope="module")
def attacked() -> Iterator[tuple[Gateway, Upstream, Client]]:
    routes = [
        {"path": "/admin/*", "respond": {"status": 403}},
        {"path": "/api/admin/*", "respond": {"status": 403}},
        {"path": "/api/*", "upstream": "origin", "rewrite": {"strip_prefix": "/api"}},
        {"path": "/*", "upstream": "origin"},
    ]
    with Upstream(echo) as upstream, serve(upstream, routes) as gateway, Client(gateway.port) as client:
        yield gateway, upstream, client


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(target=TARGETS)
@example(target="/a;%2f/../admin/x")
@example(target="/admin;/..%2fadmin/x")
@example(target="/api/..;/admin/x")
@example(target="/api/%2e%2e%2fadmin/x")
@example(target="/api/;/..%2f/admin/x")
def test_no_usual_upstream_serves_the_guarded_page(
    attacked: tuple[Gateway, Upstream, Client], target: str
) -> None:
    _, upstream, client = attacked
    before = len(upstream.requests)
    client.send(f"GET {target} HTTP/1.1\r\nHost: gateway.test\r\n\r\n".encode())
    answered = client.read_response()
    if (
        answered.status == 400 and answered.get("connection") == b"close"
    ):  # malformed: such a client starts anew
        client.close()
        client.__init__(attacked[0].port)  # type: ignore[misc]
    for seen in upstream.requests[before:]:
        path = seen.target.decode().partition("?")[0]
        for name, read in UPSTREAMS.items():
            assert not read(path).startswith("/admin/"), (name, target, path)


# policies judge one reading


def test_a_policy_is_asked_about_the_only_reading() -> None:
    pytest.importorskip("cel_expr_python", reason="policies are an extra")
    routes = [
        {
            "path": "/*",
            "upstream": "origin",
            "policies": [{"name": "no-admin", "when": 'request.path.startsWith("/admin")', "action": "deny"}],
        }
    ]
    with Upstream(echo) as upstream, serve(upstream, routes) as gateway:
        pair = (gateway, upstream)
        for target in ("/admin/x", "//admin/x", "/%61dmin/x"):
            assert ask(pair, target)[0].status == 403
        for target in ("/%2fadmin/x", "/a/..%2fadmin/x", "/a/..;/admin/x", "/a/..%5cadmin", "/%2561dmin/x"):
            assert ask(pair, target)[0].status == 400
        assert ask(pair, "/users/a%40b.test%20c")[1] == b"/users/a%40b.test%20c"
