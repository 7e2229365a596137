# cython: boundscheck=False
"""The object of one request: fixed typed slots, filled by the connection, read and edited by plugins.

WHAT     `RequestContext` has all data of a request from its first byte to its log line. `Reason` is a row of the REASONS table
         (fastgate/errors.py), `Answer` a local response whose bytes are ready.
STATE    Typed C slots; no dict per request and no string-keyed bag. A plugin that must keep data between phases owns one
         numbered place in `locals` (see `remember` and `recall`).
WHO      One request, one thread: the worker's loop.
COST     About 100 ns to create, from a freelist.
SOURCES  RFC 9110 §9 (methods), RFC 9112 §3 (request line); pingora's typed CTX.
"""

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from libc.string cimport memcmp, strlen

from fastgate._core.http.headers cimport HeadWriter, Headers
from fastgate._core.pipeline.identity cimport Identity
from fastgate._core.http.urlpath cimport next_reading, read_as, reading_t

from fastgate._core.http.field_names import RESPONSE_FIELDS

__all__ = ["CLIENT", "CONTINUE", "GATEWAY", "RESPOND", "SUSPEND", "UPSTREAM", "Answer", "Reason", "RequestContext"]

# The party responsible for a refusal (pingora-error's esource)
CLIENT = 1
GATEWAY = 2
UPSTREAM = 3

# Results of a decide hook
CONTINUE = 0
RESPOND = 1
SUSPEND = 2


cdef enum:
    OTHERS = 35

# https://www.iana.org/assignments/http-methods, and M-SEARCH, NOTIFY, SUBSCRIBE, UNSUBSCRIBE (UPnP), PURGE (caches)
cdef const char** OTHER_METHODS = [
    "ACL", "BASELINE-CONTROL", "BIND", "CHECKIN", "CHECKOUT", "COPY", "LABEL", "LINK", "LOCK", "MERGE", "MKACTIVITY", "MKCALENDAR",
    "MKCOL", "MKREDIRECTREF", "MKWORKSPACE", "MOVE", "ORDERPATCH", "PROPFIND", "PROPPATCH", "QUERY", "REBIND", "REPORT", "SEARCH",
    "UNBIND", "UNCHECKOUT", "UNLINK", "UNLOCK", "UPDATE", "UPDATEREDIRECTREF", "VERSION-CONTROL", "M-SEARCH", "NOTIFY", "SUBSCRIBE",
    "UNSUBSCRIBE", "PURGE",
]


cdef int method_number(const char* m, Py_ssize_t n) noexcept nogil:
    """The M_* of a method (RFC 9110 §9, RFC 5789). The others in the IANA registry, most of them of WebDAV, and those of UPnP and
    caches share M_OTHER; all others are M_UNKNOWN."""
    cdef int i
    if n == 3:
        if memcmp(m, b"GET", 3) == 0:
            return M_GET
        if memcmp(m, b"PUT", 3) == 0:
            return M_PUT
    elif n == 4:
        if memcmp(m, b"POST", 4) == 0:
            return M_POST
        if memcmp(m, b"HEAD", 4) == 0:
            return M_HEAD
    elif n == 5:
        if memcmp(m, b"PATCH", 5) == 0:
            return M_PATCH
        if memcmp(m, b"TRACE", 5) == 0:
            return M_TRACE
    elif n == 6:
        if memcmp(m, b"DELETE", 6) == 0:
            return M_DELETE
    elif n == 7:
        if memcmp(m, b"OPTIONS", 7) == 0:
            return M_OPTIONS
        if memcmp(m, b"CONNECT", 7) == 0:
            return M_CONNECT
    for i in range(OTHERS):
        if <Py_ssize_t>strlen(OTHER_METHODS[i]) == n and memcmp(m, OTHER_METHODS[i], n) == 0:
            return M_OTHER
    return M_UNKNOWN


cdef bint method_idempotent(int number) noexcept nogil:
    """True for idempotent methods, which may be sent twice (RFC 9110 §9.2.2). Not M_OTHER: it includes LOCK and MKACTIVITY."""
    return number in (M_GET, M_HEAD, M_PUT, M_DELETE, M_OPTIONS, M_TRACE)


