"""The deployment files: their configs are good, and the chart has just the values that it uses."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from fastgate.config import ServerConfig, check

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy"
CHART = DEPLOY / "helm" / "fastgate"
VALUES = yaml.safe_load((CHART / "values.yaml").read_text())
TEMPLATES = {path.name: path.read_text() for path in sorted((CHART / "templates").iterdir())}


def errors_of(text: str) -> list[str]:
    return [str(error) for error in check(text, "yaml", {"FASTGATE_ADMIN_TOKEN": "0123456789abcdef"})[1]]


@pytest.mark.parametrize("name", ["gateway.yaml", "compose/gateway.yaml"])
def test_the_configs_are_good(name: str) -> None:
    assert errors_of((DEPLOY / name).read_text()) == []


def test_the_config_of_the_chart_is_good() -> None:
    # what templates/configmap.yaml puts before the values
    fixed = re.search(
        r"dict \"listen\" \"([^\"]+)\" \"admin\" \(dict \"listen\" \"([^\"]+)\" \"token\" \"([^\"]+)\"\)",
        TEMPLATES["configmap.yaml"],
    )
    assert fixed is not None
    config = {**VALUES["config"], "listen": fixed[1], "admin": {"listen": fixed[2], "token": fixed[3]}}

    assert errors_of(yaml.safe_dump(config)) == []


def leaves(values: dict[str, Any], path: str = "") -> set[str]:
    """Dotted paths of the values; a map whose inside is the user's own counts as one."""
    found = set()
    for name, value in values.items():
        if isinstance(value, dict) and value and name not in {"config", "resources"}:
            found |= leaves(value, f"{path}{name}.")
        else:
            found.add(f"{path}{name}")
    return found


def test_the_chart_has_the_values_it_uses_and_uses_the_values_it_has() -> None:
    used = set(re.findall(r"\.Values\.([A-Za-z.]+)", "\n".join(TEMPLATES.values())))

    assert used == leaves(VALUES)


@pytest.mark.parametrize("name", TEMPLATES)
def test_the_blocks_of_a_template_are_closed_and_its_names_defined(name: str) -> None:
    text = TEMPLATES[name]
    actions = re.findall(r"{{-?\s*(\w+)", text)
    opened = sum(action in {"if", "with", "range", "define"} for action in actions)

    defined = set(re.findall(r'define "([^"]+)"', TEMPLATES["_names.tpl"]))
    included = set(re.findall(r'include "([^"]+)"', text))

    assert text.count("{{") == text.count("}}")
    assert opened == actions.count("end")
    assert included <= defined
    assert "\t" not in text


def test_every_deployment_gives_the_gateway_longer_to_stop_than_it_drains() -> None:
    drain_s = ServerConfig().drain_timeout_ns / 1e9
    compose = yaml.safe_load((DEPLOY / "compose" / "compose.yaml").read_text())
    unit = (DEPLOY / "systemd" / "fastgate.service").read_text()

    assert int(compose["services"]["gateway"]["stop_grace_period"].rstrip("s")) > drain_s
    assert int(re.findall(r"^TimeoutStopSec=(\d+)s$", unit, re.MULTILINE)[0]) > drain_s
    assert VALUES["terminationGracePeriodSeconds"] > drain_s + 5  # and the pause of preStop
