# cython: freethreading_compatible=True
"""SharedMemory: zero-filled memory shared by several processes.

WHAT        one mmap(MAP_SHARED). Without a path it is anonymous: it has no name, is inherited over fork and vanishes with the
            last process, so nothing is left to clean up. With a path it is a file (put it on /dev/shm) that unrelated
            processes open with the same size; the file stays until it is removed. The layout and the atomics in the memory
            belong to the primitive that uses it.
STATE       address, size, path; constant after __init__. The mapping lives as long as the object, and every
            primitive and every memoryview over it keeps the object alive. There is no close(): unmapping under a reader
            would be a crash.
            isolate() is the exception: a forked child replaces it with a private copy.
WHO WRITES  the kernel only: creation zero-fills, and two processes that create the same path agree because both only ever
            extend it to the same size.
COST        one mmap; pages are allocated at the first touch. A file's blocks are reserved up front, so that a full /dev/shm is
            an OSError here and not a SIGBUS later.
SOURCES     mmap(2), posix_fallocate(3), open(2)
"""

from cpython.buffer cimport PyBuffer_FillInfo
from libc.errno cimport errno
from posix.fcntl cimport O_CLOEXEC, O_CREAT, O_RDWR, open as c_open
from libc.string cimport memcpy
from posix.mman cimport MAP_ANONYMOUS, MAP_FAILED, MAP_NORESERVE, MAP_PRIVATE, MAP_SHARED, PROT_READ, PROT_WRITE, mmap, munmap
from posix.stat cimport fstat, struct_stat
from posix.types cimport off_t
from posix.unistd cimport _SC_PAGESIZE, close, sysconf

import os

cdef extern from "<fcntl.h>" nogil:
    int posix_fallocate(int fd, off_t offset, off_t length)

cdef extern from "<sys/mman.h>" nogil:
    int mincore(void* addr, size_t length, unsigned char* vec)
    void* mremap(void* old, size_t old_size, size_t new_size, int flags, ...)
    int MREMAP_MAYMOVE
    int MREMAP_FIXED

__all__ = ["SharedMemory"]

cdef object LARGEST_BYTES = 1 << 46     # half of the x86-64 address space: anything above is a mistake


cdef class SharedMemory:
    """SharedMemory(size, path=None)\n--\n
    Memory of `size` bytes shared by all holders, zero-filled when new.

    size: bytes, 1 to 2**46. path: a file to share with unrelated processes; created with mode 0600 if absent, and it must have
    exactly `size` bytes if present. Supports the buffer protocol (`memoryview(shared)`), writable.
    ValueError: size out of range, or the file at path has another size. OSError: no memory, no space, or no access.
    """

    def __cinit__(self, size, path=None):
        cdef int fd = -1
        cdef int error
        cdef void* address
        cdef struct_stat found
        cdef bytes encoded
        if isinstance(size, bool) or not isinstance(size, int):
            raise TypeError(f"size: expected int, got {type(size).__name__}")
        if not 1 <= size <= LARGEST_BYTES:
            raise ValueError(f"size: expected 1..{LARGEST_BYTES} bytes, got {size}")
        if path is None:
            address = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0)
            if address == MAP_FAILED:
                raise OSError(errno, os.strerror(errno))
        else:
            encoded = os.fsencode(path)
            fd = c_open(encoded, O_RDWR | O_CREAT | O_CLOEXEC, 0o600)
            if fd < 0:
                raise OSError(errno, os.strerror(errno), path)
            try:
                if fstat(fd, &found) != 0:
                    raise OSError(errno, os.strerror(errno), path)
                if found.st_size == 0:
                    # Reserve, not only extend: the first write to a hole on a full tmpfs would kill the process.
                    error = posix_fallocate(fd, 0, size)
                    if error != 0:
                        raise OSError(error, os.strerror(error), path)
                elif <size_t>found.st_size != <size_t>size:
                    raise ValueError(f"size: expected {found.st_size}, the size of {os.fspath(path)!r}, got {size}")
                address = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0)
                if address == MAP_FAILED:
                    raise OSError(errno, os.strerror(errno), path)
            finally:
                close(fd)
        self.address = address
        self.size = size
        self.path = None if path is None else os.fsdecode(path)

    def __dealloc__(self):
        if self.address != NULL:
            munmap(self.address, self.size)

    def isolate(self) -> None:
        """Replaces this process's view by a private copy at the same address: later writes stay in this process, and later writes
        of others are not visible. For a forked child that evaluates a request without side effects. Every object over the memory
        stays valid. Costs a copy of the touched pages. OSError: no memory; the memory is then shared as before."""
        cdef unsigned char[1024] resident
        cdef size_t page = sysconf(_SC_PAGESIZE)
        cdef size_t done = 0, span, i, pages, bytes_n
        cdef char* copy = <char*>mmap(NULL, self.size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0)
        cdef char* place = <char*>self.address
        if <void*>copy == MAP_FAILED:
            raise OSError(errno, os.strerror(errno))
        while done < self.size:
            span = min(self.size - done, 1024 * page)
            pages = (span + page - 1) // page
            if mincore(place + done, span, resident) != 0:
                i = errno
                munmap(copy, self.size)
                raise OSError(i, os.strerror(i))
            for i in range(pages):
                if resident[i] & 1:             # an untouched page reads as zeros, and reading it would take memory
                    bytes_n = min(page, self.size - done - i * page)
                    memcpy(copy + done + i * page, place + done + i * page, bytes_n)
            done += span
        if mremap(copy, self.size, self.size, MREMAP_MAYMOVE | MREMAP_FIXED, self.address) == MAP_FAILED:
            i = errno
            munmap(copy, self.size)
            raise OSError(i, os.strerror(i))

    def __len__(self) -> int:
        return self.size

    def __getbuffer__(self, Py_buffer* buffer, int flags) -> None:
        PyBuffer_FillInfo(buffer, self, self.address, <Py_ssize_t>self.size, 0, flags)

    def __reduce__(self) -> tuple[type[SharedMemory], tuple[int, str]]:
        """The path, for a process that is spawned rather than forked; anonymous memory has no name to send: TypeError."""
        if self.path is None:
            raise TypeError("cannot pickle anonymous SharedMemory: fork inherits it, or give it a path")
        return SharedMemory, (self.size, self.path)

    def __repr__(self) -> str:
        return f"SharedMemory({self.size}, path={self.path!r})"
