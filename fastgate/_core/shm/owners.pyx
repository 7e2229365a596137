"""Owners of shared-memory resources, and whether their process is still alive.

WHAT        owner_self: one 64-bit name for this process that no later process can have. owner_alive: whether the process of
            such a name still runs. fork_generation: a number that differs between a process and its fork, so that an object
            can detect that it was copied into a child.
STATE       owner = start time in clock ticks since boot << 22 | pid. A pid alone is reused after 32 768 forks; with the start
            time it is not. 22 bits hold the largest pid_max (4 194 304), 42 bits of ticks hold 1 400 years. Never 0.
WHO WRITES  the generation and the cached name: only this process, in its fork handler and on first use.
COST        owner_self 1 ns after the first call; owner_alive one read of /proc/<pid>/stat, about 10 µs.
            Processes that share memory must see the same pids: one PID namespace, /proc mounted. Without /proc only the pid
            is compared.
SOURCES     proc_pid_stat(5): field 3 (state), field 22 (starttime); pthread_atfork(3)
"""

from libc.stdint cimport int64_t

from fastgate._core.shm.atomic cimport atomic_load_relaxed, atomic_store_relaxed

__all__ = ["is_owner_alive", "owner"]

cdef extern from *:
    """
    #include <errno.h>
    #include <fcntl.h>
    #include <pthread.h>
    #include <signal.h>
    #include <stdint.h>
    #include <stdio.h>
    #include <stdlib.h>
    #include <string.h>
    #include <unistd.h>

    static int64_t fastgate_fork_generation = 1;
    static int64_t fastgate_owner_self = 0;

    static void fastgate_forked(void) { fastgate_fork_generation++; fastgate_owner_self = 0; }
    static int fastgate_watch_forks(void) { return pthread_atfork(NULL, NULL, fastgate_forked); }

    /* The start time of pid in ticks; 0 when there is no such process or it is a zombie; -1 when /proc cannot tell. */
    static int64_t fastgate_start_ticks(int64_t pid) {
        char path[48], text[1024], *at;
        ssize_t n;
        int fd, field;
        snprintf(path, sizeof path, "/proc/%lld/stat", (long long)pid);
        fd = open(path, O_RDONLY | O_CLOEXEC);
        if (fd < 0) return errno == ENOENT && access("/proc/self/stat", R_OK) == 0 ? 0 : -1;
        n = read(fd, text, sizeof text - 1);
        close(fd);
        if (n <= 0) return n < 0 && errno == ESRCH ? 0 : -1;
        text[n] = 0;
        at = strrchr(text, ')');            /* the name may hold spaces and parentheses: count from behind it */
        if (at == NULL || at[1] == 0) return -1;
        if (at[2] == 'Z' || at[2] == 'X') return 0;     /* killed, but its parent has not waited yet */
        for (at += 2, field = 3; field < 22; field++) {
            at = strchr(at, ' ');
            if (at == NULL) return -1;
            at++;
        }
        return strtoll(at, NULL, 10);
    }

    static int64_t fastgate_name_self(void) {
        int64_t pid = (int64_t)getpid(), ticks = fastgate_start_ticks(pid);
        return (ticks > 0 ? ticks << 22 : 0) | pid;
    }

    static int fastgate_owner_alive(int64_t owner) {
        int64_t pid = owner & 0x3fffff, born = owner >> 22, ticks;
        if (pid == 0) return 0;
        ticks = fastgate_start_ticks(pid);
        if (ticks < 0) return kill((pid_t)pid, 0) == 0 || errno == EPERM;
        return ticks != 0 && (born == 0 || born == ticks);
    }
    """
    int64_t fastgate_fork_generation
    int64_t fastgate_owner_self
    int fastgate_watch_forks() noexcept nogil
    int64_t fastgate_name_self() noexcept nogil
    bint fastgate_owner_alive(int64_t owner) noexcept nogil


cdef int64_t owner_self() noexcept nogil:
    """The name of this process; the same on every call, another one after a fork."""
    cdef int64_t name = atomic_load_relaxed(&fastgate_owner_self)
    if name == 0:
        name = fastgate_name_self()
        atomic_store_relaxed(&fastgate_owner_self, name)
    return name


cdef bint owner_alive(int64_t owner) noexcept nogil:
    """True if the process of that name runs; False if it is gone, a zombie, or its pid belongs to a later process."""
    return owner == owner_self() or fastgate_owner_alive(owner)


cdef int64_t fork_generation() noexcept nogil:
    """Number of forks of this process image; a copy in a child sees a larger number than it stored."""
    return fastgate_fork_generation


def owner():
    """The name of this process as an int: start time in ticks << 22 | pid."""
    return owner_self()


def is_owner_alive(int64_t owner):
    """True if the process with that name still runs."""
    return owner_alive(owner)


if fastgate_watch_forks() != 0:
    raise MemoryError("pthread_atfork failed")
