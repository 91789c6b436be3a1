"""
Clusters of intensities and coordinates: the coordinates are never stored, and all sums are of integers.

A voxel (v, z, y, x) belongs to the centre c with the smallest |c|^2 - 2 c.f, f being its standardised features. Along a
row only intensity and column change, so that two additions and a product for every centre decide. Intensities are
summed as integers, floating-point ones in units of a power of two: no sum depends on the order.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from tomoscale.kernels._arrays import plain
from tomoscale.kernels._compile import compiled, part

NOWHERE = -1
LAST = np.int64(2**63 - 1)


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
        Intensities are counted in this unit's inverse: 1 for integers.
    limit : float
        Voxels below it do not count,
    as_zero : bool
        or count as zero.

    Returns
    -------
    (k, 5) int64
        Voxels, intensity, z, y, x.
    """
    sums = np.zeros((len(weights), 5), np.int64)
    _sums(plain(values), np.array(origin), plain(weights), unit, limit, as_zero, sums)
    return sums


def cluster_labels(
    values: NDArray,
    origin: tuple[int, int, int],
    weights: NDArray,
    names: NDArray[np.uint8],
    limit: float,
    as_zero: bool,
) -> NDArray[np.uint8]:
    """Return the name of the cluster of every voxel, 0 where it does not count; parameters as `cluster_sums`."""
    out = np.empty(values.shape, np.uint8)
    _labels(plain(values), np.array(origin), plain(weights), plain(names), limit, as_zero, out)
    return out


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


@part
def _first_two(row, limit, as_zero, b0, a0, t0, b1, a1, t1, value, best, own):  # type: ignore[no-untyped-def]
    """Give the voxels of a row to the nearer of two centres; where one does not count, to none, for good."""
    # Values are read before they are chosen from: then a choice is a blend of lanes, 0.6 -> 0.1 ns per voxel. Two
    # centres at a time, since every visit of `best` and `own` costs as much as a centre.
    for x in range(value.size):
        v = np.float64(row[x])
        is_low = v < limit
        kept = 0.0 if is_low else v
        value[x] = kept
        d = b0 + a0 * kept + t0[x]
        e = b1 + a1 * kept + t1[x]
        is_nearer = e < d
        name = 1 if is_nearer else 0
        is_out = is_low and not as_zero
        best[x] = -np.inf if is_out else (e if is_nearer else d)
        own[x] = NOWHERE if is_out else name


@part
def _nearer(b, a, t, k, value, best, own):  # type: ignore[no-untyped-def]
    """Give the voxels of a row to centre k where it is nearer than those before."""
    for x in range(own.size):
        least, name = best[x], own[x]
        d = b + a * value[x] + t[x]
        is_nearer = d < least
        best[x] = d if is_nearer else least
        own[x] = k if is_nearer else name


@part
def _along(weights, x0, width):  # type: ignore[no-untyped-def]
    """Return what the columns add, for every centre."""
    out = np.empty((weights.shape[0], width))
    for k in range(weights.shape[0]):
        for x in range(width):
            out[k, x] = weights[k, 4] * (x0 + x)
    return out


@part
def _add_up(own, k, counts, x0, sums):  # type: ignore[no-untyped-def]
    n = s = at = np.int64(0)
    for x in range(own.size):
        is_own = own[x] == k
        n += np.int64(1) if is_own else np.int64(0)
        s += counts[x] if is_own else np.int64(0)
        at += np.int64(x) if is_own else np.int64(0)
    sums[0], sums[1], sums[2] = n, s, at + n * x0


@compiled
def _sums(values, origin, weights, unit, limit, as_zero, sums):  # type: ignore[no-untyped-def]
    depth, height, width = values.shape
    n_centres = weights.shape[0]
    along = _along(weights, origin[2], width)
    value, best, own = np.empty(width), np.empty(width), np.empty(width, np.int64)
    counts, constant, row = np.empty(width, np.int64), np.empty(n_centres), np.empty(3, np.int64)
    some_are_out = limit > -np.inf and not as_zero
    for z in range(depth):
        at_z = origin[0] + z
        for y in range(height):
            at_y = origin[1] + y
            for k in range(n_centres):
                constant[k] = weights[k, 0] + weights[k, 2] * at_z + weights[k, 3] * at_y
            _first_two(
                values[z, y], limit, as_zero, constant[0], weights[0, 1], along[0],
                constant[1], weights[1, 1], along[1], value, best, own,
            )  # fmt: skip
            for k in range(2, n_centres):
                _nearer(constant[k], weights[k, 1], along[k], np.int64(k), value, best, own)
            total = np.int64(0)
            for x in range(width):
                counts[x] = np.int64(np.rint(value[x] * unit))
                total += counts[x]
            # Where every voxel counts, the first cluster has what the others have not.
            first = np.int64(0) if some_are_out else np.int64(1)
            n_left, x_left = np.int64(width), np.int64(width) * origin[2] + width * (width - 1) // 2
            for k in range(first, n_centres):
                _add_up(own, k, counts, origin[2], row)
                _add_row(sums[k], row[0], row[1], at_z, at_y, row[2])
                n_left, total, x_left = n_left - row[0], total - row[1], x_left - row[2]
            if not some_are_out:
                _add_row(sums[0], n_left, total, at_z, at_y, x_left)


@part
def _add_row(sums, n, intensity, z, y, x):  # type: ignore[no-untyped-def]
    """Add one row of voxels to the sums of a cluster."""
    sums[0] += n
    sums[1] += intensity
    sums[2] += n * z
    sums[3] += n * y
    sums[4] += x


@compiled
def _labels(values, origin, weights, names, limit, as_zero, out):  # type: ignore[no-untyped-def]
    depth, height, width = values.shape
    n_centres = weights.shape[0]
    along = _along(weights, origin[2], width)
    value, best, own = np.empty(width), np.empty(width), np.empty(width, np.int64)
    constant = np.empty(n_centres)
    for z in range(depth):
        for y in range(height):
            for k in range(n_centres):
                constant[k] = (
                    weights[k, 0] + weights[k, 2] * (origin[0] + z) + weights[k, 3] * (origin[1] + y)
                )
            _first_two(
                values[z, y], limit, as_zero, constant[0], weights[0, 1], along[0],
                constant[1], weights[1, 1], along[1], value, best, own,
            )  # fmt: skip
            for k in range(2, n_centres):
                _nearer(constant[k], weights[k, 1], along[k], np.int64(k), value, best, own)
            for x in range(width):
                out[z, y, x] = names[own[x] + 1]


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
