"""C interface of the balancers by key. Public: other extensions may cimport it.

key_hash() gives the point of a key. Picks return an index into the names, or -1 if no target may be picked; `usable` is NULL (all
may be picked) or one byte per target, 0 = excluded. finish() undoes what a pick with a load_factor added.
"""

from libc.stdint cimport int32_t, int64_t, uint64_t

ctypedef struct ring_point_t:
    uint64_t hash
    int32_t target

ctypedef struct bounds_t:
    Py_ssize_t size
    int64_t* weights
    int64_t* in_flight
    int64_t total_in_flight
    double load_factor      # 0 = no bound, nothing counted


cdef class HashRing:
    cdef bounds_t _bounds
    cdef ring_point_t* _points
    cdef Py_ssize_t _count
    cdef uint64_t _key[2]
    cdef readonly tuple names

    cdef uint64_t key_hash(self, const void* key, size_t n) noexcept
    cdef Py_ssize_t pick_usable(self, uint64_t hash, const unsigned char* usable) noexcept
    cdef void finish(self, Py_ssize_t index) noexcept


cdef class Maglev:
    cdef bounds_t _bounds
    cdef int32_t* _table
    cdef readonly Py_ssize_t table_size
    cdef uint64_t _key[2]
    cdef readonly tuple names

    cdef uint64_t key_hash(self, const void* key, size_t n) noexcept
    cdef Py_ssize_t pick_usable(self, uint64_t hash, const unsigned char* usable) noexcept
    cdef void finish(self, Py_ssize_t index) noexcept
