"""Byte ranges of a stored body (RFC 9110 §14)."""

__all__ = []

cdef enum:
    MAX_RANGES = 16                 # more are an attack on the sender (RFC 9110 §17.15)
    MAX_VALUE = 1024                # bytes of a Range field


cdef list ranges_read(bytes value, Py_ssize_t size):
    """The (start, end) pairs that a Range field selects of a body of this size; [] if none of them can be satisfied, which is a
    416. None: ignore the field, since it is malformed, not in bytes, requests too many ranges, or the whole body."""
    cdef Py_ssize_t total = 0, start, end
    cdef list ranges = []
    cdef bint any_syntax = False
    if value[:6].lower() != b"bytes=" or len(value) > MAX_VALUE or size == 0:
        return None                                 # an empty body has no ranges, and a 416 would be wrong for it
    for part in value[6:].split(b","):
        part = (<bytes>part).strip(b" \t")
        if not part:
            continue
        first, dash, last = (<bytes>part).partition(b"-")
        if not dash or (first and not first.isdigit()) or (last and not last.isdigit()) or not (first or last):
            return None
        if len(first) > 18 or len(last) > 18:
            return None
        any_syntax = True
        if not first:
            if int(last) == 0:
                continue
            start = size - int(last) if int(last) < size else 0
            end = size
        else:
            if last and int(last) < int(first):
                return None
            start = int(first)
            end = min(int(last) + 1, size) if last else size
            if start >= size:
                continue
        ranges.append((start, end))
        total += end - start
    if not any_syntax or len(ranges) > MAX_RANGES:
        return None
    if len(ranges) > 1 and total >= size:
        return None                                 # overlapping, or all of it: the whole body is shorter (RFC 9110 §14.2)
    return ranges
