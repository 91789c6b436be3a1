"""
Contrast limited adaptive equalisation: tile histograms, tables, and their interpolation.

A slice is a volume of one layer with its own tables. The arithmetic and its order are those of scikit-image, whose
whole-image result these pieces give: coefficients and products in float64, the sum over the neighbouring tiles in
float32, then cut to an integer.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from tomoscale.kernels._arrays import on_both, plain
from tomoscale.kernels._compile import compiled, inlined, part

LEVELS = 2**14


@on_both
def grey_bins(values: NDArray, table: NDArray[np.uint8], lowest: int) -> NDArray[np.uint8]:
    """
    Return the bin of every voxel.

    Parameters
    ----------
    values : any shape
        Integers of 8 or 16 bits.
    table : (n,) uint8
        Bin of every integer from `lowest` on.
    lowest : int
        The integer of the first entry.

    Returns
    -------
    as values, uint8
        Bins.
    """
    out = np.empty(values.shape, np.uint8)
    _bins(plain(values).reshape(-1), plain(table), lowest, out.reshape(-1))
    return out


@on_both
def tile_counts(
    bins: NDArray[np.uint8],
    origin: tuple[int, int, int],
    shape: tuple[int, int, int],
    tile: tuple[int, int, int],
    counts: NDArray[np.int64],
) -> None:
    """
    Add the bins of a window to the histograms of its tiles.

    Parameters
    ----------
    bins : (z, y, x) uint8
        A window.
    origin, shape, tile : (int, int, int)
        Where it begins, the whole, and the edges of a tile. Tiles that reach beyond the end count mirrored voxels.
    counts : (tile, tile, tile, bin)
        Changed in place.
    """
    _count_tiles(plain(bins), np.array(origin), np.array(shape), np.array(tile), counts)


def clipped_tables(counts: NDArray[np.int64], limit: int, n_voxels: int) -> NDArray[np.uint16]:
    """
    Clip histograms, spread what was above the limit over all bins, and return their cumulative tables.

    Parameters
    ----------
    counts : (..., bin)
        Histograms of tiles; left as they are.
    limit : int
        Most voxels of a bin.
    n_voxels : int
        Voxels of a tile.

    Returns
    -------
    as counts, uint16
        Level of every bin.
    """
    clipped = counts.reshape(-1, counts.shape[-1]).astype(np.int64)
    _clip_all(clipped, limit)
    level = np.cumsum(clipped, axis=-1).astype(np.float64)
    level *= (LEVELS - 1) / n_voxels
    np.clip(level, None, LEVELS - 1, out=level)
    return level.astype(np.uint16).reshape(counts.shape)


@on_both
def interpolated(
    bins: NDArray[np.uint8],
    origin: tuple[int, int, int],
    tile: tuple[int, int, int],
    tables: NDArray[np.uint16],
) -> NDArray[np.uint16]:
    """
    Return the levels of a window, interpolated between the tables of the tiles around every voxel.

    Parameters
    ----------
    bins : (z, y, x) uint8
        A window.
    origin, tile : (int, int, int)
        Where it begins, and the edges of a tile.
    tables : (tile, tile, tile, bin) or (tile, tile, bin)
        With the outermost tiles twice at both ends; without the first axis for one slice.

    Returns
    -------
    (z, y, x) uint16
        Levels below 2**14.
    """
    out = np.empty(bins.shape, np.uint16)
    where, edges = np.array(origin), np.array(tile)
    run = _interpolate_slice if tables.ndim == 3 else _interpolate_volume
    run(plain(bins), where, edges, plain(tables, np.float64), out)
    return out


@compiled
def _bins(values, table, lowest, out):  # type: ignore[no-untyped-def]
    for i in range(values.size):
        out[i] = table[np.int64(values[i]) - lowest]


@part
def _count_row(line, x0, size, edge, counts):  # type: ignore[no-untyped-def]
    """Count a row; voxels whose mirror image lies in the last tile count there as well."""
    x, n = 0, counts.shape[0]
    while x < line.size:
        t = (x0 + x) // edge
        stop = min((t + 1) * edge - x0, line.size)
        own = counts[t]
        for i in range(x, stop):
            own[line[i]] += 1
        x = stop
    last = counts[n - 1]
    for i in range(max(2 * (size - 1) - (n * edge - 1) - x0, 0), min(size - 1 - x0, line.size)):
        last[line[i]] += 1


@inlined
def _is_mirrored(at, size, edge, n):  # type: ignore[no-untyped-def]
    """Tell whether the mirror image of a voxel lies in the last tile, beyond the end."""
    return at < size - 1 and 2 * (size - 1) - at < n * edge


@compiled
def _count_tiles(bins, origin, shape, tile, counts):  # type: ignore[no-untyped-def]
    nz, ny = counts.shape[0], counts.shape[1]
    for z in range(bins.shape[0]):
        at_z = origin[0] + z
        for y in range(bins.shape[1]):
            at_y = origin[1] + y
            for twice_z in range(1 + _is_mirrored(at_z, shape[0], tile[0], nz)):
                for twice_y in range(1 + _is_mirrored(at_y, shape[1], tile[1], ny)):
                    tz = nz - 1 if twice_z else at_z // tile[0]
                    ty = ny - 1 if twice_y else at_y // tile[1]
                    _count_row(bins[z, y], origin[2], shape[2], tile[2], counts[tz, ty])


@compiled
def _clip_all(histograms, limit):  # type: ignore[no-untyped-def]
    """Clip and spread as Zuiderveld's algorithm does: evenly, then one by one with a stride."""
    for row in range(histograms.shape[0]):
        h = histograms[row]
        excess = 0
        for i in range(h.size):
            if h[i] > limit:
                excess += h[i] - limit
                h[i] = limit
        share = excess // h.size
        upper = limit - share
        for i in range(h.size):
            if h[i] < upper:
                excess -= share
                h[i] += share
            if upper <= h[i] < limit:  # also those that were just raised
                excess += h[i] - limit
                h[i] = limit
        free = 0
        for i in range(h.size):
            free += h[i] < limit
        while excess > 0 and free > 0:
            before = excess
            for index in range(h.size):
                step = max(1, free // excess)
                for i in range(index, h.size, step):
                    if h[i] < limit:
                        h[i] += 1
                        free -= h[i] == limit
                        excess -= 1
                if excess <= 0 or free == 0:
                    break
            if before == excess:
                break


@compiled
def _interpolate_slice(bins, origin, tile, tables, out):  # type: ignore[no-untyped-def]
    ky, kx = tile[1], tile[2]
    single = np.float32
    along = np.arange(kx) / kx
    beyond = 1 - along
    for z in range(bins.shape[0]):
        for y in range(bins.shape[1]):
            p = origin[1] + y + ky // 2
            ty, cy = p // ky, (p % ky) / ky
            dy = 1 - cy
            x = 0
            while x < bins.shape[2]:
                p = origin[2] + x + kx // 2
                tx, first = p // kx, p % kx
                stop = min(x + kx - first, bins.shape[2])
                a, b = tables[ty, tx], tables[ty, tx + 1]
                c, d = tables[ty + 1, tx], tables[ty + 1, tx + 1]
                for i in range(x, stop):
                    g = bins[z, y, i]
                    cx, dx = along[first + i - x], beyond[first + i - x]
                    total = single(a[g] * (dx * dy))
                    total += single(b[g] * (cx * dy))
                    total += single(c[g] * (dx * cy))
                    total += single(d[g] * (cx * cy))
                    out[z, y, i] = np.uint16(total)
                x = stop


@compiled
def _interpolate_volume(bins, origin, tile, tables, out):  # type: ignore[no-untyped-def]
    kz, ky, kx = tile[0], tile[1], tile[2]
    single = np.float32
    along = np.arange(kx) / kx
    beyond = 1 - along
    for z in range(bins.shape[0]):
        p = origin[0] + z + kz // 2
        tz, cz = p // kz, (p % kz) / kz
        dz = 1 - cz
        for y in range(bins.shape[1]):
            p = origin[1] + y + ky // 2
            ty, cy = p // ky, (p % ky) / ky
            dy = 1 - cy
            x = 0
            while x < bins.shape[2]:
                p = origin[2] + x + kx // 2
                tx, first = p // kx, p % kx
                stop = min(x + kx - first, bins.shape[2])
                a, b = tables[tz, ty, tx], tables[tz, ty, tx + 1]
                c, d = tables[tz, ty + 1, tx], tables[tz, ty + 1, tx + 1]
                e, f = tables[tz + 1, ty, tx], tables[tz + 1, ty, tx + 1]
                h, j = tables[tz + 1, ty + 1, tx], tables[tz + 1, ty + 1, tx + 1]
                for i in range(x, stop):
                    g = bins[z, y, i]
                    cx, dx = along[first + i - x], beyond[first + i - x]
                    total = single(a[g] * (dx * dy * dz))
                    total += single(b[g] * (cx * dy * dz))
                    total += single(c[g] * (dx * cy * dz))
                    total += single(d[g] * (cx * cy * dz))
                    total += single(e[g] * (dx * dy * cz))
                    total += single(f[g] * (cx * dy * cz))
                    total += single(h[g] * (dx * cy * cz))
                    total += single(j[g] * (cx * cy * cz))
                    out[z, y, i] = np.uint16(total)
                x = stop
