"""Every config in the manual, the README, the examples and deploy/ is good, and fits the JSON Schema."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest
import yaml
from msgspec.structs import fields

from fastgate.config import PluginUse, check
from fastgate.config.schema import json_schema, sections
from fastgate.config.shape import Shapes
from fastgate.config.source import Substituted, parse

ROOT = Path(__file__).parents[2]
#: What the reader of a manual has and this machine has not: files below /etc, and a package of theirs.
THEIRS = re.compile(r"/etc/(fastgate|ssl)/\S+: No such file or directory|/etc/fastgate/|'my_company'|/var/l")
ROUTES = "\nroutes: [{path: /, respond: ok}]\n"


class Environment(dict[str, str]):
    """Every variable is set, but no overrides are."""

    def __contains__(self, name: object) -> bool:
        return not str(name).startswith("FASTGATE__")

    def __getitem__(self, name: str) -> str:
        return f"{name.lower()}-0123456789abcdef"

    def get(self, name: str, default: Any = None) -> Any:  # as the lookup of ${NAME:-default} does
        return default if name not in self else self[name]  # noqa: SIM401


def examples() -> Iterator[tuple[str, str, str]]:
    """Where it stands, its form, its text."""
    for page in [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]:
        blocks = re.findall(r"^[ ]*```(ya?ml|toml|json)\n(.*?)^[ ]*```", page.read_text(), re.S | re.M)
        for number, (form, text) in enumerate(blocks, 1):
            yield f"{page.relative_to(ROOT)}#{number}", "yaml" if form == "yml" else form, text
    for file in (ROOT / "examples").rglob("*"):
        if file.suffix == ".yaml":
            yield str(file.relative_to(ROOT)), "yaml", file.read_text()
        elif file.suffix == ".py":
            for text in re.findall(r"^    routes:\n(?:^ {5,}.*\n)+", file.read_text(), re.M):
                yield str(file.relative_to(ROOT)), "yaml", text
    for name in ("deploy/gateway.yaml", "deploy/compose/gateway.yaml"):
        yield name, "yaml", (ROOT / name).read_text()
    values = yaml.safe_load((ROOT / "deploy/helm/fastgate/values.yaml").read_text())
    yield "helm values", "yaml", yaml.safe_dump(values["config"], sort_keys=False)


CONFIGS = [
    (place, form, text)
    for place, form, text in examples()
    if form == "yaml" or re.search(r"^\s*\[?\[?\"?(routes|listen|upstreams)\b", text, re.M)
]


@pytest.fixture(scope="module")
def schema() -> jsonschema_rs.Draft202012Validator:
    return jsonschema_rs.Draft202012Validator(json_schema())


def as_written(value: Any) -> Any:
    """The value before variables were replaced: what an editor sees."""
    if isinstance(value, Substituted):
        return str(value.template)
    if isinstance(value, dict):
        return {str(key): as_written(item) for key, item in value.items()}
    return [as_written(item) for item in value] if isinstance(value, list) else value


def test_there_are_examples() -> None:
    assert len(CONFIGS) > 30
    places = {place.partition("#")[0] for place, _, _ in CONFIGS}
    assert places >= {"README.md", "docs/limits.md", "docs/auth/jwt.md", "helm values"}


@pytest.mark.parametrize(("place", "form", "text"), CONFIGS, ids=[place for place, _, _ in CONFIGS])
def test_an_example_is_good_and_fits_the_schema(
    place: str, form: str, text: str, schema: jsonschema_rs.Draft202012Validator,
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    monkeypatch.syspath_prepend(str(ROOT))
    if not re.search(r"^\s*\[?\[?\"?routes", text, re.M):  # a section alone
        assert form == "yaml"
        text += ROUTES

    document, problems = parse(text, form, Environment(), "example")
    assert document is not None, problems
    wrong = [
        f"{error.instance_path}: {error.message}" for error in schema.iter_errors(as_written(document.tree))
    ]
    assert wrong == []

    _, errors = check(text, form, Environment())
    assert [str(error) for error in errors if not THEIRS.search(str(error))] == []


#: Values of every kind that a file may hold anywhere.
VALUES = [
    None, True, False, 0, 1, 2, 301, 443, 8080, 0.5, 1.0, 1.2, "", "0", "8080", "x", "/x", "https", "https://a.test",
    "60s", " 1h30m ", "10MB", "10mb", "64 kib", "1.2", "off", "auto", "basic", "GET", "10.0.0.0/8", "${NAME}",
    "${LIST}", [], ["x"], ["/x", "/y"], [1], ["60s"], [{}], {}, {"x": "y"}, {"x": 1},
]  # fmt: skip


# A plugin is read by load.py, with the Struct of its class.
@pytest.mark.parametrize(
    "cls", [cls for cls in sections() if cls is not PluginUse], ids=lambda cls: cls.__name__
)
def test_the_schema_takes_what_the_reader_takes(
    cls: type, schema: jsonschema_rs.Draft202012Validator
) -> None:
    whole = json_schema()
    name = cls.__name__
    here = whole if name == "Config" else whole["$defs"][name]
    reader = Shapes().struct(cls)
    environment = {"NAME": "60s", "LIST": '["x"]'}
    missed = []
    for field in fields(cls):
        key = field.encode_name
        validator = jsonschema_rs.Draft202012Validator({"$defs": whole["$defs"], **here["properties"][key]})
        for value in VALUES:
            errors: list[Any] = []
            written = json.loads(json.dumps({key: value}))
            document, _ = parse(json.dumps(written), "json", environment)
            assert document is not None
            reader(document.tree, (), lambda path, *said, errors=errors: errors.append(path))
            if not any(path[:1] == (key,) for path in errors) and not validator.is_valid(value):
                missed.append(f"{name}.{key}: {value!r}")
    assert missed == []
