"""Balancers by key: the same key goes to the same target, in every process and after every restart, while the targets stay the same.

WHAT
    HashRing   each target owns points_per_weight x weight points on a circle; a key goes to the next point. Adding or removing a
               target moves only that target's keys.
    Maglev     a table filled in turns by each target's own permutation; a key goes to table[hash % size]. One load instead of a
               search and shares within 1 % of the weights; removing a target also moves a few keys of the others.
    Both take load_factor c > 1: no target gets more than ceil(c x its fair share) of the requests in flight; a key whose target is
    full goes on to the next one. finished() must then be called for every pick.

STATE   HashRing: points sorted by (hash, target). Maglev: table of int32. Both: weights and requests in flight per target.

WHO WRITES  The owner, under the GIL; the points and the table never change after __init__.

COST    HashRing: a hash and a binary search, 16 bytes per point (160 per target of weight 1 by default: a share is off by about
        8 %, one standard deviation). Maglev: a hash and one load, 4 bytes per entry, built in about 2 ms for 65 537 entries.

SOURCES
    Karger et al. (1997) and ketama for the ring; Eisenbud et al., Maglev (NSDI 2016) section 3.4, weights as in Envoy's
    maglev_lb.cc; Mirrokni, Thorup, Zadimoghaddam, Consistent Hashing with Bounded Loads (2016). SipHash-2-4 of the key and of names.
"""

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_Check, PyBytes_GET_SIZE
from cpython.unicode cimport PyUnicode_AsUTF8AndSize, PyUnicode_Check
from libc.math cimport ceil
from libc.stdint cimport int32_t, int64_t, uint64_t
from libc.stdlib cimport calloc, free, qsort

from fastgate._core.arguments cimport float_argument, int_argument
from fastgate._core.balance.balance cimport usable_of, weights_of
from fastgate._core.debug cimport debug_live_add, debug_live_count
from fastgate._core.hashing cimport siphash

__all__ = ["HashRing", "Maglev"]

cdef enum:
    MAX_POINTS = 4_000_000
    MAX_TABLE = 4_000_037       # the first prime above 4 000 000; Maglev's paper uses 65 537 and 655 373


cdef tuple names_of(object names):
    """The validated names: non-empty and unique str."""
    if isinstance(names, (str, bytes)):
        raise TypeError(f"names: expected a sequence of str, got {type(names).__name__}")
    cdef tuple values = tuple(names)
    if not values:
        raise ValueError("names: expected at least one, got none")
    for index, name in enumerate(values):
        if not isinstance(name, str):
            raise TypeError(f"names[{index}]: expected str, got {type(name).__name__}")
        if not name:
            raise ValueError(f"names[{index}]: expected a name, got ''")
    if len(set(values)) != len(values):
        raise ValueError("names: expected no two the same; keys go by name")
    return values


cdef int bounds_init(bounds_t* bounds, tuple names, object weights, object load_factor) except -1:
    bounds.weights = weights_of([1] * len(names) if weights is None else weights, &bounds.size)
    if bounds.size != len(names):
        raise ValueError(f"weights: expected {len(names)}, one per name, got {bounds.size}")
    bounds.in_flight = <int64_t*>calloc(bounds.size, sizeof(int64_t))
    if bounds.in_flight == NULL:
        raise MemoryError()
    if load_factor is not None:
        bounds.load_factor = float_argument(load_factor, "load_factor", 1.01, 1000)
    return 0


cdef inline bint is_usable(const bounds_t* bounds, Py_ssize_t target, const unsigned char* usable) noexcept:
    return bounds.weights[target] > 0 and (usable == NULL or usable[target])


cdef inline int64_t usable_weight(const bounds_t* bounds, const unsigned char* usable) noexcept:
    cdef int64_t total = 0
    cdef Py_ssize_t index
    for index in range(bounds.size):
        if is_usable(bounds, index, usable):
            total += bounds.weights[index]
    return total


