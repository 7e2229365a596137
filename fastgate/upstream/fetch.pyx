# cython: boundscheck=False, nonecheck=True
"""A small HTTP client for the worker's own requests: keys, discovery, introspection, forward-auth, tokens.

WHAT     `await fetcher.request("GET", url, …)` → Fetched(status, headers, body), over the same connections and pools that carry
         the traffic. Bounded in time, size and number; a response that exceeds a bound raises FetchError, the only exception.
STATE    One pool (an `Upstream` with one target) for each origin; the least recently used is dropped beyond MAX_ORIGINS.
WHO      The worker's loop.
COST     One future, one timer and one small object a request; a connection is kept for the next one.
SOURCES  RFC 9110, RFC 9112. Redirects are followed only on request, and never to another origin: a server that responds for the
         issuer must not be able to point the gateway at internal hosts (CWE-918).
"""

import asyncio
import re
from collections import OrderedDict
from typing import NamedTuple
from urllib.parse import urljoin, urlsplit

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from libc.stdint cimport int64_t

from fastgate._core.clock cimport monotonic_ns
from fastgate._core.pipeline.context cimport Reason, method_idempotent, method_number
from fastgate._core.http.headers cimport Headers, HeadWriter, name_valid
from fastgate.upstream.h1_stream cimport H1UpstreamStream
from fastgate.upstream.pool cimport A_FULL, Target, Upstream
from fastgate.upstream.stream cimport ResponseSink, UpstreamStream

from fastgate.certificates import CertificateError
from fastgate._core.http.field_names import REQUEST_FIELDS
from fastgate.errors import REASONS
from fastgate.upstream.settings import PoolConfig, TargetConfig, TimeoutsConfig, UpstreamConfig, UpstreamTlsConfig, parse_target
from fastgate.upstream.tls import upstream_context

__all__ = ["FetchError", "Fetched", "Fetcher", "check_url"]

cdef enum:
    # Issuers, their key sets, introspection and forward-auth servers of one config; a discovery document may add hosts.
    MAX_ORIGINS = 64
    DEFAULT_MAX_BYTES = 1048576

# A client waits for many of these requests. The same 5 s as the connect timeout of an upstream.
cdef int64_t DEFAULT_TIMEOUT_NS = 5_000_000_000

TARGET = re.compile(r"[!$&'()*+,;=:@/?%A-Za-z0-9._~-]*", re.ASCII)
KINDS = {
    "upstream_connect_failed": "connect",
    "upstream_connect_timeout": "timeout",
    "upstream_tls_failed": "tls",
    "upstream_closed": "closed",
    "upstream_truncated": "closed",
}


class Fetched(NamedTuple):
    """A complete response."""

    status: int
    headers: Headers
    body: bytes


class FetchError(Exception):
    """No usable response. `kind` gives the cause: connect, tls, timeout, closed, bad_response, too_large, redirect, busy,
    bad_url."""

    def __init__(self, kind, detail=""):
        super().__init__(f"{kind}: {detail}" if detail else kind)
        self.kind = kind
        self.detail = detail


def check_url(url):
    """(endpoint, request target) of an absolute http or https URL. Raises ValueError with the expected form."""
    if not isinstance(url, str) or not url.isascii() or not url.isprintable() or " " in url or "#" in url or "\\" in url:
        raise ValueError("an absolute http:// or https:// URL without spaces, fragment or non-ASCII characters")
    try:
        parts = urlsplit(url)
    except ValueError:      # brackets without an address
        raise ValueError("an absolute http:// or https:// URL") from None
    if parts.scheme not in ("http", "https") or not parts.netloc or "@" in parts.netloc:
        raise ValueError("an absolute http:// or https:// URL without user name or password")
    endpoint = parse_target(f"{parts.scheme}://{parts.netloc}")
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    if not TARGET.fullmatch(target):
        raise ValueError("a URL whose path and query are percent-encoded (RFC 3986)")
    return endpoint, target


