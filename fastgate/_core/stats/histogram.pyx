"""Log-linear histogram with a stated error, in private or shared memory.

WHAT        Counts values in buckets whose width is a fixed share of the value, so every quantile is known to within a
            stated ratio at every scale. Two forms over the same functions: `histogram_t`, a C struct with the gateway's
            fixed layout, and `Histogram`, a Python class whose range and precision are free.
STATE       count | sum | bucket 0: below lowest | bucket 1 … n-2: log-linear | bucket n-1: above highest
            All words are 64 bits wide and zero means empty, so a zero-filled piece of shared memory is an empty histogram.
            A value v with highest set bit e falls in linear sub-bucket (v >> (e - s)) of octave e, s = sub_bits; below
            2**s buckets are one wide and exact.
WHO WRITES  Any process, any thread. Every word is bumped by one relaxed atomic add; there is no lock. A reader may see a
            value counted in its bucket and not yet in `count`: quantiles are computed from the buckets alone. A private
            Histogram is written under the GIL with plain adds.
COST        record: O(1), 3 adds. quantile and merge: one walk over the buckets. Memory: 8 bytes per bucket. Error: a quantile
            is reported as the middle of its bucket, so it is within 2**-(s+1) of the true one (s = 3: 6.25 %).
SOURCES     HdrHistogram (Gil Tene); the same bucket numbering as Go runtime/metrics timeHistogram.
"""

cimport cython
from cpython.buffer cimport PyBUF_WRITABLE, PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from libc.stdint cimport INT64_MAX, UINT64_MAX
from libc.stdlib cimport calloc, free

from fastgate._core.arguments cimport float_argument, int_argument
from fastgate._core.debug cimport debug_assert, debug_live_add, debug_live_count

__all__ = ["Histogram"]

cdef extern from *:
    """
    #define relaxed_add(p, n) ((void)__atomic_fetch_add((p), (n), __ATOMIC_RELAXED))
    #define relaxed_load(p) (__atomic_load_n((p), __ATOMIC_RELAXED))
    #define highest_bit(v) (63 - __builtin_clzll((unsigned long long)(v)))
    """
    void relaxed_add(uint64_t* word, uint64_t n) noexcept nogil
    uint64_t relaxed_load(const uint64_t* word) noexcept nogil
    int highest_bit(uint64_t value) noexcept nogil

cdef enum:
    HEADER_WORDS = 2                            # count and sum
    SUB_BITS_MAX = 14                           # 0.003 %; 16 384 buckets per octave


cdef inline int64_t bucket_number(int sub_bits, uint64_t value) noexcept nogil:
    """Number of the log-linear bucket that holds value, counted from value 0."""
    cdef int bit
    if value < (<uint64_t>1 << sub_bits):
        return <int64_t>value
    bit = highest_bit(value)
    return (<int64_t>(bit - sub_bits + 1) << sub_bits) + <int64_t>(value >> (bit - sub_bits)) - (<int64_t>1 << sub_bits)


cdef inline uint64_t bucket_lower(int sub_bits, int64_t number) noexcept nogil:
    """The smallest value that falls in bucket `number`; the inverse of bucket_number."""
    cdef int octave = <int>(number >> sub_bits)
    cdef uint64_t sub = <uint64_t>(number & ((1 << sub_bits) - 1))
    if octave == 0:
        return sub
    return (sub + (<uint64_t>1 << sub_bits)) << (octave - 1)


cdef inline int64_t bucket_index(int sub_bits, int64_t first, int64_t buckets, int64_t value) noexcept nogil:
    cdef int64_t index
    if value < 0:
        return 0
    index = bucket_number(sub_bits, <uint64_t>value) - first + 1
    if index < 0:
        return 0
    if index >= buckets:
        return buckets - 1
    return index


