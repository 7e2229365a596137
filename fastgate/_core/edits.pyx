# cython: boundscheck=False
"""What a route changes on the way: paths, header fields, and the templates both use.

WHAT     `Template` is text with `{name}` places, `Rewrite` makes the path that goes upstream, `HeaderEdits` edits a header table.
STATE    Immutable after construction.
WHO      Built at freeze, used by the worker's loop.
COST     A template without places is its bytes; a rewrite by prefix is one slice.
SOURCES  RFC 3986 §3.3 (what a path segment may hold).
"""

import re

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE

from fastgate._core.context cimport RequestContext
from fastgate._core.headers cimport Headers, header_id, value_valid

__all__ = ["HeaderEdits", "Rewrite", "Template"]

cdef object PLACE = re.compile(r"\{([A-Za-z_][A-Za-z0-9_]*)(?:\.\.\.)?\}")

cdef enum:
    P_CLIENT_IP = -1
    P_HOST = -2
    P_METHOD = -3
    P_PATH = -4
    P_QUERY = -5
    P_REQUEST_ID = -6
    P_ROUTE = -7
    P_SCHEME = -8

cdef dict SPECIAL = {"client_ip": P_CLIENT_IP, "host": P_HOST, "method": P_METHOD, "path": P_PATH, "query": P_QUERY,
                     "request_id": P_REQUEST_ID, "route": P_ROUTE, "scheme": P_SCHEME}


cdef class Template:
    """Text with places: `{name}` is a parameter of the route's path, or else one of client_ip, host, method, path, query,
    request_id, route, scheme. ValueError names a place that is neither."""

    def __init__(self, str text, param_names=()):
        cdef list parts = []
        cdef Py_ssize_t end = 0
        names = list(param_names)
        for found in PLACE.finditer(text):
            name = found.group(1)
            if found.start() > end:
                parts.append(text[end:found.start()].encode("latin-1"))
            if name in names:
                parts.append((name.encode(),))
            elif name in SPECIAL:
                parts.append(SPECIAL[name])
            else:
                raise ValueError(f"template {text!r}: {{{name}}} is neither a path parameter nor one of {', '.join(sorted(SPECIAL))}")
            end = found.end()
        if end < len(text):
            parts.append(text[end:].encode("latin-1"))
        self.parts = tuple(parts)
        self.fixed = None
        if all(isinstance(part, bytes) for part in parts):
            self.fixed = b"".join(parts)

    cdef bytes render(self, RequestContext ctx):
        cdef list out
        cdef int place, i
        if self.fixed is not None:
            return self.fixed
        out = []
        for part in self.parts:
            if isinstance(part, bytes):
                out.append(part)
                continue
            if isinstance(part, tuple):                 # a parameter: where it stands depends on which pattern matched
                for i in range(ctx.params_n):
                    if ctx.param_names[i] == part[0]:
                        out.append(ctx.path_bytes[ctx.param_start[i]:ctx.param_start[i] + ctx.param_size[i]])
                        break
                continue
            place = part
            if place == P_CLIENT_IP:
                out.append(ctx.client)
            elif place == P_HOST:
                out.append(ctx.authority)
            elif place == P_METHOD:
                out.append(ctx.method_bytes)
            elif place == P_PATH:
                out.append(ctx.path_bytes)
            elif place == P_QUERY:
                out.append(ctx.query_bytes or b"")
            elif place == P_REQUEST_ID:
                out.append(ctx.request_id_bytes)
            elif place == P_ROUTE:
                out.append(ctx.route.name_bytes)
            else:
                out.append(ctx.scheme.encode())
        return b"".join(out)


cdef enum:
    R_PREFIX = 0
    R_TEMPLATE = 1
    R_REGEX = 2


