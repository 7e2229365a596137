"""Public C interface of fastgate._core.gates.client_key."""

from libc.stdint cimport uint64_t

from fastgate._core.pipeline.context cimport RequestContext

cdef uint64_t ANONYMOUS                     # keeps the address of a client apart from a consumer of that name

cdef int pack_client(const char* text, Py_ssize_t n, int v4_bits, int v6_bits, unsigned char* out) noexcept nogil
cdef uint64_t source_hash(RequestContext ctx, const uint64_t* key) noexcept
