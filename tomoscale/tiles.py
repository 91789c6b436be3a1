"""Tiles of local contrast (CLAHE): levels, histograms and tables of windows, as scikit-image has them of the whole."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from tomoscale import kernels
from tomoscale.blocks import Window
from tomoscale.errors import TomoscaleError
from tomoscale.histogram import find_extremes
from tomoscale.readings import Series

LEVELS = 2**14
"""Grey levels of the equalised image before the final scaling."""
AS_INTEGERS = 65535
VALUE_BINS = 256
HALVES = 2 * VALUE_BINS
"""Bins of the equalised values from 0 to 1, for a threshold."""


@dataclass(frozen=True)
class Tiles:
    """
    How a volume is equalised.

    Parameters
    ----------
    who : str
        The operation, for errors.
    shape, tile : (int, int, int)
        Of the volume, and edges of a tile; 1 along z when every slice stands for itself.
    per_slice : bool
        Every slice has extremes, tables and range of its own.
    clip_limit : float
        Share of a tile's voxels that a bin may hold.
    bins : int
        Of the histogram of a tile.
    dtype : numpy.dtype
        Of the equalised values before they are stored.
    """

    who: str
    shape: tuple[int, int, int]
    tile: tuple[int, int, int]
    per_slice: bool
    clip_limit: float
    bins: int
    dtype: np.dtype

    @property
    def grid(self) -> tuple[int, ...]:
        """Number of tiles: (y, x) of a slice, or (z, y, x)."""
        axes = slice(1, None) if self.per_slice else slice(None)
        return tuple(-(-n // k) for n, k in list(zip(self.shape, self.tile, strict=True))[axes])

    @property
    def limit(self) -> int:
        """Most voxels of a bin."""
        n = int(np.prod(self.tile))
        return int(np.clip(self.clip_limit * n, 1, None)) if self.clip_limit > 0 else n


# ---------------------------------------------------------------- levels


def integers_of(values: np.ndarray, who: str) -> np.ndarray:
    """Return what a table can be indexed by: integers as they are, numbers from 0 to 1 as 16-bit levels."""
    if values.dtype.kind in "iu":
        return values
    values = values.astype(np.float32) if values.dtype == np.float16 else values
    if values.size and (values.min() < -1 or values.max() > 1):
        raise TomoscaleError(f"{who}: values beyond -1 and 1; scale them first with `tomoscale otsu scale`")
    xp = kernels.namespace(values)
    levels = xp.multiply(values, AS_INTEGERS, dtype=values.dtype)
    return xp.clip(xp.rint(levels, out=levels), 0, AS_INTEGERS, out=levels).astype(np.uint16)


def levels_of(integers: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """Return the 16-bit level of integers of a type: the largest of the type is the highest level."""
    wide = integers.astype(np.int64)
    if dtype.name == "uint8":
        return wide * 257
    if dtype.name == "int8":
        return np.maximum(wide, 0) * 16513 // 32
    if dtype.name == "int16":
        return np.maximum(wide, 0) * 32769 // 16384
    return wide


def bins_between(ends: np.ndarray, tiles: Tiles, dtype: np.dtype) -> tuple[np.ndarray, int]:
    """Return the bin of every integer between the extremes, and the first of these integers."""
    first, last = (int(integers_of(np.array([e]).astype(dtype), tiles.who)[0]) for e in ends)
    level = levels_of(np.arange(first, last + 1), dtype).astype(np.float64)
    low, high = level[0], level[-1]
    if low != high:
        level = (level - low) / (high - low)
        level = level * (LEVELS - 1.0) + 0.0
    else:
        level = np.clip(level, 0, LEVELS - 1)
    level = np.round(level).astype(np.int64)
    return (level // (1 + LEVELS // tiles.bins)).astype(np.uint8), first


def binned(values: np.ndarray, ends: np.ndarray, tiles: Tiles) -> np.ndarray:
    """Return the bins of a window, or of one slice."""
    table, first = bins_between(ends, tiles, values.dtype)
    return kernels.grey_bins(integers_of(values, tiles.who), table, first)


def final_table(reach: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """Return the value from 0 to 1 of every level."""
    level = np.arange(LEVELS, dtype=np.uint16).astype(dtype)
    low, high = map(float, reach)
    if low == high:
        return np.clip(level, 0.0, 1.0)
    level = (np.clip(level, low, high) - low) / (high - low)
    return level * (1.0 - 0.0) + 0.0


def tables_of(tiles: Tiles, counts: np.ndarray) -> np.ndarray:
    """Return the tables of clipped histograms."""
    return kernels.clipped_tables(counts, tiles.limit, int(np.prod(tiles.tile)))


def _padded(tables: np.ndarray) -> np.ndarray:
    """Return tables with the outermost ones twice: beyond the centre of the last tile it stands alone."""
    return np.pad(tables, [(1, 1)] * (tables.ndim - 1) + [(0, 0)], mode="edge")


# ---------------------------------------------------------------- passes and blocks


def slice_ends(tiles: Tiles, series: Series, slab: slice) -> np.ndarray:
    """Return the extremes of every slice."""
    found = np.tile([np.inf, -np.inf], (slab.stop - slab.start, 1))
    for window, values in series:
        find_extremes(tiles.who, [(window, values)])  # type: ignore[arg-type]
        own = found[window[0].start - slab.start : window[0].stop - slab.start]
        flat = values.reshape(len(values), -1)
        own[:, 0] = np.minimum(own[:, 0], kernels.host(flat.min(axis=1)))
        own[:, 1] = np.maximum(own[:, 1], kernels.host(flat.max(axis=1)))
    return found


def slice_tables(tiles: Tiles, series: Series, slab: slice, ends: np.ndarray) -> np.ndarray:
    """Return the tables of all tiles of every slice."""
    counts = np.zeros((slab.stop - slab.start, 1, *tiles.grid, tiles.bins), np.int64)
    shape = (1, *tiles.shape[1:])
    for window, values in series:
        for z, one in enumerate(values, window[0].start - slab.start):
            bins = binned(one[None], ends[z], tiles)
            kernels.tile_counts(bins, (0, window[1].start, window[2].start), shape, tiles.tile, counts[z])
    return tables_of(tiles, counts[:, 0])


def slice_levels(
    tiles: Tiles, series: Series, slab: slice, ends: np.ndarray, tables: np.ndarray
) -> np.ndarray:
    """Return the lowest and the highest level of every equalised slice, then the half bins of its values."""
    counts = np.zeros((slab.stop - slab.start, LEVELS), np.int64)
    for window, values in series:
        first = window[0].start - slab.start
        for z, level in enumerate(levels(tiles, window, values, ends, tables, slab.start), first):
            kernels.value_counts(level, counts[z])
    return np.stack([summary(tiles, c) for c in counts])


def summary(tiles: Tiles, counts: np.ndarray) -> np.ndarray:
    """Return lowest and highest of the levels that were counted, then the half bins of the values that they become."""
    there = np.flatnonzero(counts)
    reach = np.array([there[0], there[-1]], np.float64)
    values = final_table(reach, tiles.dtype)[there]
    edges = np.linspace(0, 1, VALUE_BINS + 1, dtype=tiles.dtype)
    bins = np.clip(np.searchsorted(edges, values, side="right") - 1, 0, VALUE_BINS - 1)
    # A threshold is the centre of a bin: what lies above it is known only if the halves are counted apart.
    upper = values > ((edges[:-1] + edges[1:]) / 2)[bins]
    return np.concatenate([reach, np.bincount(2 * bins + upper, counts[there], HALVES)])


def volume_counts(tiles: Tiles, series: Series, ends: np.ndarray) -> np.ndarray:
    """Return the histograms of all tiles of a volume."""
    counts = np.zeros((*tiles.grid, tiles.bins), np.int64)
    for window, values in series:
        origin = tuple(w.start for w in window)
        kernels.tile_counts(binned(values, ends, tiles), origin, tiles.shape, tiles.tile, counts)
    return counts


def volume_levels(tiles: Tiles, series: Series, ends: np.ndarray, tables: np.ndarray) -> np.ndarray:
    """Count the levels of the equalised volume."""
    counts = np.zeros(LEVELS, np.int64)
    for window, values in series:
        kernels.value_counts(levels(tiles, window, values, ends, tables, 0), counts)
    return counts


def levels(
    tiles: Tiles, window: Window, values: np.ndarray, ends: np.ndarray, tables: np.ndarray, first: int
) -> np.ndarray:
    """Return the equalised levels of a window; `first` is the slice of the first row of ends and tables."""
    if not tiles.per_slice:
        origin = tuple(w.start for w in window)
        return kernels.interpolated(binned(values, ends, tiles), origin, tiles.tile, _padded(tables))
    out = kernels.namespace(values).empty(values.shape, np.uint16)
    for k, one in enumerate(values):
        z = window[0].start - first + k
        bins = binned(one[None], ends[z], tiles)
        origin = (0, window[1].start, window[2].start)
        out[k] = kernels.interpolated(bins, origin, tiles.tile, _padded(tables[z]))[0]
    return out


def equalise_block(
    tiles: Tiles,
    function: Any,
    dtype: np.dtype,
    window: Window,
    values: np.ndarray,
    ends: np.ndarray,
    tables: np.ndarray,
    reach: np.ndarray,
    *small: np.ndarray,
) -> np.ndarray:
    """Equalise a block and hand every slice, as values from 0 to 1, with its number to a function."""
    level = levels(tiles, window, values, ends, tables, window[0].start)
    xp = kernels.namespace(values)
    out = xp.empty(values.shape, dtype)
    for z in range(len(level)):
        table = final_table((reach[z] if tiles.per_slice else reach)[:2], tiles.dtype)
        out[z] = function(xp.asarray(table)[level[z]], window[0].start + z, *small)
    return out
