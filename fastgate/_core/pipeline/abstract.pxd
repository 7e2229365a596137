# The abstract verbs of a stream or a sink: an unimplemented one raises an error with its name.


cdef inline int missing(object stream, str verb) except -1:
    """Raises NotImplementedError: this class does not implement this verb."""
    raise NotImplementedError(f"{type(stream).__name__} does not implement {verb}")
