# cython: boundscheck=False
"""The authentication gate.

WHAT     `AuthGate` tries a route's schemes (fastgate/auth/scheme.py) in order until one authenticates the request. A credential that
         was verified before is found in the worker's `CredentialCache` (credentials.pyx); no scheme is called.
STATE    An identity read from the Directory is dropped as soon as its record changes there: revocation is one load.
WHO      The worker's loop.
COST     Known credential: about 60 ns. Unknown: the cost of its scheme.
SOURCES  RFC 9110 §11 (401, WWW-Authenticate, one credential), RFC 6750 §3 (Bearer)
"""

import asyncio
import re

from libc.stdint cimport int64_t, uint64_t

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE

from fastgate._core.clock cimport realtime_ns
from fastgate._core.pipeline.context cimport Reason, RequestContext
from fastgate._core.shm.directory cimport Directory
from fastgate._core.gates.refusal cimport refuse
from fastgate._core.hashing cimport hash128_t
from fastgate._core.http.headers cimport H_DROPPED, H_OTHER, Headers, field_t, name_equal, names_fold
from fastgate._core.pipeline.identity cimport Identity
from fastgate._core.pipeline.pipeline cimport V_CONTINUE, V_RESPOND, V_SUSPEND, Plugin

__all__ = ["AuthGate"]

cdef enum:
    NO_FIELD = -1
    REPEATED_FIELD = -2                         # and below: the repeated place
    LOADING_LIMIT_MS = 5000         # 100 000 keys take one second

cdef int64_t NEVER_NS = 0x7FFFFFFFFFFFFFFF
cdef object ANONYMOUS = "anonymous"


