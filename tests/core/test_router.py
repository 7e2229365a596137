"""The router against a naive matcher that tries every route, and what it promises about errors and params."""

from __future__ import annotations

import gc
import random
import re
import sys
import threading
from collections.abc import Callable
from typing import cast

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from fastgate._core.http.route import Route
from fastgate._core.http.router import Match, Router, live_objects

Key = tuple[object, ...]


# --- the oracle: every route is tried, the candidates are sorted by the documented order


def host_rank(pattern: str | None, host: str) -> int | None:
    """0 exact, then wildcards, the longest first, then any; None when it does not match."""
    if pattern is None:
        return 1_000
    if pattern.startswith("*."):
        return 999 - len(pattern) if host.endswith(pattern[1:]) and len(host) > len(pattern) - 1 else None
    return 0 if host == pattern else None


FirstAdded = dict[tuple[str | None, str], int]


def path_rank(route: Route, path: str, first_added: FirstAdded) -> tuple[Key, dict[str, str]] | None:
    """(rank, params) of a route for the path, or None."""
    pattern: str = route.pattern
    if pattern.startswith("~"):
        found = re.search(pattern[1:].encode(), path.encode())
        if found is None:
            return None
        groups = {name: (text or b"").decode() for name, text in found.groupdict().items()}
        return (2, first_added[route.host, pattern]), groups
    if not path.startswith("/"):
        return None
    wanted, given_ = pattern[1:].split("/"), path[1:].split("/")
    params: dict[str, str] = {}
    tail = None
    if wanted[-1] == "*" or wanted[-1].endswith("...}"):
        tail = wanted.pop()
        if len(given_) <= len(wanted):
            return None
        if tail != "*":
            params[tail[1:-4]] = "/".join(given_[len(wanted) :])
        given_ = given_[: len(wanted)]
    if len(given_) != len(wanted):
        return None
    shape = []
    for want, have in zip(wanted, given_, strict=True):
        if want.startswith("{"):
            if have == "":
                return None
            params[want[1:-1]] = have
            shape.append(1)
        elif want != have:
            return None
        else:
            shape.append(0)
    if tail is not None:
        return (3, -len(wanted), *shape), params
    return (1, *shape) if 1 in shape else (0,), params


def naive(routes: tuple[Route, ...], host: str, path: str) -> list[tuple[Route, dict[str, str]]]:
    first_added: dict[tuple[str | None, str], int] = {}
    for route in routes:
        first_added.setdefault((route.host, route.pattern), route.order)
    found = []
    for route in routes:
        on_host = host_rank(route.host, host)
        on_path = path_rank(route, path, first_added)
        if on_host is not None and on_path is not None:
            found.append(((on_host, *on_path[0], -route.predicates, route.order), route, on_path[1]))
    found.sort(key=lambda row: (row[0][0], row[0][1], row[0][2:]))
    return [(route, params) for _, route, params in found]


# --- random routers

WORDS = st.sampled_from(["a", "b", "orders", "v1", ""])
HOSTS = ["example.com", "api.example.com", "x.api.example.com", "b.com", "com", "", "a.b.c.example.com"]
HOST_PATTERNS = [None, "example.com", "api.example.com", "*.example.com", "*.api.example.com", "*.com"]
REGEXES = ["~^/a", r"~^/v\d/(?P<id>\w+)$", "~b$", r"~^/(?P<x>a)?(?P<y>b)?", "~."]


@st.composite
def path_patterns(draw: st.DrawFn) -> str:
    kind = draw(st.integers(0, 9))
    if kind == 0:
        return draw(st.sampled_from(REGEXES))
    pieces = [
        f"{{p{index}}}" if draw(st.booleans()) and draw(st.booleans()) else draw(WORDS)
        for index in range(draw(st.integers(0, 4)))
    ]
    if kind in (1, 2):
        pieces.append("*")
    elif kind in (3, 4):
        pieces.append("{rest...}")
    return "/" + "/".join(pieces)


