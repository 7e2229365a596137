# cython: boundscheck=False
"""Identity: who a request is from, as an authentication scheme found out.

WHAT     One object per credential, not per request: a scheme makes it once, the gate keeps it, any number of requests share it.
STATE    Immutable. `metadata` and `claims` are shared by all those requests: read them, never change them.
WHO      Made by a scheme (fastgate/auth), read by gates, plugins, the cache and the log.
COST     300 bytes; about 400 ns to make.
"""

from libc.stdint cimport int64_t, uint64_t

import hashlib

from urllib.parse import quote

__all__ = ["Identity"]

cdef uint64_t SERIALS = 0

cdef str VISIBLE = " !#$&'()*+,/:;=?@[]|^`{}<>\"\\~"


cdef class Identity:
    """A consumer, and the credential that showed who it is.

    consumer: its name, never empty. method: the scheme's name. key_id: which of the consumer's credentials. limits: what takes the
    place of its tier's limits. expires_ns: CLOCK_REALTIME ns, 0 = never. record, version: the entry of the Directory it was read
    from, -1 when from none; a later version means it is out of date. -2: the Directory
    had none when its generation was `version`. shared: it stands for many people that only the upstream can tell apart
    (`anonymous`, forward-auth that names nobody): what is private to it is private to none of them.
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
        # Percent-encoded where a name holds what a header field must not: an issuer chooses the names of its subjects.
        self.upstream_lines = "".join(f"X-Consumer-{name}: {quote(value, safe=VISIBLE)}\r\n" for name, value in lines if value).encode()

    cdef bytes cache_key(self):
        """What tells answers to this identity from those to others: all that the upstream is told of it. Made once, of one length."""
        cdef bytes part
        if self.cache_key_made is None:
            made = hashlib.blake2b(digest_size=16)
            for text in (self.consumer, self.tier, self.key_id or "", self.method, *sorted(self.scopes), None, *sorted(self.roles)):
                # With the length before each, so that no name can look like two.
                part = b"" if text is None else text.encode("utf-8", "surrogatepass")
                made.update(b"-" if text is None else b"%d:" % len(part) + part)
            self.cache_key_made = made.hexdigest().encode()
        return self.cache_key_made

    def __repr__(self):
        return f"Identity({self.consumer!r}, tier={self.tier!r}, method={self.method!r})"
