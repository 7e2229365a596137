"""The variables that conditions can read, and how each is derived from a request."""

from __future__ import annotations

import datetime
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final
from urllib.parse import parse_qsl

from fastgate._core.pipeline.context import RequestContext
from fastgate.features.policy.counts import Counts

__all__ = ["VARIABLES", "Moment"]

Source = Callable[[RequestContext, "Moment"], Any]


class Moment:
    """Sources of the variables of one request other than the request itself: the clock and the counts."""

    __slots__ = ("counts", "longest", "now_ns", "repeated", "utc")

    def __init__(self, now_ns: int, counts: Counts | None) -> None:
        self.now_ns = now_ns
        self.counts = counts
        self.repeated: set[tuple[str, str]] | None = None
        """(map, key) of each key that the request has more than once."""
        self.longest = 0
        """Number of elements of the longest list or map."""
        self.utc = time.gmtime()

    def note_repeated(self, kind: str, name: str) -> None:
        if self.repeated is None:
            self.repeated = set()
        self.repeated.add((kind, name))

    def note_length(self, length: int) -> None:
        if length > self.longest:
            self.longest = length


LISTS: Final = frozenset(
    (
        *("accept", "accept-charset", "accept-encoding", "accept-language", "accept-patch", "accept-ranges"),
        *("access-control-request-headers", "allow", "cache-control", "cdn-loop", "connection"),
        *("content-digest", "content-encoding", "content-language", "cookie", "forwarded", "if-match"),
        *("if-none-match", "link", "pragma", "prefer", "priority", "repr-digest", "signature"),
        *("sec-websocket-extensions", "sec-websocket-protocol", "signature-input", "te", "trailer"),
        *("upgrade", "vary", "via"),
        *("want-content-digest", "want-repr-digest", "x-forwarded-for"),
    )
)
"""Fields whose lines form one list (RFC 9110 §5.3). Of any other repeated field, recipients take one line or
the other.
"""


def _headers(ctx: RequestContext, at: Moment) -> dict[str, str]:
    fields: dict[str, str] = {}
    for name, value in ctx.headers.items():
        name = name.lower()
        if name not in fields:
            fields[name] = value
            continue
        fields[name] = f"{fields[name]}{'; ' if name == 'cookie' else ', '}{value}"
        if name not in LISTS:
            at.note_repeated("headers", name)
    at.note_length(len(fields))
    return fields


def _header_values(ctx: RequestContext, at: Moment) -> dict[str, list[str]]:
    fields: dict[str, list[str]] = {}
    for name, value in ctx.headers.items():
        fields.setdefault(name.lower(), []).append(value)
    at.note_length(max(len(fields), *map(len, fields.values())) if fields else 0)
    return fields


def _query_pairs(ctx: RequestContext) -> list[tuple[str, str]]:
    """All query parameters, in order; `server.max_target_bytes` bounds the query."""
    return parse_qsl(ctx.query, keep_blank_values=True, encoding="utf-8", errors="replace")


def _query_params(ctx: RequestContext, at: Moment) -> dict[str, str]:
    found: dict[str, str] = {}
    for name, value in _query_pairs(ctx):
        if found.setdefault(name, value) is not value:
            at.note_repeated("query_params", name)
    at.note_length(len(found))
    return found


def _query_values(ctx: RequestContext, at: Moment) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for name, value in _query_pairs(ctx):
        found.setdefault(name, []).append(value)
    at.note_length(max(len(found), *map(len, found.values())) if found else 0)
    return found


def _cookies(ctx: RequestContext, at: Moment) -> dict[str, str]:
    found: dict[str, str] = {}
    for field in ctx.headers.get_all("cookie"):
        for part in field.split(";"):
            name, equals, value = part.strip().partition("=")
            if not equals:
                continue
            if name in found:
                at.note_repeated("cookies", name)
            else:
                found[name] = value.strip('"')
    at.note_length(len(found))
    return found


def _size(ctx: RequestContext, _at: Moment) -> int:
    value = ctx.headers.get("content-length")
    return (
        int(value)
        if value is not None and value.isdigit()
        else (-1 if "transfer-encoding" in ctx.headers else 0)
    )


def _of_consumer(attribute: str, missing: Any, convert: Callable[[Any], Any] = lambda value: value) -> Source:
    def read(ctx: RequestContext, at: Moment) -> Any:
        identity = getattr(ctx, "identity", None)
        if identity is None:
            return missing
        value = getattr(identity, attribute, None)
        if value is None:
            return missing
        converted = convert(value)
        if not isinstance(converted, str):
            at.note_length(_longest(converted))
        return converted

    return read


def _longest(value: Any) -> int:
    """Number of elements of the longest list or map in a value."""
    if isinstance(value, dict):
        return max([len(value), *map(_longest, value.values())])
    if isinstance(value, list):
        return max([len(value), *map(_longest, value)])
    return 0