ROUTES = st.lists(st.tuples(path_patterns(), st.sampled_from(HOST_PATTERNS), st.integers(0, 2)), max_size=25)
PATHS = st.one_of(
    st.lists(st.sampled_from(["a", "b", "v1", "", "z"]), max_size=6).map(lambda words: "/" + "/".join(words)),
    st.sampled_from(["", "*", "a/b", "/v7/x"]),
)
REQUESTS = st.lists(st.tuples(st.sampled_from(HOSTS), PATHS), min_size=1, max_size=12)


class AcceptOrders:
    def __init__(self, orders: set[int]) -> None:
        self.orders = orders

    def __call__(self, route: Route) -> bool:
        return route.order in self.orders


def frozen(rows: list[tuple[str, str | None, int]]) -> Router:
    router = Router()
    for index, (pattern, host, predicates) in enumerate(rows):
        router.add(pattern, index, host=host, predicates=predicates)
    router.freeze()
    return router


@given(ROUTES, REQUESTS, st.integers(0, 99))
@example([("/{p0}/a/*", None, 0), ("/a/{p1}/{rest...}", None, 0), ("/*", None, 2)], [("", "/a/a/x")], 1)
def test_candidates_and_params_equal_the_naive_matcher(
    rows: list[tuple[str, str | None, int]], requests: list[tuple[str, str]], seed: int
) -> None:
    router = frozen(rows)
    refuse = random.Random(seed)

    for host, path in requests:
        expected = naive(router.routes, host, path)
        assert router.candidates(host, path) == [route for route, _ in expected]

        match = router.match(host, path)
        assert (match and (match.route, match.params)) == (expected[0] if expected else None)

        accepted = {route.order for route, _ in expected if refuse.random() < 0.5}
        match = router.match(host.encode(), path.encode(), AcceptOrders(accepted))
        best = next((row for row in expected if row[0].order in accepted), None)
        assert (match and (match.route, match.params)) == best


