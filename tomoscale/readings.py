"""Windows of a volume, read one after the other."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tomoscale import blocks
from tomoscale.blocks import MIB, Piece, Window

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
