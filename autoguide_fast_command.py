"""The program `autoguide-fast`, apart from the package, whose import takes seconds.

So Ctrl-C during the import, too, gives one line and not a traceback.
"""

import os
import signal
import sys


def main():
    """Import the package, run its command line and return the exit code."""
    heard = signal.getsignal(signal.SIGINT) is signal.default_int_handler  # else it is ignored
    if heard:
        signal.signal(signal.SIGINT, _leave)
    from autoguide_fast.cli import main

    if heard:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    code = main()
    if heard:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # all is said: no traceback of the shutdown
    return code


def _leave(number, frame):
    os.write(sys.stderr.fileno(), b"\nautoguide-fast: interrupted\n")
    os._exit(130)  # an exception might be caught, or turned into another one, by what is imported


if __name__ == "__main__":
    sys.exit(main())