@pytest.mark.parametrize("every", [1, 3, 1000])
def test_freezing_in_steps_builds_the_same_router(every: int) -> None:
    rows = [(f"/s{i % 7}/{{id}}/x{i}", f"h{i % 5}.com" if i % 3 else None, i % 2) for i in range(60)]
    whole, stepped = frozen(rows), Router()
    for index, (pattern, host, predicates) in enumerate(rows):
        stepped.add(pattern, index, host=host, predicates=predicates)

    given_up = stepped.freezing(every)
    next(given_up, None)
    del given_up
    assert sum(1 for _ in stepped.freezing(every)) >= (60 // every if every < 60 else 0)

    assert stepped.frozen
    for index in range(60):
        for host in ("h1.com", "h4.com", None):
            path = f"/s{index % 7}/q/x{index}"
            expected = [route.order for route in whole.candidates(host, path)]
            assert [route.order for route in stepped.candidates(host, path)] == expected


# --- promises


@pytest.mark.parametrize(
    ("pattern", "position", "words"),
    [
        ("", 0, "empty"),
        ("orders", 0, "expected '/...'"),
        ("/a/{id", 3, "never closed"),
        ("/a/{}", 4, "parameter name"),
        ("/a/{...}", 4, "parameter name"),
        ("/a/{1x}", 4, "parameter name"),
        ("/{id}/{id}", 7, "appears twice"),
        ("/{id}/{id...}", 7, "appears twice"),
        ("/{rest...}/a", 1, "must be the last segment"),
        ("/*/a", 1, "must be the last segment"),
        ("/a*b", 2, "'*' must be the whole last segment"),
        ("/a{id}", 2, "whole segment"),
        ("/{id}.json", 5, "whole segment"),
        ("/a}", 2, "whole segment"),
        ("/a?x=1", 2, "query"),
        ("/a#b", 2, "path"),
        ("/%zz", 1, "hex"),
        ("/a/%4", 3, "hex"),
        ("/a/../b", 3, "dot segment"),
        ("/%2e/b", 1, "dot segment"),
        ("~", 1, "expected a regular expression"),
        ("~a(b", 2, "not a regular expression"),
        ("/\ud800", 1, "surrogate"),
        ("/" + "/".join(f"{{p{index}}}" for index in range(17)), 87, "at most 16 parameters"),
        ("/" + "a/" * 63 + "{x}", 127, "at most 63 segments"),
    ],
)
def test_a_malformed_pattern_is_refused_with_its_position(pattern: str, position: int, words: str) -> None:
    router = Router()

    with pytest.raises(ValueError) as caught:
        router.add(pattern)

    assert repr(pattern) in str(caught.value)
    assert f"position {position}:" in str(caught.value)
    assert words in str(caught.value)
    assert len(router) == 0


BAD_HOSTS = ["", "*", "a.com:80", "*.*.com", "a..com", "é.com", ".com", "a b", "x" * 254, "*.[::1]"]


@pytest.mark.parametrize("host", BAD_HOSTS)
def test_a_malformed_host_is_refused(host: str) -> None:
    with pytest.raises(ValueError, match="host"):
        Router().add("/", host=host)


def test_wrong_types_are_refused_by_name() -> None:
    router = Router()
    cases: list[tuple[Callable[[], object], str]] = [
        (lambda: router.add(b"/a"), "pattern"),  # type: ignore[arg-type]
        (lambda: router.add("/a", host=b"a"), "host"),  # type: ignore[arg-type]
        (lambda: router.add("/a", predicates="1"), "predicates"),  # type: ignore[arg-type]
        (lambda: router.add("/a", predicates=True), "predicates"),
    ]
    for call, name in cases:
        with pytest.raises(TypeError, match=name):
            call()
    for value in (-1, 10**30):
        with pytest.raises(ValueError, match="predicates"):
            router.add("/a", predicates=value)
    assert len(router) == 0
    router.freeze()
    cases = [
        (lambda: router.match("", 1), "path"),  # type: ignore[arg-type]
        (lambda: router.match(1, "/"), "host"),  # type: ignore[arg-type]
        (lambda: router.match("", "/", 1), "accept"),  # type: ignore[arg-type]
    ]
    for call, name in cases:
        with pytest.raises(TypeError, match=name):
            call()
    for cls in (Route, Match):
        with pytest.raises(TypeError):
            cast(Callable[[], object], cls)()


def test_a_frozen_router_never_changes_and_an_open_one_does_not_match() -> None:
    router = Router()
    router.add("/a")
    with pytest.raises(ValueError, match="every"):
        next(router.freezing(0))
    with pytest.raises(RuntimeError):
        router.match("", "/a")
    with pytest.raises(RuntimeError):
        router.candidates("", "/a")

    router.freeze()
    router.freeze()

    with pytest.raises(RuntimeError):
        router.add("/b")
    assert len(router) == 1 and router.match(None, "/b") is None


def test_an_empty_router_matches_nothing() -> None:
    router = Router()
    router.freeze()

    assert router.match("a.com", "/") is None
    assert router.candidates(None, "/") == []


def test_params_keep_their_percent_encoding_and_names_their_order() -> None:
    router = frozen([("/{tenant}/files/{rest...}", None, 0)])

    match = router.match("", "/caf%C3%A9/files/a//b%2Fc")

    assert match is not None
    assert list(match.params.items()) == [("tenant", "caf%C3%A9"), ("rest", "a//b%2Fc")]
    assert match.route.param_names == (b"tenant", b"rest")
    assert match.value == 0
    assert match.route.kind == "prefix"


def test_pattern_text_is_brought_to_the_form_of_a_normalised_path() -> None:
    router = frozen([("/café/%7euser/a b", None, 0), ("/x%2fy/{p}", None, 0)])

    assert router.match("", "/caf%C3%A9/~user/a%20b") is not None
    assert router.match("", "/x%2Fy/1") is not None


def test_the_slash_of_a_prefix_belongs_to_it() -> None:
    router = frozen([("/static/*", None, 0)])

    assert router.match("", "/static/") and router.match("", "/static/a/b")
    assert not router.match("", "/static") and not router.match("", "/staticx")


def test_exceptions_of_accept_reach_the_caller() -> None:
    router = frozen([("/a", None, 0), ("/{x}", None, 0)])

    def accept(route: Route) -> bool:
        raise KeyError(route.pattern)

    with pytest.raises(KeyError, match="/a"):
        router.match("", "/a", accept)


def test_hostile_requests_are_only_not_found() -> None:
    router = frozen([("/{a}/{b}/c", None, 0), ("/x/*", "*.example.com", 0), ("/y", "example.com", 0)])

    for host in ("", ".", "." * 5000, "a." * 40000 + "example.com", "\x00", "x" * 100_000):
        for path in ("", "/", "/" * 100_000, "a" * 100_000, "/a" * 50_000, "/\x00/\x00", "*"):
            assert router.match(host, path) is None


def test_paths_deeper_than_any_pattern_still_reach_tails() -> None:
    router = frozen([("/" + "a/" * 63 + "{rest...}", None, 0), ("/a/*", None, 0)])

    deep = router.match("", "/" + "a/" * 63 + "x/y")
    other = router.match("", "/" + "a/" * 70 + "b" * 10)
    shallow = router.match("", "/a/" + "b/" * 100)

    assert deep is not None and deep.params == {"rest": "x/y"}
    assert other is not None and other.value == 0
    assert shallow is not None and shallow.value == 1


def test_ten_thousand_routes_are_all_found() -> None:
    router = Router()
    for index in range(2500):
        router.add(f"/lit/{index}", host=f"h{index % 50}.com")
        router.add(f"/p/{index}/{{id}}")
        router.add(f"/{{a}}/q{index}/x")
        router.add("/{rest...}", host=f"*.d{index}.org")
    router.freeze()

    for index in range(2500):
        for host, path in [
            (f"h{index % 50}.com", f"/lit/{index}"),
            ("", f"/p/{index}/z"),
            (None, f"/m/q{index}/x"),
            (f"a.b.d{index}.org", "/any/thing"),
        ]:
            match = router.match(host, path)
            assert match is not None and match.route.order == next(iter(router.candidates(host, path))).order
            assert str(index) in match.route.pattern + str(match.route.host)


def test_threads_share_a_router() -> None:
    router = frozen([(f"/s/{index}/{{id}}", None, 0) for index in range(500)])
    wrong: list[int] = []

    def work(seed: int) -> None:
        rng = random.Random(seed)
        for _ in range(3000):
            index = rng.randrange(500)
            match = router.match("", f"/s/{index}/v{seed}")
            if match is None or match.value != index or match.params != {"id": f"v{seed}"}:
                wrong.append(index)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert wrong == []


def test_nothing_is_leaked_by_matching_or_dropping_routers() -> None:
    value = object()

    def use() -> None:
        router = Router()
        router.add("/a/{id}", value)
        router.add("~^/r(?P<x>.)", value, host="a.com")
        router.add("/a", router)  # a cycle through the router itself
        router.freeze()
        for _ in range(50):
            assert router.match("a.com", "/a/1", lambda route: True) is not None
            assert router.match("a.com", "/rx") is not None
            assert router.match("a.com", "/no/no/no") is None
            router.candidates("a.com", "/a/1")

    use()
    gc.collect()
    references, blocks, live = sys.getrefcount(value), sys.getallocatedblocks(), live_objects()
    for _ in range(20):
        use()
    gc.collect()

    assert sys.getrefcount(value) == references
    assert live_objects() == live
    assert abs(sys.getallocatedblocks() - blocks) < 200
