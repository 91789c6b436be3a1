"""Calls spread over workers in a sliding window: bounded, interruptible, and no call lost."""

from __future__ import annotations

import errno
import itertools
import time
from collections.abc import Callable, Iterable
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from tomoscale import turns
from tomoscale.call import is_exhausted
from tomoscale.cluster import Connection
from tomoscale.errors import BlocksFailedError, InterruptedRunError, TomoscaleError
from tomoscale.signals import interruptible

WINDOW = 3
"""Calls in flight per thread: one that runs, and some that are on their way."""
GRACE_S = 4.0
POLL_S = 0.25
SHOWN = 5
"""Failed tasks that an error names."""


@dataclass(frozen=True)
class Task:
    """
    A call with its name; the call is made when its time comes, since its arguments take memory.

    Parameters
    ----------
    label : str
        Names it.
    make : callable
        Returns a function and its arguments.
    overlaps : bool
        Whether a worker may read and write for it while it computes another.
    """

    label: str
    make: Callable[[], tuple[Callable[..., Any], tuple[Any, ...]]]
    overlaps: bool = False


@dataclass
class Outcome:
    """What became of the tasks: failed ones by label, why it stopped, how many were left."""

    failed: dict[str, BaseException] = field(default_factory=dict)
    interrupted: str | None = None
    lost: str | None = None
    left: int = 0

    @property
    def stopped(self) -> bool:
        """Whether nothing more can be done."""
        return bool(self.interrupted or self.lost)

    def __add__(self, other: Outcome) -> Outcome:
        """Return what became of both."""
        return Outcome(
            {**self.failed, **other.failed},
            self.interrupted or other.interrupted,
            self.lost or other.lost,
            self.left + other.left,
        )

    def check(self, who: str, later: int = 0, size: str = "") -> None:
        """
        Turn what went wrong into the error that says so.

        Parameters
        ----------
        who : str
            The operation and its input.
        later : int
            Tasks that were to come after these.
        size : str
            What a task takes of the memory, for those that had too little.

        Raises
        ------
        InterruptedRunError
            A signal came.
        TomoscaleError
            What came in is wrong, as a task found.
        BlocksFailedError
            Tasks failed; some of them are named, with their errors. Or there is nobody to do them.
        """
        left = self.left + later
        if self.interrupted:
            raise InterruptedRunError(
                f"{self.interrupted}: {left} blocks are left; run the same command again to go on"
            )
        for error in self.failed.values():
            if type(error) is TomoscaleError:
                raise error
        if self.failed:
            named = itertools.islice(self.failed.items(), SHOWN)
            shown = [f"{label}: {_one_line(error, size)}" for label, error in named]
            more = f" (first {SHOWN} shown)" if len(self.failed) > SHOWN else ""
            hint = "free some space, then " if any(map(is_full, self.failed.values())) else ""
            raise BlocksFailedError(
                f"{who}: {len(self.failed)} blocks failed{more}, {left} are left, {hint}the same command goes on "
                f"there: {'; '.join(shown)}"
            )
        if self.lost:
            raise BlocksFailedError(
                f"{who}: {self.lost}; {left} blocks are left; run the same command again to go on"
            )


def is_full(error: BaseException) -> bool:
    """Tell whether a disk, or what a user may use of it, is full."""
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)


def _one_line(error: BaseException, size: str) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    size = size and f" ({size})"
    if type(error).__name__ == "OutOfMemoryError":
        return f"out of memory on the GPU: {text}; try fewer --workers, or --device cpu"
    if is_exhausted(error):
        return f"out of memory: {text}{size}"
    if type(error).__name__ == "KilledWorker":
        tries = getattr(error, "allowed_failures", 2) + 1
        return f"its worker died each of the {tries} times it was tried; of too little memory perhaps{size}"
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
    suspects: list[tuple[Task, BaseException]] = []
    outcome = Outcome()
    alone = False

    def submit(task: Task) -> None:
        function, arguments = task.make()
        # As one thing: among the arguments of a call Dask would look for keys, and take those of a graph for its own.
        call = partial(turns.run, connection.threads, task.overlaps, function, *arguments)
        running[connection.executor.submit(call)] = task

    def collect(futures: Iterable[Future[Any]]) -> None:
        nonlocal n_done
        for future in futures:
            task = running.pop(future)
            if future.cancelled():  # by Dask, when the scheduler is gone
                outcome.lost = connection.trouble() or "the workers were lost"
                continue
            error = future.exception()
            if error is None:
                n_done += 1
                done(task, future.result())
            elif type(error).__name__ == "KilledWorker" and not alone:
                suspects.append((task, error))
            else:
                outcome.failed[task.label] = error

    with interruptible() as signals, signals.noted():
        while (queue or running or suspects) and not signals.received and not outcome.lost:
            if outcome.failed and not keep_going:
                queue.clear()
                suspects.clear()
            while queue and len(running) < WINDOW * connection.slots:
                submit(queue.pop())
            if suspects and not running:
                # Workers died while they held these: if there are several, one at a time shows which one kills.
                alone = alone or len(suspects) > 1
                task, error = suspects.pop()
                if alone:
                    submit(task)
                else:
                    outcome.failed[task.label] = error
            finished, _ = wait(running, timeout=POLL_S, return_when=FIRST_COMPLETED)
            collect(finished)
            tick()
            outcome.lost = outcome.lost or connection.trouble()
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
        except OSError as error:
            if attempt == attempts - 1 or is_exhausted(error):
                raise
            time.sleep(pause_s * 2**attempt)
    raise AssertionError("unreachable")
