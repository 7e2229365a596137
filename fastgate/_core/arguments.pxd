# WHAT           Checks of Python arguments: a number or text in a range, or an error with argument, value and range.
# STATE          None.
# WHO WRITES     No state.
# COST           2 ns for an int in range; the error path does not matter.
# SOURCES        None.

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from cpython.long cimport PyLong_AsLongLongAndOverflow, PyLong_Check
from cpython.float cimport PyFloat_Check
from cpython.unicode cimport PyUnicode_Check
from libc.math cimport isfinite
from libc.stdint cimport int64_t

cdef extern from "Python.h":
    const char* PyUnicode_AsUTF8AndSize(object text, Py_ssize_t* n) except NULL


cdef inline int64_t int_argument(object value, str name, int64_t low, int64_t high) except? -1:
    """value as an int64, if it is an int (no bool, no float) and low <= value <= high."""
    cdef int overflow = 0
    cdef int64_t number
    if not PyLong_Check(value) or value is True or value is False:
        raise TypeError(f"{name}: expected an int, got {value!r}")
    number = PyLong_AsLongLongAndOverflow(value, &overflow)
    if overflow or number < low or number > high:
        # A hostile int can have more digits than str() allows; hex() has no such limit.
        shown = value if not overflow or value.bit_length() <= 1024 else f"an int of {value.bit_length()} bits"
        raise ValueError(f"{name}: expected {low} to {high}, got {shown}")
    return number


cdef inline double float_argument(object value, str name, double low, double high) except? -1.0:
    """value as a double, if it is a finite int or float (no bool) and low <= value <= high."""
    cdef double number
    if PyFloat_Check(value):
        number = value
    elif PyLong_Check(value) and value is not True and value is not False:
        try:
            number = value
        except OverflowError:
            raise ValueError(
                f"{name}: expected {low} to {high}, got an int of {value.bit_length()} bits") from None
    else:
        raise TypeError(f"{name}: expected a number, got {value!r}")
    if not isfinite(number) or number < low or number > high:
        raise ValueError(f"{name}: expected {low} to {high}, got {value!r}")
    return number


cdef inline int text_argument(object text, str name, Py_ssize_t longest, const char** at, Py_ssize_t* n) except -1:
    """Point at the bytes of a bytes, or the UTF-8 of a str, of 0 to longest bytes. Valid while text lives."""
    if type(text) is bytes:
        at[0] = PyBytes_AS_STRING(text)
        n[0] = PyBytes_GET_SIZE(text)
    elif PyUnicode_Check(text):
        try:
            at[0] = PyUnicode_AsUTF8AndSize(text, n)
        except UnicodeEncodeError as error:
            raise ValueError(f"{name}: expected text that UTF-8 can encode, got {text[:100]!r}") from error
    else:
        raise TypeError(f"{name}: expected bytes or str, got {type(text).__name__}")
    if n[0] > longest:
        raise ValueError(f"{name}: expected 0 to {longest} bytes, got {n[0]}")
    return 0
