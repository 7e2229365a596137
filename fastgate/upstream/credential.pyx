# cython: boundscheck=False
"""Credential: the authentication of requests to an upstream, as prebuilt bytes.

WHAT     One object per upstream with `credentials`. `credentials.py` puts values into it; the head writer takes the line from it.
STATE    The prebuilt header line or query parameter, and its expiry. Replaced as a whole, so a request gets the
         old value or the new one.
WHO      The worker's loop.
COST     One comparison per header field of the client, and one memcpy. Nothing for upstreams without credentials.
SOURCES  RFC 6750 §2.1 and §2.3, RFC 7617 §2.
"""

from libc.stdint cimport int64_t

from urllib.parse import quote, unquote_to_bytes

__all__ = ["Credential"]


cdef class Credential:
    """kind: header or query. name: of the header field or the query parameter."""

    def __init__(self, str kind not None, str name not None):
        if kind == "query":
            self.parameter_name = quote(name, safe="").encode()
            self.masked = f"{name}=********"
        else:
            self.field_name = name.lower().encode()
            self.masked = f"{name}: ********"
        self.clear()

    def put(self, str name not None, str value not None, int64_t until_ns=0):
        """Use this value from now on, until until_ns (0: until it is replaced). Raises ValueError if it is not printable
        ASCII."""
        if not value or not all(32 < ord(c) < 127 or c == " " for c in value) or value != value.strip():
            raise ValueError("expected printable ASCII, at least one character, no spaces at its ends")
        if self.field_name is not None:
            self.line = f"{name}: {value}\r\n".encode()
        else:
            self.parameter = self.parameter_name + b"=" + quote(value, safe="").encode()
        self.until_ns = until_ns
        self.set_ = True

    def keep_until(self, int64_t until_ns):
        """The value is no longer renewed: it may be used until then."""
        self.until_ns = until_ns

    def clear(self):
        """Use no value from now on. `fastgate explain` then shows the mask."""
        self.set_ = False
        self.until_ns = 0
        if self.field_name is not None:
            self.line = f"{self.masked}\r\n".encode()
        else:
            self.parameter = self.parameter_name + b"=********"

    def is_usable(self, int64_t now_ns):
        return self.usable(now_ns)

    cdef bint usable(self, int64_t now_ns) noexcept:
        return self.set_ and (self.until_ns == 0 or now_ns < self.until_ns)

    cdef bytes target_with(self, bytes target):
        """The request target with the parameter added, and with the client's parameters of the same name removed."""
        cdef bytes path, query
        path, mark, query = target.partition(b"?")
        kept = [part for part in query.split(b"&") if part and not self.names(part)] if mark else []
        kept.append(self.parameter)
        return path + b"?" + b"&".join(kept)

    cdef bint names(self, bytes part) except -1:
        return quote(unquote_to_bytes(part.partition(b"=")[0].replace(b"+", b" ")), safe="").encode() == self.parameter_name

    def with_target(self, bytes target not None):
        """`target_with` for Python."""
        return self.target_with(target)

    def __repr__(self):
        return f"Credential({self.masked!r}, usable={self.set_})"