cdef class _Call(ResponseSink):
    """One request in flight."""

    cdef Target target
    cdef bytes message
    cdef bint head_only
    cdef bint may_repeat
    cdef bint complete
    cdef bint over
    cdef object waiter
    cdef H1UpstreamStream up
    cdef int status
    cdef Headers fields
    cdef list pieces
    cdef int64_t size
    cdef int64_t max_bytes

    cdef int begin(self) except -1:
        cdef UpstreamStream connection = self.target.take(self, monotonic_ns())
        if connection is not None:
            return self.on_connection(connection)
        if self.target.acquire(self) == A_FULL:
            return self.end("busy", "too many requests to this origin are under way")
        return 0

    cdef int on_connection(self, UpstreamStream stream) except -1:
        cdef H1UpstreamStream connection = <H1UpstreamStream>stream
        self.up = connection
        self.pieces = []
        self.size = 0
        self.complete = False
        connection.begin(self, self.head_only, False)
        connection.write(PyBytes_AS_STRING(self.message), PyBytes_GET_SIZE(self.message), self.message)
        return connection.send_end(None)

    cdef int on_connect_failed(self, Reason reason, str detail) except -1:
        return self.end(KINDS.get(reason.label, "connect"), detail or reason.text)

    cdef int on_interim(self, UpstreamStream stream) except -1:
        return 0                                        # nothing to do before the final response

    cdef int on_upstream_writable(self, bint writable) except -1:
        return 0                                        # its message is small and has been given to the transport

    cdef int on_head(self, UpstreamStream stream) except -1:
        self.status = stream.status
        self.fields = stream.fields
        if not self.head_only and stream.content_length > self.max_bytes:
            return self.end("too_large", f"{stream.content_length} bytes, at most {self.max_bytes} are read")
        return 0

    cdef int on_chunk(self, bytes chunk) except -1:
        if self.over:
            return 0
        self.size += PyBytes_GET_SIZE(chunk)
        if self.size > self.max_bytes:
            return self.end("too_large", f"more than {self.max_bytes} bytes")
        self.pieces.append(chunk)
        return 0

    cdef int on_end(self, Headers trailers) except -1:
        self.complete = True
        return 0

    cdef int on_read_done(self, int64_t now_ns) except -1:
        if self.complete and not self.over:
            return self.end("", "")
        return 0

    cdef int on_failed(self, UpstreamStream stream, Reason reason) except -1:
        self.up = None
        if self.may_repeat and stream.reused and not stream.saw_bytes and reason.label == "upstream_closed":
            self.may_repeat = False                     # the kept-alive connection was dead: retry once on a new one
            if self.target.acquire(self) != A_FULL:
                return 0
        return self.end(KINDS.get(reason.label, "bad_response"), reason.text)

    cdef int end(self, str kind, str detail) except -1:
        """Report the response, or the failure, to the caller, and release the connection. Only the first call has an effect."""
        cdef H1UpstreamStream up = self.up
        if self.over:
            return 0
        self.over = True
        self.up = None
        self.target.forget(self)
        if up is not None:
            if self.complete:
                up.release(monotonic_ns())
            else:
                up.abort()
        if self.waiter.done():
            return 0
        if kind:
            self.waiter.set_exception(FetchError(kind, detail))
        else:
            self.waiter.set_result(Fetched(self.status, self.fields, b"".join(self.pieces)))
        return 0


