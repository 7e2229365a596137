# cython: boundscheck=False
"""The edits of a route: paths, header fields, and the templates of both.

WHAT     `Template` is text with `{name}` placeholders, `Rewrite` creates the upstream path, `HeaderEdits` edits a header table.
STATE    Immutable after construction.
WHO      Built at freeze, used by the worker's loop.
COST     A template without placeholders is its bytes; a rewrite by prefix is one slice.
SOURCES  RFC 3986 §3.3 (characters of a path segment).
"""

import re
from urllib.parse import quote_from_bytes

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE

from fastgate._core.pipeline.context cimport M_TRACE, RequestContext
from fastgate._core.http.headers cimport Headers, header_id, value_valid

from fastgate._core.http.patterns import normal_regex
from fastgate._core.http.urlpath import normalise

__all__ = ["PLACE", "HeaderEdits", "Rewrite", "Template"]

PLACE = re.compile(r"\{([A-Za-z_][A-Za-z0-9_]*)(?:\.\.\.)?\}|\{\{\}")
cdef object ANCHORED = re.compile(rb"https?://[^/?#\\]+[/?#]|/[^/\\]")
cdef object LABELS = re.compile(rb"[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*")
cdef object SCHEME = re.compile(rb"[A-Za-z][A-Za-z0-9+.-]*:")
# Allowed in a path segment unescaped, except `;` (RFC 3986 §3.3)
cdef str SEGMENT_BYTES = "!$&'()*+,=:@"

cdef enum:
    P_CLIENT_IP = -1
    P_HOST = -2
    P_METHOD = -3
    P_PATH = -4
    P_QUERY = -5
    P_REQUEST_ID = -6
    P_ROUTE = -7
    P_SCHEME = -8
    P_HOSTNAME = -9

cdef dict SPECIAL = {"client_ip": P_CLIENT_IP, "host": P_HOST, "hostname": P_HOSTNAME, "method": P_METHOD, "path": P_PATH, "query": P_QUERY,
                     "request_id": P_REQUEST_ID, "route": P_ROUTE, "scheme": P_SCHEME}


cdef class Template:
    """Text with placeholders: `{name}` is a parameter of the route's path, or else one of client_ip, host, hostname, method,
    path, query, request_id, route, scheme. `{{}` is a literal brace. ValueError names an unknown placeholder.

    in_path: it creates a path, in which a value that is not itself a path fills at most one segment.
    """

    def __init__(self, str text, param_names=(), bint in_path=False):
        cdef list parts = []
        cdef Py_ssize_t end = 0
        names = list(param_names)
        for found in PLACE.finditer(text):
            name = found.group(1)
            if found.start() > end:
                parts.append(text[end:found.start()].encode("latin-1"))
            if name is None:
                parts.append(b"{")
            elif name in names:
                parts.append((name.encode(),))
            elif name in SPECIAL:
                parts.append(SPECIAL[name])
            else:
                raise ValueError(f"template {text!r}: {{{name}}} is neither a path parameter nor one of {', '.join(sorted(SPECIAL))}")
            end = found.end()
        if end < len(text):
            parts.append(text[end:].encode("latin-1"))
        joined = []                                     # adjacent literals are joined
        literal = b""
        for part in parts:
            if isinstance(part, bytes):
                literal += part
                continue
            if literal:
                joined.append(literal)
                literal = b""
            joined.append(part)
        if literal:
            joined.append(literal)
        if in_path:
            joined = [quote_from_bytes(part, SEGMENT_BYTES + "/;%").encode() if isinstance(part, bytes) else part for part in joined]
        self.parts = tuple(joined)
        self.in_path = in_path
        self.fixed = None
        if not joined or (len(joined) == 1 and isinstance(joined[0], bytes)):
            self.fixed = b"".join(joined)
        self.anchored = self.fixed is not None or (isinstance(joined[0], bytes) and ANCHORED.match(joined[0]) is not None)

    cdef bytes render(self, RequestContext ctx):
        if self.fixed is not None:
            return self.fixed
        return b"".join(self.values(ctx))

    cdef bytes render_location(self, RequestContext ctx):
        """The template as the target of a redirect; None if the request would choose the host or the scheme.

        `/{rest}` stays a path whatever the value of rest, and `https://example.com{rest}` stays at example.com.
        """
        cdef bytes text = b"", value, following
        cdef bint within = False                        # inside the authority
        cdef Py_ssize_t i
        cdef list values
        if self.anchored:
            return self.render(ctx)
        values = self.values(ctx)
        for i in range(len(values)):
            value = values[i]
            part = self.parts[i]
            if isinstance(part, bytes) or part == P_SCHEME:
                text += value
                if text.startswith(b"/"):
                    break
                head, colon, rest = text.partition(b"://")
                if colon:
                    within = True
                    if re.search(rb"[/?#]", rest):
                        break
                continue
            if part == P_HOST or part == P_HOSTNAME:
                if not value:
                    return None
            elif within:
                if value[:1] in (b"/", b"?", b"#"):
                    break
                following = self.parts[i + 1] if i + 1 < len(values) and isinstance(self.parts[i + 1], bytes) else b"/"
                if value:
                    if not following.startswith(b".") or LABELS.fullmatch(value) is None:
                        return None
                elif following[:1] not in (b"/", b"?", b"#"):
                    return None
            elif SCHEME.match(text + value):
                return None
            else:
                break
            text += value
        text = b"".join(values)
        return b"/" + text.lstrip(b"/\\") if text.startswith((b"/", b"\\")) else text

    cdef list values(self, RequestContext ctx):
        """The value of each part for this request."""
        cdef list out = []
        cdef int place, i
        cdef bytes value
        for part in self.parts:
            if isinstance(part, bytes):
                out.append(part)
                continue
            value = b""
            if isinstance(part, tuple):                 # a parameter: its position depends on the pattern that matched
                for i in range(ctx.params_n):
                    if ctx.param_names[i] == part[0]:
                        value = ctx.path_bytes[ctx.param_start[i]:ctx.param_start[i] + ctx.param_size[i]]
                        break
                out.append(value)
                continue
            place = part
            if place == P_PATH:
                out.append(ctx.path_bytes)
                continue
            if place == P_CLIENT_IP:
                value = ctx.client
            elif place == P_HOST:
                value = ctx.authority
            elif place == P_HOSTNAME:
                value = ctx.host_bytes
            elif place == P_METHOD:
                value = ctx.method_bytes
            elif place == P_QUERY:
                value = ctx.query_bytes or b""
            elif place == P_REQUEST_ID:
                value = ctx.request_id_bytes
            elif place == P_ROUTE:
                value = ctx.route.name_bytes
            else:
                value = ctx.scheme.encode()
            out.append(quote_from_bytes(value, SEGMENT_BYTES).encode() if self.in_path else value)
        return out


