"""
Growth of blobs over sparse voxels: seeds, then one flood per seed, from the brightest of a component to its faintest.

Sums are taken about the maximum, in the order in which the flood reached the stretches, which depends on the voxels
alone: so they are the same bits wherever the blocks were cut.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from tomoscale.kernels._compile import compiled
from tomoscale.kernels._flood import flood, neighbours, split
from tomoscale.kernels._levels import OVER, TOP
from tomoscale.kernels._paint import owned
from tomoscale.kernels._seeds import seeds
from tomoscale.kernels._sums import box_of, sum_up

KEPT, FEW_VOXELS, ABOVE_C_MAX, ABSORBED, SMALL, LARGE = range(6)
"""What became of a seed."""
BYTES_PER_VOXEL = 64
"""Bytes that `grow` holds at most for a voxel, beside the voxels."""


class Sparse(NamedTuple):
    """
    Voxels of whole components: runs sorted by component, line and start, no two of them adjacent.

    Parameters
    ----------
    component : (run,) int64
        Number of the component.
    line : (run,) int64
        frame * rows + row, in the whole scan.
    start, stop : (run,) int32
        Columns.
    values : (voxel,)
        One run after the other.
    flags : (voxel,) uint8
        Of every voxel: SEED, TOP, OVER.
    """

    component: NDArray[np.int64]
    line: NDArray[np.int64]
    start: NDArray[np.int32]
    stop: NDArray[np.int32]
    values: NDArray
    flags: NDArray[np.uint8]


class Grown(NamedTuple):
    """
    What became of every seed, and who owns the voxels.

    Parameters
    ----------
    fate : (seed,) int8
        KEPT, or why not.
    peak : (seed,) float64
        Maximum.
    place : (seed,) int64
        Linear index of the maximum in the scan.
    owner : (seed,) int32
        Seed that owns the maximum, or -1.
    integers : (seed, 8) int64
        Seed voxels, voxels, and frame, row, column from and to.
    sums : (seed, 10) float64
        Of I, and of I times powers of the way from the maximum: f, r, c, ff, fr, fc, rr, rc, cc.
    line, start, stop, of : (stretch,)
        Voxels that have an owner.
    """

    fate: NDArray[np.int8]
    peak: NDArray[np.float64]
    place: NDArray[np.int64]
    owner: NDArray[np.int32]
    integers: NDArray[np.int64]
    sums: NDArray[np.float64]
    line: NDArray[np.int64]
    start: NDArray[np.int32]
    stop: NDArray[np.int32]
    of: NDArray[np.int32]


class Growth(NamedTuple):
    """
    How blobs grow.

    Parameters
    ----------
    tau : float
        Share of a seed's maximum M.
    literal : bool
        Whether a blob is {max(c_min, tau M) <= I <= min(c_max, M)}, or {I >= clip(tau M, c_min, c_max)}; c_min and
        c_max are known from the flags of the voxels.
    min_seed_voxels : int
        Smaller seeds are none.
    sizes : (2, 3) int64
        Smallest and largest edges of a blob's box.
    connectivity : int
        6 or 26 neighbours.
    claim : bool
        Whether voxels of a brighter blob are gone for the fainter ones.
    wrap : bool
        Whether the last frame meets the first.
    """

    tau: float
    literal: bool
    min_seed_voxels: int
    sizes: NDArray[np.int64]
    connectivity: int
    claim: bool
    wrap: bool


def grow(sparse: Sparse, shape: tuple[int, int, int], how: Growth) -> Grown:
    """
    Find the seeds of some components and grow each into its blob.

    Parameters
    ----------
    sparse : Sparse
        Whole components of {I >= c_min}.
    shape : (int, int, int)
        Frames, rows and columns of the scan.
    how : Growth
        Thresholds and rules.

    Returns
    -------
    Grown
        One entry per seed, component by component, in each by descending maximum (of equals, the smaller index first).
    """
    component, line, start, stop, values, flags = sparse
    values = values.astype(np.float64)  # exact, and compiled once for all types of frames
    opening = np.append(True, (line[1:] != line[:-1]) | (component[1:] != component[:-1]))
    pointer = np.append(np.flatnonzero(opening), len(line))
    line_of = np.cumsum(opening, dtype=np.int32) - np.int32(1)
    frame, row = np.divmod(line[pointer[:-1]], shape[1])
    offset = np.concatenate([[0], np.cumsum(stop - start, dtype=np.int64)])
    near = neighbours(
        component[pointer[:-1]], frame, row, shape[0], shape[1], how.connectivity == 26, how.wrap
    )
    net = (
        (frame, row),
        line_of,
        pointer,
        start,
        stop,
        offset,
        values,
        flags,
        near,
        int(how.connectivity == 26),
    )
    room = int(((stop - start + 1) // 2).sum(dtype=np.int64))
    run, column, voxel, peak, count = seeds(net, room)
    # One component after the other: its voxels stay in the cache.
    order = np.lexsort((voxel, -peak, component[run]))
    run, column, voxel, peak, count = run[order], column[order], voxel[order], peak[order], count[order]
    owner = np.full(len(values), -1, np.int32)
    work = np.zeros((len(line), 3), np.int32), np.empty((room, 4), np.int32), np.empty(room, np.int32)
    fate, integers, sums = _grow_all(
        net, run, column, voxel, peak, count, how.tau, how.literal, how.min_seed_voxels, how.sizes, how.claim,
        how.wrap, shape[0], owner, *work,
    )  # fmt: skip
    index = line[run] * shape[2] + column
    return Grown(fate, peak, index, owner[voxel], integers, sums, *owned(line, start, stop, owner))


@compiled
def _grow_all(  # type: ignore[no-untyped-def]
    net, at_run, at_column, at_voxel, peak, seed_voxels, tau, literal, min_seed_voxels, sizes, claim, wrap,
    n_frames, owner, splits, pool, queue,
):  # fmt: skip
    frame, row = net[0]
    line_of, start, offset, values, flags = net[1], net[3], net[5], net[6], net[7]
    n_seeds = len(peak)
    fate = np.zeros(n_seeds, np.int8)
    integers = np.zeros((n_seeds, 8), np.int64)
    sums = np.zeros((n_seeds, 10), np.float64)
    seen = np.zeros(n_frames, np.int32)
    for b in range(n_seeds):
        run, x0 = at_run[b], at_column[b]
        z0, y0 = frame[line_of[run]], row[line_of[run]]
        integers[b, 0] = seed_voxels[b]
        integers[b, 2], integers[b, 3] = z0, z0 + 1
        integers[b, 4], integers[b, 5] = y0, y0 + 1
        integers[b, 6], integers[b, 7] = x0, x0 + 1
        if seed_voxels[b] < min_seed_voxels:
            fate[b] = FEW_VOXELS
            continue
        if literal and flags[at_voxel[b]] & OVER:
            fate[b] = ABOVE_C_MAX
            continue
        if claim and owner[at_voxel[b]] >= 0:
            fate[b] = ABSORBED
            continue
        # All voxels here are at least c_min: so the lower limit is tau M, or c_max where that is less.
        limits = (
            tau * peak[b],
            0 if literal else TOP,
            peak[b] if literal else np.inf,
            OVER if literal else 0,
        )
        me = np.int32(b + 1)
        n_pool = split(start, offset, values, flags, run, limits, owner, claim, me, splits, pool, 0)
        queue[0] = 0
        while pool[queue[0], 1] <= x0:
            queue[0] += 1
        n, _ = flood(net, limits, owner, claim, me, splits, pool, n_pool, queue)
        box = integers[b]
        first = box_of(net, pool, queue, n, n_frames, wrap, seen, me, box)
        sum_up(net, pool, queue, n, n_frames, first, z0, y0, x0, box, sums[b])
        for axis in range(3):
            edge = box[3 + 2 * axis] - box[2 + 2 * axis]
            if edge < sizes[0, axis]:
                fate[b] = SMALL
                break
            if edge > sizes[1, axis]:
                fate[b] = LARGE
        if fate[b] == KEPT:
            for k in range(n):
                s = queue[k]
                shift = offset[pool[s, 2]] - start[pool[s, 2]]
                for v in range(shift + pool[s, 0], shift + pool[s, 1]):
                    if owner[v] < 0:
                        owner[v] = b
    return fate, integers, sums
