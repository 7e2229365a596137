ctypedef struct run_t:
    char* at
    Py_ssize_t n
    Py_ssize_t room

cdef class SseEvent:
    cdef readonly bytes event
    cdef readonly bytes data
    cdef readonly bytes id
    cdef readonly object retry

cdef class SseParser:
    cdef readonly Py_ssize_t max_event_bytes
    cdef readonly bytes last_event_id
    cdef readonly object retry
    cdef bytes id_pending                       # last event ID buffer of the standard
    cdef bytes event_last                       # name of the event before, reused when equal
    cdef object retry_pending
    cdef run_t line                             # start of an incomplete line
    cdef run_t data                             # data lines of the event so far, unless they are in the chunk
    cdef run_t name                             # event name of the event so far
    cdef const char* data_at                    # one data line, still in the chunk
    cdef Py_ssize_t data_n
    cdef bint has_data
    cdef bint skip_lf                           # the last byte was CR
    cdef int bom                                # bytes of the byte order mark seen; 3 = past the start
    cdef bint failed
    cdef bint busy

    # The events that end in this chunk of the stream.
    cdef list feed_bytes(self, const char* chunk, Py_ssize_t n)
    cdef int parse(self, const char* chunk, Py_ssize_t n, list events) except -1
    cdef int take_line(self, const char* at, Py_ssize_t n, list events) except -1
    cdef int take_data(self, const char* at, Py_ssize_t n) except -1
    cdef int dispatch(self, list events) except -1
    cdef int keep_data(self) except -1
    cdef int append(self, run_t* run, const char* at, Py_ssize_t n) except -1
    cdef int too_large(self) except -1
    cdef Py_ssize_t held(self) noexcept
    cdef void forget_event(self) noexcept
