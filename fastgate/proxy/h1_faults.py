"""What is wrong with the head of a request that the parser rejected.

The parser reports that a head is malformed, and describes the part only in texts that may change. That
part decides the reason that the client is told and that metrics count. Only rejected requests are read here.
"""

from __future__ import annotations

import re
from typing import Final

__all__ = ["fault_of"]

_LINE: Final = re.compile(rb"[^\n]*\n?")
_REQUEST_LINE: Final = re.compile(rb"[^ \n]+ +[^ \n]+ +HTTP/([0-9]\.[0-9])(\r\n?)?")
_LARGEST: Final = 2**63 - 1  # of a Content-Length
# No two parts of a pattern may match the same bytes: a head is up to 40 kB, and chosen by the client.
_FIELD: Final = re.compile(rb"([!#$%&'*+\-.^_`|~0-9A-Za-z]+):([^\r\n]*)([\r\n].*)?", re.DOTALL)
_CONTROL: Final = re.compile(rb"[\x00-\x08\x0b-\x1f\x7f]")


def fault_of(head: bytes) -> str:
    """The reason (REASONS) for the first fault in a head, which begins with its request line and may be cut.

    `bad_framing` (RFC 9112 §6.3): a Content-Length that is no number, that occurs twice, or that comes with a
    Transfer-Encoding; a Transfer-Encoding that the parser does not accept. Method and target are correct.
    """
    lines = _LINE.findall(head.lstrip(b"\r\n"))
    line = _REQUEST_LINE.fullmatch(lines[0])
    if line is None:
        return "bad_request_line"
    if line[1] not in (b"1.1", b"1.0"):
        return "version_not_supported"
    length = coding = False
    for text in lines[1:]:
        if text in (b"\r\n", b""):
            return "bad_framing" if coding else "bad_header"
        field = _FIELD.fullmatch(text)
        if field is None:
            return "bad_header"
        name, value, end = field[1].lower(), field[2].strip(b" \t"), field[3]
        if name == b"content-length":
            # Not converted if it has more digits than _LARGEST, leading zeros included: int() has a bound.
            if length or coding or not value.isdigit() or len(value) > 19 or int(value) > _LARGEST:
                return "bad_framing"
            length = True
        if name == b"transfer-encoding":
            if length:
                return "bad_framing"
            coding = True
        if _CONTROL.search(value) or end not in (b"\r\n", b"\r", None):
            return "bad_header"
    return "bad_header"
