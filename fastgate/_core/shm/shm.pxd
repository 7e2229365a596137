# The declarations of shm.pyx, for cimport.

cdef class SharedMemory:
    cdef void* address
    cdef readonly size_t size
    cdef readonly object path
    cdef object __weakref__