cdef double words_quantile(const uint64_t* words, int sub_bits, int64_t first, int64_t buckets, double q) noexcept nogil:
    cdef const uint64_t* counts = words + HEADER_WORDS
    cdef uint64_t total = 0, seen = 0, rank
    cdef int64_t i
    cdef uint64_t low, high
    cdef double wanted
    for i in range(buckets):
        total += relaxed_load(&counts[i])
    if total == 0:
        return 0.0
    # Rank of the nearest-rank method: the smallest value with at least q * total values at or below it.
    wanted = q * <double>total
    rank = <uint64_t>wanted if wanted > 0 else 0
    if <double>rank < wanted:
        rank += 1
    if rank < 1:
        rank = 1
    if rank > total:
        rank = total
    for i in range(buckets):
        seen += relaxed_load(&counts[i])
        if seen >= rank:
            break
    else:
        # Counts only grow, except under a concurrent clear().
        i = buckets - 1
    if i == 0:
        return <double>bucket_lower(sub_bits, first)
    if i == buckets - 1:
        return <double>(bucket_lower(sub_bits, first + buckets - 2) - 1)
    low = bucket_lower(sub_bits, first + i - 1)
    high = bucket_lower(sub_bits, first + i)
    return (<double>low + <double>(high - 1)) * 0.5


cdef void words_merge(uint64_t* into, const uint64_t* other, int64_t words) noexcept nogil:
    cdef int64_t i
    cdef uint64_t n
    for i in range(words):
        n = relaxed_load(&other[i])
        if n:
            relaxed_add(&into[i], n)


cdef enum:
    FIXED_FIRST = (HISTOGRAM_LOWEST_BIT - HISTOGRAM_SUB_BITS + 1) << HISTOGRAM_SUB_BITS


cdef void histogram_record(histogram_t* h, int64_t value) noexcept nogil:
    """Count one value. Negative values count as 0, in the bucket below the lowest."""
    cdef int64_t index = bucket_index(HISTOGRAM_SUB_BITS, FIXED_FIRST, HISTOGRAM_BUCKETS, value)
    relaxed_add(&h.buckets[index], 1)
    relaxed_add(&h.count, 1)
    if value > 0:
        relaxed_add(&h.sum, <uint64_t>value)


cdef double histogram_quantile(const histogram_t* h, double q) noexcept nogil:
    """The q-quantile (0 <= q <= 1) within 6.25 %; 0 if empty; 1 024 for anything below, 2**37 - 1 for anything above."""
    return words_quantile(<const uint64_t*>h, HISTOGRAM_SUB_BITS, FIXED_FIRST, HISTOGRAM_BUCKETS, q)


cdef void histogram_merge(histogram_t* into, const histogram_t* other) noexcept nogil:
    """Add every count of `other` to `into`."""
    words_merge(<uint64_t*>into, <const uint64_t*>other, HEADER_WORDS + HISTOGRAM_BUCKETS)


cdef uint64_t histogram_bucket_upper(int index) noexcept nogil:
    """The largest value that bucket `index` of a histogram_t counts; UINT64_MAX for the last."""
    if index < 0:
        return 0
    if index >= HISTOGRAM_BUCKETS - 1:
        return UINT64_MAX
    return bucket_lower(HISTOGRAM_SUB_BITS, FIXED_FIRST + index) - 1


cdef (int, int64_t, int64_t) layout_of(object lowest, object highest, object precision) except *:
    cdef int64_t low = int_argument(lowest, "lowest", 0, INT64_MAX - 1)
    cdef int64_t high = int_argument(highest, "highest", low + 1, INT64_MAX)
    cdef double ratio = float_argument(precision, "precision", 1.0 / (2 << SUB_BITS_MAX), 0.25)
    cdef int sub_bits = 1
    while 0.5 / (1 << sub_bits) > ratio:
        sub_bits += 1
    return sub_bits, bucket_number(sub_bits, low), bucket_number(sub_bits, high) - bucket_number(sub_bits, low) + 3


