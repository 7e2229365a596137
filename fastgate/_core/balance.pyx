"""Balancers."""

cimport cython
from libc.stdint cimport int64_t, uint64_t
from libc.stdlib cimport calloc, free

__all__ = ["SmoothWeighted"]

MAX_WEIGHT = 1_000_000
MAX_TARGETS = 65_536


cdef int64_t* weights_of(object weights, Py_ssize_t* size) except NULL:
    """A C copy of the checked weights; the caller frees it."""
    cdef list values = list(weights)
    cdef int64_t* out
    cdef Py_ssize_t index
    if not 1 <= len(values) <= MAX_TARGETS:
        raise ValueError(f"weights: expected 1..{MAX_TARGETS} of them, got {len(values)}")
    for index, weight in enumerate(values):
        if not isinstance(weight, int) or isinstance(weight, bool):
            raise TypeError(f"weights[{index}]: expected int, got {type(weight).__name__}")
        if not 0 <= weight <= MAX_WEIGHT:
            raise ValueError(f"weights[{index}]: expected 0..{MAX_WEIGHT}, got {weight}")
    if not any(values):
        raise ValueError("weights: expected at least one above 0, got only zeros")
    out = <int64_t*>calloc(len(values), sizeof(int64_t))
    if out == NULL:
        raise MemoryError()
    for index in range(len(values)):
        out[index] = values[index]
    size[0] = len(values)
    return out


@cython.final
cdef class SmoothWeighted:
    """Smooth weighted round robin: of any sum(weights) picks in a row, target i gets exactly weights[i], spread evenly.

    weights: ints 0..1 000 000, at least one above 0; 0 = never picked. start: how many picks to skip, so that several workers
    with the same weights do not all begin with the same target.
    """

    def __cinit__(self, weights, start=0):
        cdef Py_ssize_t _
        self._weights = weights_of(weights, &self.size)
        self._current = <int64_t*>calloc(self.size, sizeof(int64_t))
        if self._current == NULL:
            raise MemoryError()
        if not isinstance(start, int) or isinstance(start, bool):
            raise TypeError(f"start: expected int, got {type(start).__name__}")
        if not 0 <= start <= MAX_TARGETS:
            raise ValueError(f"start: expected 0..{MAX_TARGETS}, got {start}")
        for _ in range(<Py_ssize_t>start):
            self.pick_usable(NULL)

    def __dealloc__(self):
        free(self._weights)
        free(self._current)

    def __len__(self):
        return self.size

    cpdef Py_ssize_t pick(self) noexcept:
        """The index of the next target."""
        return self.pick_usable(NULL)

    cdef Py_ssize_t pick_usable(self, const unsigned char* usable) noexcept:
        """The same among the usable targets; -1 if none has a weight above 0. The others neither gain nor lose their turn."""
        cdef Py_ssize_t index, best = -1
        cdef int64_t total = 0
        for index in range(self.size):
            if self._weights[index] == 0 or (usable != NULL and not usable[index]):
                continue
            total += self._weights[index]
            self._current[index] += self._weights[index]
            if best < 0 or self._current[index] > self._current[best]:
                best = index
        if best >= 0:
            self._current[best] -= total
        return best