cdef bytes json_string(str text):
    """text as a JSON string with its quotes."""
    import json

    return json.dumps(text).encode()


cdef class Reason:
    """The reason why a request ended other than with the upstream's response: one row of fastgate.errors.REASONS."""

    def __init__(self, int index, str label, int status, str text, int source, bint retryable, str code=None):
        """code: shown to the client instead of the label, if the label reveals too much."""
        self.index = index
        self.label = label
        self.status = status
        self.text = text
        self.source = source
        self.retryable = retryable
        self.label_bytes = label.encode()
        self.code = label if code is None else code
        self.body_start = b'{"error":' + json_string(text) + b',"code":' + json_string(self.code)

    def __repr__(self):
        return f"Reason({self.label!r}, {self.status})"


cdef class Answer:
    """A local response: status, ready header lines, body. Immutable, so one object may serve any number of requests."""

    def __init__(self, int status, bytes body=b"", fields=()):
        cdef HeadWriter writer = HeadWriter()
        cdef bytes name
        if not 200 <= status <= 599:
            raise ValueError(f"status: expected 200 to 599, got {status}")
        for key, value in fields:
            name = key.encode("latin-1") if isinstance(key, str) else key
            if name.decode("latin-1").lower() in RESPONSE_FIELDS:
                raise ValueError(f"header {key!r}: the gateway writes this field itself")
            writer.field(name, value.encode("latin-1") if isinstance(value, str) else value)
        if status in (204, 304) and body:
            raise ValueError(f"status {status} has no body (RFC 9110 §15), got {len(body)} bytes")
        self.status = status
        self.body = body
        self.lines = writer.take()


