"""The command, as a program: it minds signals first, since the rest takes a moment to load."""

import os
import signal
import sys
from types import FrameType

from tomoscale.signals import stopping


def main() -> int:
    """
    Run the command.

    Returns
    -------
    int
        Its exit status.
    """
    mind_signals()
    keep_standard_streams()
    from tomoscale import cli

    try:
        return cli.main()
    finally:
        for number in stopping():  # there is nothing left to stop
            signal.signal(number, signal.SIG_IGN)


def mind_signals() -> None:
    """Leave with the right status when a signal comes before a run can begin."""
    for number in stopping():
        signal.signal(number, _leave)


def keep_standard_streams() -> None:
    """
    Take the places of closed standard streams (`2>&-`, some batch systems).

    Else the next file that is opened, a chunk say, would get what is meant for standard error.
    """
    for descriptor, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        if getattr(sys, name) is None:
            nothing = os.open(os.devnull, os.O_RDWR)
            if nothing != descriptor:
                os.dup2(nothing, descriptor)
                os.close(nothing)
            setattr(sys, name, os.fdopen(descriptor, mode, encoding="utf-8", closefd=False))


def _leave(number: int, frame: FrameType | None) -> None:
    os.write(2, f"tomoscale: {signal.Signals(number).name}: stopped; run the same command again\n".encode())
    os._exit(75)


if __name__ == "__main__":
    sys.exit(main())
