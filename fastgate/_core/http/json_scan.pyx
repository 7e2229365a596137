# cython: boundscheck=False
"""JSON properties that parsers do not report: the depth of a document before it is parsed, and repeated keys of an object.

WHAT     `too_deep` finds the first bracket that is nested deeper than allowed, in one pass without creating objects and without
         recursion, so that a bomb is rejected before it is parsed. `duplicate_key` finds the first repeated key of an object
         in a well-formed document: two parsers may use different ones of the two.
STATE    None.
WHO      Any thread; on the request path the worker's loop.
COST     too_deep about 1 ns a byte; duplicate_key about 60 ns a key.
SOURCES  RFC 8259 §4 (names should be unique), §9 (a parser may limit the depth)
"""

import json

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE

__all__ = ["duplicate_key", "too_deep"]


def too_deep(bytes data not None, int most):
    """Position (byte offset) of the first array or object nested deeper than `most`; -1 if there is none. A malformed document
    has a depth too: that of its brackets outside of strings."""
    return find_deeper(PyBytes_AS_STRING(data), PyBytes_GET_SIZE(data), most)


cdef Py_ssize_t find_deeper(const char* text, Py_ssize_t n, int most) noexcept nogil:
    cdef Py_ssize_t i = 0
    cdef int depth = 0
    cdef char c
    while i < n:
        c = text[i]
        if c == c'"':
            i = string_end(text, i + 1, n)
        elif c == c"[" or c == c"{":
            depth += 1
            if depth > most:
                return i
        elif (c == c"]" or c == c"}") and depth > 0:
            depth -= 1
        i += 1
    return -1


cdef Py_ssize_t string_end(const char* text, Py_ssize_t i, Py_ssize_t n) noexcept nogil:
    """Position of the closing quote of the string whose first character is at i; n if it has none."""
    while i < n:
        if text[i] == c'"':
            return i
        i += 2 if text[i] == c"\\" else 1
    return n


def duplicate_key(bytes data not None):
    """Position of the first repeated key of an object, as a path such as `$.items[2].id`; None if there is none. Only for
    well-formed documents."""
    cdef const char* text = PyBytes_AS_STRING(data)
    cdef Py_ssize_t n = PyBytes_GET_SIZE(data)
    cdef Py_ssize_t i = 0, end
    cdef list stack = []            # open containers: a set of keys for an object, None for an array
    cdef list steps = []            # the current key or index of each of them
    cdef bint wants_key = False
    cdef Py_ssize_t last = -1       # of the stack
    cdef char c
    cdef set keys
    while i < n:
        c = text[i]
        if c == c'"':
            end = string_end(text, i + 1, n)
            if wants_key:
                key = text[i + 1:end]
                if b"\\" in key:
                    key = json.loads(b'"' + key + b'"').encode("utf-8", "surrogatepass")
                keys = <set>stack[last]
                steps[last] = key
                if key in keys:
                    return path_of(steps)
                keys.add(key)
                wants_key = False
            i = end
        elif c == c"{":
            stack.append(set())
            steps.append(b"")
            last += 1
            wants_key = True
        elif c == c"[":
            stack.append(None)
            steps.append(0)
            last += 1
            wants_key = False
        elif c == c"}" or c == c"]":
            if stack:
                stack.pop()
                steps.pop()
                last -= 1
            wants_key = False
        elif c == c"," and stack:
            if stack[last] is None:
                steps[last] = steps[last] + 1
            else:
                wants_key = True
        i += 1
    return None


cdef str path_of(list steps):
    """`$.items[2].id`; keys other than plain words are in brackets and quotes (RFC 9535 §2.3)."""
    cdef list out = ["$"]
    for step in steps:
        if isinstance(step, int):
            out.append(f"[{step}]")
            continue
        key = (<bytes>step).decode("utf-8", "replace")
        out.append(f".{key}" if key.isidentifier() and key.isascii() else f"[{json.dumps(key)}]")
    return "".join(out)
