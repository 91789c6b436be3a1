"""How a volume is cut for a network: blocks, and the windows that they must see. Integers only."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from tomoscale.grid import Index, Window, lengths, spans

EDGES = (128, 64, 32, 16)
"""Edges of stored chunks, the preferred one first."""
WORTH = 0.8
"""Smaller chunks are taken if a run then takes less than this share of the time."""


def around(core: slice, halo: int, stride: int, size: int) -> slice:
    """
    Return what a network must see to compute a part of an axis as if it saw the whole.

    Both ends lie on the grid of the stride, so that pooling falls on the same voxels; the axis is made a multiple
    of the stride long, so the last end may lie beyond it.

    >>> around(slice(32, 48), 5, 4, 99), around(slice(90, 99), 5, 4, 99)
    (slice(24, 56, None), slice(80, 100, None))
    """
    grown = max(-(-halo // stride) * stride, stride if stride > 1 else 0)
    start = core.start // stride * stride - grown
    stop = -(-core.stop // stride) * stride + grown
    return slice(max(0, start), min(stop, -(-size // stride) * stride))


def mirrored(block: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    """
    Continue a block behind its ends by reflection.

    >>> mirrored(np.arange(5), (8,))
    array([0, 1, 2, 3, 4, 3, 2, 1])
    """
    missing = [(0, wanted - n) for wanted, n in zip(shape, block.shape, strict=True)]
    return np.pad(block, missing, mode="reflect") if any(m for _, m in missing) else block


@dataclass(frozen=True)
class Tiles:
    """
    The blocks of a region of a volume.

    Parameters
    ----------
    size : tuple of int
        Shape of the volume.
    region : tuple of slice
        What of it is wanted.
    block : tuple of int
        Edges of a block: whole chunks, or the region.
    stored : tuple of int
        Shape of a stored chunk.
    halo : tuple of int
        Voxels that matter on either side.
    stride : tuple of int
        Shift after which the network does the same again.
    """

    size: tuple[int, ...]
    region: Window
    block: tuple[int, ...]
    stored: tuple[int, ...]
    halo: tuple[int, ...]
    stride: tuple[int, ...]

    @functools.cached_property
    def grid(self) -> tuple[list[slice], ...]:
        """Ranges of the blocks along every axis, counted from the region's corner."""
        return tuple(spans(length, b) for length, b in zip(lengths(self.region), self.block, strict=True))

    def core(self, index: Index) -> Window:
        """Return where in the volume a block lies."""
        return tuple(
            slice(r.start + g[i].start, r.start + g[i].stop)
            for r, g, i in zip(self.region, self.grid, index, strict=True)
        )

    def window(self, core: Window) -> Window:
        """Return what the network must see to compute a part; it may end behind the volume."""
        return tuple(map(around, core, self.halo, self.stride, self.size))

    def inside(self, window: Window) -> Window:
        """Return what of a window can be read."""
        return tuple(slice(w.start, min(w.stop, n)) for w, n in zip(window, self.size, strict=True))

    @property
    def n_blocks(self) -> int:
        """Number of blocks."""
        return math.prod(map(len, self.grid))

    @property
    def largest(self) -> tuple[int, ...]:
        """Shape of the largest window, axis by axis."""
        return tuple(max(w) for w in self._windows)

    @property
    def overhead(self) -> float:
        """Voxels that are computed for every voxel of the region."""
        return math.prod(map(sum, self._windows)) / math.prod(lengths(self.region))

    @property
    def is_whole(self) -> bool:
        """Whether every block sees the whole volume."""
        return all(
            set(w) == {-(-n // s) * s} for w, n, s in zip(self._windows, self.size, self.stride, strict=True)
        )

    @functools.cached_property
    def _windows(self) -> list[list[int]]:
        """Lengths of the windows of all blocks along every axis."""
        found = []
        for axis, parts in enumerate(self.grid):
            first = self.region[axis].start
            cores = [slice(first + p.start, first + p.stop) for p in parts]
            seen = [around(c, self.halo[axis], self.stride[axis], self.size[axis]) for c in cores]
            found.append([w.stop - w.start for w in seen])
        return found


def cut(
    size: Sequence[int],
    region: Window,
    halo: Sequence[int],
    stride: Sequence[int],
    fits: Callable[[tuple[int, ...], tuple[int, ...]], bool],
    *,
    threads: int = 1,
    chunks: Sequence[int] | None = None,
    whole: Sequence[bool] = (False, False, False),
) -> Tiles | None:
    """
    Choose the blocks with which a run takes the least time: little halo, and work for every thread.

    Parameters
    ----------
    size : sequence of int
        Shape of the volume.
    region : tuple of slice
        What of it is wanted.
    halo, stride : sequence of int
        Of the network, along every axis.
    fits : callable
        Whether a window and its block, by their shapes, fit the memory.
    threads : int
        That share the blocks.
    chunks : sequence of int, optional
        Stored chunks; chosen by default.
    whole : sequence of bool
        Axes that are not cut.

    Returns
    -------
    Tiles or None
        None if not even the smallest blocks fit.
    """
    shape = lengths(region)
    best: tuple[float, Tiles] | None = None
    for edges in [tuple(chunks)] if chunks else [(e,) * len(shape) for e in EDGES]:
        stored = tuple(map(min, edges, shape))
        for tiles in _candidates(size, region, stored, halo, stride, whole):
            rounds = math.ceil(tiles.n_blocks / threads) * threads / tiles.n_blocks
            time = tiles.overhead * rounds
            better = best is None or time < (WORTH if stored != best[1].stored else 1.0) * best[0]
            if better and fits(tiles.largest, tiles.block):
                best = time, tiles
    return best[1] if best else None


def _candidates(
    size: Sequence[int],
    region: Window,
    stored: tuple[int, ...],
    halo: Sequence[int],
    stride: Sequence[int],
    whole: Sequence[bool],
) -> list[Tiles]:
    """Return the ways to cut into blocks of whole chunks, as even as they get."""
    edges = []
    for length, chunk, uncut in zip(lengths(region), stored, whole, strict=True):
        n_chunks = -(-length // chunk)
        each = {n_chunks} if uncut else {-(-n_chunks // parts) for parts in range(1, n_chunks + 1)}
        edges.append(sorted((min(e * chunk, length) for e in each), reverse=True))
    combined = np.stack(np.meshgrid(*edges, indexing="ij"), -1).reshape(-1, len(edges)).tolist()
    return [Tiles(tuple(size), region, tuple(b), stored, tuple(halo), tuple(stride)) for b in combined]
