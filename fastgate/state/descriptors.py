"""The limit of open descriptors: raised as far as may be, and reported when it is reached.

At the limit accept(2), connect and open fail in places that each see only their own connection. So a process
looks at its heartbeat whether it could open one more, and says so itself, once a minute.
"""

from __future__ import annotations

import errno
import os
import resource

from fastgate.state.journal import Journal, Throttle

__all__ = ["DescriptorWatch", "raise_descriptor_limit"]

PERIOD_S = 60.0


def raise_descriptor_limit() -> None:
    """Shells give 1 024 for the sake of old programs that use select(2); the hard limit is what is meant."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


class DescriptorWatch:
    """Reports to the journal that this process, or the machine, has no descriptor left."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._throttle = Throttle(burst=1, period_s=PERIOD_S)

    def look(self) -> bool:
        """True if a descriptor is free."""
        try:
            os.close(os.dup(2))
        except OSError as error:
            if error.errno in (errno.EMFILE, errno.ENFILE) and self._throttle.allow(error.errno) is not None:
                self._journal.error(
                    "descriptor limit reached: connections are refused",
                    limit=resource.getrlimit(resource.RLIMIT_NOFILE)[0],
                    hint="raise it: ulimit -n, LimitNOFILE= of systemd, nofile of a container"
                    if error.errno == errno.EMFILE
                    else "raise the machine's: sysctl fs.file-max",
                )
            return False
        return True