cdef class Rewrite:
    """The path that goes upstream, made from the one that came. The query stays as it is."""

    @staticmethod
    def prefix_to(str prefix, str replacement):
        """Whole segments of prefix taken away, replacement put in their place; a path without the prefix stays."""
        cdef Rewrite self = Rewrite()
        self.kind = R_PREFIX
        self.prefix = prefix.rstrip("/").encode("latin-1")
        self.replacement = replacement.rstrip("/").encode("latin-1")
        return self

    @staticmethod
    def to_template(Template template not None):
        """A new path with the route's parameters."""
        cdef Rewrite self = Rewrite()
        self.kind = R_TEMPLATE
        self.template = template
        return self

    @staticmethod
    def by_regex(str pattern, str to):
        """The first match of pattern replaced by to (re.sub with count 1)."""
        cdef Rewrite self = Rewrite()
        self.kind = R_REGEX
        self.regex = re.compile(pattern.encode("latin-1"))
        self.replacement = to.encode("latin-1")
        return self

    cdef bytes apply(self, RequestContext ctx):
        cdef bytes path = ctx.path_bytes
        cdef Py_ssize_t n
        if self.kind == R_PREFIX:
            n = PyBytes_GET_SIZE(self.prefix)
            if path.startswith(self.prefix) and (PyBytes_GET_SIZE(path) == n or path[n] == c"/"):
                path = self.replacement + path[n:]
        elif self.kind == R_TEMPLATE:
            path = self.template.render(ctx)
        else:
            path = self.regex.sub(self.replacement, path, count=1)
        if not path.startswith(b"/"):
            path = b"/" + path
        # `/{rest}` with an empty rest, or a replacement that ends in a slash before a tail that begins with one
        if path.startswith(b"//") and not ctx.path_bytes.startswith(b"//"):
            path = path[1:]
        return path


cdef class HeaderEdits:
    """Edits to a header table, in the order rename, remove, set, add. Values may be templates.

    owns: the names that are removed or set belong to the gateway: what an upstream could take for them (`X_Tenant` for `X-Tenant`)
    is removed too. For requests, whose senders are not trusted."""

    def __init__(self, rename=None, remove=(), set=None, add=None, param_names=(), bint owns=False):
        self.owns = owns
        self.renames = tuple(
            (old.lower().encode("latin-1"), new.encode("latin-1")) for old, new in (rename or {}).items())
        self.removals = tuple(name.lower().encode("latin-1") for name in remove)
        self.sets = tuple((name.encode("latin-1"), name.lower().encode("latin-1"), Template(value, param_names))
                          for name, value in (set or {}).items())
        self.adds = tuple((name.encode("latin-1"), Template(value, param_names)) for name, value in (add or {}).items())

    cdef int apply(self, RequestContext ctx, Headers headers) except -1:
        cdef bytes name, lower, value
        cdef Template template
        for old, new in self.renames:
            headers.rename(old, new)
        for lower in self.removals:
            self._drop(headers, lower)
        for name, lower, template in self.sets:
            self._drop(headers, lower)
            self._add(headers, name, template.render(ctx))
        for name, template in self.adds:
            self._add(headers, name, template.render(ctx))
        return 0

    @property
    def owned(self):
        """The lower-case names that no client may say; empty where `owns` is not set."""
        return (*self.removals, *(lower for _, lower, _ in self.sets)) if self.owns else ()

    cdef int _drop(self, Headers headers, bytes lower) except -1:
        if self.owns:
            headers.drop_folded(PyBytes_AS_STRING(lower), PyBytes_GET_SIZE(lower), False)
        else:
            headers.drop(PyBytes_AS_STRING(lower), PyBytes_GET_SIZE(lower))
        return 0

    cdef int _add(self, Headers headers, bytes name, bytes value) except -1:
        # Neither can happen: the wire brings less than fits, and the places of a template hold what a parser has checked. An edit that
        # vanished would be worse than a request that fails.
        if not value_valid(PyBytes_AS_STRING(value), PyBytes_GET_SIZE(value)):
            raise ValueError(f"edit of {name!r}: control characters are not allowed (RFC 9110 §5.5)")
        if not headers.append(name, value, header_id(PyBytes_AS_STRING(name), PyBytes_GET_SIZE(name))):
            raise ValueError(f"edit of {name!r}: the header table is full")
        return 0
