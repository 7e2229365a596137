"""HTTP dates: the three forms of RFC 9110 §5.6.7 read, IMF-fixdate written.

Days are computed as in Howard Hinnant, "chrono-Compatible Low-Level Date Algorithms". No calendar or time zone of libc is involved.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from libc.stdint cimport INT64_MIN, int64_t
from libc.string cimport memchr

__all__ = ["format_date", "parse_date"]

cdef int64_t NO_DATE = INT64_MIN
cdef const char* MONTHS = "JanFebMarAprMayJunJulAugSepOctNovDec"
cdef const char* DAYS = "MonTueWedThuFriSatSun"


cdef int two_digits(const char* p) noexcept nogil:
    cdef int a = p[0] - 48, b = p[1] - 48
    return a * 10 + b if 0 <= a <= 9 and 0 <= b <= 9 else -1


cdef inline bint same_letters(const char* p, const char* lower, int n) noexcept nogil:
    cdef int i
    for i in range(n):
        if (p[i] | 32) != lower[i] or p[i] < 65:
            return False
    return True


cdef int month_read(const char* p) noexcept nogil:
    """Accepts any case (RFC 9111 §4.2)."""
    cdef int i
    for i in range(12):
        if (p[0] | 32) == (MONTHS[3 * i] | 32) and same_letters(p + 1, MONTHS + 3 * i + 1, 2):
            return i + 1
    return -1


cdef int64_t days_from_civil(int64_t y, int m, int d) noexcept nogil:
    """Days since 1970-01-01 of a Gregorian date (Hinnant)."""
    cdef int64_t era, yoe, doy, doe
    if m <= 2:
        y -= 1
    era = (y if y >= 0 else y - 399) // 400
    yoe = y - era * 400
    doy = (153 * (m + (-3 if m > 2 else 9)) + 2) // 5 + d - 1
    doe = yoe * 365 + yoe // 4 - yoe // 100 + doy
    return era * 146097 + doe - 719468


cdef int64_t moment(int year, int month, int day, const char* clock) noexcept nogil:
    """Seconds since 1970 of a date and `hh:mm:ss`; NO_DATE if a number is out of range."""
    cdef int hour = two_digits(clock), minute = two_digits(clock + 3), second = two_digits(clock + 6)
    if clock[2] != c":" or clock[5] != c":" or month < 1 or not 1 <= day <= 31 or year < 1:
        return NO_DATE
    if not 0 <= hour <= 23 or not 0 <= minute <= 59 or not 0 <= second <= 60:
        return NO_DATE
    return days_from_civil(year, month, day) * 86400 + hour * 3600 + minute * 60 + second


cdef int64_t date_read(const char* p, Py_ssize_t n, int64_t now_s) noexcept nogil:
    """Seconds since 1970 of an HTTP-date, or NO_DATE. now_s: to place the two-digit years of RFC 850 (RFC 9110 §5.6.7)."""
    cdef int year, high, low
    cdef const char* at
    if n == 29 and p[3] == c"," and p[4] == c" " and p[7] == c" " and p[11] == c" " and p[16] == c" " and p[25] == c" ":
        if not same_letters(p + 26, b"gmt", 3):
            return NO_DATE
        high = two_digits(p + 12)
        low = two_digits(p + 14)
        return NO_DATE if high < 0 or low < 0 else moment(high * 100 + low, month_read(p + 8), two_digits(p + 5), p + 17)
    if n == 24 and p[3] == c" " and p[7] == c" " and p[10] == c" " and p[19] == c" ":            # asctime
        high = two_digits(p + 20)
        low = two_digits(p + 22)
        if high < 0 or low < 0:
            return NO_DATE
        year = p[9] - 48 if p[8] == c" " and 49 <= p[9] <= 57 else two_digits(p + 8)
        return moment(high * 100 + low, month_read(p + 4), year, p + 11)
    at = <const char*>memchr(p, c",", n)                                                         # RFC 850
    if at != NULL and n - (at - p) == 24 and at[1] == c" " and at[4] == c"-" and at[8] == c"-" and at[11] == c" ":
        if at[20] != c" " or not same_letters(at + 21, b"gmt", 3) or two_digits(at + 9) < 0:
            return NO_DATE
        year = 2000 + two_digits(at + 9)
        if days_from_civil(year, 1, 1) * 86400 > now_s + 50 * <int64_t>31556952:
            year -= 100
        return moment(year, month_read(at + 5), two_digits(at + 2), at + 12)
    return NO_DATE


cdef void put_two(char* out, int value) noexcept nogil:
    out[0] = 48 + value // 10
    out[1] = 48 + value % 10


cdef bytes date_text(int64_t seconds):
    """The time as an IMF-fixdate."""
    cdef char out[29]
    cdef int64_t days = seconds // 86400, rest = seconds - days * 86400, z, era, doe, yoe, doy, mp, y
    if rest < 0:                                        # cdivision truncates
        rest += 86400
        days -= 1
    z = days + 719468
    era = z // 146097
    doe = z - era * 146097
    yoe = (doe - doe // 1460 + doe // 36524 - doe // 146096) // 365
    doy = doe - (365 * yoe + yoe // 4 - yoe // 100)
    mp = (5 * doy + 2) // 153
    cdef int day = <int>(doy - (153 * mp + 2) // 5 + 1), month = <int>(mp + 3 if mp < 10 else mp - 9)
    cdef int weekday = <int>(((days + 3) % 7 + 7) % 7), i
    y = yoe + era * 400 + (1 if month <= 2 else 0)
    for i in range(3):
        out[i] = DAYS[3 * weekday + i]
        out[8 + i] = MONTHS[3 * (month - 1) + i]
    out[3] = c","
    out[4] = out[7] = out[11] = out[16] = out[25] = c" "
    put_two(out + 5, day)
    put_two(out + 12, <int>(y // 100))
    put_two(out + 14, <int>(y % 100))
    put_two(out + 17, <int>(rest // 3600))
    put_two(out + 20, <int>(rest // 60 % 60))
    put_two(out + 23, <int>(rest % 60))
    out[19] = out[22] = c":"
    out[26] = c"G"
    out[27] = c"M"
    out[28] = c"T"
    return out[:29]


def parse_date(bytes value not None, int64_t now_s=0):
    """Seconds since 1970 of an HTTP-date, or None. now_s places the two-digit years of the RFC 850 form."""
    cdef int64_t out = date_read(PyBytes_AS_STRING(value), PyBytes_GET_SIZE(value), now_s)
    return None if out == NO_DATE else out


def format_date(int64_t seconds):
    """The time as `Sun, 06 Nov 1994 08:49:37 GMT`."""
    return date_text(seconds)
