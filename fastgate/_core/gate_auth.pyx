# cython: boundscheck=False
"""The gate that finds out who a request is from.

WHAT     `AuthGate` walks a route's schemes (fastgate/auth/scheme.py) in order until one says who it is. A credential that was
         verified before is found in the `CredentialCache` of the worker and costs a hash and a look: no scheme is asked.
STATE    CredentialCache: at most MOST_CREDENTIALS verified credentials per worker, four places for each hash, the oldest one gives
         way. Kept under a keyed 128-bit hash (SipHash under a random key of this process): the credential itself is nowhere,
         and a look-up compares two words, so its time says nothing of the credential.
         An identity read from the Directory is dropped the moment its record changes there: revocation is one load.
WHO      The worker's loop.
COST     known credential: about 60 ns. Unknown: what its scheme costs.
SOURCES  RFC 9110 §11 (401, WWW-Authenticate, one credential), RFC 6750 §3 (Bearer)
"""

import asyncio

from libc.stdint cimport int64_t, uint64_t
from libc.stdlib cimport calloc, free

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE

from fastgate._core.clock cimport realtime_ns
from fastgate._core.context cimport Reason, RequestContext
from fastgate._core.directory cimport Directory
from fastgate._core.hashing cimport hash128, hash128_t, hash_key_random
from fastgate._core.headers cimport H_DROPPED, Headers, field_t, name_equal
from fastgate._core.identity cimport Identity
from fastgate._core.pipeline cimport V_CONTINUE, V_RESPOND, V_SUSPEND, Plugin

__all__ = ["AuthGate", "CredentialCache"]

cdef enum:
    FIRST_CREDENTIALS = 1024
    MOST_CREDENTIALS = 524288                   # of 100 000 in use, one in a hundred then shares a set with more than fit
    WAYS = 4                                    # places for one hash
    LOADING_LIMIT_MS = 5000         # 100 000 keys take one second

cdef int64_t NEVER_NS = 0x7FFFFFFFFFFFFFFF
cdef object ANONYMOUS = "anonymous"


cdef class CredentialCache:
    """The verified credentials of a worker."""

    def __cinit__(self):
        self.capacity = FIRST_CREDENTIALS
        self.rows = <credential_t*>calloc(self.capacity, sizeof(credential_t))
        if self.rows == NULL:
            raise MemoryError()
        self.identities = [None] * self.capacity
        hash_key_random(self.secret)

    def __dealloc__(self):
        free(self.rows)

    cdef void key_of(self, uint64_t family, const char* data, Py_ssize_t n, hash128_t* out) noexcept:
        """The key of a credential among those of one family: gates that would judge it alike."""
        cdef uint64_t key[2]
        key[0] = self.secret[0] ^ family
        key[1] = self.secret[1]
        hash128(data, n, key, out)

    cdef Identity find(self, const hash128_t* key, int64_t now_ns):
        """Who it is; None when it is not known (any more)."""
        cdef Py_ssize_t first = <Py_ssize_t>(key.low & <uint64_t>(self.capacity - WAYS))
        cdef Py_ssize_t i
        for i in range(first, first + WAYS):
            if self.rows[i].low == key.low and self.rows[i].high == key.high:
                if now_ns < self.rows[i].until_ns:
                    self.hits += 1
                    return <Identity>self.identities[i]
                break
        self.misses += 1
        return None

    cdef int keep(self, const hash128_t* key, Identity identity, int64_t until_ns) except -1:
        """Remember it until until_ns (CLOCK_MONOTONIC)."""
        cdef Py_ssize_t first = <Py_ssize_t>(key.low & <uint64_t>(self.capacity - WAYS))
        cdef Py_ssize_t i, place = -1
        for i in range(first, first + WAYS):
            if self.rows[i].low == key.low and self.rows[i].high == key.high:
                place = i
                break
        if place < 0:
            for i in range(first, first + WAYS):
                if self.identities[i] is None:
                    place = i
                    break
        if place < 0:
            # A full set happens early (birthdays); more room is made when an eighth is taken.
            if self.used * 8 > self.capacity and self.capacity < MOST_CREDENTIALS:
                self.grow()
                return self.keep(key, identity, until_ns)
            place = first
            for i in range(first + 1, first + WAYS):
                if self.rows[i].until_ns < self.rows[place].until_ns:
                    place = i
        self.used += self.identities[place] is None
        self.rows[place].low = key.low
        self.rows[place].high = key.high
        self.rows[place].until_ns = until_ns
        self.identities[place] = identity
        return 0

    def grow(self):
        """Twice the room. A set is split in two, so all of it finds place."""
        cdef Py_ssize_t old_capacity = self.capacity, i, j
        cdef credential_t* old = self.rows
        cdef credential_t* rows = <credential_t*>calloc(2 * old_capacity, sizeof(credential_t))
        cdef list identities = self.identities
        if rows == NULL:
            raise MemoryError()
        self.rows = rows
        self.capacity = 2 * old_capacity
        self.identities = [None] * self.capacity
        for i in range(old_capacity):
            if identities[i] is None:
                continue
            j = <Py_ssize_t>(old[i].low & <uint64_t>(self.capacity - WAYS))
            while self.identities[j] is not None:
                j += 1
            rows[j] = old[i]
            self.identities[j] = identities[i]
        free(old)

    def __len__(self):
        return sum(1 for identity in self.identities if identity is not None)


