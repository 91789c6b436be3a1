"""
Growth of blobs over sparse voxels: seeds, then one flood per seed, from the brightest to the faintest.

A flood spreads by stretches of a run, not by voxels: a stretch looks once into each neighbouring line. Sums are taken
about the maximum, in the order in which the flood reached the stretches, which depends on the voxels alone: so they are
the same bits wherever the blocks were cut.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from tomoscale.kernels._compile import compiled, part

KEPT, FEW_VOXELS, ABOVE_C_MAX, ABSORBED, SMALL, LARGE = range(6)
"""What became of a seed."""
BYTES_PER_VOXEL = 64
"""Bytes that `grow` holds at most for a voxel, beside the voxels."""


class Sparse(NamedTuple):
    """
    Voxels of whole components: runs sorted by line and start, no two of them adjacent.

    Parameters
    ----------
    line : (run,) int64
        frame * rows + row, in the whole scan.
    start, stop : (run,) int32
        Columns.
    values : (voxel,)
        One run after the other.
    """

    line: NDArray[np.int64]
    start: NDArray[np.int32]
    stop: NDArray[np.int32]
    values: NDArray


class Grown(NamedTuple):
    """
    What became of every seed, from the brightest, and who owns the voxels.

    Parameters
    ----------
    fate : (seed,) int8
        KEPT, or why not.
    peak : (seed,) float64
        Maximum.
    index : (seed,) int64
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
    index: NDArray[np.int64]
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
    seed, tau, c_min, c_max : float
        Thresholds; tau is the share of a seed's maximum.
    literal : bool
        Whether a blob is {max(c_min, tau M) <= I <= min(c_max, M)}, or {I >= clip(tau M, c_min, c_max)}.
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

    seed: float
    tau: float
    c_min: float
    c_max: float
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
        One entry per seed, by descending maximum (of equals, the smaller index first).
    """
    line, start, stop, values = sparse
    opening = np.concatenate([[True], line[1:] != line[:-1]]) if len(line) else np.empty(0, bool)
    pointer = np.append(np.flatnonzero(opening), len(line))
    lines = line[pointer[:-1]]
    offset = np.concatenate([[0], np.cumsum(stop - start, dtype=np.int64)])
    near = _neighbours(lines, shape[0], shape[1], how.connectivity == 26, how.wrap)
    stamp = np.zeros(len(values), np.int32)
    queue = np.empty((len(values), 4), np.int32)
    net = (lines, pointer, start, stop, offset, values, near, int(how.connectivity == 26))
    seed_line, seed_column, seed_voxel, peak, count = _seeds(net, how.seed, stamp, queue)
    order = np.lexsort((seed_voxel, -peak))
    peak, count = peak[order], count[order]
    low = np.clip(how.tau * peak, how.c_min, how.c_max)
    high = np.full(len(peak), np.inf)
    if how.literal:
        low, high = np.maximum(how.c_min, how.tau * peak), np.minimum(how.c_max, peak)
    owner = np.full(len(values), -1, np.int32)
    at = seed_line[order], seed_column[order], seed_voxel[order]
    fate, integers, sums = _grow_all(net, *at, peak, count, low, high, how.min_seed_voxels, how.sizes, how.claim,
                                     how.wrap, shape[0], shape[1], stamp, owner, queue)  # fmt: skip
    index = lines[at[0]] * shape[2] + at[1]
    return Grown(fate, peak, index, owner[at[2]], integers, sums, *_owned(line, start, stop, owner))


@compiled
def _neighbours(lines, n_frames, n_rows, diagonal, wrap):  # type: ignore[no-untyped-def]
    """Return the places of the neighbouring lines in a sorted list of lines, -1 for none; the order is fixed."""
    near = np.full((len(lines), 8), -1, np.int32)
    k = 0
    for dz in range(-1, 2):
        for dy in range(-1, 2):
            if (dz == 0 and dy == 0) or (dz and dy and not diagonal):
                continue
            for around in range(2 if wrap and dz and n_frames > 1 else 1):
                jump = dz * n_rows + dy - (dz * n_frames * n_rows if around else 0)
                j = 0
                for i in range(len(lines)):
                    z, y = lines[i] // n_rows, lines[i] % n_rows
                    outside = not 0 <= z + dz < n_frames
                    if outside != (around == 1) or not 0 <= y + dy < n_rows:
                        continue
                    wanted = lines[i] + jump
                    while j < len(lines) and lines[j] < wanted:
                        j += 1
                    if j < len(lines) and lines[j] == wanted:
                        near[i, k] = j
            k += 1
    return near[:, :k].copy()


@part
def _is_in(values, v, low, high, stamp, me, owner, claim):  # type: ignore[no-untyped-def]
    value = values[v]
    return low <= value and value <= high and stamp[v] != me and not (claim and owner[v] >= 0)


@part
def _push(net, run, at, x, low, high, stamp, me, owner, claim, queue, n):  # type: ignore[no-untyped-def]
    """Add the stretch around a voxel: all of its run that is in range."""
    start, stop, offset, values = net[2], net[3], net[4], net[5]
    shift = offset[run] - start[run]
    first = x
    while first > start[run] and _is_in(values, shift + first - 1, low, high, stamp, me, owner, claim):
        first -= 1
    last = x + 1
    while last < stop[run] and _is_in(values, shift + last, low, high, stamp, me, owner, claim):
        last += 1
    for v in range(shift + first, shift + last):
        stamp[v] = me
    queue[n, 0], queue[n, 1], queue[n, 2], queue[n, 3] = at, first, last, run
    return last


@part
def _flood(net, run, at, x, low, high, stamp, me, owner, claim, queue):  # type: ignore[no-untyped-def]
    """Fill the queue with all stretches that connect to a voxel; return their number."""
    pointer, start, stop, offset, values, near, reach = net[1], net[2], net[3], net[4], net[5], net[6], net[7]
    _push(net, run, at, x, low, high, stamp, me, owner, claim, queue, 0)
    n, k = 1, 0
    while k < n:
        here = queue[k, 0]
        a, b = queue[k, 1] - reach, queue[k, 2] + reach
        k += 1
        for side in range(near.shape[1]):
            other = near[here, side]
            if other < 0:
                continue
            r, end = pointer[other], pointer[other + 1]
            if end - r > 8:
                low_run, high_run = r, end
                while low_run < high_run:
                    middle = (low_run + high_run) // 2
                    if stop[middle] <= a:
                        low_run = middle + 1
                    else:
                        high_run = middle
                r = low_run
            while r < end and start[r] < b:
                shift = offset[r] - start[r]
                c = max(a, start[r])
                c_end = min(b, stop[r])
                while c < c_end:
                    if _is_in(values, shift + c, low, high, stamp, me, owner, claim):
                        c = _push(net, r, other, c, low, high, stamp, me, owner, claim, queue, n)
                        n += 1
                    else:
                        c += 1
                r += 1
    return n


@compiled
def _seeds(net, seed, stamp, queue):  # type: ignore[no-untyped-def]
    """Return line, column, voxel, value of the maximum and the size of every component of {I >= seed}."""
    lines, pointer, start, stop, offset, values = net[0], net[1], net[2], net[3], net[4], net[5]
    at_line, at_column, at_voxel = [np.int64(0)], [np.int64(0)], [np.int64(0)]
    peaks, counts = [0.0], [np.int64(0)]
    owner = np.empty(0, np.int32)
    me = 0
    for at in range(len(lines)):
        for run in range(pointer[at], pointer[at + 1]):
            shift = offset[run] - start[run]
            for x in range(start[run], stop[run]):
                if values[shift + x] < seed or stamp[shift + x] != 0:
                    continue
                me -= 1
                n = _flood(net, run, at, x, seed, np.inf, stamp, me, owner, False, queue)
                top, voxel, line, column, count = -np.inf, np.int64(-1), np.int64(0), np.int64(0), np.int64(0)
                for k in range(n):
                    from_start = offset[queue[k, 3]] - start[queue[k, 3]]
                    count += queue[k, 2] - queue[k, 1]
                    for c in range(queue[k, 1], queue[k, 2]):
                        v, value = from_start + c, np.float64(values[from_start + c])
                        if value > top or (value == top and v < voxel):
                            top, voxel, line, column = value, v, np.int64(queue[k, 0]), np.int64(c)
                at_line.append(line)
                at_column.append(column)
                at_voxel.append(voxel)
                peaks.append(top)
                counts.append(count)
    return (
        np.array(at_line)[1:],
        np.array(at_column)[1:],
        np.array(at_voxel)[1:],
        np.array(peaks)[1:],
        np.array(counts)[1:],
    )


@compiled
def _grow_all(  # type: ignore[no-untyped-def]
    net, at_line, at_column, at_voxel, peak, seed_voxels, low, high, min_seed_voxels, sizes, claim, wrap,
    n_frames, n_rows, stamp, owner, queue,
):  # fmt: skip
    lines, pointer, start, stop, offset, values = net[0], net[1], net[2], net[3], net[4], net[5]
    n_seeds = len(peak)
    fate = np.zeros(n_seeds, np.int8)
    integers = np.zeros((n_seeds, 8), np.int64)
    sums = np.zeros((n_seeds, 10), np.float64)
    seen = np.zeros(n_frames, np.int32)
    for b in range(n_seeds):
        integers[b, 0] = seed_voxels[b]
        z0, y0, x0 = lines[at_line[b]] // n_rows, lines[at_line[b]] % n_rows, at_column[b]
        integers[b, 2], integers[b, 3] = z0, z0 + 1
        integers[b, 4], integers[b, 5] = y0, y0 + 1
        integers[b, 6], integers[b, 7] = x0, x0 + 1
        if seed_voxels[b] < min_seed_voxels:
            fate[b] = FEW_VOXELS
            continue
        if peak[b] > high[b]:
            fate[b] = ABOVE_C_MAX
            continue
        if claim and owner[at_voxel[b]] >= 0:
            fate[b] = ABSORBED
            continue
        run = pointer[at_line[b]]
        while stop[run] <= x0:
            run += 1
        me = np.int32(b + 1)
        n = _flood(net, run, at_line[b], x0, low[b], high[b], stamp, me, owner, claim, queue)
        box = integers[b]
        first = _box_of(lines, queue, n, n_rows, n_frames, wrap, seen, me, box)
        _sum_up(net, queue, n, n_rows, n_frames, first, z0, y0, x0, box, sums[b])
        for axis in range(3):
            edge = box[3 + 2 * axis] - box[2 + 2 * axis]
            if edge < sizes[0, axis]:
                fate[b] = SMALL
                break
            if edge > sizes[1, axis]:
                fate[b] = LARGE
        if fate[b] == KEPT:
            for k in range(n):
                shift = offset[queue[k, 3]] - start[queue[k, 3]]
                for v in range(shift + queue[k, 1], shift + queue[k, 2]):
                    if owner[v] < 0:
                        owner[v] = b
    return fate, integers, sums


@part
def _box_of(lines, queue, n, n_rows, n_frames, wrap, seen, me, box):  # type: ignore[no-untyped-def]
    """Fill in the box; return the first frame. A blob that wraps around ends beyond the last frame."""
    for k in range(n):
        z, y = lines[queue[k, 0]] // n_rows, lines[queue[k, 0]] % n_rows
        seen[z] = me
        box[2], box[3] = min(box[2], z), max(box[3], z + 1)
        box[4], box[5] = min(box[4], y), max(box[5], y + 1)
        box[6], box[7] = min(box[6], queue[k, 1]), max(box[7], queue[k, 2])
    if wrap and box[2] == 0 and box[3] == n_frames:
        gap = 0
        while gap < n_frames and seen[gap] == me:
            gap += 1
        if gap < n_frames:
            first = n_frames
            while seen[first - 1] == me:
                first -= 1
            box[2], box[3] = first, n_frames + gap
    return box[2]


@part
def _sum_up(net, queue, n, n_rows, n_frames, first, z0, y0, x0, box, sums):  # type: ignore[no-untyped-def]
    lines, start, offset, values = net[0], net[2], net[4], net[5]
    if z0 < first:
        z0 += n_frames
    voxels = np.int64(0)
    for k in range(n):
        z, y = lines[queue[k, 0]] // n_rows, lines[queue[k, 0]] % n_rows
        if z < first:
            z += n_frames
        f, r = np.float64(z - z0), np.float64(y - y0)
        shift = offset[queue[k, 3]] - start[queue[k, 3]]
        s = sx = sxx = 0.0
        for x in range(queue[k, 1], queue[k, 2]):
            value, c = np.float64(values[shift + x]), np.float64(x - x0)
            s += value
            sx += value * c
            sxx += value * c * c
        voxels += queue[k, 2] - queue[k, 1]
        sums[0] += s
        sums[1] += s * f
        sums[2] += s * r
        sums[3] += sx
        sums[4] += s * f * f
        sums[5] += s * f * r
        sums[6] += sx * f
        sums[7] += s * r * r
        sums[8] += sx * r
        sums[9] += sxx
    box[1] = voxels


@compiled
def _owned(line, start, stop, owner):  # type: ignore[no-untyped-def]
    """Return the stretches of one owner."""
    count = 0
    v = 0
    for run in range(len(line)):
        before = -1
        for _ in range(start[run], stop[run]):
            count += owner[v] >= 0 and owner[v] != before
            before = owner[v]
            v += 1
    lines = np.empty(count, np.int64)
    starts, stops, of = np.empty(count, np.int32), np.empty(count, np.int32), np.empty(count, np.int32)
    n = -1
    v = 0
    for run in range(len(line)):
        before = -1
        for x in range(start[run], stop[run]):
            if owner[v] >= 0:
                if owner[v] != before:
                    n += 1
                    lines[n], starts[n], of[n] = line[run], x, owner[v]
                stops[n] = x + 1
            before = owner[v]
            v += 1
    return lines, starts, stops, of


@compiled
def paint(labels, line, start, stop, of, number, first_frame, first_row, first_column, n_rows):  # type: ignore[no-untyped-def]
    """Write the labels of stretches into a block of the label volume that starts at a frame, row and column."""
    frames, rows, columns = labels.shape
    for i in range(len(line)):
        z, y = line[i] // n_rows - first_frame, line[i] % n_rows - first_row
        if 0 <= z < frames and 0 <= y < rows:
            for x in range(max(0, start[i] - first_column), min(columns, stop[i] - first_column)):
                labels[z, y, x] = number[of[i]]
