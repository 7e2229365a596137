"""Builds the policy gate of a route: rules with a condition in CEL, evaluated on every request."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from fastgate.features.policy.gate import Policies, PolicyGate, switch_name
from fastgate.features.policy.settings import PolicyConfig
from fastgate.plugin import FeatureEnv

__all__ = ["build"]


def _has_store(config: Any) -> bool:
    """True when a controller will publish what was set at run time before."""
    is_there: bool = config.store.file().exists()
    return is_there


def runtime_names(config: Any) -> Iterator[str]:
    """A switch for each policy of the root, by which it can be turned off at run time."""
    return (switch_name(policy.name) for policy in config.policies)


def build(own: Sequence[str | PolicyConfig], env: FeatureEnv) -> PolicyGate | None:
    """The gate of a route, or None if no policy can ever apply to it."""
    memory = env.context.memory
    directory = memory.directory if env.config.admin.listen != "off" else None
    root: tuple[PolicyConfig, ...] = env.config.policies
    if not own and not root and directory is None:
        return None
    policies = env.service(
        "policies",
        root,
        lambda: Policies(
            root,
            counter=memory.metrics.counter,
            table=memory.limits,
            violations=memory.violations,
            directory=directory,
            waits=directory is not None and not directory.loaded and _has_store(env.config),
            worker=env.context.slot,
            runtime=memory.runtime,
        ),
    )
    return PolicyGate(policies, env.route.name, own)
