from collections.abc import Callable, Iterable, Mapping
from typing import Any

from fastgate._core.http.edits import HeaderEdits, Rewrite, Template
from fastgate._core.http.router import Router
from fastgate._core.pipeline.context import Answer, Reason
from fastgate._core.pipeline.pipeline import Pipeline, Plugin
from fastgate._core.resilience.retry_policy import RetryPolicy
from fastgate._core.shm.counters import Counters

__all__ = ["Destination", "FixedResponse", "Plan", "PluginFailed", "Redirect", "RoutePlan", "plugin_title"]

_Test = tuple[bytes, Callable[[bytes], bool]]

class PluginFailed(Exception): ...

def plugin_title(plugin: Any) -> str: ...

class Destination:
    def __init__(
        self,
        upstream: Any,
        timeouts: Any,
        *,
        preserve_host: bool = False,
        cache: Any = None,
        retry: RetryPolicy | None = None,
        owned: Iterable[bytes] = (),
    ) -> None: ...
    @property
    def upstream(self) -> Any: ...
    @property
    def cache(self) -> Any: ...
    @property
    def retry(self) -> RetryPolicy | None: ...
    @property
    def timeouts(self) -> Any: ...
    @property
    def connect_ns(self) -> int: ...
    @property
    def first_byte_ns(self) -> int: ...
    @property
    def between_bytes_ns(self) -> int: ...
    @property
    def total_ns(self) -> int: ...
    @property
    def preserve_host(self) -> bool: ...

class RoutePlan:
    services: tuple[Any, ...]
    def __init__(
        self,
        name: str,
        *,
        pipeline: Pipeline,
        counters: Counters | None,
        slot: int,
        source: Any = None,
        destination: Destination | None = None,
        max_body_bytes: int = 0,
        request_buffering_bytes: int = 0,
        rewrite: Rewrite | None = None,
        request_edits: HeaderEdits | None = None,
        response_edits: HeaderEdits | None = None,
        methods: Iterable[str] = (),
        header_tests: Iterable[_Test] = (),
        query_tests: Iterable[_Test] = (),
        accepts_preflight: bool = False,
        allow_encoded_slashes: bool = False,
    ) -> None: ...
    @property
    def accepts_preflight(self) -> bool: ...
    @property
    def allow_encoded_slashes(self) -> bool: ...
    @property
    def name(self) -> str: ...
    @property
    def name_bytes(self) -> bytes: ...
    @property
    def name_json(self) -> bytes: ...
    @property
    def source(self) -> Any: ...
    @property
    def pipeline(self) -> Pipeline: ...
    @property
    def destination(self) -> Destination | None: ...
    @property
    def max_body_bytes(self) -> int: ...
    @property
    def request_buffering_bytes(self) -> int: ...
    @property
    def rewrite(self) -> Rewrite | None: ...
    @property
    def request_edits(self) -> HeaderEdits | None: ...
    @property
    def response_edits(self) -> HeaderEdits | None: ...
    @property
    def method_names(self) -> tuple[str, ...]: ...

class Plan:
    installed: bool
    def __init__(
        self,
        router: Router,
        routes: Iterable[RoutePlan],
        upstreams: Mapping[str, Any],
        config: Any,
        plugins: Iterable[Any],
        fresh: Iterable[Any],
        trusted: Any,
        counters: Counters | None,
        slot: int,
        redirects: Mapping[int, RoutePlan] | None = None,
        *,
        trusts_unix: bool = False,
        make_destination: Callable[[RoutePlan, str], Destination] | None = None,
    ) -> None: ...
    @property
    def requests(self) -> int: ...
    @property
    def has_preflights(self) -> bool: ...
    @property
    def merge_slashes(self) -> bool: ...
    @property
    def router(self) -> Router: ...
    @property
    def routes(self) -> list[RoutePlan]: ...
    @property
    def upstreams(self) -> dict[str, Any]: ...
    @property
    def config(self) -> Any: ...
    @property
    def plugins(self) -> tuple[Any, ...]: ...
    @property
    def fresh(self) -> tuple[Any, ...]: ...
    @property
    def redirects(self) -> dict[int, RoutePlan]: ...
    async def start(self) -> None: ...
    async def close(self) -> None: ...

class FixedResponse(Plugin):
    def __init__(self, answer: Answer) -> None: ...

class Redirect(Plugin):
    def __init__(self, location: Template, status: int, keep_query: bool, refusal: Reason) -> None: ...