cdef class AuthGate(Plugin):
    """Who is it? The first scheme that knows says so; when none does the answer is 401 with every scheme's challenge.

    schemes: objects like fastgate.auth.scheme.Scheme. family: 64 bits that differ between gates that would judge a credential
    differently. forward: whether the upstream is told (X-Consumer-*). rejected, later, answered, unavailable_error: what schemes
    say and raise. unauthorized, unavailable: the rows of REASONS. waits: a controller will load the directory; until then nobody
    is refused.
    """

    def __cinit__(self, schemes, *, CredentialCache cache not None, Directory directory, uint64_t family, bint forward, rejected, later,
                 answered, unavailable_error, Reason unauthorized not None, Reason unavailable not None,
                 bint waits=False):
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
        self.unauthorized = unauthorized
        self.unavailable = unavailable
        self.answered = answered
        self.waits = waits and directory is not None
        places = {}
        for scheme in self.schemes:
            if scheme.cacheable:
                for header in getattr(scheme, "credential_headers", None) or (scheme.credential_header,):
                    places.setdefault(header.lower().encode("latin-1"), {})[scheme.name] = bool(getattr(scheme, "hide", False))
        self.places = tuple(places.items())
        # What only a scheme may say, no client ever says, in whatever spelling; and a credential has one spelling only.
        strips = {name.encode("latin-1"): False for scheme in self.schemes for name in getattr(scheme, "strips", ())}
        shown = [header for scheme in self.schemes for header in getattr(scheme, "credential_headers", None) or (scheme.credential_header,)]
        for header in shown:
            strips.setdefault(header.lower().encode("latin-1"), True)
        self.owned = tuple(strips)
        # A name without a separator has no other spelling.
        self.strips = tuple((name, alone) for name, alone in strips.items() if not (alone and name.isalnum())) or None
        self.places_n = len(places)
        challenges = dict.fromkeys(scheme.challenge for scheme in self.schemes if scheme.challenge)
        self.challenge_lines = b"".join(b"WWW-Authenticate: " + challenge.encode("latin-1") + b"\r\n" for challenge in challenges)
        bounds = [getattr(scheme, "request_body_bytes", 0) for scheme in self.schemes]
        self.request_body_bytes = max(bounds) if bounds else 0

    cdef int c_decide(self, RequestContext ctx) except -1:
        cdef field_t* field
        cdef hash128_t key
        cdef Identity identity
        cdef int place = -1
        if self.strips is not None:
            for name, but_itself in self.strips:
                ctx.headers.drop_folded(PyBytes_AS_STRING(<bytes>name), PyBytes_GET_SIZE(<bytes>name), but_itself)
        field = self.credential(ctx, &place)
        if field != NULL:
            self.cache.key_of(self.family + <uint64_t>place, field.value, field.value_n, &key)
            identity = self.cache.find(&key, ctx.now_ns)
            if identity is not None and self.current(identity):
                return self.accept(ctx, identity, (<dict>(<tuple>self.places[place])[1]).get(identity.method, False), field)
        if self.waits and self.directory.c_loaded() == 0:
            ctx.remember(self, (-1, False, False))
            return V_SUSPEND
        return self.walk(ctx, 0, False, False)

    cdef field_t* credential(self, RequestContext ctx, int* at):
        """The first of the schemes' credential fields that is there, and its place; NULL when none is, or one is there twice."""
        cdef Headers headers = ctx.headers
        cdef field_t* found
        cdef bytes name
        cdef const char* lower
        cdef Py_ssize_t n
        cdef int place, i
        for place in range(self.places_n):
            name = <bytes>(<tuple>self.places[place])[0]
            lower = PyBytes_AS_STRING(name)
            n = PyBytes_GET_SIZE(name)
            found = NULL
            for i in range(headers.count):
                if headers.fields[i].name_n == n and headers.fields[i].id != H_DROPPED and name_equal(headers.fields[i].name, lower, n):
                    if found != NULL:
                        return NULL
                    found = &headers.fields[i]
            if found != NULL:
                at[0] = place
                return found
        return NULL

    cdef bint current(self, Identity identity) noexcept:
        """False when what the identity was made of has changed since, or it has expired by the clock as it is now: how long it may be
        remembered was measured by the other clock, which a step leaves alone. One that is current is counted as used."""
        if identity.expires_ns and realtime_ns() >= identity.expires_ns:
            return False
        if self.directory is None or identity.record == -1:
            return True
        if identity.record < 0:         # a consumer nobody had declared: whatever was written since may do so
            return self.directory.c_generation() == identity.version
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

    cdef int refuse(self, RequestContext ctx, Reason reason) except -1:
        ctx.reason = reason
        ctx.detail = None
        ctx.answer = None
        ctx.extra_before = 0 if ctx.extra_response is None else len(ctx.extra_response)
        ctx.lines_before = ctx.gate_lines
        if reason is self.unauthorized and self.challenge_lines:
            ctx.gate_lines = self.challenge_lines if ctx.gate_lines is None else ctx.gate_lines + self.challenge_lines
        return V_RESPOND

    cdef int walk(self, RequestContext ctx, int start, bint rejected, bint unavailable) except -1:
        """Ask the schemes from start on."""
        cdef int i
        for i in range(start, len(self.schemes)):
            scheme = self.schemes[i]
            if rejected and scheme.name == ANONYMOUS:
                continue                                # a wrong credential is wrong, not absent
            try:
                said = scheme.verify(ctx)
            except self.unavailable_error as error:
                if self.passes(scheme, error):
                    return V_CONTINUE
                unavailable = True
                continue
            if said is None:
                continue
            if said is self.rejected:
                rejected = True
            elif said is self.later:
                ctx.remember(self, (i, rejected, unavailable))
                return V_SUSPEND
            elif said is self.answered:
                return V_RESPOND
            else:
                return self.take(ctx, <Identity?>said, scheme)
        return self.refuse(ctx, self.unavailable if unavailable else self.unauthorized)

    cdef bint passes(self, scheme, error) except -1:
        scheme.count("unavailable")
        scheme.complain(error)
        return scheme.on_error == "allow"

    cdef int take(self, RequestContext ctx, Identity identity, scheme) except -1:
        """A scheme knows who it is: remember it where that may be, and go on."""
        cdef hash128_t key
        cdef field_t* field
        cdef int64_t until_ns = NEVER_NS
        cdef int place = -1
        cdef bint hide = bool(getattr(scheme, "hide", False))
        field = self.credential(ctx, &place)
        # The first credential field need not be the one that the scheme went by: another one proves nothing, now or later.
        if field != NULL and scheme.name in <dict>(<tuple>self.places[place])[1] \
                and (<bytes>(<tuple>self.places[place])[0]) == scheme.credential_field(ctx):
            if identity.expires_ns:
                until_ns = ctx.now_ns + identity.expires_ns - realtime_ns()
            if scheme.cache_ns:
                until_ns = min(until_ns, ctx.now_ns + <int64_t>scheme.cache_ns)
            if until_ns > ctx.now_ns:
                self.cache.key_of(self.family + <uint64_t>place, field.value, field.value_n, &key)
                self.cache.keep(&key, identity, until_ns)
        else:
            field = NULL
            if hide:
                shown = scheme.credential_field(ctx)
                if shown is not None:
                    ctx.headers.drop(PyBytes_AS_STRING(<bytes>shown), PyBytes_GET_SIZE(<bytes>shown))
        self.current(identity)
        return self.accept(ctx, identity, hide, field)

    async def request(self, RequestContext ctx):
        cdef int i
        cdef int verdict
        i, rejected, unavailable = ctx.recall(self)
        if i < 0:
            # The gateway has just started, and the controller is still reading the store: a key that nobody knows yet may be good.
            for i in range(LOADING_LIMIT_MS // 10):
                if self.directory.c_loaded() != 0:
                    break
                await asyncio.sleep(0.01)
            verdict = self.walk(ctx, 0, False, False)
            if verdict != V_SUSPEND:
                return verdict
            i, rejected, unavailable = ctx.recall(self)
        while True:
            scheme = self.schemes[i]
            try:
                said = await scheme.verify_later(ctx)
            except self.unavailable_error as error:
                if self.passes(scheme, error):
                    return V_CONTINUE
                unavailable = True
                said = None
            if said is self.rejected:
                rejected = True
            elif said is self.answered:
                return V_RESPOND
            elif said is not None:
                return self.take(ctx, <Identity?>said, scheme)
            verdict = self.walk(ctx, i + 1, rejected, unavailable)
            if verdict != V_SUSPEND:
                return verdict
            i, rejected, unavailable = ctx.recall(self)
