"""The names of header fields: their grammar, and those that the gateway writes itself.

WHAT        TCHAR, the characters of a token, for regular expressions; the sets of names that no config,
            plugin or service may set. headers.pxd has the same names as ids, for the request path.
STATE       none.
WHO WRITES  no process.
COST        none per request.
SOURCES     RFC 9110 section 5.6.2 (token), section 7.6.1 (connection); RFC 9112 section 6 (framing);
            RFC 7239 (Forwarded).
"""

from __future__ import annotations

from typing import Final

__all__ = ["CLIENT_PREFIXES", "MESSAGE_FIELDS", "REQUEST_FIELDS", "RESPONSE_FIELDS", "TCHAR"]

#: Inside the brackets of a regular expression.
TCHAR: Final = r"!#$%&'*+\-.^_`|~0-9A-Za-z"

#: The connection's own fields and the framing: setting one could turn one message into two.
MESSAGE_FIELDS: Final = frozenset(
    (
        "connection",
        "content-length",
        "expect",
        "keep-alive",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    )
)
#: Fields of a request that the gateway writes for the next hop.
REQUEST_FIELDS: Final = MESSAGE_FIELDS | {"host"}
#: Fields of a response that the gateway writes for the client.
RESPONSE_FIELDS: Final = frozenset(
    ("connection", "content-length", "date", "keep-alive", "transfer-encoding", "x-request-id")
)
#: Beginnings of the names of the fields that tell an upstream about the client.
CLIENT_PREFIXES: Final = (
    "forwarded",
    "via",
    "x-consumer",
    "x-forwarded",
    "x-real-ip",
    "x-request-id",
    "x_consumer",
)