@cython.final
cdef class Histogram:
    """Histogram(lowest=1024, highest=137438953471, precision=0.0625, *, memory=None, offset=0)\n--\n
    Counts of non-negative integers, usually nanoseconds, in buckets of bounded relative width.

    lowest, highest   the range in which quantiles keep the stated error. Values outside are counted in `below` and `above`,
                      are part of count, sum and mean, and are reported as the border. The default range is 1 µs to 137 s in ns.
    precision         largest relative error of a quantile, 0.00003 to 0.25; `error_ratio` is what was granted, the next
                      power of two below. 0.0625 needs 8 buckets per octave: 1.8 kB for the default range.
    memory, offset    a writable buffer (`SharedMemory`, bytearray, mmap) and the byte in it where the counts live, a
                      multiple of 8; `Histogram.size(…)` bytes are used. Histograms of the same layout over the same
                      bytes are one histogram, across threads and processes. Default: private memory.

    The default layout is the layout of `histogram_t`, so the gateway's own slots can be read with it.
    ValueError or TypeError names the argument, its value and the allowed range.
    """

    def __cinit__(self, lowest=1024, highest=137438953471, precision=0.0625, *, memory=None, offset=0):
        cdef int64_t low, at, need
        self.words = NULL
        self.shared = False
        self.layout.sub_bits, self.layout.first, self.layout.buckets = layout_of(lowest, highest, precision)
        self.lowest = lowest
        self.highest = highest
        self.error_ratio = 0.5 / (1 << self.layout.sub_bits)
        need = (HEADER_WORDS + self.layout.buckets) * 8
        if memory is None:
            int_argument(offset, "offset", 0, 0)
            self.words = <uint64_t*>calloc(<size_t>(HEADER_WORDS + self.layout.buckets), 8)
            if self.words == NULL:
                raise MemoryError
        else:
            at = int_argument(offset, "offset", 0, INT64_MAX)
            PyObject_GetBuffer(memory, &self.view, PyBUF_SIMPLE | PyBUF_WRITABLE)
            self.shared = True
            if self.view.len < need or at > self.view.len - need:
                raise ValueError(f"offset: {need} bytes at {at} do not fit in a memory of {self.view.len} bytes")
            if (<size_t>self.view.buf + <size_t>at) % 8:
                raise ValueError(f"offset: expected an address aligned to 8 bytes, got offset {at}")
            self.words = <uint64_t*>(<char*>self.view.buf + at)
        debug_live_add(1)

    def __dealloc__(self):
        if self.words != NULL:
            debug_live_add(-1)
        if self.shared:
            PyBuffer_Release(&self.view)
        else:
            free(self.words)

    @staticmethod
    def size(lowest=1024, highest=137438953471, precision=0.0625):
        """Bytes of memory a histogram of this layout uses."""
        cdef int64_t buckets = layout_of(lowest, highest, precision)[2]
        return (HEADER_WORDS + buckets) * 8

    cdef void record_value(self, int64_t value) noexcept nogil:
        cdef int64_t index = bucket_index(self.layout.sub_bits, self.layout.first, self.layout.buckets, value)
        self.add(index, 1, <uint64_t>value if value > 0 else 0)

    cdef double quantile_value(self, double q) noexcept nogil:
        return words_quantile(self.words, self.layout.sub_bits, self.layout.first, self.layout.buckets, q)

    def record(self, value):
        """Count one value (an int >= 0).

        OverflowError, and nothing counted, when the sum would leave 64 bits.
        """
        cdef int64_t number = int_argument(value, "value", 0, INT64_MAX)
        self.take(number, 1)

    def record_many(self, value, count):
        """Count `count` (>= 0) equal values."""
        cdef int64_t number = int_argument(value, "value", 0, INT64_MAX)
        self.take(number, int_argument(count, "count", 0, INT64_MAX))

    def quantile(self, q):
        """The q-quantile, 0 <= q <= 1, within `error_ratio`; 0.0 without values."""
        return self.quantile_value(float_argument(q, "q", 0.0, 1.0))

    def quantiles(self, qs):
        """`[self.quantile(q) for q in qs]`."""
        return [self.quantile(q) for q in qs]

    def merge(self, Histogram other not None):
        """Add the counts of `other`, which must have the same layout."""
        if (other.layout.sub_bits != self.layout.sub_bits or other.layout.first != self.layout.first
                or other.layout.buckets != self.layout.buckets):
            raise ValueError(f"other: expected the layout of {self!r}, got {other!r}")
        if relaxed_load(&self.words[1]) > UINT64_MAX - relaxed_load(&other.words[1]):
            raise OverflowError("the sum of both histograms does not fit in 64 bits")
        words_merge(self.words, other.words, HEADER_WORDS + self.layout.buckets)

    def clear(self):
        """Clears the histogram. Values recorded concurrently may or may not be kept."""
        cdef int64_t i
        for i in range(HEADER_WORDS + self.layout.buckets):
            self.words[i] = 0

    def buckets(self):
        """The non-empty buckets, in order, as (lowest value, highest value, count).

        The highest value of the last bucket, of values above `highest`, is 2**63 - 1.
        """
        cdef int64_t i
        cdef uint64_t n, low, high
        found = []
        for i in range(self.layout.buckets):
            n = relaxed_load(&self.words[HEADER_WORDS + i])
            if n:
                low = bucket_lower(self.layout.sub_bits, self.layout.first + i - 1) if i else 0
                high = INT64_MAX
                if i < self.layout.buckets - 1:
                    high = bucket_lower(self.layout.sub_bits, self.layout.first + i) - 1
                found.append((low, high, n))
        return found

    @property
    def count(self):
        """Number of recorded values."""
        return relaxed_load(&self.words[0])

    @property
    def sum(self):
        """The exact sum of the values."""
        return relaxed_load(&self.words[1])

    @property
    def mean(self):
        """The exact mean; 0.0 if empty."""
        cdef uint64_t count = relaxed_load(&self.words[0])
        return self.sum / count if count else 0.0

    @property
    def below(self):
        """Number of values below the bucket of `lowest`."""
        return relaxed_load(&self.words[HEADER_WORDS])

    @property
    def above(self):
        """Number of values above the bucket of `highest`."""
        return relaxed_load(&self.words[HEADER_WORDS + self.layout.buckets - 1])

    def __len__(self):
        return self.layout.buckets

    def __repr__(self):
        return (f"Histogram({self.lowest}, {self.highest}, {self.error_ratio}: count={self.count}, "
                f"mean={self.mean:.1f}, p50={self.quantile_value(0.5):.1f}, p99={self.quantile_value(0.99):.1f})")

    cdef void add(self, int64_t index, uint64_t count, uint64_t amount) noexcept nogil:
        cdef uint64_t* words = self.words
        debug_assert(0 <= index < self.layout.buckets)
        relaxed_add(&words[HEADER_WORDS + index], count)
        relaxed_add(&words[0], count)
        relaxed_add(&words[1], amount)

    cdef int take(self, int64_t value, int64_t count) except -1:
        cdef int64_t index = bucket_index(self.layout.sub_bits, self.layout.first, self.layout.buckets, value)
        cdef uint64_t* words = self.words
        cdef uint64_t room = UINT64_MAX - relaxed_load(&words[1])
        if value != 0 and <uint64_t>count > room // <uint64_t>value:
            raise OverflowError(f"value: {count} x {value} would take the sum past 64 bits")
        if self.shared:
            self.add(index, <uint64_t>count, <uint64_t>value * <uint64_t>count)
            return 0
        debug_assert(0 <= index < self.layout.buckets)
        words[HEADER_WORDS + index] += <uint64_t>count
        words[0] += <uint64_t>count
        words[1] += <uint64_t>value * <uint64_t>count
        return 0


def live_objects():
    """How many objects of this module are alive; -1 unless built with FASTGATE_DEBUG=1."""
    return debug_live_count()
