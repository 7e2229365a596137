from collections.abc import Iterable
from typing import Any, Final, TypeVar, overload

from fastgate._core.http.headers import Headers
from fastgate._core.pipeline.identity import Identity

__all__ = [
    "CLIENT",
    "CONTINUE",
    "GATEWAY",
    "RESPOND",
    "SUSPEND",
    "UPSTREAM",
    "Answer",
    "Reason",
    "RequestContext",
]

CLIENT: Final = 1
GATEWAY: Final = 2
UPSTREAM: Final = 3
CONTINUE: Final = 0
RESPOND: Final = 1
SUSPEND: Final = 2

_T = TypeVar("_T")
_Fields = Iterable[tuple[str | bytes, str | bytes]]

class Reason:
    def __init__(
        self,
        index: int,
        label: str,
        status: int,
        text: str,
        source: int,
        retryable: bool,
        code: str | None = None,
    ) -> None: ...
    @property
    def code(self) -> str: ...
    @property
    def index(self) -> int: ...
    @property
    def label(self) -> str: ...
    @property
    def status(self) -> int: ...
    @property
    def text(self) -> str: ...
    @property
    def source(self) -> int: ...
    @property
    def retryable(self) -> bool: ...

class Answer:
    def __init__(self, status: int, body: bytes = b"", fields: _Fields = ()) -> None: ...
    @property
    def status(self) -> int: ...
    @property
    def body(self) -> bytes: ...

class RequestContext:
    @property
    def method(self) -> str: ...
    @property
    def path(self) -> str: ...
    @property
    def query(self) -> str: ...
    @property
    def host(self) -> str: ...
    @property
    def scheme(self) -> str:
        """`http` or `https`: the scheme of the client's connection to the gateway."""
    @property
    def headers(self) -> Headers:
        """The request's header fields. Edits are visible to later plugins and to the upstream."""
    @property
    def client_scheme(self) -> str: ...
    @property
    def request_target(self) -> str: ...
    @property
    def host_field(self) -> str: ...
    @property
    def authority_text(self) -> str: ...
    @property
    def has_body(self) -> bool:
        """True if the request has a body."""
    @property
    def content_length(self) -> int:
        """Length of the body in bytes; -1 when it is chunked or when there is none."""
    @property
    def client_ip(self) -> str: ...
    @property
    def client_certificate(self) -> bytes | None:
        """The verified client certificate (DER); None without one."""
    @property
    def peer_ip(self) -> str: ...
    @property
    def request_id(self) -> str: ...
    @property
    def params(self) -> dict[str, str]: ...
    @property
    def route(self) -> Any:
        """The matched route; `ctx.route.name` is its name. None before a route matched."""
    @property
    def reason(self) -> Reason | None:
        """The reason of the refusal, a row of REASONS; None if the request was not refused."""
    @property
    def detail(self) -> dict[str, Any] | None:
        """The details of the refusal that were merged into its JSON body."""
    @property
    def body(self) -> bytes | None:
        """The complete request body, in `request` of a plugin that set `request_body_bytes`; or None."""
    @property
    def status(self) -> int:
        """Status of the response; 0 until it is known, or if the client disconnected before."""
    @property
    def upstream_status(self) -> int:
        """Status of the upstream's response; 0 without one."""
    @property
    def upstream_address(self) -> bytes | None:
        """Address of the last target tried, as `host:port`; None without an attempt."""
    @property
    def attempts(self) -> int:
        """Attempts to reach the upstream so far."""
    @property
    def bytes_received(self) -> int:
        """Bytes of the request, head and body. Final in `log`."""
    @property
    def bytes_sent(self) -> int:
        """Bytes of the response, head and body. Final in `log`."""
    @property
    def now_ns(self) -> int:
        """The worker's clock (monotonic), read once per event."""
    @property
    def started_ns(self) -> int:
        """When the request's first byte arrived (monotonic clock)."""
    @property
    def upstream_started_ns(self) -> int:
        """When the head was sent upstream; 0 if it was not."""
    @property
    def first_byte_ns(self) -> int:
        """When the upstream's first byte arrived; 0 if none did."""
    @property
    def finished_ns(self) -> int:
        """When the request ended; 0 before `log`."""
    tags: list[str] | None
    """Tags set by policies; a plugin may add tags. They are in the access log."""
    @property
    def upstream_override(self) -> str | None:
        """The name given to `send_to`; None if it was not called."""
    @property
    def identity(self) -> Identity | None:
        """The authenticated client: `consumer`, `tier`, `key_id`, `scopes`, `roles`, `claims`; or None."""
    def other_paths(self, keep_slashes: bool = False) -> tuple[str, ...]: ...
    def replace_query(self, query: str | None, shown: str | None) -> None: ...
    def identify(self, identity: Identity | None) -> None: ...
    def respond(self, status: int, body: bytes | str = b"", headers: _Fields = ()) -> int: ...
    def reply(self, answer: Answer) -> int: ...
    def refuse(self, reason: Reason, detail: dict[str, Any] | None = None, headers: _Fields = ()) -> int: ...
    def add_response_header(self, name: str | bytes, value: str | bytes) -> None: ...
    def replace_body(self, body: bytes) -> None: ...
    def send_to(self, upstream: str) -> None: ...
    def remember(self, plugin: Any, value: object) -> None: ...
    @overload
    def recall(self, plugin: Any) -> Any: ...
    @overload
    def recall(self, plugin: Any, default: _T) -> Any | _T: ...
