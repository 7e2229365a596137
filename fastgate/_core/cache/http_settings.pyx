"""The cache settings of one route, in the form in which requests are compared with them.

WHAT        Names in lower case, words as numbers, the beginning of the Cache-Status line as bytes.
STATE       Immutable after construction; one object per route.
"""

from libc.string cimport memcpy

__all__ = ["REPLACED_FIELDS", "CacheSettings"]

#: Request fields that are not forwarded when a stored response is revalidated or refreshed: the gateway requests the whole
#: response, with its own conditions.
REPLACED_FIELDS = (b"if-none-match", b"if-modified-since", b"range", b"if-range")

# Fields that differ with every request, or that the cache replaces.
cdef frozenset NEVER_VARY = frozenset((b"x-request-id", *REPLACED_FIELDS))


cdef int choice(str name, object value, dict known) except -1:
    """known[value], or ValueError."""
    if value not in known:
        raise ValueError(f"{name}: expected one of {', '.join(known)}, got {value!r}")
    return known[value]


cdef class CacheSettings:
    """The settings of `Rules`, whose documentation lists them."""

    def __init__(self, *, ttl_ns=0, respect="origin", methods=("GET", "HEAD"), statuses=(200, 203, 204, 300, 301, 308, 404, 410),
                 query="all", headers=(), cookies=(), consumer="auto", body=False, tags=(), min_size=0, max_size=16_000_000,
                 stale_while_revalidate_ns=0, stale_if_error_ns=0, heuristic_max_ns=86_400_000_000_000, private="never",
                 set_cookie="never", share_private=False, max_variants=64, max_vary=8, targeted=("CDN-Cache-Control",),
                 client_control=True, enforce=True, status_name="fastgate", bytes route=b"", shown=(), secrets=(), never_vary=()):
        self.ttl_ns = ttl_ns
        self.override = choice("respect", respect, {"origin": False, "override": True})
        self.caches_post = "POST" in methods and body
        self.statuses = frozenset(statuses)
        self.query = QUERY_ALL if query == "all" else QUERY_NONE if query == "none" else QUERY_LISTED
        self.route = b"\0route " + route if route else b""
        self.never_vary = NEVER_VARY.union(name.encode().lower() for name in never_vary)
        self.query_names = frozenset(name.encode().lower() for name in query) if self.query == QUERY_LISTED else frozenset()
        self.key_headers = tuple(sorted({name.encode().lower() for name in (*headers, *shown, *secrets)}))
        self.secrets = frozenset(name.encode().lower() for name in secrets)
        self.key_cookies = tuple(sorted(name.encode() for name in cookies))
        self.consumer = choice("consumer", consumer, {"auto": CONSUMER_AUTO, "private": CONSUMER_PRIVATE, "shared": CONSUMER_SHARED})
        self.wants_consumer = self.consumer != CONSUMER_SHARED
        self.wants_body = self.caches_post
        self.tags = tuple(tag.encode() for tag in tags)
        self.min_size = min_size
        self.max_size = max_size
        self.swr_ns = stale_while_revalidate_ns
        self.sie_ns = stale_if_error_ns
        self.heuristic_max_ns = heuristic_max_ns
        self.private = choice("private", private, {"never": PRIVATE_NEVER, "consumer": PRIVATE_CONSUMER, "share": PRIVATE_SHARE})
        self.cookies_set = choice("set_cookie", set_cookie, {"never": COOKIES_NEVER, "strip": COOKIES_STRIP, "store": COOKIES_STORE})
        self.share_private = share_private
        if not share_private and (consumer == "shared" or private == "share" or set_cookie != "never"):
            raise ValueError("these settings share private responses: share_private must be true")
        self.max_variants = max_variants
        self.max_vary = max_vary
        self.targeted = tuple(name.encode().lower() for name in targeted)
        self.client_control = client_control
        self.enforce = enforce
        self.extra = bool(self.key_headers or self.key_cookies)
        name = status_name.encode()
        self.status_name = name
        self.status_n = 0
        if name:
            line = b"Cache-Status: " + name + b"; hit; ttl="
            if len(line) > <Py_ssize_t>sizeof(self.status_head):
                raise ValueError(f"status_name: at most {sizeof(self.status_head) - 26} characters")
            memcpy(self.status_head, <const char*>(<bytes>line), len(line))
            self.status_n = <int>len(line)
