"""Public C interface of fastgate._core.cache.worker_cache."""

from libc.stdint cimport int64_t

from fastgate._core.cache.cache cimport Cache
from fastgate._core.cache.envelope cimport DiskReader
from fastgate._core.http.edits cimport Template
from fastgate._core.shm.epochs cimport Epochs
from fastgate._core.hashing cimport hash128_t
from fastgate._core.http.headers cimport Headers
from fastgate._core.cache.http_cache cimport Rules, StoredResponse, Vary
from fastgate._core.shm.metric cimport Metric

cdef enum:
    FROM_NOWHERE = 0
    FROM_MEMORY = 1
    FROM_DISK = 2
    FROM_REDIS = 3

# The results of requests, as counted
cdef enum:
    C_HIT = 0
    C_STALE = 1
    C_REVALIDATED = 2
    C_MISS = 3
    C_EXPIRED = 4
    C_BYPASS = 5
    C_COALESCED = 6
    C_STALE_ON_ERROR = 7
    C_ONLY_IF_CACHED = 8
    C_WORDS = 9

cdef class Fill:
    cdef readonly bytes key
    cdef object leader
    cdef list waiters
    cdef hash128_t hashed
    cdef int64_t place

cdef class WorkerCache:
    cdef readonly Cache memory
    cdef readonly Epochs epochs
    cdef readonly object tiers
    cdef DiskReader disk                        # the disk tier's; None without one
    cdef int64_t seen
    cdef dict fills
    cdef dict varies                            # Vary by key
    cdef readonly dict forms                    # Rules by their query_form: the ways in which routes use a URL's query
    cdef Metric evicted_variants
    cdef readonly int source                    # FROM_* of the last find
    cdef bint is_large                          # the last get found a response that only a thread should read
    cdef readonly int background                # background revalidations in flight
    cdef Metric purged_fills
    cdef object below(self, bytes key)
    cdef object get(self, bytes key, int64_t now_ns, int64_t realtime_now_ns)
    cdef object keep(self, bytes key, object blob, int64_t now_ns, int64_t realtime_now_ns, int source)
    cdef Vary known(self, bytes key, Vary vary)
    cdef StoredResponse newer(self, bytes key, StoredResponse held, int64_t now_ns, int64_t realtime_now_ns)
    cdef int put(self, bytes key, object value, tuple tags, int lives, int64_t keep_until_ns, int64_t began, int64_t now_ns,
                 int64_t realtime_now_ns) except -1
    cdef int hold(self, bytes key, Vary vary, int64_t expires_ns, int64_t now_ns) except -1
    cdef int admit(self, bytes primary, Vary vary, bytes key, int limit, int64_t keep_until_ns, int64_t now_ns,
                   int64_t realtime_now_ns) except -1
    cdef Fill lead(self, bytes key, object leader, int64_t now_ns)
    cdef int done(self, Fill fill, bint alone, int64_t now_ns) except -1

cdef class RouteCache:
    cdef readonly Rules rules
    cdef readonly WorkerCache store
    cdef readonly bint guarded
    cdef readonly Template places
    cdef readonly tuple plugins
    cdef readonly frozenset written
    cdef readonly bint sends
    cdef readonly bint plain                    # its keys do not depend on places, plugins and written fields
    cdef readonly bint coalesce
    cdef readonly int64_t wait_ns
    cdef readonly object strategy
    cdef readonly bytes purge_header             # lower case; None: upstreams must not purge
    cdef readonly object predict                # caching/predictor.py, None if there are no predictions
    cdef Metric refreshed
    cdef Metric prefetched
    cdef tuple results                          # Metric by C_*
