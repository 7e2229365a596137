# The abstract verbs of a stream or a sink: one that is not implemented says which.


cdef inline int missing(object stream, str verb) except -1:
    """Raise NotImplementedError: this class does not implement this verb."""
    raise NotImplementedError(f"{type(stream).__name__} does not implement {verb}")
