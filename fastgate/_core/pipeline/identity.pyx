# cython: boundscheck=False
"""Identity: the client of a request, as determined by an authentication scheme.

WHAT     One object per credential, not per request: a scheme creates it once, the gate keeps it, any number of requests share it.
STATE    Immutable. `metadata` and `claims` are shared by all those requests and must not be changed.
WHO      Created by a scheme (fastgate/auth), read by gates, plugins, the cache and the log.
COST     300 bytes; about 400 ns to create.
"""

from libc.stdint cimport int64_t, uint64_t

import hashlib

from urllib.parse import quote

__all__ = ["Identity"]

cdef uint64_t SERIALS = 0

cdef str VISIBLE = " !#$&'()*+,/:;=?@[]|^`{}<>\"\\~"


cdef class Identity:
    """A consumer, and the credential that identified it.

    consumer: its name, never empty. method: the scheme's name. key_id: which of the consumer's credentials. limits: replace those
    of its tier. expires_ns: CLOCK_REALTIME ns, 0 = never. record, version: the entry of the Directory it was read from, -1 if it
    has none; a later version means that it is outdated. -2: the Directory had none when its generation was `version`. shared: it
    represents many persons that only the upstream can distinguish (`anonymous`, or forward-auth without a name): private data
    must not be shared under it.
    """

    def __init__(self, str consumer not None, *, str tier="", str method="", str key_id=None, scopes=(), roles=(), metadata=None,
                 claims=None, limits=None, int64_t expires_ns=0, int64_t record=-1, uint64_t version=0, bint shared=False):
        global SERIALS
        if not consumer:
            raise ValueError("consumer: expected a name, got an empty one")
        SERIALS += 1
        self.serial = SERIALS
        self.consumer = consumer
        self.consumer_bytes = consumer.encode()
        self.tier = tier
        self.method = method
        self.by_address = method == "anonymous"
        self.shared = shared or self.by_address
        self.key_id = key_id
        self.key_bytes = self.consumer_bytes if key_id is None else key_id.encode()
        self.scopes = frozenset(scopes)
        self.roles = frozenset(roles)
        self.metadata = {} if metadata is None else metadata
        self.claims = claims
        self.limits = limits
        self.expires_ns = expires_ns
        self.record = record
        self.version = version
        lines = [("Id", consumer), ("Tier", tier), ("Key-Id", key_id), ("Scopes", " ".join(sorted(self.scopes))),
                 ("Roles", " ".join(sorted(self.roles))), ("Method", method)]
        # Percent-encoded if a name contains characters that are invalid in a header field: issuers choose the names of their
        # subjects.
        self.upstream_lines = "".join(f"X-Consumer-{name}: {quote(value, safe=VISIBLE)}\r\n" for name, value in lines if value).encode()

    cdef bytes cache_key(self):
        """Distinguishes responses to this identity from those to others: everything that is sent upstream about it. Computed
        once, of constant length."""
        cdef bytes part
        if self.cache_key_made is None:
            made = hashlib.blake2b(digest_size=16)
            for text in (self.consumer, self.tier, self.key_id or "", self.method, *sorted(self.scopes), None, *sorted(self.roles)):
                # Each part is preceded by its length, so that no two lists of parts look alike.
                part = b"" if text is None else text.encode("utf-8", "surrogatepass")
                made.update(b"-" if text is None else b"%d:" % len(part) + part)
            self.cache_key_made = made.hexdigest().encode()
        return self.cache_key_made

    def __repr__(self):
        return f"Identity({self.consumer!r}, tier={self.tier!r}, method={self.method!r})"
