"""
Signals by which people and batch systems stop a run (Slurm sends SIGUSR1 if asked to).

The command loads this first, and until it has a signal ends it with another status: `typing` and `dataclasses` would
take longer than all the rest.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from tomoscale.errors import InterruptedRunError

STOPPING = ("SIGTERM", "SIGUSR1", "SIGINT", "SIGHUP")


def stopping() -> list[signal.Signals]:
    """Return the signals that stop a run; SIGHUP not where it is ignored, as `nohup` asks for."""
    known = [signal.Signals[name] for name in STOPPING if hasattr(signal, name)]
    return [n for n in known if n.name != "SIGHUP" or signal.getsignal(n) is not signal.SIG_IGN]


class Signals:
    """What the signals do: stop at once, or, while calls are out, be noted."""

    def __init__(self) -> None:
        self.deferred = False
        self.received: str | None = None
        # How a command stops at once. Raising an error anywhere would not do: what imports a module of C, for one,
        # turns it into another (`numpy._core.multiarray failed to import`).
        self.leave: Callable[[str], object] | None = None

    def handle(self, number: int, frame: FrameType | None) -> None:
        """Note a signal; stop unless calls are out, and at the second one in any case."""
        again, self.received = self.received, signal.Signals(number).name
        if self.deferred and not again:
            return
        message = f"{self.received}: stopped; run the same command again to go on"
        if self.leave is not None:
            self.leave(message)
        raise InterruptedRunError(message)

    @contextmanager
    def noted(self) -> Iterator[None]:
        """Let signals be noted."""
        before, self.deferred = self.deferred, True
        try:
            yield
        finally:
            self.deferred = before


_signals = Signals()


@contextmanager
def interruptible(leave: Callable[[str], object] | None = None) -> Iterator[Signals]:
    """
    Handle the signals that stop a run.

    Parameters
    ----------
    leave : callable, optional
        Ends the process, for a command; in a program of somebody else `InterruptedRunError` is raised.

    Yields
    ------
    Signals
        Whether one came.
    """
    if threading.current_thread() is not threading.main_thread():
        yield Signals()
        return
    before = {n: signal.signal(n, _signals.handle) for n in stopping()}
    outermost = not any(getattr(h, "__self__", None) is _signals for h in before.values())
    if outermost:
        _signals.received, _signals.deferred, _signals.leave = None, False, leave
    try:
        yield _signals
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        if outermost:
            _signals.leave = None


@contextmanager
def kept_from_children() -> Iterator[None]:
    """
    Let processes that are started here, and by threads that are, not see what is meant for the command.

    A terminal sends SIGINT to all of them, or SIGHUP when it is closed, and Slurm may send SIGUSR1: it would end
    them, in the midst of a block.
    """
    from multiprocessing import resource_tracker

    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1, signal.SIGHUP})
    resource_tracker.ensure_running()  # which lets SIGINT through once it has started its own process
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)  # one that came meanwhile is handled now