cdef class AuthGate(Plugin):
    """Authenticates a request with the first scheme that accepts it; otherwise the response is 401 with every scheme's challenge.

    schemes: objects like fastgate.auth.scheme.Scheme. family: 64 bits that differ between gates that verify a credential
    differently. forward: whether the identity is sent upstream (X-Consumer-*). rejected, later, responded, unavailable_error:
    results and exception of schemes. reasons: the row of REASONS for each outcome that a scheme counts; `missing`, `invalid` and
    `repeated` are always there. unavailable: the row for an unreachable server. waits: a controller will load the directory;
    until then no request is refused.

    Two credentials of one kind are rejected before they are verified: the upstream might use the other one. The scheme of keys
    rejects a key in two places for the same reason.
    """

    def __cinit__(self, schemes, *, CredentialCache cache not None, Directory directory, uint64_t family, bint forward, rejected, later,
                 responded, unavailable_error, dict reasons not None, Reason unavailable not None, bint waits=False):
        self.compiled_decide = True
        self.name = "auth"
        self.schemes = tuple(schemes)
        self.cache = cache
        self.directory = directory
        self.family = family
        self.forward = forward
        self.rejected = rejected
        self.later = later
        self.unavailable_error = unavailable_error
        self.reasons = reasons
        self.missing = reasons["missing"]
        self.invalid = reasons["invalid"]
        self.repeated = reasons["repeated"]
        self.unavailable = unavailable
        self.responded = responded
        self.waits = waits and directory is not None
        places = {}
        for scheme in self.schemes:
            for header in scheme.credential_headers:
                hides = places.setdefault(header.lower().encode("latin-1"), {})
                if scheme.cacheable:
                    hides[scheme.name] = scheme.hide
        self.places = tuple(places)
        self.places_n = len(places)
        self.hides = tuple(places.values())
        self.last_method = [None] * self.places_n
        self.last_hides = [False] * self.places_n
        for name in places:
            self.sizes |= <uint64_t>1 << min(<int>len(name), 63)
        queries = {scheme.credential_query.encode() for scheme in self.schemes if scheme.credential_query is not None}
        if len(queries) > 1:
            raise ValueError(f"schemes: expected one query parameter for credentials, got {queries}")
        self.query_name = queries.pop() if queries else None
        # If Authorization can only contain keys, any other content belongs to the upstream and is not a second credential.
        takers = [scheme for scheme in self.schemes if "authorization" in [name.lower() for name in scheme.credential_headers]]
        self.key_prefix = b"bearer fg_" if takers and all(scheme.name == "api_key" for scheme in takers) else None
        # A request without any credential is the usual one to be refused: it costs no call of a scheme.
        self.needs = tuple([None if scheme.needs is None else tuple([name.lower().encode("latin-1") for name in scheme.needs])
                            for scheme in self.schemes])
        self.claims = tuple([(tuple([name.lower().encode("latin-1") for name in scheme.claims]), scheme) for scheme in self.schemes])
        self.concealing = tuple(scheme for scheme in self.schemes if scheme.hide or scheme.credential_query is not None)
        # Fields that only a scheme may set are dropped from client requests, in every spelling; and a credential has only one
        # spelling.
        strips = {name.encode("latin-1"): False for scheme in self.schemes for name in scheme.strips}
        for name in places:
            strips.setdefault(name, True)
        self.owned = tuple(strips)
        # A name without a separator has no other spelling. Those of places are dropped by `credential`, which reads them anyway;
        # but if one place is another spelling of the other, they are dropped before.
        folded = {re.sub(rb"[^a-z0-9]", b"-", name) for name in places}
        looked_at = [name for name in places if strips[name] and not name.isalnum()] if len(folded) == len(places) else []
        self.alone = bytes([1 if name in looked_at else 0 for name in places])
        self.strips = tuple([(name, alone) for name, alone in strips.items()
                             if not alone or (name not in looked_at and not name.isalnum())]) or None
        challenges = dict.fromkeys(scheme.challenge for scheme in self.schemes if scheme.challenge)
        self.challenge_lines = challenge_lines(challenges)
        # RFC 6750 §3.1: the error of the token that was sent; nothing if none was sent
        self.invalid_lines = challenge_lines(
            [f'{challenge}, error="invalid_token"' if challenge.startswith("Bearer ") else challenge for challenge in challenges])
        bounds = [getattr(scheme, "request_body_bytes", 0) for scheme in self.schemes]
        self.request_body_bytes = max(bounds) if bounds else 0

    cdef int c_decide(self, RequestContext ctx) except -1:
        cdef field_t* field
        cdef hash128_t key
        cdef Identity identity
        cdef int place = NO_FIELD
        if self.strips is not None:
            for name, but_itself in self.strips:
                ctx.headers.drop_folded(PyBytes_AS_STRING(<bytes>name), PyBytes_GET_SIZE(<bytes>name), but_itself)
        field = self.credential(ctx, &place)
        if field != NULL:
            self.cache.key_of(self.family + <uint64_t>place, field.value, field.value_n, &key)
            identity = self.cache.find(&key, ctx.now_ns)
            if identity is not None and self.current(identity):
                return self.accept(ctx, identity, self.is_hidden(place, identity.method), field)
        elif place <= REPEATED_FIELD:
            return self.refuse_repeated(ctx, REPEATED_FIELD - place)
        if self.waits and self.directory.c_loaded() == 0:
            ctx.remember(self, (-1, None, False))
            return V_SUSPEND
        return self.walk(ctx, 0, None, False)

    cdef bint is_hidden(self, int place, str method) except -1:
        """True if the credential in this place, which identified the client by this method, is hidden from the upstream."""
        if self.last_method[place] is not method:
            self.last_method[place] = method
            self.last_hides[place] = (<dict>self.hides[place]).get(method, False)
        return self.last_hides[place] is True

    cdef field_t* credential(self, RequestContext ctx, int* at) except? NULL:
        """The single credential of the request, and its place; NULL if there is none or several, or the key may be in the
        query. at is then NO_FIELD, or REPEATED_FIELD - n if the field of place n is repeated. Other spellings of the names are
        dropped."""
        cdef Headers headers = ctx.headers
        cdef field_t* found = NULL
        cdef field_t* field
        cdef bytes name
        cdef bint several = False
        cdef int repeated = NO_FIELD
        cdef int place, i
        for i in range(headers.count):
            field = &headers.fields[i]
            if field.id != H_OTHER or not self.sizes >> min(field.name_n, 63) & 1:
                continue
            for place in range(self.places_n):
                name = <bytes>self.places[place]
                if field.name_n != PyBytes_GET_SIZE(name):
                    continue
                if not name_equal(field.name, PyBytes_AS_STRING(name), field.name_n):
                    if PyBytes_AS_STRING(self.alone)[place] and names_fold(field.name, PyBytes_AS_STRING(name), field.name_n):
                        field.id = H_DROPPED
                        break
                    continue
                if repeated != NO_FIELD:
                    continue                            # already refused: only other spellings are still dropped
                if self.key_prefix is not None and field.name_n == 13 and name_equal(field.name, b"authorization", 13) \
                        and not (field.value_n >= 10 and name_equal(field.value, PyBytes_AS_STRING(self.key_prefix), 10)) \
                        and self.count_of(headers, name) == 1:
                    continue
                if found == NULL:
                    found = field
                    at[0] = place
                    continue
                several = True
                if at[0] == place or self.count_of(headers, name) > 1:
                    repeated = place
        if repeated != NO_FIELD:
            at[0] = REPEATED_FIELD - repeated
            return NULL
        if several or (found != NULL and self.query_name is not None and ctx.query_bytes is not None
                       and has_parameter(ctx.query_bytes, self.query_name)):
            at[0] = NO_FIELD
            return NULL
        return found

    cdef int count_of(self, Headers headers, bytes name) noexcept:
        cdef int i, n = 0
        for i in range(headers.count):
            if headers.fields[i].id != H_DROPPED and headers.fields[i].name_n == PyBytes_GET_SIZE(name) \
                    and name_equal(headers.fields[i].name, PyBytes_AS_STRING(name), headers.fields[i].name_n):
                n += 1
        return n

    cdef bint current(self, Identity identity) noexcept:
        """False if the source of the identity has changed since, or if it has expired by the current realtime clock: the cache
        time is measured by the monotonic clock, which a step of the realtime clock does not affect. A current one is counted as
        used."""
        if identity.expires_ns and realtime_ns() >= identity.expires_ns:
            return False
        if self.directory is None or identity.record == -1:
            return True
        if identity.record < 0:         # an undeclared consumer (-2 - watch): it may have been published since
            return self.directory.c_changes(<int>(-2 - identity.record)) == identity.version
        if not self.directory.c_current(identity.record, identity.version):
            return False
        self.directory.c_used(identity.record, realtime_ns())
        return True

    cdef int accept(self, RequestContext ctx, Identity identity, bint hide, field_t* field) except -1:
        ctx.identity = identity
        if hide and field != NULL:
            field.id = H_DROPPED
        if self.forward:
            if ctx.upstream_lines is None:
                ctx.upstream_lines = identity.upstream_lines
            else:
                ctx.upstream_lines = ctx.upstream_lines + identity.upstream_lines
        return V_CONTINUE

    cdef int conceal(self, RequestContext ctx) except -1:
        """Removes the credentials that are hidden from the upstream or the log, whichever scheme decided."""
        for scheme in self.concealing:
            scheme.conceal(ctx)
        return 0

    cdef int refuse(self, RequestContext ctx, Reason reason) except -1:
        cdef bytes lines = None
        refuse(ctx, reason)
        if reason is not self.unavailable:
            lines = self.challenge_lines if reason is self.missing or not shows_bearer(ctx.headers) else self.invalid_lines
        if lines:
            ctx.gate_lines = lines if ctx.gate_lines is None else ctx.gate_lines + lines
        if not self.enforce:
            self.conceal(ctx)
        return V_RESPOND

    cdef int refuse_repeated(self, RequestContext ctx, int place) except -1:
        cdef str header = (<bytes>self.places[place]).decode("latin-1")
        for scheme in self.schemes:
            if header in [name.lower() for name in scheme.credential_headers]:
                scheme.count("repeated")
        return self.refuse(ctx, self.repeated)

    cdef Reason reason_of(self, scheme):
        """The row for the last rejection by a scheme."""
        return <Reason?>self.reasons.get(scheme.outcome, self.invalid)

    cdef int walk(self, RequestContext ctx, int start, Reason wrong, bint unavailable) except -1:
        """Calls the schemes from start on. wrong: the first rejection of a credential by an earlier one, or None."""
        cdef int i
        for i in range(start, len(self.schemes)):
            scheme = self.schemes[i]
            if self.needs[i] is not None and not has_any(ctx.headers, <tuple>self.needs[i]):
                continue
            if wrong is not None and scheme.name == ANONYMOUS:
                continue                                # an invalid credential is not a missing one
            scheme.outcome = ""
            try:
                said = scheme.verify(ctx)
            except self.unavailable_error as error:
                if self.passes(ctx, scheme, error):
                    return V_CONTINUE
                unavailable = True
                continue
            if said is None:
                continue
            if said is self.rejected:
                reason = self.reason_of(scheme)
                if reason is self.repeated:
                    return self.refuse(ctx, reason)
                wrong = reason if wrong is None else wrong
            elif said is self.later:
                ctx.remember(self, (i, wrong, unavailable))
                return V_SUSPEND
            elif said is self.responded:
                return self.relay(ctx)
            else:
                return self.take(ctx, <Identity?>said, scheme)
        if unavailable:
            return self.refuse(ctx, self.unavailable)
        return self.refuse(ctx, self.unclaimed(ctx) if wrong is None else wrong)

    cdef Reason unclaimed(self, RequestContext ctx):
        """The row for a request without an accepted credential: `missing`, unless a scheme reads the place of an existing one."""
        for names, scheme in self.claims:
            if has_any(ctx.headers, <tuple>names):
                outcome = scheme.unclaimed(ctx)
                if outcome is not None:
                    scheme.count(outcome)
                    return <Reason?>self.reasons[outcome]
        return self.missing

    cdef int relay(self, RequestContext ctx) except -1:
        """A scheme has set a response. In shadow mode it counts as a refusal."""
        if self.enforce:
            return V_RESPOND
        return self.refuse(ctx, self.invalid)

    cdef bint passes(self, RequestContext ctx, scheme, error) except -1:
        scheme.count("unavailable")
        scheme.complain(error)
        if scheme.on_error != "allow":
            return False
        self.conceal(ctx)
        return True

    cdef int take(self, RequestContext ctx, Identity identity, scheme) except -1:
        """A scheme has identified the client: caches the identity if possible, and continues."""
        cdef hash128_t key
        cdef field_t* field
        cdef int64_t until_ns = NEVER_NS
        cdef int place = NO_FIELD
        field = self.credential(ctx, &place)
        # The one credential field need not be the one that the scheme used: another one proves nothing, now or later.
        if field != NULL and scheme.name in <dict>self.hides[place] \
                and (<bytes>self.places[place]) == scheme.credential_field(ctx):
            if identity.expires_ns:
                until_ns = ctx.now_ns + identity.expires_ns - realtime_ns()
            if scheme.cache_ns:
                until_ns = min(until_ns, ctx.now_ns + <int64_t>scheme.cache_ns)
            if until_ns > ctx.now_ns:
                self.cache.key_of(self.family + <uint64_t>place, field.value, field.value_n, &key)
                self.cache.keep(&key, identity, until_ns)
        self.conceal(ctx)
        self.current(identity)
        return self.accept(ctx, identity, False, NULL)

    def decide(self, RequestContext ctx):
        """The same for Python."""
        return self.c_decide(ctx)

    async def request(self, RequestContext ctx):
        cdef int i
        cdef int verdict
        i, wrong, unavailable = ctx.recall(self)
        if i < 0:
            # The gateway has just started, and the controller is still reading the store: an unknown key may be valid.
            for i in range(LOADING_LIMIT_MS // 10):
                if self.directory.c_loaded() != 0:
                    break
                await asyncio.sleep(0.01)
            verdict = self.walk(ctx, 0, None, False)
            if verdict != V_SUSPEND:
                return verdict
            i, wrong, unavailable = ctx.recall(self)
        while True:
            scheme = self.schemes[i]
            try:
                said = await scheme.verify_later(ctx)
            except self.unavailable_error as error:
                if self.passes(ctx, scheme, error):
                    return V_CONTINUE
                unavailable = True
                said = None
            if said is self.rejected:
                reason = self.reason_of(scheme)         # nothing has run since the scheme counted it
                wrong = reason if wrong is None else wrong
            elif said is self.responded:
                return self.relay(ctx)
            elif said is not None:
                return self.take(ctx, <Identity?>said, scheme)
            verdict = self.walk(ctx, i + 1, wrong, unavailable)
            if verdict != V_SUSPEND:
                return verdict
            i, wrong, unavailable = ctx.recall(self)


cdef bint has_any(Headers headers, tuple names) except -1:
    """True if one of the fields is there. names: lower case."""
    cdef bytes name
    for name in names:
        if headers.find_field(PyBytes_AS_STRING(name), PyBytes_GET_SIZE(name)) != NULL:
            return True
    return False


cdef bytes challenge_lines(challenges):
    return b"".join(b"WWW-Authenticate: " + challenge.encode("latin-1") + b"\r\n" for challenge in challenges)


cdef bint shows_bearer(Headers headers) noexcept:
    """True if the request has a Bearer token."""
    cdef field_t* field = headers.find_field(b"authorization", 13)
    return field != NULL and field.value_n >= 6 and name_equal(field.value, b"bearer", 6) and (field.value_n == 6 or field.value[6] == c" ")


cdef int unquoted(const char* p, Py_ssize_t n, Py_ssize_t* i) noexcept nogil:
    """The next character of a form-encoded text; i moves past it (WHATWG URL §5.1)."""
    cdef int high, low
    cdef int c = <unsigned char>p[i[0]]
    if c == c"%" and i[0] + 2 < n:
        high, low = hex_value(p[i[0] + 1]), hex_value(p[i[0] + 2])
        if high >= 0 and low >= 0:
            i[0] += 3
            return high * 16 + low
    i[0] += 1
    return 32 if c == c"+" else c


cdef int hex_value(char c) noexcept nogil:
    if c"0" <= c <= c"9":
        return c - c"0"
    c = c | 32
    return c - c"a" + 10 if c"a" <= c <= c"f" else -1


cdef bint has_parameter(bytes query, bytes name) noexcept:
    """True if the query has a parameter of this name, in whatever encoding."""
    cdef const char* p = PyBytes_AS_STRING(query)
    cdef const char* wanted = PyBytes_AS_STRING(name)
    cdef Py_ssize_t n = PyBytes_GET_SIZE(query), wanted_n = PyBytes_GET_SIZE(name)
    cdef Py_ssize_t start = 0, end, i, k
    while start <= n:
        end = start
        while end < n and p[end] != c"&":
            end += 1
        i = start
        k = 0
        while i < end and p[i] != c"=":
            if k >= wanted_n or unquoted(p, end, &i) != <unsigned char>wanted[k]:
                k = -1
                break
            k += 1
        if k == wanted_n:
            return True
        start = end + 1
    return False
