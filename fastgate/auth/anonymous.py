"""Requests without a credential, with a separate tier. Limits count them by address."""

from __future__ import annotations

from typing import Any, ClassVar

from fastgate._core.pipeline.context import RequestContext
from fastgate._core.pipeline.identity import Identity
from fastgate.auth.scheme import CounterOf, Scheme
from fastgate.auth.settings import AnonymousConfig

__all__ = ["AnonymousScheme"]


class AnonymousScheme(Scheme):
    """The scheme `anonymous`, which accepts every request. The gate skips it if another scheme found an
    invalid credential."""

    name = "anonymous"
    credential_headers = ()
    outcomes: ClassVar[tuple[str, ...]] = ("ok",)

    def __init__(self, config: AnonymousConfig, counter: CounterOf | None = None) -> None:
        super().__init__(counter)
        self._identity = Identity(
            config.consumer, tier=config.tier, method=self.name, scopes=config.scopes, roles=config.roles
        )

    def verify(self, ctx: RequestContext) -> Any:
        self.count("ok")
        return self._identity
