"""
The kernels for blocks on a GPU: the same results, in operations on whole arrays.

Every function bears the name of a kernel that loops, where its parameters are described. It computes in the library of
its block, so that it takes NumPy's arrays too: that is how it is held against the loops. The block and what is as large
lie in one place; what is small (counts, tables, sums) lies in the memory of this process. Operations follow one another
as in the loops, each rounded by itself, and sums are of integers: results are equal bit for bit.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tomoscale.kernels._arrays import host, namespace

AT_ONCE = 2**21
"""Voxels that are worked on at a time: what is kept beside a block stays below `SCRATCH`."""
SCRATCH = 16 * 8 * AT_ONCE
"""Bytes of sixteen numbers of 64 bits for each of these voxels."""


def _flat(values: Any) -> Iterator[Any]:
    """Yield the voxels of a block some at a time."""
    flat = values.reshape(-1)
    return (flat[a : a + AT_ONCE] for a in range(0, flat.size, AT_ONCE))


def _parts(values: Any) -> Iterator[tuple[tuple[slice, slice], Any, tuple[int, int]]]:
    """Yield the slices of a block some at a time, or where one is too large some of its rows: where, voxels, corner."""
    depth, height, width = values.shape
    rows = max(1, min(height, AT_ONCE // max(1, width)))
    thick = max(1, AT_ONCE // max(1, height * width)) if rows == height else 1
    for z, y in itertools.product(range(0, depth, thick), range(0, height, rows)):
        where = slice(z, z + thick), slice(y, y + rows)
        yield where, values[where], (z, y)


# ---------------------------------------------------------------- histograms


def value_counts(values: Any, counts: NDArray[np.int64]) -> None:
    """Add the number of voxels of every value to counts."""
    xp, lowest = namespace(values), int(np.iinfo(values.dtype).min)
    for some in _flat(values):
        counts += host(xp.bincount(some.astype(np.int64) - lowest, minlength=counts.size))


def bin_counts(values: Any, edges: NDArray, counts: NDArray[np.int64]) -> None:
    """Add the number of voxels of every bin to counts."""
    xp = namespace(values)
    ends = xp.asarray(edges)
    for some in _flat(values):
        bins = xp.searchsorted(ends, some.astype(edges.dtype), side="right") - 1
        counts += host(xp.bincount(xp.minimum(bins, counts.size - 1), minlength=counts.size))


def confusion(true: Any, found: Any, counted: Any, counts: NDArray[np.int64]) -> None:
    """Add the voxels of every pair of classes in every slice to counts."""
    xp, (_, n, _) = namespace(true), counts.shape
    for z in range(len(true)):
        pairs = true[z].astype(np.int64) * n + found[z]
        # Voxels that do not count go behind all pairs.
        pairs = xp.where(counted[min(z, len(counted) - 1)] != 0, pairs, n * n)
        counts[z] += host(xp.bincount(pairs.reshape(-1), minlength=n * n + 1))[: n * n].reshape(n, n)


def classes_of(values: Any, thresholds: NDArray) -> Any:
    """Return for every voxel how many thresholds lie below its value."""
    out = namespace(values).zeros(values.shape, np.uint8)
    for threshold in thresholds.tolist():
        out += values > values.dtype.type(threshold)
    return out


# ---------------------------------------------------------------- gradients along z


def add_gradients(
    slices: Any, first: int, own: tuple[int, int], depth: int, total: NDArray[np.float64]
) -> None:
    """Add the absolute gradients along z of some slices to a map."""
    summed = namespace(slices).asarray(total)
    for z in range(*own):
        summed = summed + _gradient(slices, z, depth, first)
    total[:] = host(summed)


def running_gradients(slices: Any) -> Any:
    """Return the sum of the absolute gradients along z up to every slice."""
    xp, depth = namespace(slices), len(slices)
    out = xp.empty(slices.shape, np.float32)
    total = xp.zeros(slices.shape[1:], np.float64)
    for z in range(depth):
        total += _gradient(slices, z, depth)
        out[z] = total
    return out


def _gradient(slices: Any, z: int, depth: int, first: int = 0) -> Any:
    """Return the absolute gradient of a slice; between two slices it is half of what lies between them."""
    low, high = max(z - 1, 0), min(z + 1, depth - 1)
    apart = slices[high - first].astype(np.float64) - slices[low - first].astype(np.float64)
    return abs(apart * (0.5 if high - low == 2 else 1.0))


# ---------------------------------------------------------------- local contrast


def grey_bins(values: Any, table: NDArray[np.uint8], lowest: int) -> Any:
    """Return the bin of every voxel."""
    return namespace(values).asarray(table)[values.astype(np.int64) - lowest]


def tile_counts(
    bins: Any,
    origin: tuple[int, int, int],
    shape: tuple[int, int, int],
    tile: tuple[int, int, int],
    counts: NDArray[np.int64],
) -> None:
    """Add the bins of a window to the histograms of its tiles, mirrored voxels to those of the last ones."""
    xp = namespace(bins)
    axes = zip(origin, shape, tile, counts.shape, bins.shape, strict=False)
    for ways in itertools.product(*(_ways(*axis) for axis in axes)):
        inside = tuple(stretch for stretch, _ in ways)
        z, y, x = (xp.asarray(own) for _, own in ways)
        _, ny, nx, n_bins = counts.shape
        seen = bins[inside]
        for where, some, _ in _parts(seen):
            own = ((z[where[0], None, None] * ny + y[where[1], None]) * nx + x) * n_bins + some
            counts += host(xp.bincount(own.reshape(-1), minlength=counts.size)).reshape(counts.shape)


def _ways(origin: int, size: int, edge: int, n: int, length: int) -> list[tuple[slice, NDArray[np.int64]]]:
    """Return which stretch of an axis counts in which tiles: all of it, and what is mirrored into the last one."""
    first = max(2 * (size - 1) - (n * edge - 1) - origin, 0)
    stop = min(size - 1 - origin, length)
    ways = [(slice(0, length), (origin + np.arange(length)) // edge)]
    return [*ways, (slice(first, stop), np.full(stop - first, n - 1))] if first < stop else ways


def interpolated(
    bins: Any, origin: tuple[int, int, int], tile: tuple[int, int, int], tables: NDArray[np.uint16]
) -> Any:
    """Return the levels of a window, interpolated between the tables of the tiles around every voxel."""
    xp = namespace(bins)
    axes = [_between(*axis) for axis in zip(origin, tile, bins.shape, strict=True)]
    if tables.ndim == 3:
        tables = tables[None]
        axes[0] = [(np.zeros(len(bins), np.int64), np.ones(len(bins)))]
    n_bins = tables.shape[3]
    flat = xp.asarray(tables.reshape(-1).astype(np.float64))
    out = xp.empty(bins.shape, np.uint16)
    placed = [[(xp.asarray(at), xp.asarray(share)) for at, share in axis] for axis in axes]
    for where, some, _ in _parts(bins):
        total = xp.zeros(some.shape, np.float32)
        for (z, cz), (y, cy), (x, cx) in itertools.product(*placed):
            rows = (z[where[0], None, None] * tables.shape[1] + y[where[1], None]) * tables.shape[2]
            share = cx * cy[where[1], None] * cz[where[0], None, None]
            total += (flat[(rows + x) * n_bins + some] * share).astype(np.float32)
        out[where] = total.astype(np.uint16)
    return out


def _between(origin: int, edge: int, length: int) -> list[tuple[NDArray[np.int64], NDArray[np.float64]]]:
    """Return the two tiles around every place of an axis, and the shares of both."""
    at = origin + np.arange(length) + edge // 2
    share = (at % edge) / edge
    return [(at // edge, 1 - share), (at // edge + 1, share)]


# ---------------------------------------------------------------- clusters


def cluster_sums(
    values: Any, origin: tuple[int, int, int], weights: NDArray, unit: float, limit: float, as_zero: bool
) -> NDArray[np.int64]:
    """Return count and sums of every cluster in a window."""
    xp, sums = namespace(values), np.zeros((len(weights), 5), np.int64)
    for _, some, (z, y) in _parts(values):
        kept, own = _assigned(some, (origin[0] + z, origin[1] + y, origin[2]), weights, limit, as_zero)
        units = kept if values.dtype.kind in "iu" else xp.rint(kept * unit)
        units = units.astype(np.int64)
        for k, line in enumerate(sums):
            is_own = own == k
            line[0] += int(is_own.sum())
            line[1] += int((units * is_own).sum())
            line[2:] += _places(is_own, (origin[0] + z, origin[1] + y, origin[2]))[:, 0]
    return sums


def cluster_labels(
    values: Any, origin: tuple[int, int, int], weights: NDArray, limit: float, as_zero: bool
) -> Any:
    """Return the cluster of every voxel, from 1 on, 0 where it does not count."""
    out = namespace(values).empty(values.shape, np.uint8)
    for where, some, (z, y) in _parts(values):
        _, own = _assigned(some, (origin[0] + z, origin[1] + y, origin[2]), weights, limit, as_zero)
        out[where] = (own + 1).astype(np.uint8)
    return out


def moments(
    values: Any, origin: tuple[int, int, int], unit: float, limit: float, as_zero: bool
) -> NDArray[np.int64]:
    """Return count and sums of all voxels that count in a window."""
    xp, out = namespace(values), np.zeros(11, np.int64)
    for _, some, (z, y) in _parts(values):
        wide = some.astype(np.float64)
        keep = wide >= limit
        units = xp.rint(xp.where(keep, wide, 0.0) * unit).astype(np.int64)
        squares = units * units
        counted = xp.ones(some.shape, bool) if as_zero else keep
        out[:4] += [int(a.sum()) for a in (counted, units, squares >> 32, squares & 0xFFFFFFFF)]
        out[4:10] += _places(counted, (origin[0] + z, origin[1] + y, origin[2])).reshape(-1)
    return out


def _places(counted: Any, origin: tuple[int, int, int]) -> NDArray[np.int64]:
    """Return the sums of places and of their squares along z, y and x, of the voxels that count."""
    lines = counted.sum(axis=2, dtype=np.int64)
    per = [host(lines.sum(axis=1)), host(lines.sum(axis=0)), host(counted.sum(axis=(0, 1), dtype=np.int64))]
    places = [o + np.arange(len(n)) for o, n in zip(origin, per, strict=True)]
    return np.array([[(n * p).sum(), (n * p * p).sum()] for n, p in zip(per, places, strict=True)])


def _assigned(
    values: Any, origin: tuple[int, int, int], weights: NDArray, limit: float, as_zero: bool
) -> tuple[Any, Any]:
    """Return intensities, zero below the limit, and the nearest centre of every voxel, -1 where it does not count."""
    xp = namespace(values)
    wide = values.astype(np.float64)
    low = wide < limit
    kept = xp.where(low, 0.0, wide)
    z, y, x = (o + np.arange(n, dtype=np.float64) for o, n in zip(origin, values.shape, strict=True))
    columns = xp.asarray(x)
    least, own = xp.zeros(values.shape, np.float64), xp.zeros(values.shape, np.int32)
    for k in range(1, len(weights)):
        apart = weights[k] - weights[0]
        row = xp.asarray(((apart[0] + apart[2] * z)[:, None] + apart[3] * y)[:, :, None])
        farther = row + kept * float(apart[1]) + columns * float(apart[4])
        own = xp.where(farther < least, np.int32(k), own)
        least = xp.minimum(farther, least)
    return kept, own if as_zero else xp.where(low, np.int32(-1), own)


def sample(
    values: Any,
    origin: tuple[int, int, int],
    shape: tuple[int, int, int],
    seed: int,
    limit: float,
    as_zero: bool,
    kept: NDArray[np.int64],
) -> NDArray[np.int64]:
    """Keep the voxels that a hash of their position puts first."""
    xp = namespace(values)
    for _, some, (z, y) in _parts(values):
        at = [
            o + np.arange(n)
            for o, n in zip((origin[0] + z, origin[1] + y, origin[2]), some.shape, strict=True)
        ]
        rows = xp.asarray(((at[0][:, None] * shape[1] + at[1]) * shape[2])[:, :, None])
        places = rows + xp.asarray(at[2])
        hashes = _hashes(places, seed)
        wide = some.astype(np.float64)
        wanted = hashes < int(kept[-1, 0])
        if as_zero:
            wide = xp.where(wide < limit, 0.0, wide)
        else:
            wanted &= wide >= limit
        found = [host(a[wanted]) for a in (hashes, places, wide.view(np.int64))]
        both = np.concatenate([kept, np.stack(found, axis=1)])
        kept = both[np.argsort(both[:, 0], kind="stable")[: len(kept)]]
    return kept


def _hashes(places: Any, seed: int) -> Any:
    """Mix positions and a seed (splitmix64); never negative."""
    h = places.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(seed)
    h = (h ^ (h >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    h = (h ^ (h >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return ((h ^ (h >> np.uint64(31))) >> np.uint64(1)).astype(np.int64)
