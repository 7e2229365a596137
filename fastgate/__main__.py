"""`python -m fastgate` is the command line, and what stands before it.

The rest takes a quarter of a second to import. A service manager may end `fastgate run` within that time, and
then it ends as it would later: silently, with status 0.
"""

from __future__ import annotations

import os
import signal
import sys
from typing import Never

__all__ = ["main"]


def main() -> None:
    """Runs the command in sys.argv."""
    if "run" in sys.argv[1:2]:
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT):
            if signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, _leave)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)

    from fastgate.server.process import occupy_standard_descriptors

    occupy_standard_descriptors()

    from fastgate.cli.main import main as command

    command(prog_name="fastgate")


def _leave(_number: int, _frame: object) -> Never:
    os._exit(0)  # nothing was started, so there is nothing to end


if __name__ == "__main__":
    main()
