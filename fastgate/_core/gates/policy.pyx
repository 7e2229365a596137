# cython: boundscheck=False
"""WatchingGate: a gate whose rules may change at run time, and which costs nothing while it has none.

WHAT     The compiled part of the policy gate. It compares the number of changes of its document in the directory with the last one;
         if they differ it calls `refresh()`, and then, unless it is `idle`, `judge(ctx)`; a Python subclass implements both.
STATE    The last number of changes; `idle`, which the subclass sets.
WHO      The worker's loop. The controller counts the changes.
COST     One load and one compare for a request of an idle gate.
SOURCES  None.
"""

from libc.stdint cimport uint64_t

from fastgate._core.pipeline.context cimport RequestContext
from fastgate._core.shm.directory cimport Directory
from fastgate._core.pipeline.pipeline cimport V_CONTINUE, V_SUSPEND, Plugin

__all__ = ["WatchingGate"]


cdef class WatchingGate(Plugin):
    """Base of the policy gate. directory, document: the directory of its rules, and the digest of their document, the only one
    whose changes it checks; directory None: they never change."""

    def __init__(self, Directory directory=None, document=None):
        self.compiled_decide = True
        self.directory = directory
        self.idle = True
        if directory is not None:
            self.watch = directory.watch(document)
            self.seen = directory.c_changes(self.watch)

    def refresh(self):
        """Called after a change of the document: loads the rules of this gate."""

    def judge(self, RequestContext ctx not None):
        """The verdict on this request."""
        return V_CONTINUE

    cdef int c_decide(self, RequestContext ctx) except -1:
        cdef uint64_t changes
        cdef int verdict
        if self.directory is not None:
            changes = self.directory.c_changes(self.watch)
            if changes != self.seen:
                self.refresh()                          # an exception leaves `seen` as it was: the next request tries again
                self.seen = changes
        if self.idle:
            return V_CONTINUE
        verdict = self.judge(ctx)
        if not V_CONTINUE <= verdict <= V_SUSPEND:
            raise ValueError(f"judge returned {verdict}, which is not a verdict")
        return verdict

    def decide(self, RequestContext ctx not None):
        """The Python entry point."""
        return self.c_decide(ctx)