cdef enum:
    R_PREFIX = 0
    R_TEMPLATE = 1
    R_REGEX = 2


cdef class Rewrite:
    """The upstream path, derived from the received one. The query is unchanged."""

    @staticmethod
    def prefix_to(str prefix, str replacement):
        """Replaces the whole segments of prefix with replacement; a path without the prefix is unchanged."""
        cdef Rewrite self = Rewrite()
        self.kind = R_PREFIX
        self.prefix = normalise(prefix.encode(), False).rstrip(b"/")
        self.replacement = normalise(replacement.encode(), False).rstrip(b"/") if replacement else b""
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
        self.regex = re.compile(normal_regex(pattern))   # in the form of the paths that it searches
        self.replacement = to.encode("latin-1")
        return self

    cdef bint stays(self, RequestContext ctx) except -1:
        """False if request data creates a dot segment: the upstream would resolve it to a path of the client's choice."""
        cdef bytes path
        if self.kind == R_PREFIX or b"." not in ctx.path_bytes:
            return True
        path = self.apply(ctx)
        return b"/./" not in path and b"/../" not in path and not path.endswith((b"/.", b"/.."))

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
        # An empty parameter, or a replacement with a trailing slash before a tail with a leading one
        if self.kind != R_PREFIX and b"//" in path and b"//" not in ctx.path_bytes:
            path = normalise(path)
        return path


cdef class HeaderEdits:
    """Edits of a header table, in the order rename, remove, set, add. Values may be templates.

    owns: names that are removed or set belong to the gateway: fields that an upstream could take for them (`X_Tenant` for
    `X-Tenant`) are removed too. For requests, whose senders are not trusted.
    """

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
        if self.owns and ctx.method_id == M_TRACE:
            return 0                                    # its response would show the client the values set here (RFC 9110 §9.3.8)
        for name, lower, template in self.sets:
            self._add(headers, name, template.render(ctx))
        for name, template in self.adds:
            self._add(headers, name, template.render(ctx))
        return 0

    @property
    def owned(self):
        """The lower-case names that clients may not set; empty unless `owns` is set."""
        return (*self.removals, *(lower for _, lower, _ in self.sets)) if self.owns else ()

    cdef int _drop(self, Headers headers, bytes lower) except -1:
        if self.owns:
            headers.drop_folded(PyBytes_AS_STRING(lower), PyBytes_GET_SIZE(lower), False)
        else:
            headers.drop(PyBytes_AS_STRING(lower), PyBytes_GET_SIZE(lower))
        return 0

    cdef int _add(self, Headers headers, bytes name, bytes value) except -1:
        # Neither can happen: received fields are fewer than the table holds, and placeholder values have passed a parser. An edit
        # that is silently lost would be worse than a request that fails.
        if not value_valid(PyBytes_AS_STRING(value), PyBytes_GET_SIZE(value)):
            raise ValueError(f"edit of {name!r}: control characters are not allowed (RFC 9110 §5.5)")
        if not headers.append(name, value, header_id(PyBytes_AS_STRING(name), PyBytes_GET_SIZE(name))):
            raise ValueError(f"edit of {name!r}: the header table is full")
        return 0
