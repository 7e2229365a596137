# cython: boundscheck=False
"""The CORS gate: the origins whose scripts may read the responses of a route.

WHAT     `CorsGate` adds the Access-Control-* lines to every response of its route, including refusals, removes those that the
         upstream sent, and responds to preflights itself.
STATE    The lines of an origin are built once: for listed origins at freeze, for those decided by a pattern on first use, at most
         MOST_SEEN of them; then all of those are dropped at once, as an attacker may send any number of origins.
WHO      Built at freeze; the worker's loop.
COST     no Origin: one field lookup. Known origin: that and a dict. A repeated preflight: two more lookups and a dict, with a
         response built for the first.
SOURCES  Fetch standard §3.2 (CORS protocol), §3.2.5 (when "*" is no wildcard: with credentials); RFC 6454 §6.2 (the
         serialization of an origin); Private Network Access, WICG
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE

from fastgate._core.pipeline.context cimport M_OPTIONS, Answer, Reason, RequestContext
from fastgate._core.http.headers cimport H_DROPPED, Headers, name_equal, name_valid
from fastgate._core.pipeline.pipeline cimport V_CONTINUE, V_RESPOND, Plugin

__all__ = ["CorsGate"]

cdef enum:
    MOST_SEEN = 1024
    MOST_ORIGIN_BYTES = 512         # a scheme, a name of at most 255 bytes, a port
    MOST_REFLECTED_BYTES = 4096
    MOST_KEPT_BYTES = 1024          # inputs of a cached response; longer ones are rebuilt each time, and fill no memory

cdef bytes VARY_ORIGIN = b"Vary: Origin\r\n"
cdef bytes VARY_PREFLIGHT = b"Vary: Origin, Access-Control-Request-Method, Access-Control-Request-Headers\r\n"


cdef class CorsGate(Plugin):
    """The CORS policy of a route.

    exact: origins. suffixes: (scheme with "://", ".name", ":port" or "") for the subdomains of a name. patterns: regular
    expressions on bytes that must match the whole origin. any_origin: every one. methods, headers: for preflights; None allows
    whatever is requested. refused: the row of REASONS for refusals.
    """

    accepts_preflight = True  # a route with such a plugin accepts preflights for its other methods

    def __init__(self, *, exact=(), suffixes=(), patterns=(), bint any_origin=False, methods=None, headers=None, expose=(),
                 bint credentials=False, int max_age_s=0, bint private_network=False, bint refuse_others=False,
                 int preflight_status=204, Reason refused not None):
        if any_origin and credentials:
            raise ValueError("any origin with credentials would let every site act on behalf of its visitors")
        self.name = "cors"
        self.compiled_decide = True
        self.compiled_begin = True
        self.compiled_answer = True
        self.suffixes = tuple((scheme.encode(), name.encode(), port.encode()) for scheme, name, port in suffixes)
        self.patterns = tuple(patterns)
        self.any_origin = any_origin
        self.credentials = credentials
        self.reflect_methods = methods is None
        self.reflect_headers = headers is None
        self.private_network = private_network
        self.refuse_others = refuse_others
        self.preflight_status = preflight_status
        self.refused = refused
        self.line_tail = b"Access-Control-Allow-Credentials: true\r\n" if credentials else b""
        self.preflight_tail = self.line_tail
        if expose:
            self.line_tail += b"Access-Control-Expose-Headers: " + ", ".join(expose).encode("latin-1") + b"\r\n"
        if methods:
            self.preflight_tail += b"Access-Control-Allow-Methods: " + ", ".join(methods).encode("latin-1") + b"\r\n"
        if headers:
            self.preflight_tail += b"Access-Control-Allow-Headers: " + ", ".join(headers).encode("latin-1") + b"\r\n"
        if max_age_s:
            self.preflight_tail += b"Access-Control-Max-Age: %d\r\n" % max_age_s
        self.lines_any = b"Access-Control-Allow-Origin: *\r\n" + self.line_tail if any_origin else None
        self.lines_other = None if any_origin else VARY_ORIGIN
        self.seen = {}
        self.preflights = {}
        self.exact = {}
        for origin in exact:
            self.exact[origin.encode()] = self._lines(origin.encode())

    def _lines(self, bytes origin):
        return b"Access-Control-Allow-Origin: " + origin + b"\r\n" + self.line_tail + VARY_ORIGIN

    def allows(self, str origin):
        """Whether scripts of this origin may read the responses."""
        return self.any_origin or self.origin_lines(origin.encode("latin-1")) is not None

    cdef bytes origin_lines(self, bytes origin):
        """The lines of an origin; None if it is not allowed."""
        found = self.exact.get(origin)
        if found is not None:
            return <bytes>found
        if not self.suffixes and not self.patterns:
            return None
        found = self.seen.get(origin)
        if found is None:
            found = self._lines(origin) if self.matches(origin) else False
            if len(self.seen) >= MOST_SEEN:
                self.seen.clear()
            self.seen[origin] = found
        return None if found is False else <bytes>found

    cdef bint matches(self, bytes origin) except -1:
        """True for an origin that matches a wildcard or pattern. `null` never matches: it has to be listed."""
        cdef bytes scheme, name, port, label
        cdef Py_ssize_t n = PyBytes_GET_SIZE(origin)
        if n > MOST_ORIGIN_BYTES or origin == b"null":
            return False
        for scheme, name, port in self.suffixes:
            if not origin.startswith(scheme) or not origin.endswith(name + port):
                continue
            label = origin[len(scheme):n - len(name) - len(port)]
            if is_host_part(label):
                return True
        for pattern in self.patterns:
            if pattern.fullmatch(origin) is not None:
                return is_printable(origin)
        return False

    cdef int c_begin(self, RequestContext ctx) except -1:
        cdef bytes origin, lines
        if self.any_origin:
            lines = self.lines_any
        else:
            origin = the_origin(ctx)
            lines = None if origin is None else self.origin_lines(origin)
            if lines is None:
                lines = self.lines_other
        if lines is not None:
            ctx.gate_lines = lines if ctx.gate_lines is None else ctx.gate_lines + lines
        return 0

    cdef int c_decide(self, RequestContext ctx) except -1:
        cdef bytes origin, method
        if ctx.method_id == M_OPTIONS:
            method = ctx.headers.find(b"access-control-request-method", 29)
            if method is not None:
                origin = the_origin(ctx)
                if origin is not None:
                    return self.preflight(ctx, origin, method)
        if self.refuse_others and not self.any_origin:
            origin = the_origin(ctx)
            if origin is not None and self.origin_lines(origin) is None:
                ctx.refuse(self.refused)
                return V_RESPOND
        return V_CONTINUE

    cdef int preflight(self, RequestContext ctx, bytes origin, bytes method) except -1:
        """Responds to a preflight. One from a disallowed origin is refused: its browser would abort anyway, and here it is
        counted."""
        cdef bytes lines, key, asked = None
        cdef bint private = self.private_network and ctx.headers.find(b"access-control-request-private-network", 38) == b"true"
        if not self.any_origin and self.origin_lines(origin) is None:
            ctx.refuse(self.refused)
            return V_RESPOND
        lines = self.lines_any if self.any_origin else self.origin_lines(origin)
        if ctx.gate_lines is not None and ctx.gate_lines.startswith(lines):
            ctx.gate_lines = ctx.gate_lines[PyBytes_GET_SIZE(lines):] or None     # the response has its own, with another Vary
        # The inputs of the response, with separators that none of them contains
        key = b"*" if self.any_origin else origin
        if self.reflect_methods:
            key = key + b"\n" + method
        if self.reflect_headers:
            asked = asked_headers(ctx)
            if asked is not None:
                key = key + b"\r" + asked
        if private:
            key = key + b"\0"
        found = self.preflights.get(key)
        if found is None:
            found = self.preflight_response(origin, method, asked, private)
            if len(self.preflights) >= MOST_SEEN:
                self.preflights.clear()
            if PyBytes_GET_SIZE(key) <= MOST_KEPT_BYTES:
                self.preflights[key] = found
        ctx.answer = <Answer>found
        ctx.reason = None
        return V_RESPOND

    cdef Answer preflight_response(self, bytes origin, bytes method, bytes asked, bint private):
        """The response to an allowed preflight."""
        cdef Answer response = Answer(self.preflight_status)
        cdef bytes lines
        lines = b"Access-Control-Allow-Origin: " + (b"*" if self.any_origin else origin) + b"\r\n" + self.preflight_tail
        if self.reflect_methods and name_valid(PyBytes_AS_STRING(method), PyBytes_GET_SIZE(method)):
            lines += b"Access-Control-Allow-Methods: " + method + b"\r\n"
        if asked is not None and is_name_list(asked):
            lines += b"Access-Control-Allow-Headers: " + asked + b"\r\n"
        if private:
            lines += b"Access-Control-Allow-Private-Network: true\r\n"
        response.lines = lines + VARY_PREFLIGHT
        return response

    cdef int c_answer(self, RequestContext ctx, Headers fields) except -1:
        """Removes the upstream's CORS fields: browsers reject two values of Access-Control-Allow-Origin."""
        cdef int i
        for i in range(fields.count):
            if fields.fields[i].name_n > 21 and name_equal(fields.fields[i].name, b"access-control-", 15):
                fields.fields[i].id = H_DROPPED
        return 0


