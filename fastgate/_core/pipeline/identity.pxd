"""Public C interface of fastgate._core.pipeline.identity."""

from libc.stdint cimport int64_t, uint64_t

cdef class Identity:
    cdef readonly str consumer
    cdef readonly bytes consumer_bytes
    cdef readonly str tier
    cdef readonly str method
    cdef readonly str key_id
    cdef readonly bytes key_bytes           # what limits by key count on: the key id, or the consumer where there is none
    cdef readonly frozenset scopes
    cdef readonly frozenset roles
    cdef readonly dict metadata
    cdef readonly object claims
    cdef readonly object limits
    cdef readonly int64_t expires_ns
    cdef readonly int64_t record
    cdef readonly uint64_t version
    cdef readonly bytes upstream_lines      # ready header lines that tell the upstream
    cdef bytes cache_key_made
    cdef bytes cache_key(self)
    cdef readonly bint by_address           # it stands for many: limits and penalties count them by address, each by itself
    cdef readonly uint64_t serial           # no other Identity of this process has it, or ever had: what remembers one by it keeps nothing alive
    cdef readonly bint shared               # it stands for many people that only the upstream can tell apart
    cdef object limits_memo                 # what the limits gate worked out once: (its tiers, the rule)
