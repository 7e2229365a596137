"""Scopes, roles and permissions: what is granted, what is refused and how it is told, what is wrong in a
config."""

from __future__ import annotations

import http.client
import json
from pathlib import Path
from typing import Any

import pytest

from fastgate._core.pipeline.identity import Identity
from fastgate.config import check
from fastgate.features.rbac.build import Access, GrantConfig, RoleConfig, Roles
from fastgate.features.rbac.check import find_cycle
from fastgate.settings import wildcard_matches
from tests.client import get
from tests.control.admin_client import scrape_idle
from tests.gateway import Gateway


def permission(name: str, **more: Any) -> GrantConfig:
    return GrantConfig(permission=name, **more)


ROLES = Roles(
    {
        "reader": RoleConfig(permissions=(permission("orders:read"),)),
        "clerk": RoleConfig(
            permissions=(permission("orders:write", methods=("POST",)),), inherits=("reader",)
        ),
        "boss": RoleConfig(permissions=(permission("*"),), inherits=("clerk",)),
        "ops": RoleConfig(permissions=(GrantConfig(routes=("admin-*",), methods=("GET",)),)),
    }
)


def who(*, scopes: tuple[str, ...] = (), roles: tuple[str, ...] = (), method: str = "jwt") -> Identity:
    return Identity("acme", scopes=scopes, roles=roles, method=method)


def access(**asked: Any) -> Access:
    return Access(asked.pop("route", "r"), asked.pop("table", ROLES), **asked)


def test_all_scopes_are_needed_and_the_missing_ones_told() -> None:
    orders = access(scopes=("orders:read", "orders:write"))

    assert orders.judge(who(scopes=("orders:read", "orders:write", "x")), "GET") is None
    refusal = orders.judge(who(scopes=("orders:read",)), "GET")
    assert refusal is not None
    reason, detail, headers = refusal
    assert (reason.label, reason.status, reason.text) == ("insufficient_scope", 403, "Forbidden")
    assert detail == {"missing_scopes": ["orders:write"]}
    assert headers == [
        (
            "WWW-Authenticate",
            'Bearer realm="fastgate", error="insufficient_scope", scope="orders:read orders:write"',
        )
    ]


def test_one_of_several_scopes_is_enough() -> None:
    orders = access(any_scopes=("a", "b"))

    assert orders.judge(who(scopes=("b",)), "GET") is None
    refusal = orders.judge(who(scopes=("c",)), "GET")
    assert refusal is not None and refusal[1] == {"any_scopes": ["a", "b"]}


def test_a_role_counts_as_those_it_inherits() -> None:
    readers = access(roles=("reader",))

    assert readers.judge(who(roles=("boss",)), "GET") is None
    assert readers.judge(who(roles=("ops",)), "GET") is not None
    assert readers.judge(who(), "GET") is not None
    assert access(roles=("unlisted",)).judge(who(roles=("unlisted",)), "GET") is None


@pytest.mark.parametrize(
    ("role", "wanted", "method", "granted"),
    [
        ("reader", "orders:read", "GET", True),
        ("reader", "orders:write", "POST", False),
        ("clerk", "orders:read", "GET", True),
        ("clerk", "orders:write", "POST", True),
        ("clerk", "orders:write", "PUT", False),
        ("boss", "anything", "PUT", True),
        ("nobody", "orders:read", "GET", False),
    ],
)
def test_permissions_come_from_roles(role: str, wanted: str, method: str, granted: bool) -> None:
    refusal = access(permissions=(wanted,)).judge(who(roles=(role,)), method)

    assert (refusal is None) is granted
    if refusal is not None:
        assert (refusal[0].label, refusal[1]) == ("forbidden", {"missing_permissions": [wanted]})


def test_a_grant_names_routes_and_methods() -> None:
    admin = access(route="admin-users", rbac=True)

    assert admin.judge(who(roles=("ops",)), "GET") is None
    assert admin.judge(who(roles=("ops",)), "HEAD") is None
    assert admin.judge(who(roles=("ops",)), "DELETE") is not None
    assert access(route="shop", rbac=True).judge(who(roles=("ops",)), "GET") is not None
    assert admin.judge(who(roles=("boss",)), "GET") is not None, "a permission is no grant of a route"


@pytest.mark.parametrize("nobody", [None, who(method="anonymous")])
def test_who_is_nobody_is_asked_to_say_who_they_are(nobody: Identity | None) -> None:
    refusal = access(scopes=("a",)).judge(nobody, "GET")

    assert refusal is not None
    assert refusal[0].status == 401
    assert refusal[2] == [("WWW-Authenticate", 'Bearer realm="fastgate", scope="a"')]


def test_circles_are_found() -> None:
    def roles(**inherits: tuple[str, ...]) -> dict[str, RoleConfig]:
        return {name: RoleConfig(inherits=below) for name, below in inherits.items()}

    assert find_cycle(roles(a=("b", "c"), b=("d",), c=("d",), d=())) is None
    assert find_cycle(roles(a=("b",), b=("c",), c=("b",))) == ["b", "c", "b"]
    assert find_cycle(roles(a=("a",))) == ["a", "a"]
    assert find_cycle(roles(a=("missing",))) is None


