"""Calls spread over workers in a sliding window: bounded, interruptible, and no call lost."""

from __future__ import annotations

import itertools
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FrameType
from typing import Any

from tomoscale.cluster import Connection
from tomoscale.errors import BlocksFailedError, InterruptedRunError, TomoscaleError

WINDOW = 3
"""Calls in flight per thread: one that runs, and some that are on their way."""
GRACE_S = 4.0
POLL_S = 0.25
SHOWN = 5
"""Failed tasks that an error names."""


@dataclass
class Signals:
    """What SIGTERM, SIGUSR1 and SIGINT do: raise at once, or, while calls are out, be noted."""

    deferred: bool = False
    received: str | None = None

    def handle(self, number: int, frame: FrameType | None) -> None:
        """Note a signal; raise unless calls are out, and at the second one in any case."""
        again, self.received = self.received, signal.Signals(number).name
        if not self.deferred or again:
            raise InterruptedRunError(f"{self.received}: stopped; run the same command again to go on")

    @contextmanager
    def noted(self) -> Iterator[None]:
        """Let signals be noted instead of raised."""
        self.deferred = True
        try:
            yield
        finally:
            self.deferred = False


_signals = Signals()


@contextmanager
def interruptible() -> Iterator[Signals]:
    """Handle the signals by which people and batch systems stop a run (Slurm sends SIGUSR1 if asked to)."""
    if threading.current_thread() is not threading.main_thread():
        yield Signals()
        return
    numbers = [s for n in ("SIGTERM", "SIGUSR1", "SIGINT") if (s := getattr(signal, n, None)) is not None]
    before = {n: signal.signal(n, _signals.handle) for n in numbers}
    if not any(getattr(h, "__self__", None) is _signals for h in before.values()):
        _signals.received = None
    try:
        yield _signals
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@dataclass(frozen=True)
class Task:
    """A call with its name; the call is made when its turn comes, since its arguments take memory."""

    label: str
    make: Callable[[], tuple[Callable[..., Any], tuple[Any, ...]]]


@dataclass
class Outcome:
    """What became of the tasks: failed ones by label, why it stopped, how many were left."""

    failed: dict[str, BaseException] = field(default_factory=dict)
    interrupted: str | None = None
    left: int = 0

    def check(self, who: str, later: int = 0) -> None:
        """
        Turn what went wrong into the error that says so.

        Parameters
        ----------
        who : str
            The operation.
        later : int
            Tasks that were to come after these.

        Raises
        ------
        InterruptedRunError
            A signal came.
        TomoscaleError
            What came in is wrong, as a task found.
        BlocksFailedError
            Tasks failed; some of them are named, with their errors.
        """
        if self.interrupted:
            raise InterruptedRunError(
                f"{self.interrupted}: {self.left + later} blocks are left; run the same command again to go on"
            )
        if not self.failed:
            return
        for error in self.failed.values():
            if type(error) is TomoscaleError:
                raise error
        shown = [f"{label}: {_one_line(e)}" for label, e in itertools.islice(self.failed.items(), SHOWN)]
        more = f" (first {SHOWN} shown)" if len(self.failed) > SHOWN else ""
        raise BlocksFailedError(
            f"{who}: {len(self.failed)} blocks failed{more}, {self.left + later} are left, the same command goes on "
            f"there: {'; '.join(shown)}"
        )


def _one_line(error: BaseException) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, MemoryError):
        return f"out of memory: {text}"
    if type(error).__name__ == "KilledWorker":
        return "its worker died every time it was tried; of too little memory perhaps"
    return text if isinstance(error, TomoscaleError) else f"{type(error).__name__}: {text}"


def execute(
    tasks: Iterable[Task],
    connection: Connection,
    done: Callable[[Task, Any], None],
    *,
    tick: Callable[[], None] = lambda: None,
    keep_going: bool = False,
) -> Outcome:
    """
    Run tasks on the workers, a few per thread at a time.

    Parameters
    ----------
    tasks : iterable of Task
        In the order in which they are to start.
    connection : Connection
        The workers.
    done : callable
        Called here with every finished task and its result.
    tick : callable
        Called here several times per second.
    keep_going : bool
        Go on after a task failed; else what is in flight is finished and the rest left.

    Returns
    -------
    Outcome
        Failed tasks and their errors, and whether a signal came.
    """
    queue = list(tasks)[::-1]
    n_tasks, n_done = len(queue), 0
    running: dict[Future[Any], Task] = {}
    suspects: list[Task] = []
    outcome = Outcome()
    alone = False

    def submit(task: Task) -> None:
        function, arguments = task.make()
        running[connection.executor.submit(function, *arguments)] = task

    def collect(futures: Iterable[Future[Any]]) -> None:
        nonlocal n_done
        for future in futures:
            task = running.pop(future)
            error = future.exception()
            if error is None:
                n_done += 1
                done(task, future.result())
            elif type(error).__name__ == "KilledWorker" and not alone:
                suspects.append(task)
            else:
                outcome.failed[task.label] = error

    with interruptible() as signals, signals.noted():
        while (queue or running or suspects) and not signals.received:
            if outcome.failed and not keep_going:
                queue.clear()
                suspects.clear()
            while queue and len(running) < WINDOW * connection.slots:
                submit(queue.pop())
            if suspects and not running:
                # A worker died several times while it held these: one at a time shows which one kills.
                alone = True
                submit(suspects.pop())
            finished, _ = wait(running, timeout=POLL_S, return_when=FIRST_COMPLETED)
            collect(finished)
            tick()
        if signals.received:
            outcome.interrupted = signals.received
            collect(wait(running, timeout=GRACE_S).done)
            for future in running:
                future.cancel()
    outcome.left = n_tasks - n_done - len(outcome.failed)
    return outcome


def retried(function: Callable[..., Any], *arguments: Any, attempts: int = 3, pause_s: float = 0.5) -> Any:
    """Call a function, again after a pause when storage fails for a moment."""
    for attempt in range(attempts):
        try:
            return function(*arguments)
        except OSError:
            if attempt == attempts - 1:
                raise
            time.sleep(pause_s * 2**attempt)
    raise AssertionError("unreachable")