cdef bytes asked_headers(RequestContext ctx):
    """Access-Control-Request-Headers, the values of several lines as one list (RFC 9110 §5.3); None if there is none."""
    cdef int i
    cdef bytes found = None
    for i in range(ctx.headers.count):
        if ctx.headers.fields[i].name_n == 30 and ctx.headers.fields[i].id != H_DROPPED \
                and name_equal(ctx.headers.fields[i].name, b"access-control-request-headers", 30):
            found = ctx.headers.value_at(i) if found is None else found + b", " + ctx.headers.value_at(i)
    return found


cdef bytes the_origin(RequestContext ctx):
    """The Origin; None if there is none, or more than one."""
    cdef int i
    cdef bytes found = None
    for i in range(ctx.headers.count):
        if ctx.headers.fields[i].name_n == 6 and ctx.headers.fields[i].id != H_DROPPED \
                and name_equal(ctx.headers.fields[i].name, b"origin", 6):
            if found is not None:
                return None
            found = ctx.headers.value_at(i)
    return found


cdef bint is_host_part(bytes label) noexcept:
    """True for one or more DNS labels: letters, digits, - and _ with single dots in between."""
    cdef Py_ssize_t i, n = PyBytes_GET_SIZE(label)
    cdef const char* c = PyBytes_AS_STRING(label)
    cdef bint dot = True
    if n == 0:
        return False
    for i in range(n):
        if c[i] == c".":
            if dot:
                return False
            dot = True
        elif c"a" <= c[i] <= c"z" or c"0" <= c[i] <= c"9" or c[i] == c"-" or c[i] == c"_":
            dot = False
        else:
            return False
    return not dot


cdef bint is_printable(bytes origin) noexcept:
    """True if it is valid in a header line: a pattern may match more than intended."""
    cdef Py_ssize_t i
    cdef const char* c = PyBytes_AS_STRING(origin)
    for i in range(PyBytes_GET_SIZE(origin)):
        if c[i] <= c" " or c[i] > c"~":
            return False
    return True


cdef bint is_name_list(bytes names) noexcept:
    """True for field names separated by commas, in the form sent by browsers."""
    cdef Py_ssize_t i, n = PyBytes_GET_SIZE(names)
    cdef const char* c = PyBytes_AS_STRING(names)
    if n > MOST_REFLECTED_BYTES:
        return False
    for i in range(n):
        if c[i] != c"," and c[i] != c" " and not name_valid(c + i, 1):
            return False
    return True