cdef inline bint has_room(const bounds_t* bounds, Py_ssize_t target, int64_t total_weight) noexcept:
    """Whether one more request in flight stays within the target's share, including that request."""
    cdef double share = bounds.load_factor * <double>(bounds.total_in_flight + 1) * <double>bounds.weights[target]
    return bounds.in_flight[target] < <int64_t>ceil(share / <double>total_weight)


cdef inline void bounds_finish(bounds_t* bounds, Py_ssize_t target) noexcept:
    if bounds.load_factor != 0 and bounds.in_flight[target] > 0:
        bounds.in_flight[target] -= 1
        bounds.total_in_flight -= 1


cdef int bounds_finished(bounds_t* bounds, object index) except -1:
    cdef Py_ssize_t target = int_argument(index, "index", 0, bounds.size - 1)
    if bounds.load_factor == 0:
        return 0
    if bounds.in_flight[target] == 0:
        raise ValueError(f"index: target {target} has no request in flight")
    bounds_finish(bounds, target)
    return 0


cdef uint64_t hash_of(object key, const uint64_t* secret) except? 1:
    cdef const char* text
    cdef Py_ssize_t n
    if PyUnicode_Check(key):
        text = PyUnicode_AsUTF8AndSize(key, &n)
        return siphash(text, n, secret)
    if PyBytes_Check(key):
        return siphash(PyBytes_AS_STRING(key), PyBytes_GET_SIZE(key), secret)
    raise TypeError(f"key: expected str or bytes, got {type(key).__name__}")


cdef uint64_t seeded(object text, uint64_t seed, uint64_t role) except? 1:
    """SipHash of a name, with a separate key per role, so that names and client keys never share a point."""
    cdef uint64_t secret[2]
    secret[0] = seed
    secret[1] = role
    return hash_of(text, secret)


cdef int by_hash(const void* a, const void* b) noexcept nogil:
    cdef const ring_point_t* x = <const ring_point_t*>a
    cdef const ring_point_t* y = <const ring_point_t*>b
    if x.hash != y.hash:
        return -1 if x.hash < y.hash else 1
    return x.target - y.target