def _plain(value: Any) -> dict[str, Any]:
    """A mapping with text keys and values of types that CEL supports."""
    return {str(key): _known(item) for key, item in value.items()}


def _known(value: Any) -> Any:
    if value is None or isinstance(value, bool | float | str | bytes):
        return value
    if isinstance(value, int):
        return value if -(1 << 63) <= value < 1 << 63 else float(value)
    if isinstance(value, Mapping):
        return _plain(value)
    if isinstance(value, Iterable):
        return [_known(item) for item in value]
    return str(value)


def _count(kind: str, window: int) -> Source:
    def read(ctx: RequestContext, at: Moment) -> int:
        return 0 if at.counts is None else at.counts.count(kind, window, ctx, at.now_ns)

    return read


VARIABLES: Final[dict[str, tuple[str, Source, str]]] = {
    # name: (type, reader, documentation)
    "request.method": ("string", lambda ctx, at: ctx.method, "the method, as received"),
    "request.path": ("string", lambda ctx, at: ctx.path, "the normalized path, without the query"),
    "request.host": ("string", lambda ctx, at: ctx.host, "the requested host, lower case, without the port"),
    "request.scheme": ("string", lambda ctx, at: ctx.scheme, "`http` or `https`"),
    "request.query": ("string", lambda ctx, at: ctx.query, "the query as received, without `?`"),
    "request.query_params": (
        "map(string, string)",
        _query_params,
        "query parameters; a condition that reads a repeated one fails",
    ),
    "request.query_values": (
        "map(string, dyn)",
        _query_values,
        "the list of all values of each query parameter",
    ),
    "request.headers": (
        "map(string, string)",
        _headers,
        "fields by lower-case name; the lines of a list field (`accept`) are joined by `, `, and a "
        "condition that reads any other repeated field fails",
    ),
    "request.header_values": (
        "map(string, dyn)",
        _header_values,
        "the list of the values of all lines of each field",
    ),
    "request.cookies": (
        "map(string, string)",
        _cookies,
        "cookies by name; a condition that reads a repeated one fails",
    ),
    "request.params": ("map(string, string)", lambda ctx, at: ctx.params, "parameters of the route's path"),
    "request.client_ip": ("string", lambda ctx, at: ctx.client_ip, "the client's address"),
    "request.peer_ip": ("string", lambda ctx, at: ctx.peer_ip, "the address of the TCP peer"),
    "request.size": ("int", _size, "`Content-Length`; 0 without a body, -1 when it is chunked"),
    "request.id": ("string", lambda ctx, at: ctx.request_id, "the request id"),
    "request.route": ("string", lambda ctx, at: ctx.route.name, "name of the route"),
    "consumer.name": ("string", _of_consumer("consumer", ""), "the consumer; empty if there is none"),
    "consumer.tier": ("string", _of_consumer("tier", ""), "the tier of the consumer"),
    "consumer.method": (
        "string",
        _of_consumer("method", ""),
        "the method of authentication: `api_key`, `jwt`, …",
    ),
    "consumer.key_id": ("string", _of_consumer("key_id", ""), "id of the API key or of the token's key"),
    "consumer.scopes": ("list(string)", _of_consumer("scopes", [], list), "scopes granted"),
    "consumer.roles": ("list(string)", _of_consumer("roles", [], list), "roles held"),
    "consumer.metadata": (
        "map(string, dyn)",
        _of_consumer("metadata", {}, _plain),
        "metadata set by the operator",
    ),
    "consumer.claims": ("map(string, dyn)", _of_consumer("claims", {}, _plain), "claims of the token"),
    "consumer.anonymous": (
        "bool",
        lambda ctx, at: getattr(getattr(ctx, "identity", None), "method", "anonymous") == "anonymous",
        "true if the request is not authenticated",
    ),
    "time.now": (
        "timestamp",
        lambda ctx, at: datetime.datetime.now(datetime.UTC),
        'the time; `time.now.getHours("Europe/Berlin")` for a zone',
    ),
    "time.hour": ("int", lambda ctx, at: at.utc.tm_hour, "0 to 23, UTC"),
    "time.minute": ("int", lambda ctx, at: at.utc.tm_min, "0 to 59"),
    "time.weekday": ("int", lambda ctx, at: at.utc.tm_wday + 1, "1 is Monday, 7 is Sunday (ISO 8601), UTC"),
    "time.day": ("int", lambda ctx, at: at.utc.tm_mday, "1 to 31, UTC"),
    "time.month": ("int", lambda ctx, at: at.utc.tm_mon, "1 to 12, UTC"),
    "time.year": ("int", lambda ctx, at: at.utc.tm_year, "UTC"),
    **{
        f"counters.{kind}_per_{name}": (
            "int",
            _count(kind, window),
            f"requests of this {said} in the last {name}, including this one, over all workers",
        )
        for kind, said in (("consumer", "consumer"), ("client", "client address"), ("route", "route"))
        for name, window in (("minute", 60), ("hour", 3600))
    },
}
