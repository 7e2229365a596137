"""Public C interface of fastgate._core.pipeline.identity."""

from libc.stdint cimport int64_t, uint64_t

cdef class Identity:
    cdef readonly str consumer
    cdef readonly bytes consumer_bytes
    cdef readonly str tier
    cdef readonly str method
    cdef readonly str key_id
    cdef readonly bytes key_bytes           # key of limits by key: the key id, or the consumer if there is none
    cdef readonly frozenset scopes
    cdef readonly frozenset roles
    cdef readonly dict metadata
    cdef readonly object claims
    cdef readonly object limits
    cdef readonly int64_t expires_ns
    cdef readonly int64_t record
    cdef readonly uint64_t version
    cdef readonly bytes upstream_lines      # ready header lines that send the identity upstream
    cdef bytes cache_key_made
    cdef bytes cache_key(self)
    cdef readonly bint by_address           # shared by many clients: limits and penalties count each of them by its address
    cdef readonly uint64_t serial           # unique in this process, never reused: caching by it keeps nothing alive
    cdef readonly bint shared               # shared by many persons that only the upstream can distinguish
    cdef object limits_memo                 # cached by the limits gate: (its tiers, the rule)