cdef class Fetcher:
    """The client. One serves a whole worker; all its https origins share `tls`."""

    cdef object around
    cdef object tls
    cdef object context
    cdef object making_context
    cdef object origins                     # OrderedDict: (secure, host, port) → Upstream
    cdef int max_connections
    cdef bint closed

    def __init__(self, around, tls=None, int max_connections=64):
        self.around = around
        self.tls = tls if tls is not None else UpstreamTlsConfig()
        self.max_connections = max_connections
        self.origins = OrderedDict()

    async def request(self, str method not None, str url not None, headers=(), bytes body=b"", int64_t timeout_ns=DEFAULT_TIMEOUT_NS,
                      int64_t max_bytes=DEFAULT_MAX_BYTES, int redirects=0, repeatable=None):
        """The complete response to one request, whatever its status. Raises FetchError otherwise, after timeout_ns at the latest.

        headers: (name, value) pairs, text or bytes. redirects: how many redirects of a GET to the same origin are followed; one
        to another origin raises FetchError. repeatable: may be sent twice if a kept-alive connection turns out to be dead; the
        default follows from the method (RFC 9110 §9.2.2).
        """
        try:
            async with asyncio.timeout(timeout_ns / 1e9):
                while True:
                    fetched = await self._once(method, url, headers, body, max_bytes, repeatable)
                    if redirects <= 0 or method != "GET" or fetched.status not in (301, 302, 303, 307, 308):
                        return fetched
                    redirects -= 1
                    url = self._redirected(url, fetched.headers.get("location", ""))
        except TimeoutError:
            raise FetchError("timeout", f"no answer within {timeout_ns / 1e9:g} s") from None

    def _redirected(self, str url, str location):
        there = urljoin(url, location)
        before, after = urlsplit(url), urlsplit(there)
        if not location or (before.scheme, before.netloc) != (after.scheme, after.netloc):
            raise FetchError("redirect", f"to another origin: {location[:200]!r}")
        return there

    async def _once(self, str method, str url, headers, bytes body, int64_t max_bytes, repeatable):
        cdef _Call call
        cdef Upstream upstream
        cdef bytes name = method.encode("latin-1", "replace")
        cdef int number = method_number(PyBytes_AS_STRING(name), PyBytes_GET_SIZE(name))
        if self.closed:
            raise FetchError("closed", "the client is closed")
        try:
            endpoint, target = check_url(url)
            if not name_valid(PyBytes_AS_STRING(name), PyBytes_GET_SIZE(name)) or method == "CONNECT":
                raise ValueError(f"a method, got {method!r}")
            upstream = self.origins.get(endpoint[:3])
            if upstream is None:
                if endpoint.secure and self.context is None:
                    # Loading the system's CA certificates takes tens of milliseconds
                    self.context = await self.around.loop.run_in_executor(None, upstream_context, self.tls)
                upstream = self._origin(endpoint)
            else:
                self.origins.move_to_end(endpoint[:3])
            call = _Call.__new__(_Call)
            call.target = <Target>upstream.targets[0]
            call.message = _message(name, target, call.target.authority, headers, body)
        except CertificateError as error:
            raise FetchError("tls", str(error)) from None
        except ValueError as error:
            raise FetchError("bad_url", f"{url[:200]}: expected {error}") from None
        except OSError as error:
            raise FetchError("tls", str(error)) from None
        call.head_only = method == "HEAD"
        call.may_repeat = method_idempotent(number) if repeatable is None else repeatable
        call.max_bytes = max_bytes
        call.waiter = self.around.loop.create_future()
        call.begin()
        try:
            return await call.waiter
        finally:
            call.end("closed", "given up")              # no effect if it has ended

    def _origin(self, endpoint):
        """The pool of this origin, created on first use."""
        cdef Upstream upstream
        cdef str scheme = "https" if endpoint.secure else "http"
        cdef str url = f"{scheme}://{endpoint.authority}"
        known = self.origins.get(endpoint[:3])
        if known is not None:
            return known                                # another request created it meanwhile
        config = UpstreamConfig(
            targets=(TargetConfig(url=url),),
            pool=PoolConfig(max_connections=self.max_connections, max_idle=8, max_queue=1024),
            timeouts=TimeoutsConfig(connect_ns=DEFAULT_TIMEOUT_NS),
        )
        upstream = Upstream(f"fetch {url}", config, self.around.loop, self.around.wheel, self.around.counters, self.around.slot)
        server_name = (self.tls.server_name or endpoint.host) if endpoint.secure else None
        upstream.set_targets([Target(upstream, url, endpoint.host, endpoint.port, None, self.context if endpoint.secure else None,
                                     server_name, endpoint.authority.encode())])
        self.origins[endpoint[:3]] = upstream
        while len(self.origins) > MAX_ORIGINS:
            self.origins.popitem(last=False)[1].retire()
        return upstream

    async def start(self):
        """Nothing to start."""

    async def close(self):
        """Close idle connections; requests in flight close theirs when they end."""
        self.closed = True
        for upstream in self.origins.values():
            upstream.retire()
        self.origins.clear()


cdef bytes _message(bytes method, str target, bytes authority, headers, bytes body):
    """The bytes of a request. Raises ValueError for a header field that is malformed or reserved for the client."""
    cdef HeadWriter w = HeadWriter()
    cdef bytes name
    cdef bint has_agent = False
    w.put_bytes(b"%b %b HTTP/1.1\r\n" % (method, target.encode("ascii")))
    w.field(b"Host", authority)
    for key, value in headers:
        name = key.encode("latin-1") if isinstance(key, str) else key
        if name.decode("latin-1").lower() in REQUEST_FIELDS:
            raise ValueError(f"no header {key!r}: the client writes this field itself")
        has_agent = has_agent or name.lower() == b"user-agent"
        w.field(name, value.encode("latin-1") if isinstance(value, str) else value)
    if not has_agent:
        w.field(b"User-Agent", b"fastgate")
    if body or method in (b"POST", b"PUT", b"PATCH"):
        w.field(b"Content-Length", b"%d" % len(body))
    w.put(b"\r\n", 2)
    w.put_bytes(body)
    return w.take()