@cython.freelist(64)
cdef class RequestContext:
    """A request on its way through the gateway. Text properties are latin-1, as the wire is."""

    def __cinit__(self):
        self.headers = Headers.__new__(Headers)
        self.content_length = -1
        self.params_n = 0

    @property
    def method(self):
        """The request method, as received."""
        return self.method_bytes.decode("latin-1")

    @property
    def path(self):
        """The path that is matched and sent upstream, without the query: percent-encoded unreserved characters decoded, other
        escapes in upper case, dot segments removed, empty segments merged (RFC 3986 §6.2.2)."""
        return self.path_bytes.decode("latin-1")

    def other_paths(self, bint keep_slashes=False):
        """The other paths that an upstream could read in this one, because it decodes more than once, treats `\\` or an encoded
        slash as a slash, or ignores path parameters. Empty for almost every request. keep_slashes: encoded slashes are data."""
        cdef reading_t how
        cdef bytes once, other
        cdef list out = []
        how.decoding = 1
        how.backslash = how.strips_first = how.strips_last = how.merge = False
        if self.second == 0:
            return ()
        once = read_as(self.path_bytes, &how, True)     # once decoded, escapes of data are another spelling of the same path
        how.decoding = 0
        while next_reading(&how, self.second):
            other = read_as(self.path_bytes, &how, keep_slashes)
            if other is None:
                out.append("\0")
            elif other != self.path_bytes and other != once and (<bytes>other).decode("latin-1") not in out:
                out.append((<bytes>other).decode("latin-1"))
        return tuple(out)

    @property
    def query(self):
        """The query without its question mark; empty when there is none."""
        return "" if self.query_bytes is None else self.query_bytes.decode("latin-1")

    def replace_query(self, query, shown):
        """Sends this query (str, None for none) upstream, and shows `shown` in logs instead: for secrets in URLs."""
        if self.target is not None:
            place = self.target.find(b"?")
            path = self.target if place < 0 else self.target[:place]
            self.target = path if shown is None else path + b"?" + shown.encode("latin-1")
        self.query_bytes = None if query is None else query.encode("latin-1")

    @property
    def host(self):
        """The host asked for, lower case, without port."""
        return self.host_bytes.decode("latin-1")

    @property
    def client_scheme(self):
        """http or https, as used by the client: from the connection, or from a trusted proxy."""
        return self.scheme

    cdef bint c_secure(self) noexcept:
        """True if the client came over https."""
        return len(self.scheme) == 5                    # it is http or https, and comparing text costs ten times as much

    @property
    def request_target(self):
        """The request target as received: path and query, or an absolute URL."""
        return "" if self.target is None else self.target.decode("latin-1")

    @property
    def host_field(self):
        """The Host as received, or the authority of an absolute-form target, which replaces it (RFC 9112 §3.2.2)."""
        return "" if self.host_received is None else self.host_received.decode("latin-1")

    @property
    def authority_text(self):
        """The requested host with its port, in normal form: lower case, no final dot, no default port of the scheme."""
        return "" if self.authority is None else self.authority.decode("latin-1")

    @property
    def client_ip(self):
        """The client's address: the peer's, or the one reported by trusted proxies."""
        return self.client.decode("latin-1")

    @property
    def peer_ip(self):
        """The address of the TCP peer (or of the PROXY header, if the listener accepts one)."""
        return self.peer.decode("latin-1")

    @property
    def request_id(self):
        """The request id in logs, in the upstream request and in the response."""
        return self.request_id_bytes.decode("latin-1")

    @property
    def params(self):
        """The path parameters by name."""
        cdef dict out = {}
        cdef int i
        for i in range(self.params_n):
            out[self.param_names[i].decode()] = self.path_bytes[self.param_start[i]:self.param_start[i] + self.param_size[i]].decode("latin-1")
        return out

    def identify(self, Identity identity):
        """Sets the identity of the request; None clears it. Later steps (limits, policies, cache, log) use it."""
        self.identity = identity

    def respond(self, int status, body=b"", headers=()):
        """Responds locally; the request does not go upstream. Returns RESPOND, so that a hook can `return ctx.respond(…)`.

        body is bytes, or text sent as UTF-8. ValueError for a status outside 200..599 or a malformed header.
        """
        self.answer = Answer(status, body.encode() if isinstance(body, str) else body, headers)
        self.reason = None
        return RESPOND

    def reply(self, Answer answer not None):
        """Responds with a prebuilt `Answer`. Returns RESPOND."""
        self.answer = answer
        self.reason = None
        return RESPOND

    def refuse(self, Reason reason not None, dict detail=None, headers=()):
        """Refuses the request with a row of REASONS; detail is merged into the JSON body. Returns RESPOND."""
        self.reason = reason
        self.detail = detail
        self.ready_body = None
        self.answer = None
        self.extra_before = 0 if self.extra_response is None else len(self.extra_response)
        self.lines_before = self.gate_lines
        for name, value in headers:
            self.add_response_header(name, value)
        return RESPOND

    def add_response_header(self, name, value):
        """Adds a header field to the response, whatever its source. ValueError for a malformed name or value."""
        cdef Headers checked = Headers()
        checked.add(name, value)
        if self.extra_response is None:
            self.extra_response = []
        self.extra_response.append((checked.name_at(0), checked.value_at(0)))

    def replace_body(self, bytes body not None):
        """Sends this body upstream instead of the received one, which must have been buffered (request_body_bytes)."""
        if self.body is None:
            raise RuntimeError("replace_body: the body was not buffered; set request_body_bytes")
        self.body = body
        self.body_replaced = True

    def send_to(self, str upstream not None):
        """Send this request to another upstream of the config, with the settings of that upstream. For `decide` and `request`; the
        last call counts. A name that the config does not have is 500 `unknown_upstream`."""
        self.upstream_override = upstream

    def remember(self, plugin, value):
        """Keeps value for this plugin until the request is over."""
        cdef int place = plugin.place
        if self.locals is None:
            self.locals = []
        while len(self.locals) <= place:
            self.locals.append(None)
        self.locals[place] = value

    def recall(self, plugin, default=None):
        """The value kept for this plugin, or default."""
        cdef int place = plugin.place
        if self.locals is None or place >= len(self.locals) or self.locals[place] is None:
            return default
        return self.locals[place]

    def __repr__(self):
        return f"RequestContext({self.method} {self.host}{self.path})"
