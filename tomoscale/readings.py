"""Windows of a volume, read one after the other, or by some threads."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from typing import Any

import numpy as np

from tomoscale import blocks
from tomoscale.blocks import MIB, Piece, Window
from tomoscale.progress import Progress

AT_ONCE = 32 * MIB
"""Bytes that a pass reads at a time."""


@dataclass(frozen=True)
class Series:
    """Windows of a volume, read one after the other: a task that adds them up holds one at a time."""

    pieces: tuple[Piece, ...]
    windows: tuple[Window, ...]

    @classmethod
    def of(cls, volume: Any, windows: Sequence[Window]) -> Series:
        """Take windows of a volume; of an array in memory only these travel."""
        return cls(tuple(volume.at(w) for w in windows), tuple(windows))

    def __iter__(self) -> Iterator[tuple[Window, np.ndarray]]:
        for window, piece in zip(self.windows, self.pieces, strict=True):
            yield window, piece.load()


def readings(volume: Any, within: Window | None = None) -> list[Window]:
    """
    Cut a volume for reading: windows of whole stored chunks, some of them at a time.

    Parameters
    ----------
    volume : Volume
        What is read.
    within : tuple of slice, optional
        The part of it; all by default.

    Returns
    -------
    list of tuple of slice
        Windows that cover the part, each chunk once where the part consists of whole chunks.
    """
    window = within or tuple(slice(0, n) for n in volume.shape)
    edges = [min(c, n) for c, n in zip(volume.chunks, blocks.shape_of(window), strict=True)]
    for axis in reversed(range(len(edges))):
        others = int(np.prod([e for a, e in enumerate(edges) if a != axis], dtype=np.int64))
        fits = AT_ONCE // max(1, others * volume.dtype.itemsize)
        edges[axis] *= max(1, min(fits // edges[axis], -(-volume.shape[axis] // edges[axis])))
    axes = []
    for inside, edge in zip(window, edges, strict=True):
        starts = [inside.start, *range((inside.start // edge + 1) * edge, inside.stop, edge)]
        axes.append([slice(a, b) for a, b in zip(starts, [*starts[1:], inside.stop], strict=True)])
    grid = np.ndindex(*map(len, axes))
    return [tuple(a[i] for a, i in zip(axes, index, strict=True)) for index in grid]


def in_threads(
    function: Callable[[Window], None],
    windows: Sequence[Window],
    *,
    threads: int,
    title: str,
    quiet: bool,
    window_bytes: float = 0,
) -> None:
    """
    Read windows in some threads of this process; the first error stops them.

    Parameters
    ----------
    function : callable
        Reads a window and keeps what it finds.
    windows : sequence of tuple of slice
        In the order in which they are begun.
    threads : int
        How many.
    title : str
        What the progress is called.
    quiet : bool
        Show no progress.
    window_bytes : float
        Of one window on average, for the progress.
    """
    with (
        ThreadPoolExecutor(threads, thread_name_prefix="tomoscale-reading") as pool,
        Progress(title, len(windows), block_bytes=window_bytes, quiet=quiet) as progress,
    ):
        try:
            for done in as_completed([pool.submit(function, w) for w in windows]):
                done.result()
                progress.advance()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
