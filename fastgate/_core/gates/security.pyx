# cython: boundscheck=False
"""The security headers gate: response header fields enforced by browsers.

WHAT     `SecurityHeadersGate` adds fixed header lines to every response of its route. Those that replace the upstream's are built
         at freeze; those that yield to the upstream's are added to its fields if they are missing.
STATE    Immutable.
WHO      Built at freeze; the worker's loop.
COST     one pointer per request, and one lookup per named field in an upstream response.
SOURCES  RFC 6797 §7.2 (no Strict-Transport-Security over plain HTTP); OWASP Secure Headers Project
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE

from fastgate._core.pipeline.context cimport RequestContext
from fastgate._core.http.headers cimport Headers, HeadWriter, header_id
from fastgate._core.pipeline.pipeline cimport Plugin

__all__ = ["SecurityHeadersGate"]


cdef class SecurityHeadersGate(Plugin):
    """The header lines of a route.

    replaced: (name, value) that replace the upstream's. kept: those that the upstream's own override. hsts: the value of
    Strict-Transport-Security, for clients that use https; the upstream's own is always removed, as it does not describe the
    gateway's connections. removed: names removed from the upstream's response.
    """

    def __init__(self, replaced=(), kept=(), str hsts=None, removed=()):
        self.name = "security_headers"
        self.compiled_begin = True
        self.compiled_answer = True
        self.lines = written(replaced)
        self.secure_lines = self.lines
        self.local_lines = written(kept)
        dropped = [name.lower().encode("latin-1") for name, _ in replaced] + [name.lower().encode("latin-1") for name in removed]
        if hsts is not None:
            self.secure_lines = written([*replaced, ("Strict-Transport-Security", hsts)])
            dropped.append(b"strict-transport-security")
        self.dropped = tuple(dropped)
        rows = []
        for name, value in kept:
            raw = name.encode("latin-1")
            rows.append((raw, raw.lower(), value.encode("latin-1"), header_id(raw, len(raw))))
        self.kept = tuple(rows)

    cdef int c_begin(self, RequestContext ctx) except -1:
        cdef bytes lines = self.secure_lines if ctx.c_secure() else self.lines
        if lines is not None:
            ctx.gate_lines = lines if ctx.gate_lines is None else ctx.gate_lines + lines
        ctx.local_lines = self.local_lines
        return 0

    cdef int c_answer(self, RequestContext ctx, Headers fields) except -1:
        cdef bytes lower, name, value
        cdef int known
        for lower in self.dropped:
            fields.drop(PyBytes_AS_STRING(lower), PyBytes_GET_SIZE(lower))
        for name, lower, value, known in self.kept:
            if fields.find_field(PyBytes_AS_STRING(lower), PyBytes_GET_SIZE(lower)) == NULL:
                if not fields.append(name, value, known):
                    raise ValueError(f"security header {name!r}: the header table is full")
        return 0


cdef bytes written(fields):
    """The lines of these fields; None if there are none. ValueError for a malformed name or value."""
    cdef HeadWriter writer = HeadWriter()
    for name, value in fields:
        writer.field(name.encode("latin-1"), value.encode("latin-1"))
    return writer.take() or None
