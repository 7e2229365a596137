"""The feature of docs/adding-a-feature.md, built from the page: one folder and one row are all it takes.

The folder stands in a temporary directory that is searched as a part of `fastgate.features`; the row is put
into the list by a `sitecustomize` before anything reads it, in each process of the gateway.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from tests.client import get
from tests.gateway import Gateway
from tests.upstream import Upstream, answer

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "adding-a-feature.md").read_text()
BOUND_S = 120  # of a subprocess: only ever ends a hang


def block(label: str) -> str:
    (found,) = re.findall(rf"^```{re.escape(label)}\n(.*?)^```$", PAGE, re.M | re.S)
    return str(found)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The PYTHONPATH with which fastgate has the feature."""
    folder = tmp_path_factory.mktemp("feature")
    feature = folder / "features" / "greeting"
    feature.mkdir(parents=True)
    (feature / "__init__.py").touch()
    for name in ("build", "check"):
        (feature / f"{name}.py").write_text(block(f"python fastgate/features/greeting/{name}.py"))
    row = textwrap.indent(block("python row in fastgate/features/registry.py"), "    ")
    (folder / "sitecustomize.py").write_text(
        f"import fastgate.features\nfastgate.features.__path__.append({str(folder / 'features')!r})\n"
        "from fastgate.features import registry\nfrom fastgate.features.registry import Feature\n"
        f"{block('python imports in fastgate/features/registry.py')}"
        f"registry.FEATURES = (\n    *registry.FEATURES,\n{row.rstrip()},\n)\n"
    )
    return f"{ROOT}:{folder}"


def fastgate(path: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", *arguments],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=BOUND_S,
        check=False,
    )


def test_the_schema_has_its_keys(path: str) -> None:
    done = fastgate(path, "fastgate", "schema")

    schema = json.loads(done.stdout)
    of_routes = schema["$defs"]["RouteConfig"]["properties"]
    assert schema["properties"]["greeting"]["description"].startswith(
        "For every route that has no `greeting`"
    )
    assert of_routes["greeting"]["description"].startswith("Adds `X-Greeting` to responses.")
    assert schema["$defs"]["GreetingConfig"]["properties"]["text"]["description"] == "Value of `X-Greeting`."


def test_the_manual_has_its_keys_and_only_they_are_new(path: str) -> None:
    done = fastgate(path, "fastgate.cli.docs")

    manual = (ROOT / "docs" / "config.md").read_text().splitlines()
    new = [line for line in done.stdout.splitlines() if line not in manual]
    assert sum(line.startswith("| `greeting` |") for line in new) == 2
    assert any("Value of `X-Greeting`." in line for line in new)
    assert [line for line in new if "greeting" not in line.lower()] == []


@pytest.mark.parametrize(
    ("greeting", "said"),
    [
        ("hi", ""),
        ("{text: hi}", ""),
        ("''", "greeting: expected text that is not empty"),
        ('"a\\nb"', "greeting.text: expected a header value"),
        ("{words: hi}", "greeting.words: unknown key"),
    ],
)
@pytest.mark.parametrize("place", ["$", "$.routes[0]"])
def test_the_check_finds_what_is_wrong_with_it(
    path: str, tmp_path: Path, place: str, greeting: str, said: str
) -> None:
    root, route = (f"greeting: {greeting}\n", "") if place == "$" else ("", f", greeting: {greeting}")
    file = tmp_path / "gateway.yaml"
    file.write_text(f"{root}routes:\n- {{path: /*, respond: 204{route}}}\n")

    done = fastgate(path, "fastgate", "check", "-c", str(file))

    assert done.returncode == (1 if said else 0), done.stderr
    assert (f"{place}.{said}" if said else "") in done.stdout + done.stderr


def test_requests_meet_it(path: str) -> None:
    with Upstream(answer()) as upstream:
        config = "listen: 127.0.0.1:0\nworkers: 1\nadmin: {listen: 127.0.0.1:0}\naccess_log: 'off'\n"
        config += block("yaml gateway.yaml").replace("http://127.0.0.1:9000", upstream.url)
        with Gateway(config, environ={"PYTHONPATH": path}) as gateway:
            found = [get(gateway.port, target).get("x-greeting") for target in ("/", "/fr/x")]

    assert found == [b"Hello", b"Bonjour"]
