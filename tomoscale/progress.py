"""How far a run is: a bar on a terminal, a line now and then in a log file."""

from __future__ import annotations

import contextlib
import sys
import time
from types import TracebackType
from typing import Any

LOG_EVERY_S = 30.0


def human_bytes(n: float) -> str:
    """
    Write bytes in decimal units.

    >>> human_bytes(60_397_977_600)
    '60.4 GB'
    """
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if abs(n) < 1000 or unit == "TB":
            return f"{n:.0f} {unit}" if unit == "B" else f"{n:.3g} {unit}"
        n /= 1000
    raise AssertionError("unreachable")


def human_time(seconds: float) -> str:
    """
    Write a duration.

    >>> human_time(3725)
    '1:02:05'
    """
    minutes, s = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{s:02d}" if hours else f"{minutes}:{s:02d}"


class Progress:
    """
    Progress of one pass over blocks, on standard error.

    Parameters
    ----------
    title : str
        What is going on.
    total : int
        Blocks in all.
    kept : int
        Blocks that an earlier run finished; they count as done but not for the rate.
    block_bytes : float
        Bytes of voxels per block, for the rate.
    quiet : bool
        Say nothing.
    """

    def __init__(self, title: str, total: int, *, block_bytes: float = 0, quiet: bool = False) -> None:
        self.title, self.total, self.block_bytes, self.quiet = title, total, block_bytes, quiet
        self.finished = self.worked = 0
        self._begin = self._logged = time.monotonic()
        self._bar: Any = None

    def __enter__(self) -> Progress:
        if not self.quiet and sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
            from rich.progress import Progress as RichProgress

            self._bar = RichProgress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[rate]}"),
                TimeElapsedColumn(),
                TextColumn("{task.fields[left]}"),
                console=Console(stderr=True),
            )
            self._bar.start()
            self._task = self._bar.add_task(self.title, total=self.total, rate="", left="")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._show(last=True)
        if self._bar is not None:
            self._bar.stop()

    def advance(self, *, worked: bool = True) -> None:
        """Count one finished block; one kept from an earlier run says nothing about the rate."""
        self.finished += 1
        self.worked += worked
        self._show()

    @property
    def left_s(self) -> float | None:
        """Seconds left at the rate so far."""
        elapsed = time.monotonic() - self._begin
        return elapsed / self.worked * (self.total - self.finished) if self.worked else None

    def _show(self, *, last: bool = False) -> None:
        if self.quiet:
            return
        elapsed = max(1e-9, time.monotonic() - self._begin)
        rate = f"{human_bytes(self.worked * self.block_bytes / elapsed)}/s" if self.block_bytes else ""
        left = "" if self.left_s is None else f"{human_time(self.left_s)} left"
        if self._bar is not None:
            self._bar.update(self._task, completed=self.finished, rate=rate, left="" if last else left)
        elif last or time.monotonic() - self._logged > LOG_EVERY_S:
            self._logged = time.monotonic()
            end = f"in {human_time(elapsed)}" if last else left
            pace = " ".join(filter(None, (rate, end)))
            count = f"{self.title}: {self.finished} of {self.total} blocks"
            with contextlib.suppress(OSError):  # nobody listens any more
                print(", ".join(filter(None, (count, pace))), file=sys.stderr, flush=True)