@cython.final
cdef class HashRing:
    """HashRing(names, weights=None, *, points_per_weight=160, load_factor=None, seed=0)\n--\n
    Consistent hashing on a ring.

    names              of the targets, unique; keys go by name, so the order does not matter. weights: ints 0..1 000 000, default 1 each.
    points_per_weight  1..10 000, default 160 (ketama); at most 4 000 000 points in all.
    load_factor        1.01..1000: bound on the requests in flight, times the fair share; None = no bound. 1.25 is a usual choice.
    seed               0..2**63-1: the same in every process that should agree. Secret if clients choose the keys.
    ValueError or TypeError names the argument, its value and the allowed range.
    """

    def __cinit__(self, names, weights=None, *, points_per_weight=160, load_factor=None, seed=0):
        cdef Py_ssize_t index, point, each, at = 0
        cdef int64_t total
        debug_live_add(1)
        each = int_argument(points_per_weight, "points_per_weight", 1, 10_000)
        self._key[0] = int_argument(seed, "seed", 0, 0x7FFFFFFFFFFFFFFF)
        self.names = names_of(names)
        bounds_init(&self._bounds, self.names, weights, load_factor)
        total = usable_weight(&self._bounds, NULL) * each
        if total > MAX_POINTS:
            raise ValueError(f"weights: expected at most {MAX_POINTS} points in all, got {total}; divide them by a common factor")
        self._count = total
        self._points = <ring_point_t*>calloc(total, sizeof(ring_point_t))
        if self._points == NULL:
            raise MemoryError()
        for index in range(self._bounds.size):
            for point in range(self._bounds.weights[index] * each):
                self._points[at].hash = seeded(f"{point} {self.names[index]}", self._key[0], 1)
                self._points[at].target = <int32_t>index
                at += 1
        qsort(self._points, self._count, sizeof(ring_point_t), by_hash)

    def __dealloc__(self):
        debug_live_add(-1)
        free(self._bounds.weights)
        free(self._bounds.in_flight)
        free(self._points)

    def __len__(self):
        return self._bounds.size

    @property
    def in_flight(self):
        """Requests in flight, per target; zeros without a load_factor."""
        return tuple([self._bounds.in_flight[index] for index in range(self._bounds.size)])

    def pick(self, key):
        """The index of the target for this key (str or bytes)."""
        return self.pick_usable(hash_of(key, self._key), NULL)

    def pick_among(self, key, usable):
        """The same among the targets whose flag in usable is true; -1 if none of them has a weight above 0."""
        cdef uint64_t hash = hash_of(key, self._key)
        cdef unsigned char* flags = usable_of(usable, self._bounds.size)
        cdef Py_ssize_t index = self.pick_usable(hash, flags)
        free(flags)
        return index

    def finished(self, index):
        """The request is over. ValueError if the target has none in flight; without a load_factor nothing is counted."""
        bounds_finished(&self._bounds, index)

    cdef uint64_t key_hash(self, const void* key, size_t n) noexcept:
        return siphash(key, n, self._key)

    cdef Py_ssize_t pick_usable(self, uint64_t hash, const unsigned char* usable) noexcept:
        cdef Py_ssize_t low = 0, high = self._count, middle, step
        cdef bounds_t* bounds = &self._bounds
        cdef int64_t total = 0
        cdef int32_t target
        if bounds.load_factor != 0 or usable != NULL:
            total = usable_weight(bounds, usable)
            if total == 0:
                return -1
        while low < high:
            middle = (low + high) // 2
            if self._points[middle].hash < hash:
                low = middle + 1
            else:
                high = middle
        for step in range(self._count):
            if low == self._count:
                low = 0
            target = self._points[low].target
            if is_usable(bounds, target, usable) and (bounds.load_factor == 0 or has_room(bounds, target, total)):
                if bounds.load_factor != 0:
                    bounds.in_flight[target] += 1
                    bounds.total_in_flight += 1
                return target
            low += 1
        return -1       # not reached: load_factor > 1 leaves room somewhere

    cdef void finish(self, Py_ssize_t index) noexcept:
        bounds_finish(&self._bounds, index)


