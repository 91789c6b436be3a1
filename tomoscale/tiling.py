"""How a volume is cut for a network: blocks, and the windows that they must see. Integers only."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from tomoscale.grid import Index, Window, lengths, spans

EDGES = (128, 64, 32, 16)
"""Edges of stored chunks, the preferred one first."""
WORTH = 0.8
"""Smaller chunks are taken if a run then takes less than this share of the time."""


class Stage(NamedTuple):
    """
    A stretch of the way through a network.

    Parameters
    ----------
    halo : tuple of int
        Voxels of the input that it needs on either side of a block.
    stride : tuple of int
        Grid on which the faces of what it sees lie; of the first stage, the shift after which the network does the
        same again.
    work : float
        Its share of the work of the network over a whole volume.
    bytes_per_voxel, elements_per_voxel : float
        What it holds, and its largest tensor, for each voxel that it sees.
    """

    halo: tuple[int, ...]
    stride: tuple[int, ...]
    work: float
    bytes_per_voxel: float
    elements_per_voxel: float


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
    stages : tuple of Stage
        Those of the network, along every axis of the volume; the first sees whole windows.
    """

    size: tuple[int, ...]
    region: Window
    block: tuple[int, ...]
    stored: tuple[int, ...]
    stages: tuple[Stage, ...]

    @property
    def stride(self) -> tuple[int, ...]:
        """Shift after which the network does the same again."""
        return self.stages[0].stride

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
        return tuple(map(around, core, *self.stages[0][:2], self.size))

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
        return self.largest_of(self.stages[0])

    def largest_of(self, stage: Stage) -> tuple[int, ...]:
        """Return the shape of the most that a stage sees, axis by axis."""
        return tuple(max(w) for w in self._seen_by(stage))

    @property
    def overhead(self) -> float:
        """Work for every voxel of the region, as a multiple of that in the whole volume."""
        work = sum(s.work * math.prod(map(sum, self._seen_by(s))) for s in self.stages)
        return work / math.prod(lengths(self.region))

    def are_whole(self, dimensions: int) -> bool:
        """Tell whether every block sees whole slices, in two dimensions, or the whole volume."""
        seen = zip(self._seen_by(self.stages[0]), self.size, self.stride, strict=True)
        return all(set(w) == {-(-n // s) * s} for w, n, s in list(seen)[-dimensions:])

    def _seen_by(self, stage: Stage) -> list[tuple[int, ...]]:
        """Return how much of every axis a stage sees, block by block."""
        axes = zip(self.size, self.region, self.block, stage.halo, stage.stride, strict=True)
        return [_windows(n, r.start, r.stop, edge, halo, stride) for n, r, edge, halo, stride in axes]


@functools.lru_cache(maxsize=10_000)
def _windows(size: int, start: int, stop: int, edge: int, halo: int, stride: int) -> tuple[int, ...]:
    """Return the lengths of the windows around the blocks of an axis; axes are shared by the ways to cut a volume."""
    cores = (slice(a, min(a + edge, stop)) for a in range(start, stop, edge))
    return lengths([around(core, halo, stride, size) for core in cores])


def cut(
    size: Sequence[int],
    region: Window,
    stages: tuple[Stage, ...],
    fits: Callable[[Tiles], bool],
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
    stages : tuple of Stage
        Of the network, along every axis.
    fits : callable
        Whether the blocks fit the memory.
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
        for tiles in _candidates(size, region, stored, stages, whole):
            rounds = math.ceil(tiles.n_blocks / threads) * threads / tiles.n_blocks
            time = tiles.overhead * rounds
            better = best is None or time < (WORTH if stored != best[1].stored else 1.0) * best[0]
            if better and fits(tiles):
                best = time, tiles
    return best[1] if best else None


def _candidates(
    size: Sequence[int],
    region: Window,
    stored: tuple[int, ...],
    stages: tuple[Stage, ...],
    whole: Sequence[bool],
) -> list[Tiles]:
    """Return the ways to cut into blocks of whole chunks, as even as they get."""
    edges = []
    for length, chunk, uncut in zip(lengths(region), stored, whole, strict=True):
        n_chunks = -(-length // chunk)
        each = {n_chunks} if uncut else {-(-n_chunks // parts) for parts in range(1, n_chunks + 1)}
        edges.append(sorted((min(e * chunk, length) for e in each), reverse=True))
    combined = np.stack(np.meshgrid(*edges, indexing="ij"), -1).reshape(-1, len(edges)).tolist()
    return [Tiles(tuple(size), region, tuple(b), stored, stages) for b in combined]
