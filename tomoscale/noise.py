"""The noise of cleaned frames, pixel by pixel, and thresholds given as multiples of it."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from tomoscale import blocks, passes
from tomoscale.blocks import Window
from tomoscale.errors import TomoscaleError
from tomoscale.grid import spans
from tomoscale.parameters import Rect

if TYPE_CHECKING:
    import dask.array as da

EDGE = 8
"""Pixels along the edges of a tile, over which the noise is taken as one; around a beam it doubles within 20."""
PLACES, TOGETHER = 16, 4
"""Places along the scan that are sampled, and frames at each: 4,096 voxels of a tile know its noise to 2 %."""
OF_NORMAL = 1.4826
"""Standard deviation of a normal distribution over its median absolute deviation."""


@dataclass(frozen=True)
class Threshold:
    """A threshold in counts, or a multiple of the noise."""

    value: float
    relative: bool

    def at(self, sigma: Any) -> Any:
        """Return it in counts where the noise is sigma."""
        return self.value * sigma if self.relative else self.value

    def exceeds(self, other: Threshold) -> bool:
        """Tell whether it is above another of its kind; of another kind nobody knows before the noise is."""
        return self.relative == other.relative and self.value > other.value

    def __str__(self) -> str:
        return f"{self.value:g} sigma" if self.relative else f"{self.value:g}"


def threshold(name: str, level: float | str) -> Threshold:
    """
    Read a threshold.

    >>> str(threshold("seed_threshold", "8sigma")), str(threshold("c_min", 7))
    ('8 sigma', '7')

    Raises
    ------
    TomoscaleError
        Neither a number nor a multiple of sigma.
    """
    text = str(level).strip().lower()
    number = text.removesuffix("sigma").removesuffix("σ").strip()
    try:
        value = float(number)
    except ValueError:
        value = math.nan
    if math.isnan(value):
        raise TomoscaleError(f"blobs.segment: {name}={level!r}; expected counts, such as 50, or '8 sigma'")
    return Threshold(value, number != text)


# ---------------------------------------------------------------- the noise


def local(frames: Any, exclude: Sequence[Rect] = ()) -> da.Array:
    """
    Measure the noise of every tile of the detector: 1.4826 times the median absolute deviation of its voxels.

    Parameters
    ----------
    frames : Volume
        Cleaned frames, (frame, row, column).
    exclude : sequence of Rect
        Pixels to leave out.

    Returns
    -------
    dask.array.Array
        (row of tiles, column of tiles) float64 in counts, lazy: the largest of a tile and its neighbours, so that it
        holds where the noise rises. The sample depends on nothing but the shape of the scan; NaN are left out.
    """
    n_frames, n_rows, n_columns = frames.shape
    sampled = sampled_frames(n_frames)
    n_sampled = sum(s.stop - s.start for s in sampled)
    itemsize = max(4, frames.dtype.itemsize)
    row_bytes = 2 * n_sampled * EDGE * n_columns * itemsize  # of tiles; a copy of one of them is sorted
    fitting = blocks.resources().block_bytes // 4 // row_bytes
    slabs = spans(-(-n_rows // EDGE), max(1, min(fitting, -(-frames.chunks[1] // EDGE))))
    across = slice(0, n_columns)
    groups = [
        [(f, slice(s.start * EDGE, min(s.stop * EDGE, n_rows)), across) for f in sampled] for s in slabs
    ]
    n_tiles = -(-n_columns // EDGE)
    tiles = passes.parts_of(
        frames, groups, functools.partial(measure_noise, exclude=tuple(exclude)), (blocks.lengths(slabs), (n_tiles,)),
        np.empty(n_tiles), (), row_bytes * max(s.stop - s.start for s in slabs), slabs,
    )  # fmt: skip
    return passes.derive(spread_noise, np.empty((-(-n_rows // EDGE), n_tiles)), [blocks.once(tiles)])


def sampled_frames(n_frames: int) -> list[slice]:
    """
    Return the frames that are looked at, evenly spread over a scan.

    >>> sampled_frames(64), len(sampled_frames(7200)), sampled_frames(7200)[1]
    ([slice(0, 64, None)], 16, slice(480, 484, None))
    """
    if n_frames <= PLACES * TOGETHER:
        return [slice(0, n_frames)]
    starts = (round(i * (n_frames - TOGETHER) / (PLACES - 1)) for i in range(PLACES))
    return [slice(s, s + TOGETHER) for s in starts]


def measure_noise(series: Any, slab: slice, *, exclude: Sequence[Rect]) -> np.ndarray:
    """Return the noise of some rows of tiles; 0 where nothing is known."""
    (_, first, across), *_ = series.windows
    n_sampled = sum(w[0].stop - w[0].start for w in series.windows)
    edges = (slab.stop - slab.start) * EDGE, -(-across.stop // EDGE) * EDGE
    kind = np.float64 if series.pieces[0].source.dtype.itemsize > 4 else np.float32
    sample = np.full((n_sampled, *edges), np.nan, kind)
    k = 0
    for _, box in series:
        sample[k : k + len(box), : box.shape[1], : box.shape[2]] = box
        k += len(box)
    for rows, columns in exclude:
        sample[:, max(0, rows[0] - first.start) : max(0, rows[1] - first.start), slice(*columns)] = np.nan
    sample[~np.isfinite(sample)] = np.nan
    found = np.empty((edges[0] // EDGE, edges[1] // EDGE))
    for i, of_tiles in enumerate(found):
        row = sample[:, i * EDGE : (i + 1) * EDGE].reshape(n_sampled, EDGE, -1, EDGE)
        voxels = row.transpose(2, 0, 1, 3).reshape(len(of_tiles), -1)
        of_tiles[:] = OF_NORMAL * _medians(np.abs(voxels - _medians(voxels)[:, None]))
    return np.nan_to_num(found)


def _medians(samples: np.ndarray) -> np.ndarray:
    """Sort rows, where NaN come last, and return the median of the others; NaN where there are none."""
    samples.sort(axis=1)
    n = np.count_nonzero(~np.isnan(samples), axis=1)[:, None]
    middle = [np.take_along_axis(samples, np.maximum(at, 0), 1)[:, 0] for at in ((n - 1) // 2, n // 2)]
    return np.where(n[:, 0] > 0, (middle[0] + middle[1]) / 2, np.nan)


def spread_noise(tiles: np.ndarray) -> np.ndarray:
    """Return the largest noise of a tile and its neighbours; where all of it is 0, that of the tile in the middle."""
    known = tiles[tiles > 0]
    if not known.size:
        raise TomoscaleError(
            "blobs.segment: thresholds are given in sigma, and the noise is 0 everywhere: more than half of the voxels "
            "are equal; give counts"
        )
    framed = np.pad(tiles, 1)
    shifted = [framed[i : i + len(tiles), j : j + tiles.shape[1]] for i in range(3) for j in range(3)]
    largest = np.max(shifted, axis=0)
    return np.where(largest > 0, largest, np.median(known))


def of_pixels(tiles: np.ndarray, window: Window) -> np.ndarray:
    """Return the noise of the pixels of a block, (row, column)."""
    rows, columns = (np.arange(s.start, s.stop) // EDGE for s in window[1:])
    return tiles[np.ix_(rows, columns)]
