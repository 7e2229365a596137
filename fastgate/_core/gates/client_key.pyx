# cython: boundscheck=False, nonecheck=False
"""What a client without a name is counted under: the network of its address.

A customer of a provider is usually given a whole IPv6 /64, so that is one client by default.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.stdint cimport uint64_t
from libc.string cimport memcpy

from fastgate._core.hashing cimport siphash13
from fastgate._core.http.cidr cimport address_parse
from fastgate._core.pipeline.context cimport RequestContext

__all__ = ["client_key"]

cdef enum:
    # Networks that share one source's part of the table of limits: the most that a customer of a provider is given.
    SOURCE_V4_BITS = 24
    SOURCE_V6_BITS = 48

cdef uint64_t ANONYMOUS = 0x9E3779B97F4A7C15


cdef int pack_client(const char* text, Py_ssize_t n, int v4_bits, int v6_bits, unsigned char* out) noexcept nogil:
    """Write the network of a client's address to out, packed; its length in bytes. Up to 16 bytes of the text itself if it is not an address
    (a Unix socket)."""
    cdef int length = address_parse(text, n, out)
    cdef int bits, i
    if length < 0:
        length = <int>min(n, 16)
        memcpy(out, text, length)
        return length
    bits = v4_bits if length == 4 else v6_bits
    for i in range(length):
        if bits >= 8:
            bits -= 8
        elif bits > 0:
            out[i] &= <unsigned char>(0xff << (8 - bits))
            bits = 0
        else:
            out[i] = 0
    return length


cdef uint64_t source_hash(RequestContext ctx, const uint64_t* key) noexcept:
    """The source of this request's keys, hashed: its consumer, or the network of its address."""
    cdef unsigned char packed[16]
    cdef bytes name
    cdef int n
    if ctx.identity is not None and not ctx.identity.by_address:
        name = ctx.identity.consumer_bytes
        return siphash13(PyBytes_AS_STRING(name), PyBytes_GET_SIZE(name), key)
    n = pack_client(PyBytes_AS_STRING(ctx.client), PyBytes_GET_SIZE(ctx.client), SOURCE_V4_BITS, SOURCE_V6_BITS, packed)
    return siphash13(packed, n, key)


def client_key(str client not None, int v4_bits=32, int v6_bits=64):
    """The network that a client's address is counted under, packed. For PenaltyBox and LimitRule.read."""
    cdef unsigned char packed[16]
    cdef bytes text = client.encode("latin-1", "replace")
    cdef int n = pack_client(PyBytes_AS_STRING(text), PyBytes_GET_SIZE(text), v4_bits, v6_bits, packed)
    return PyBytes_FromStringAndSize(<const char*>packed, n)