@cython.final
cdef class Maglev:
    """Maglev(names, weights=None, *, table_size=65537, load_factor=None, seed=0)\n--\n
    Maglev hashing: a key costs one load from a table.

    names        of the targets, unique; keys go by name. weights: ints 0..1 000 000, default 1 each.
    table_size   a prime, 2..4 000 037, at least the number of targets; default 65 537. 100 per target keeps shares within 1 %.
    load_factor, seed   as for HashRing.
    ValueError or TypeError names the argument, its value and the allowed range.
    """

    def __cinit__(self, names, weights=None, *, table_size=65_537, load_factor=None, seed=0):
        debug_live_add(1)
        self.table_size = int_argument(table_size, "table_size", 2, MAX_TABLE)
        if not is_prime(self.table_size):
            raise ValueError(f"table_size: expected a prime, got {table_size}")
        self._key[0] = int_argument(seed, "seed", 0, 0x7FFFFFFFFFFFFFFF)
        self.names = names_of(names)
        bounds_init(&self._bounds, self.names, weights, load_factor)
        if self._bounds.size > self.table_size:
            raise ValueError(f"table_size: expected at least {self._bounds.size}, one per target, got {table_size}")
        self._table = <int32_t*>calloc(self.table_size, sizeof(int32_t))
        if self._table == NULL:
            raise MemoryError()
        fill_table(self)

    def __dealloc__(self):
        debug_live_add(-1)
        free(self._bounds.weights)
        free(self._bounds.in_flight)
        free(self._table)

    def __len__(self):
        return self._bounds.size

    @property
    def in_flight(self):
        """Requests in flight, per target; zeros without a load_factor."""
        return tuple([self._bounds.in_flight[index] for index in range(self._bounds.size)])

    def pick(self, key):
        """The index of the target for this key (str or bytes)."""
        return self.pick_usable(hash_of(key, self._key), NULL)

    def pick_among(self, key, usable):
        """The same among the targets whose flag in usable is true; -1 if none of them has a weight above 0."""
        cdef uint64_t hash = hash_of(key, self._key)
        cdef unsigned char* flags = usable_of(usable, self._bounds.size)
        cdef Py_ssize_t index = self.pick_usable(hash, flags)
        free(flags)
        return index

    def finished(self, index):
        """The request is over. ValueError if the target has none in flight; without a load_factor nothing is counted."""
        bounds_finished(&self._bounds, index)

    cdef uint64_t key_hash(self, const void* key, size_t n) noexcept:
        return siphash(key, n, self._key)

    cdef Py_ssize_t pick_usable(self, uint64_t hash, const unsigned char* usable) noexcept:
        cdef Py_ssize_t at = <Py_ssize_t>(hash % <uint64_t>self.table_size), step
        cdef bounds_t* bounds = &self._bounds
        cdef int64_t total
        cdef int32_t target
        if bounds.load_factor == 0 and usable == NULL:
            return self._table[at]
        total = usable_weight(bounds, usable)
        if total == 0:
            return -1
        for step in range(self.table_size):
            target = self._table[at]
            if is_usable(bounds, target, usable) and (bounds.load_factor == 0 or has_room(bounds, target, total)):
                if bounds.load_factor != 0:
                    bounds.in_flight[target] += 1
                    bounds.total_in_flight += 1
                return target
            at += 1
            if at == self.table_size:
                at = 0
        return -1       # the only usable target has too small a weight to own an entry

    cdef void finish(self, Py_ssize_t index) noexcept:
        bounds_finish(&self._bounds, index)


cdef bint is_prime(Py_ssize_t n) noexcept:
    cdef Py_ssize_t divisor = 2
    while divisor * divisor <= n:
        if n % divisor == 0:
            return False
        divisor += 1
    return True


cdef int fill_table(Maglev self) except -1:
    """Each target in turn takes the next free entry of its own permutation. Turns are ordered by weight (Envoy's rule) and by
    name, so that the order of the arguments does not matter."""
    cdef Py_ssize_t size = self.table_size, index, place, filled = 0
    cdef list by_name = sorted(range(self._bounds.size), key=self.names.__getitem__)
    cdef int64_t heaviest = 0, turn = 0
    cdef int64_t* weights = self._bounds.weights
    cdef uint64_t* at = <uint64_t*>calloc(self._bounds.size, 8)
    cdef uint64_t* skip = <uint64_t*>calloc(self._bounds.size, 8)
    cdef int64_t* taken = <int64_t*>calloc(self._bounds.size, 8)
    try:
        if at == NULL or skip == NULL or taken == NULL:
            raise MemoryError()
        for index in range(self._bounds.size):
            at[index] = seeded(self.names[index], self._key[0], 2) % <uint64_t>size
            skip[index] = seeded(self.names[index], self._key[0], 3) % <uint64_t>(size - 1) + 1
            heaviest = max(heaviest, weights[index])
        for index in range(size):
            self._table[index] = -1
        while filled < size:
            turn += 1
            for place in range(self._bounds.size):
                index = by_name[place]
                if weights[index] == 0 or turn * weights[index] < taken[index]:
                    continue
                taken[index] += heaviest
                while self._table[at[index]] >= 0:
                    at[index] = (at[index] + skip[index]) % <uint64_t>size
                self._table[at[index]] = <int32_t>index
                filled += 1
                if filled == size:
                    break
    finally:
        free(at)
        free(skip)
        free(taken)
    return 0


def live_objects():
    """How many objects of this module are alive; -1 unless built with FASTGATE_DEBUG=1."""
    return debug_live_count()