def test_wildcards() -> None:
    assert wildcard_matches("*", "") and wildcard_matches("*", "anything")
    assert wildcard_matches("a*c", "abbc") and wildcard_matches("a*c", "ac")
    assert not wildcard_matches("a*a", "a") and not wildcard_matches("ab*ba", "aba")
    assert wildcard_matches("*-b-*", "a-b-c") and not wildcard_matches("*-b-*", "a-c-b")
    assert wildcard_matches("exact", "exact") and not wildcard_matches("exact", "exactly")


def site(table: Any, /, **route: Any) -> dict[str, Any]:
    return {
        "roles": table,
        "routes": [{"name": "r", "path": "/*", "respond": "ok", "auth": "api_key", **route}],
    }


@pytest.mark.parametrize(
    ("document", "path", "problem"),
    [
        (
            site({"a": {"inherits": "b"}, "b": {"inherits": "a"}}),
            "$.roles.a.inherits",
            "a inherits b inherits a",
        ),
        (site({"a": {"inherits": "c"}}), "$.roles.a.inherits[0]", "name of a role"),
        (site({"a": [{"routes": "x"}]}), "$.roles.a.permissions[0].routes[0]", "name of a route"),
        (site({"a": [{"routes": "r"}]}), "$.roles.a.permissions[0].routes[0]", "set rbac: true"),
        (site({"a": [{}]}), "$.roles.a.permissions[0]", "an empty grant"),
        (site({"a": ["x:read"]}, roles=["b"]), "$.routes[0].roles[0]", "name of a role"),
        (site({"a": ["x:read"]}, permissions=["x:write"]), "$.routes[0].permissions[0]", "some role grants"),
        (site({}, scopes=['a"b']), "$.routes[0].scopes[0]", "a scope"),
        (site({}, scopes=["a"], auth=None), "$.routes[0].scopes", "set auth"),
        (site({}, enforce_authorization=False), "$.routes[0].enforce_authorization", "without effect"),
    ],
)
def test_what_is_wrong_is_said_with_its_path(document: dict[str, Any], path: str, problem: str) -> None:
    config, errors = check(json.dumps(document), "json", {})

    assert config is None
    assert len(errors) == 1, errors
    assert errors[0].path == path
    assert problem in str(errors[0])


def test_roles_in_all_their_short_forms() -> None:
    roles = {
        "a": ["x:read", {"permission": "x:write", "methods": "POST"}, {"routes": "*"}],
        "b": "x:read",
        "c": {"inherits": "a"},
    }

    config, errors = check(json.dumps(site(roles, rbac=True)), "json", {})

    assert config is not None, errors
    assert [grant.permission for grant in config.roles["a"].permissions] == ["x:read", "x:write", None]
    assert config.roles["c"].inherits == ("a",)


def test_keys_of_several_roles_on_the_wire(tmp_path: Path) -> None:
    document = {
        "store": {"path": str(tmp_path / "fastgate.db")},
        "roles": {
            "reader": ["orders:read"],
            "clerk": {"inherits": "reader", "permissions": [{"routes": "admin", "methods": "GET"}]},
        },
        "consumers": {
            "ann": {"roles": ["reader"], "scopes": ["a"]},
            "bob": {"roles": ["clerk"], "scopes": ["a", "b"]},
        },
        "routes": [
            {"name": "scoped", "path": "/scoped", "respond": "ok", "auth": "api_key", "scopes": ["a", "b"]},
            {
                "name": "orders",
                "path": "/orders",
                "respond": "ok",
                "auth": "api_key",
                "permissions": "orders:read",
            },
            {"name": "admin", "path": "/admin", "respond": "ok", "auth": "api_key", "rbac": True},
            {"name": "clerks", "path": "/clerks", "respond": "ok", "auth": "api_key", "roles": "clerk"},
            {
                "name": "shadow",
                "path": "/shadow",
                "respond": "ok",
                "auth": "api_key",
                "roles": "clerk",
                "enforce_authorization": False,
            },
        ],
    }
    with Gateway(document, workers=2) as gateway:
        keys = {name: made(gateway.admin, name) for name in ("ann", "bob")}

        def status(name: str, path: str, method: str = "GET") -> int:
            answers = {
                get(gateway.port, path, f"X-API-Key: {keys[name]}", method=method).status for _ in range(6)
            }
            assert len(answers) == 1, answers
            return answers.pop()

        assert [status("ann", path) for path in ("/scoped", "/orders", "/admin", "/clerks")] == [
            403,
            200,
            403,
            403,
        ]
        assert [status("bob", path) for path in ("/scoped", "/orders", "/admin", "/clerks")] == [200] * 4
        assert status("bob", "/admin", "POST") == 403
        assert status("ann", "/shadow") == 200

        refused = get(gateway.port, "/scoped", f"X-API-Key: {keys['ann']}")
        assert refused.get("www-authenticate") == (
            b'Bearer realm="fastgate", error="insufficient_scope", scope="a b"'
        )
        body = json.loads(refused.body)
        assert (body["error"], body["missing_scopes"]) == ("Forbidden", ["b"])
        assert get(gateway.port, "/scoped").status == 401

        samples = scrape_idle(gateway.admin)
        for cause, least in (("scope", 7), ("role", 12), ("route", 12)):
            labels = frozenset({"cause": cause}.items())
            assert samples["fastgate_authorization_refused_total", labels] >= least


def made(address: str, consumer: str) -> str:
    connection = http.client.HTTPConnection(address, timeout=60)
    connection.request("POST", "/api/auth/api-key", json.dumps({"consumer": consumer}))
    told = json.loads(connection.getresponse().read())
    connection.close()
    return str(told["api_key"])
