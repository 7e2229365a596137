# Direct socket operations of the request path, in addition to the loop's transport.
#
# WHAT      send_now: one send(2) that never blocks nor raises. The loop's transport gets only what the kernel did not accept.
#           write_out: the same, with the transport for the rest.
#           waits_unread: whether there is data to read.
#           unsent_now: how much of the sent data the peer has not acknowledged yet.
#           receive_now: one recv(2) that never blocks nor raises.
#           peer_silent: whether an idle connection has nothing to read, not even an end of file.
# COST      The system call. A transport's write() costs 0.4 us more: a method call, a queue and a second check at the end of the
#           loop's turn (benchmarks/gateway, scenario proxy).
# SOURCES   send(2), recv(2), tcp(7)

from cpython.bytes cimport PyBytes_FromStringAndSize
from libc.errno cimport EAGAIN, EINTR, errno


cdef extern from "sys/socket.h" nogil:
    enum: MSG_PEEK
    enum: MSG_DONTWAIT
    enum: MSG_NOSIGNAL
    ssize_t recv(int fd, void* buffer, size_t n, int flags)
    ssize_t send(int fd, const void* buffer, size_t n, int flags)


cdef extern from "sys/ioctl.h" nogil:
    int ioctl(int fd, unsigned long request, ...)
    enum: FIONREAD

cdef extern from "linux/sockios.h" nogil:
    enum: SIOCOUTQ


cdef inline int unsent_now(int fd) noexcept nogil:
    """Bytes in the kernel that the peer has not acknowledged; 0 if unknown."""
    cdef int held = 0
    return held if ioctl(fd, SIOCOUTQ, &held) == 0 else 0


cdef inline bint waits_unread(int fd) noexcept nogil:
    """True if unread bytes have arrived."""
    cdef int waiting = 0
    return ioctl(fd, FIONREAD, &waiting) == 0 and waiting > 0


cdef inline Py_ssize_t send_now(int fd, const char* data, Py_ssize_t n) noexcept nogil:
    """The number of bytes that the kernel accepted: 0 if it accepts none now, and if the connection is broken, which the
    transport then detects."""
    cdef ssize_t sent = send(fd, data, n, MSG_NOSIGNAL | MSG_DONTWAIT)
    return sent if sent > 0 else 0


cdef inline Py_ssize_t receive_now(int fd, char* into, Py_ssize_t room) noexcept nogil:
    """The number of bytes received: 0 at the end, if there are none now, or if the connection is broken."""
    cdef ssize_t n = recv(fd, into, room, MSG_DONTWAIT)
    return n if n > 0 else 0


cdef inline bint peer_silent(int fd, bint may_have_data) noexcept nogil:
    """False if the peer has closed, or has sent unsolicited data (unless may_have_data)."""
    cdef char one
    cdef ssize_t n = recv(fd, &one, 1, MSG_PEEK | MSG_DONTWAIT)
    if n < 0:
        return errno == EAGAIN or errno == EINTR
    return n > 0 and may_have_data


cdef inline int write_out(object transport, int fd, bint buffered, const char* data, Py_ssize_t n, bytes whole) except -1:
    """Sends n bytes now, and gives the transport what the kernel does not accept. 1 while the transport holds bytes, else 0.

    fd: -1 if only the transport may write (TLS). buffered: the result of the previous call. whole: the same bytes as an object,
    if there is one.
    """
    cdef Py_ssize_t sent = 0
    if buffered and transport.get_write_buffer_size() == 0:
        buffered = False
    if fd >= 0 and not buffered:
        sent = send_now(fd, data, n)
        if sent == n:
            return 0
        buffered = True
    transport.write(whole if sent == 0 and whole is not None else PyBytes_FromStringAndSize(data + sent, n - sent))
    return buffered
