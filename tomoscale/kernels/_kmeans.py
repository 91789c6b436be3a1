"""
Clusters of intensities and coordinates: the coordinates are never stored, and all sums are of integers.

A voxel (v, z, y, x) belongs to the centre c with the smallest |c|^2 - 2 c.f, f being its standardised features. Along a
row only intensity and column change: two additions and two products decide for every centre but the first. Intensities
are summed as integers, floating-point ones in units of a power of two: no sum depends on the order.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from tomoscale.kernels._arrays import on_both, plain
from tomoscale.kernels._compile import compiled, inlined, part

NOWHERE, LAST_CENTRE = np.int32(-1), np.int32(2**31 - 1)
PIECE = 2048
"""Voxels of a row at a time: what is kept of them stays in the nearest cache, and their sums within 32 bits."""
LAST = np.int64(2**63 - 1)


@on_both
def cluster_sums(
    values: NDArray, origin: tuple[int, int, int], weights: NDArray, unit: float, limit: float, as_zero: bool
) -> NDArray[np.int64]:
    """
    Return count and sums of every cluster in a window.

    Parameters
    ----------
    values : (z, y, x)
        Intensities.
    origin : (int, int, int)
        Where the window begins.
    weights : (k, 5)
        Of every centre: constant, and factors of intensity, z, y and x; the smallest sum decides.
    unit : float
        Floating-point intensities are counted in this unit's inverse, as integers of 31 bits; integers as they are.
    limit : float
        Voxels below it do not count,
    as_zero : bool
        or count as zero.

    Returns
    -------
    (k, 5) int64
        Voxels, intensity, z, y, x.
    """
    image, sums = plain(values), np.zeros((len(weights), 5), np.int64)
    is_integer = image.dtype.kind in "iu"
    # Sums of a piece of a row of 8 or 16 bits fit into 32, twice as many lanes as 64.
    counts = np.empty(PIECE, np.int32 if is_integer and image.itemsize <= 2 else np.int64)
    _sums(image, np.array(origin), plain(weights), None if is_integer else unit, limit, as_zero, counts, sums)
    return sums


@on_both
def cluster_labels(
    values: NDArray, origin: tuple[int, int, int], weights: NDArray, limit: float, as_zero: bool
) -> NDArray[np.uint8]:
    """Return the cluster of every voxel, from 1 on, 0 where it does not count; parameters as `cluster_sums`."""
    out = np.empty(values.shape, np.uint8)
    _labels(plain(values), np.array(origin), plain(weights), limit, as_zero, out)
    return out


@on_both
def moments(
    values: NDArray, origin: tuple[int, int, int], unit: float, limit: float, as_zero: bool
) -> NDArray[np.int64]:
    """
    Return count and sums of all voxels that count in a window.

    Returns
    -------
    (11,) int64
        Voxels; sums of intensity, of its square (above and below 2**32), of z, z^2, y, y^2, x, x^2; then 0.
    """
    out = np.zeros(11, np.int64)
    _moments(plain(values), np.array(origin), unit, limit, as_zero, out)
    return out


@on_both
def sample(
    values: NDArray,
    origin: tuple[int, int, int],
    shape: tuple[int, int, int],
    seed: int,
    limit: float,
    as_zero: bool,
    kept: NDArray[np.int64],
) -> NDArray[np.int64]:
    """
    Keep the voxels that a hash of their position puts first: a random sample that depends on no chunks.

    Parameters
    ----------
    values, origin
        As for `cluster_sums`.
    shape : (int, int, int)
        Of the volume.
    seed : int
        Of the hash.
    limit, as_zero
        As for `cluster_sums`.
    kept : (n, 3) int64
        Hash, position and intensity (the bits of float64) of voxels so far, by hash; the largest hash where none.

    Returns
    -------
    (n, 3) int64
        The same with this window.
    """
    found = np.full((2 * len(kept), 3), LAST)
    found[: len(kept)] = kept
    bits = found[:, 2].view(np.float64)
    hashes, places = np.ascontiguousarray(found[:, 0]), np.ascontiguousarray(found[:, 1])
    numbers = np.ascontiguousarray(bits)
    _sample(plain(values), np.array(origin), np.array(shape), seed, limit, as_zero, hashes, places, numbers)
    order = np.argsort(hashes, kind="stable")[: len(kept)]
    return np.stack([hashes[order], places[order], numbers[order].view(np.int64)], axis=1)


@inlined
def _read(row, limit, unit, kept, counts):  # type: ignore[no-untyped-def]
    """Read a row as numbers and as whole units, integers as they are; what lies below the limit becomes zero."""
    if unit is None:
        for x in range(np.int32(row.size)):
            i = counts.dtype.type(row[x])
            i = counts.dtype.type(0) if i < limit else i
            kept[x], counts[x] = i, i
    else:
        for x in range(np.int32(row.size)):
            v = np.float64(row[x])
            v = 0.0 if v < limit else v
            kept[x], counts[x] = v, np.int32(np.rint(v * unit))


@inlined
def _first_three(n, start, kept, first, second, best, own):  # type: ignore[no-untyped-def]
    """Give the voxels of a row to the nearest of three centres."""
    # Three at once, since every visit of `best` and `own` costs as much as a centre. Extremes, since a choice of what
    # is there already becomes a jump: 0.4 -> 0.75 ns per voxel.
    (c, a, t), (f, b, u) = first, second
    for x in range(np.int32(n)):
        v, at = kept[x], np.float64(np.int32(start + x))
        d = c + a * v + t * at
        e = f + b * v + u * at
        least = min(d, 0.0)
        own[x] = max(np.int32(1) if d < 0.0 else np.int32(0), np.int32(2) if e < least else np.int32(0))
        best[x] = min(e, least)


@inlined
def _nearer(n, start, kept, centre, k, best, own):  # type: ignore[no-untyped-def]
    """Give the voxels of a row to centre k where it is nearer than those before."""
    c, a, t = centre
    for x in range(np.int32(n)):
        d = c + a * kept[x] + t * np.float64(np.int32(start + x))
        least = best[x]
        own[x] = max(own[x], k if d < least else np.int32(0))
        best[x] = min(d, least)


@inlined
def _line(weights, k, at):  # type: ignore[no-untyped-def]
    """Return how much farther centre k is than the first: constant, and factors of intensity and column."""
    if k >= len(weights):
        return np.inf, 0.0, 0.0
    c = weights[k, 0] - weights[0, 0]
    for i in range(2):
        c += (weights[k, 2 + i] - weights[0, 2 + i]) * at[i]
    return c, weights[k, 1] - weights[0, 1], weights[k, 4] - weights[0, 4]


@inlined
def _assign(row, at, weights, limit, as_zero, kept, best, own):  # type: ignore[no-untyped-def]
    """Find the nearest centre of every voxel of a row from z, y, x on."""
    # Columns count from the beginning of the volume, so that rounding does not depend on the chunks.
    start = np.int32(at[2])
    _first_three(row.size, start, kept, _line(weights, 1, at), _line(weights, 2, at), best, own)
    for k in range(3, len(weights)):
        _nearer(row.size, start, kept, _line(weights, k, at), np.int32(k), best, own)
    if limit > -np.inf and not as_zero:
        for x in range(np.int32(row.size)):
            own[x] = min(own[x], NOWHERE if row[x] < limit else LAST_CENTRE)


@inlined
def _add_up(n, own, k, counts, at, sums):  # type: ignore[no-untyped-def]
    """Add the voxels of cluster k in a row from z, y, x on to its sums."""
    total = places = np.int32(0)
    s = none = counts.dtype.type(0)
    for x in range(np.int32(n)):
        is_own = own[x] == k
        total = np.int32(total + (np.int32(1) if is_own else np.int32(0)))
        s = counts.dtype.type(s + (counts[x] if is_own else none))
        places = np.int32(places + (np.int32(x) if is_own else np.int32(0)))
    sums[k, 0] += total
    sums[k, 1] += s
    sums[k, 2] += np.int64(total) * at[0]
    sums[k, 3] += np.int64(total) * at[1]
    sums[k, 4] += np.int64(total) * at[2] + places


@compiled
def _sums(values, origin, weights, unit, limit, as_zero, counts, sums):  # type: ignore[no-untyped-def]
    kept, best, own = np.empty(PIECE), np.empty(PIECE), np.empty(PIECE, np.int32)
    depth, height, width = values.shape
    for z in range(depth):
        for y in range(height):
            for x in range(0, width, PIECE):
                n = min(width - x, PIECE)
                at = origin[0] + z, origin[1] + y, origin[2] + x
                row = values[z, y, x : x + n]
                _read(row, limit, unit, kept, counts)
                _assign(row, at, weights, limit, as_zero, kept, best, own)
                for k in range(len(weights)):
                    _add_up(n, own, np.int32(k), counts, at, sums)


@compiled
def _labels(values, origin, weights, limit, as_zero, out):  # type: ignore[no-untyped-def]
    kept, best, own = np.empty(PIECE), np.empty(PIECE), np.empty(PIECE, np.int32)
    depth, height, width = values.shape
    for z in range(depth):
        for y in range(height):
            for x in range(0, width, PIECE):
                n = min(width - x, PIECE)
                at = origin[0] + z, origin[1] + y, origin[2] + x
                row = values[z, y, x : x + n]
                for i in range(np.int32(n)):
                    v = np.float64(row[i])
                    kept[i] = 0.0 if v < limit else v
                _assign(row, at, weights, limit, as_zero, kept, best, own)
                line = out[z, y, x : x + n]
                for i in range(np.int32(n)):
                    line[i] = np.uint8(own[i] + np.int32(1))


@compiled
def _moments(values, origin, unit, limit, as_zero, out):  # type: ignore[no-untyped-def]
    depth, height, width = values.shape
    for z in range(depth):
        for y in range(height):
            n = s = high = low = sx = sxx = np.int64(0)
            for x in range(width):
                v = np.float64(values[z, y, x])
                keep = v >= limit
                q = np.int64(np.rint(v * unit)) if keep else np.int64(0)
                one = np.int64(1) if (keep or as_zero) else np.int64(0)
                n += one
                s += q
                high += (q * q) >> 32
                low += (q * q) & 0xFFFFFFFF
                at = (origin[2] + x) * one
                sx += at
                sxx += at * at
            at_z, at_y = origin[0] + z, origin[1] + y
            out[0] += n
            out[1] += s
            out[2] += high
            out[3] += low
            out[4] += n * at_z
            out[5] += n * at_z * at_z
            out[6] += n * at_y
            out[7] += n * at_y * at_y
            out[8] += sx
            out[9] += sxx


@part
def _hash(n, seed):  # type: ignore[no-untyped-def]
    """Mix a position and a seed (splitmix64); never negative."""
    h = np.uint64(n) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(seed)
    h = (h ^ (h >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    h = (h ^ (h >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.int64((h ^ (h >> np.uint64(31))) >> np.uint64(1))


@compiled
def _sample(values, origin, shape, seed, limit, as_zero, hashes, places, numbers):  # type: ignore[no-untyped-def]
    most = hashes.size // 2
    used, bound = most, hashes[most - 1]
    for z in range(values.shape[0]):
        for y in range(values.shape[1]):
            first = ((origin[0] + z) * shape[1] + origin[1] + y) * shape[2] + origin[2]
            for x in range(values.shape[2]):
                h = _hash(first + x, seed)
                if h >= bound:
                    continue
                v = np.float64(values[z, y, x])
                if v < limit:
                    if not as_zero:
                        continue
                    v = 0.0
                hashes[used], places[used], numbers[used] = h, first + x, v
                used += 1
                if used == hashes.size:  # keep the better half, and be stricter from now on
                    order = np.argsort(hashes)[:most]
                    hashes[:most], places[:most], numbers[:most] = (
                        hashes[order],
                        places[order],
                        numbers[order],
                    )
                    hashes[most:] = LAST
                    used, bound = most, hashes[most - 1]
