"""Whatever stands in a file, the check answers: a config that freezes, or errors."""

from __future__ import annotations

import asyncio
import json
from typing import Any

from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from fastgate.config import Config, check, decode, encode
from fastgate.config.schema import keys, sections
from fastgate.plan.freeze import freeze_now
from fastgate.proxy.dataplane import DataPlane
from fastgate.state.memory import HostMemory

KEYS = sorted({key.name for cls in sections() for key in keys(cls)})
# fmt: off
TEXTS = [
    "", "/", "/*", "/a/{id}", "/{rest...}", "~^/x", "~(", "*", "a.test", "*.test", "http://127.0.0.1:1",
    "https://a", "unix:/tmp/a", ":0", "127.0.0.1:0", "off", "auto", "stdout", "5s", "0s", "10MB", "1KB",
    "GET", "X-A", "{id}", "{host}", "a\r\nb",
    chr(0xD800), "ü", "${A}", "${B:-c}", "$${", "${", "1.2", "a",
    "10.0.0.0/8",
]
# fmt: on
texts = st.sampled_from(TEXTS)
scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | texts
    | st.text(max_size=8)
)
trees = st.recursive(
    scalars,
    lambda below: (
        st.lists(below, max_size=3) | st.dictionaries(st.sampled_from([*KEYS, "a", "b"]), below, max_size=4)
    ),
    max_leaves=12,
)
rewrites: st.SearchStrategy[dict[str, Any]] = st.fixed_dictionaries(
    {}, optional=dict.fromkeys(("strip_prefix", "path", "regex", "to"), texts)
)
fields = st.dictionaries(texts, texts, max_size=2)
edits = st.fixed_dictionaries(
    {}, optional={"set": fields, "add": fields, "rename": fields, "remove": st.lists(texts)}
)
options: dict[str, st.SearchStrategy[Any]] = {
    "path": texts | st.lists(texts, max_size=3),
    "host": texts,
    "methods": texts,
    "headers": fields,
    "query": fields,
    "rewrite": rewrites,
    "timeouts": trees,
    "request_headers": edits,
    "response_headers": edits,
    "max_body": texts,
    "name": texts,
}
actions = (
    st.fixed_dictionaries({"upstream": st.sampled_from(["http://127.0.0.1:1", "a", "unix:/a"]) | trees})
    | st.fixed_dictionaries({"redirect": st.sampled_from(["/x", "/{id}", "https://a/{rest}"]) | trees})
    | st.fixed_dictionaries(
        {"respond": st.sampled_from(["x", {"json": {"a": 2**70}}, {"status": 204}]) | trees}
    )
)
routes = st.builds(lambda one, two: {**one, **two}, st.fixed_dictionaries({}, optional=options), actions)
root_keys = [key.name for key in keys(sections()[0]) if key.name != "routes"]
roots = st.fixed_dictionaries(
    {"routes": st.lists(routes, min_size=1, max_size=3) | trees},
    optional=dict.fromkeys(root_keys, trees),
)


def judge(text: str, form: str) -> None:
    config, errors = check(text, form, {"A": "1", "FASTGATE__SERVER__MAX_BODY": "1MB"})

    if config is None:
        assert errors
        for error in errors:
            assert error.path.startswith("$")
            str(error).encode()
        return
    assert errors == []
    again = decode(encode(config))
    assert Config(**{name: getattr(again, name) for name in Config.__struct_fields__}) == config
    loop = asyncio.new_event_loop()
    try:
        plane = DataPlane(loop, HostMemory.private(), 0)
        plane.install(freeze_now(config, plane))
        plane.close()
    finally:
        loop.close()


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@example({"routes": [{"methods": "\ud800", "upstream": "http://127.0.0.1:1"}]})
@given(roots)
def test_every_tree_gets_an_answer(tree: Any) -> None:
    judge(json.dumps(tree), "json")


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(routes)
def test_every_route_gets_an_answer(route: Any) -> None:
    judge(json.dumps({"routes": [route], "access_log": "off"}), "json")


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.text(alphabet="ab:-{}[]\"'\n &*<!|>%@`,#?0.", max_size=60), st.sampled_from(["yaml", "toml", "json"])
)
@example("! {", "yaml")
def test_every_text_gets_an_answer(text: str, form: str) -> None:
    judge(text, form)
