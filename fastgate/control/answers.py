"""Shared by all resources of the admin API: strict parsing of a body, refusals, timestamps."""

from __future__ import annotations

import asyncio
import datetime
import re
from typing import Any, TypeVar

import msgspec
import msgspec.inspect
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response

from fastgate.auth.consumers import NAME_PATTERN
from fastgate.checks import WORD_PATTERN, nearest
from fastgate.settings import parse_duration

__all__ = [
    "Refused",
    "check_name",
    "expiry_ns",
    "iso",
    "number_argument",
    "parse_time",
    "read_body",
    "refused_answer",
    "unknown_field_hint",
]

T = TypeVar("T")

MAX_BODY_BYTES = 1_000_000
BODY_TIMEOUT_S = 30
_IN_WORDS = {
    NAME_PATTERN: "a name of 1 to 255 printable ASCII characters, without a space at its ends",
    rf"^{WORD_PATTERN}$(?!\n)": "printable ASCII characters without spaces and quotes",
}

LATEST_NS = 9_223_372_036 * 10**9
"""2262-04-11T23:47:16Z: the last whole second below 2**63 ns, which is what the store holds."""


class Refused(Exception):
    """A call that gets this status and text, and `path`, the place of the fault in the body."""

    def __init__(self, status: int, text: str, **fields: Any) -> None:
        super().__init__(text)
        self.status = status
        self.body = {"error": text, **fields}


async def refused_answer(_request: Request, error: Exception) -> Response:
    assert isinstance(error, Refused)
    return JSONResponse(error.body, error.status)


async def read_body(request: Request, shape: type[T]) -> T:
    """The JSON body as this Struct; an empty body is an empty object. Refused: 400, 408, 413."""
    body = bytearray()
    length = request.headers.get("content-length", "")
    try:
        async with asyncio.timeout(BODY_TIMEOUT_S):
            if length.isascii() and length.isdigit() and (len(length) > 18 or int(length) > MAX_BODY_BYTES):
                raise Refused(413, f"The body is larger than {MAX_BODY_BYTES} bytes")
            async for chunk in request.stream():
                body += chunk
                if len(body) > MAX_BODY_BYTES:
                    raise Refused(413, f"The body is larger than {MAX_BODY_BYTES} bytes")
    except TimeoutError:
        raise Refused(408, f"The body did not come within {BODY_TIMEOUT_S} seconds") from None
    except ClientDisconnect:
        raise Refused(400, "The client has gone") from None
    try:
        return msgspec.json.decode(bytes(body) or b"{}", type=shape)
    except msgspec.ValidationError as error:
        text, _, path = str(error).partition(" - at ")
        for pattern, words in _IN_WORDS.items():
            if repr(pattern) in text:
                text = f"Expected {words}"
        path = path.strip("`") or "$"
        raise Refused(400, text + unknown_field_hint(text, shape, path), path=path) from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise Refused(400, f"The body is not JSON: {error}") from error
    except RecursionError:
        raise Refused(400, "The body is nested too deeply") from None


def unknown_field_hint(text: str, shape: Any, path: str = "$") -> str:
    """` (did you mean …?)` for what msgspec says of an unknown field at this path of a shape, else ""."""
    unknown = re.search(r"unknown field `(.*)`", text)
    if unknown is None:
        return ""
    structs = _structs(msgspec.inspect.type_info(shape))
    for name in re.findall(r"\.([a-z_]+)", path):
        structs = [
            found
            for struct in structs
            for field in struct.fields
            if field.encode_name == name
            for found in _structs(field.type)
        ]
    hint = nearest(unknown[1], [field.encode_name for struct in structs for field in struct.fields])
    return f" ({hint})" if hint else ""


def _structs(info: msgspec.inspect.Type) -> list[msgspec.inspect.StructType]:
    """The Structs that a value of this type may be, lists of them too."""
    if isinstance(info, msgspec.inspect.StructType):
        return [info]
    if isinstance(info, msgspec.inspect.Metadata):
        return _structs(info.type)
    if isinstance(info, msgspec.inspect.UnionType):
        return [found for member in info.types for found in _structs(member)]
    if isinstance(info, msgspec.inspect.CollectionType):
        return _structs(info.item_type)
    return []


def number_argument(request: Request, name: str, default: int, low: int, high: int) -> int:
    """A whole number in the query."""
    text = request.query_params.get(name)
    if text is None:
        return default
    if not (text.isascii() and text.isdigit() and len(text) < 19 and low <= int(text) <= high):
        raise Refused(400, f"{name}: expected a whole number from {low} to {high}, got {text[:40]!r}")
    return int(text)


def parse_time(text: str, name: str) -> int:
    """Realtime ns of an ISO 8601 time; without a zone it is UTC."""
    try:
        time = datetime.datetime.fromisoformat(text)
    except (ValueError, OverflowError):
        raise Refused(
            400, f"{name}: expected a time such as 2027-01-31T12:00:00Z, got {text[:60]!r}", path=f"$.{name}"
        ) from None
    if time.tzinfo is None:
        time = time.replace(tzinfo=datetime.UTC)
    since = time - datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)
    realtime_ns = (since.days * 86_400 + since.seconds) * 10**9 + since.microseconds * 1000
    if realtime_ns > LATEST_NS:
        raise Refused(400, f"{name}: expected a time before 2262-04-11, got {text[:60]!r}", path=f"$.{name}")
    return max(1, realtime_ns)


def check_name(name: str) -> str:
    """A consumer's name from a URL. Refused: 400."""
    if not re.fullmatch(NAME_PATTERN, name):
        raise Refused(400, f"Expected a consumer's name: {_IN_WORDS[NAME_PATTERN]}")
    return name


def expiry_ns(at: str | None, within: str | None, name: str, now_ns: int) -> int | None:
    """When something ends, from a time (`…_at`) or a duration (`…_in`); None when neither is given.
    0 is never, which is what an empty time and the duration 0 say.
    """
    if at is not None and within is not None:
        raise Refused(400, f"{name}_at and {name}_in: expected one of them", path=f"$.{name}_in")
    if at is not None:
        return parse_time(at, f"{name}_at") if at else 0
    if within is None:
        return None
    try:
        span_ns = parse_duration(within)
    except ValueError as error:
        raise Refused(400, f"{name}_in: expected {error}, got {within[:40]!r}", path=f"$.{name}_in") from None
    if now_ns + span_ns > LATEST_NS:
        days = (LATEST_NS - now_ns) // (86_400 * 10**9)
        expected = f"{name}_in: expected at most {days}d, which is 2262-04-11"
        raise Refused(400, f"{expected}, got {within[:40]!r}", path=f"$.{name}_in")
    return now_ns + span_ns if span_ns else 0


def iso(realtime_ns: int) -> str | None:
    """UTC to the millisecond, None for never."""
    if not realtime_ns:
        return None
    time = datetime.datetime.fromtimestamp(min(realtime_ns, LATEST_NS) // 10**9, datetime.UTC)
    return f"{time:%Y-%m-%dT%H:%M:%S}.{realtime_ns // 10**6 % 1000:03d}Z"
