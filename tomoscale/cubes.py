"""How a volume is cut into blocks: several whole stored chunks each."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tomoscale import blocks
from tomoscale.blocks import MIB, Field, Index, Window, covering, grow, spans
from tomoscale.errors import TomoscaleError
from tomoscale.progress import human_bytes

BLOCK_BYTES = 256 * MIB
"""What a block may cost before it is cut although it would fit: smaller ones spread better."""
TASK_BYTES = 4 * MIB
"""Bytes that could be read while a task is scheduled."""


@dataclass(frozen=True)
class Cubes:
    """
    A volume cut into blocks.

    Parameters
    ----------
    shape : tuple of int
        Of the volume.
    edges : tuple of int
        Of one block, whole stored chunks.
    stored : tuple of int
        Chunk of the output.
    halo : tuple of int
        Voxels that a view reads around a block along every axis.
    """

    shape: tuple[int, ...]
    edges: tuple[int, ...]
    stored: tuple[int, ...]
    halo: tuple[int, ...]

    @property
    def grid(self) -> tuple[list[slice], ...]:
        """Ranges of the blocks along every axis."""
        return tuple(spans(n, e) for n, e in zip(self.shape, self.edges, strict=True))

    def window(self, index: Sequence[int]) -> Window:
        """Return the voxels of a block."""
        return tuple(
            slice(i * e, min((i + 1) * e, n)) for i, e, n in zip(index, self.edges, self.shape, strict=True)
        )

    @property
    def windows(self) -> list[Window]:
        """The voxels of all blocks."""
        return [self.window(index) for index in np.ndindex(*map(len, self.grid))]

    def field(self, dtype: Any) -> Field:
        """Return an output of one voxel for each voxel."""
        return Field(np.dtype(dtype), tuple(blocks.lengths(g) for g in self.grid), self.stored)

    def decoded(self, chunks: Sequence[int]) -> int:
        """Return how many voxels are decoded in all, with the chunks around every halo."""
        axes = zip(self.shape, self.edges, self.halo, chunks, strict=True)
        return math.prod(sum(covering(grow(s, h, n), c, n) for s in spans(n, e)) for n, e, h, c in axes)


def cut(
    who: str,
    volume: Any,
    *,
    held: float,
    fixed: int = 0,
    edge: int = 128,
    whole: Sequence[int] = (),
    unit: Sequence[int] | None = None,
) -> Cubes:
    """
    Choose how to cut a volume: the way that decodes least and keeps all threads busy, of those that fit.

    Parameters
    ----------
    who : str
        The operation, for errors.
    volume : Volume
        What is read.
    held : float
        Bytes that a block holds for a voxel beside the voxel read: outputs and copies.
    fixed : int
        Bytes that a block holds in any case.
    edge : int
        Edge of a stored chunk of the output.
    whole : sequence of int
        Axes that are not cut.
    unit : sequence of int, optional
        Edges of the smallest block, whole stored chunks; one chunk by default.

    Returns
    -------
    Cubes
        The blocks. Stored chunks depend on nothing but shape and edge.

    Raises
    ------
    TomoscaleError
        Not even a block of one chunk fits.
    """
    stored = blocks.volume_chunks(volume.shape, edge)
    allowed, threads, _ = blocks.resources()
    advice = "a larger --memory" if allowed <= volume.most_bytes else "fewer --workers, or --device cpu"
    allowed = min(allowed, volume.most_bytes)
    best: tuple[tuple[float, float], Cubes] | None = None
    smallest = math.inf
    smallest_block = stored if unit is None else tuple(map(min, unit, volume.shape))
    for edges in _ways(volume.shape, smallest_block, whole):
        cubes = Cubes(volume.shape, edges, stored, volume.halo)
        voxels = math.prod(min(e, n) for e, n in zip(edges, volume.shape, strict=True))
        chunk = math.prod(volume.chunks) * volume.dtype.itemsize
        need = voxels * (volume.dtype.itemsize + held) + math.prod(stored) * 8 + chunk + fixed
        need += getattr(volume, "working_bytes", lambda window: 0)(tuple(slice(0, e) for e in edges))
        smallest = min(smallest, need)
        if need > allowed:
            continue
        n_blocks = math.prod(map(len, cubes.grid))
        each = cubes.decoded(volume.chunks) / n_blocks * volume.dtype.itemsize + TASK_BYTES
        rating = (-(-n_blocks // threads) + 0.5) * (each + max(0.0, need - BLOCK_BYTES) / 8)
        if best is None or (rating, need) < best[0]:
            best = (rating, need), cubes
    if best is None:
        raise TomoscaleError(
            f"{who}: the smallest block of a volume {volume.shape} in chunks {volume.chunks} costs "
            f"{human_bytes(smallest)}, {human_bytes(allowed)} are allowed; try {advice}"
        )
    return best[1]


def _ways(shape: Sequence[int], stored: Sequence[int], whole: Sequence[int]) -> Iterator[tuple[int, ...]]:
    """Yield edges of blocks: one, two, four ... chunks along every axis."""
    axes = []
    for axis, (size, chunk) in enumerate(zip(shape, stored, strict=True)):
        multiples = [chunk * 2**p for p in range(32) if chunk * 2**p < size]
        axes.append([size] if axis in whole else [*multiples, size])
    # The whole axis counts as whole chunks: no block follows it.
    return itertools.product(*axes)


def each(
    view: Any, cut: Cubes, dtype: Any, function: Any, *, small: tuple[Any, ...] = (), held: int = 0
) -> Any:
    """Apply a function to every block; it gets block and small arrays, and holds `held` bytes per voxel."""
    window = tuple(slice(0, min(e, n)) for e, n in zip(cut.edges, cut.shape, strict=True))
    working = getattr(view, "working_bytes", lambda w: 0)(window)
    scratch = int(held * blocks.volume_of(window)) + working

    def arguments(index: Index) -> tuple[Any, ...]:
        return (view.at(cut.window(index)),)

    return blocks.map_blocks(function, arguments, {"out": cut.field(dtype)}, small=small, scratch=scratch)[
        "out"
    ]


def as_read(values: np.ndarray) -> np.ndarray:
    """Return a block as a view reads it."""
    return values


def inner(window: Window, grown: Window) -> tuple[slice, ...]:
    """Return where a window lies in the same window with a halo."""
    return tuple(slice(w.start - g.start, w.stop - g.start) for w, g in zip(window, grown, strict=True))


def checked_volume(who: str, volume: Any) -> tuple[int, int, int]:
    """
    Return the shape of a volume (z, y, x) of numbers.

    Parameters
    ----------
    who : str
        The operation, for errors.
    volume : Volume
        What came.

    Returns
    -------
    tuple of int
        Slices, rows, columns.

    Raises
    ------
    TomoscaleError
        Not three axes, or an empty one.
    """
    if volume.ndim != 3 or 0 in volume.shape:
        raise TomoscaleError(f"{who}: the volume has shape {volume.shape}; expected (z, y, x)")
    return volume.shape


__all__ = ["Cubes", "Index", "checked_volume", "cut", "inner"]
