# WHAT           Assertions and live-object counts for FASTGATE_DEBUG=1 builds; nothing at all in a release build.
# STATE          One counter per extension module (a static of the translation unit that cimports this file).
# WHO WRITES     The module itself, under the GIL, in __cinit__ and __dealloc__.
# COST           None in a release build: the macros expand to nothing.
# SOURCES        uvloop's debug handle counters (`make debug`).

from libc.stdint cimport int64_t

cdef extern from *:
    """
    #ifndef FASTGATE_DEBUG_MACROS
    #define FASTGATE_DEBUG_MACROS
    #ifdef FASTGATE_DEBUG
    #include <stdio.h>
    #include <stdlib.h>
    static int64_t fastgate_live_objects = 0;
    #define debug_live_add(n) ((void)(fastgate_live_objects += (n)))
    #define debug_live_count() (fastgate_live_objects)
    #define debug_assert(x) ((x) ? (void)0 : \\
        (fprintf(stderr, "%s:%d: assertion failed: %s\\n", __FILE__, __LINE__, #x), abort()))
    #else
    #define debug_live_add(n) ((void)0)
    #define debug_live_count() ((int64_t)-1)
    #define debug_assert(x) ((void)0)
    #endif
    #endif
    """
    void debug_live_add(int64_t n) noexcept nogil
    int64_t debug_live_count() noexcept nogil
    void debug_assert(bint fact) noexcept nogil
