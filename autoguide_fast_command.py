"""The program `autoguide-fast`, apart from the package, whose import takes seconds.

So Ctrl-C during the import, too, gives one line and not a traceback.
"""

import os
import signal
import sys
from types import FrameType


def main() -> int:
    """Import the package, run its command line and return the exit code."""
    heard = leave_when_interrupted()
    from autoguide_fast.cli import main

    if heard:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    code = main()
    if heard:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # all is said: no traceback of the shutdown
    return code


def leave_when_interrupted() -> bool:
    """Let Ctrl-C end the program with one line from now on; False where it is ignored."""
    heard = signal.getsignal(signal.SIGINT) in (signal.default_int_handler, _leave)
    if heard:
        signal.signal(signal.SIGINT, _leave)
    return heard


def _leave(number: int, frame: FrameType | None) -> None:
    os.write(sys.stderr.fileno(), b"\nautoguide-fast: interrupted\n")
    os._exit(130)  # an exception might be caught, or turned into another one, by what is imported


if __name__ == "__main__":
    sys.exit(main())
