"""
Foreground as runs: stretches of voxels above a threshold along the fastest axis, and what they join to.

A run is (line, start, stop): line = frame * rows + row, columns start to stop. Runs are sorted by line and start, and
`pointer[line]` is the first run of a line. A scan of 512^3 voxels with 2,000 blobs is 5e5 runs: after the one pass that
finds them, nothing looks at the other 99 % of the voxels again.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tomoscale.kernels._arrays import plain
from tomoscale.kernels._compile import compiled, inlined
from tomoscale.kernels._levels import OVER, SEED, TOP, Levels
from tomoscale.kernels._prefetch import prefetch_beyond
from tomoscale.kernels._shell import shell_of_runs
from tomoscale.kernels._union import root_of, unite

SEEDED, OPEN = 1, 2
"""Why a component is kept: it holds a seed voxel, it touches an open face."""
ONE, FEW, MANY = np.uint64(1), np.uint64(8), np.uint64(64)
"""Voxels that are looked at together while nothing is above the threshold: 64 far from all runs, 8 near one."""


class Found(NamedTuple):
    """
    The components of a block that may hold a blob.

    Parameters
    ----------
    line, start, stop, component : (run,) int32
        Runs of the kept components within the block, one component after the other; they are numbered from 0 by
        their first voxel.
    values : (voxel,)
        The voxels of these runs, one run after the other.
    flags : (voxel,) uint8
        SEED, TOP and OVER of these voxels.
    seeded : (component,) bool
        Whether a voxel reaches the seed threshold.
    voxels : (component,) int64
        Their sizes.
    shell, shell_component : (shell voxel,) int64, int32
        Voxels on the open faces: index within the block, and component.
    foreground : int
        Voxels above the threshold in all, those of dropped components as well.
    """

    line: NDArray[np.int32]
    start: NDArray[np.int32]
    stop: NDArray[np.int32]
    component: NDArray[np.int32]
    values: NDArray
    flags: NDArray[np.uint8]
    seeded: NDArray[np.bool_]
    voxels: NDArray[np.int64]
    shell: NDArray[np.int64]
    shell_component: NDArray[np.int32]
    foreground: int


def most_runs(shape: tuple[int, ...]) -> int:
    """Return how many runs `find_components` holds: an eighth of a large block's voxels, all that fit a small one."""
    n_lines, columns = int(np.prod(shape[:-1], dtype=np.int64)), shape[-1]
    return min(n_lines * ((columns + 1) // 2), max(1 << 18, n_lines * columns // 8))


def most_voxels(shape: tuple[int, ...]) -> int:
    """Return how many voxels above the threshold it holds: a quarter of a large block's, all of a small one's."""
    n_voxels = int(np.prod(shape, dtype=np.int64))
    return min(n_voxels, max(1 << 20, n_voxels // 4))


def scratch_bytes(shape: tuple[int, ...], itemsize: int) -> int:
    """Bytes that `find_components` holds and returns at most, beyond the frames."""
    n_lines = int(np.prod(shape[:-1], dtype=np.int64)) + 1
    planes = 64 * shape[1] * shape[2]  # thresholds of every pixel, as float64 and in the type of the frames
    return 41 * most_runs(shape) + 4 * n_lines + (2 * itemsize + 14) * most_voxels(shape) + planes


def find_components(frames: NDArray, levels: Levels, open_faces: Any, connectivity: int) -> Found | None:
    """
    Find the connected components above a threshold that hold a seed voxel or touch an open face.

    Parameters
    ----------
    frames : (frame, row, column) array
        One block. NaN is below every threshold.
    levels : Levels
        Voxels of at least c_min are foreground; a component with one of at least the seed threshold is kept.
    open_faces : (3, 2) bool
        Whether the volume goes on beyond the first and the last plane of every axis.
    connectivity : int
        6 or 26 neighbours.

    Returns
    -------
    Found or None
        None if there are more runs, or more voxels above the threshold, than `scratch_bytes` allows for.
    """
    voxels, steps = rows_of(frames)
    n_lines, n_rows = frames.shape[0] * frames.shape[1], frames.shape[1]
    runs = np.empty((2, most_runs(frames.shape)), np.int32)
    bright = np.empty(runs.shape[1], np.uint8)
    values = np.empty(most_voxels(frames.shape), voxels.dtype)
    flags = np.empty(len(values), np.uint8)
    pointer = np.empty(n_lines + 1, np.int32)
    planes = levels.in_type(voxels.dtype, frames.shape[2]).reshape(4, -1)
    n_runs, n_voxels = _find_runs(voxels, steps, frames.shape, planes, runs, bright, values, flags, pointer)
    if n_runs < 0:
        return None
    start, stop = runs[0, :n_runs], runs[1, :n_runs]
    parent = np.arange(n_runs, dtype=np.int32)
    _join_runs(start, stop, pointer, n_rows, int(connectivity == 26), parent)
    faces = np.asarray(open_faces, np.bool_)
    component, state, sizes = _describe(frames.shape, start, stop, bright, pointer, parent, faces)
    kept = state > 0
    number = np.cumsum(kept, dtype=np.int32) - 1
    number[~kept] = -1
    line, start, stop, of, values, flags = _compact(
        start, stop, values, flags, pointer, component, number, int(sizes[kept].sum())
    )
    shell = shell_of_runs(line, start, stop, of, frames.shape, faces)
    seeded = (state[kept] & SEEDED).astype(bool)
    return Found(line, start, stop, of, values, flags, seeded, sizes[kept], *shell, n_voxels)


def rows_of(frames: NDArray) -> tuple[NDArray, tuple[int, int]]:
    """Return the memory of frames in one dimension, and the steps between frames and rows: a window needs no copy."""
    size = frames.dtype.itemsize
    plane, row, voxel = frames.strides
    if voxel != size or min(plane, row) < 0 or plane % size or row % size or not frames.dtype.isnative:
        frames = np.array(frames, frames.dtype.newbyteorder("="), order="C")
        plane, row, voxel = frames.strides
    span = sum((n - 1) * s for n, s in zip(frames.shape, frames.strides, strict=True)) // size + 1
    return plain(np.lib.stride_tricks.as_strided(frames, (span,), (size,))), (plane // size, row // size)


@inlined
def _none_above(voxels, first, low, shade, count):  # type: ignore[no-untyped-def]
    """Tell whether no voxel from the first on is above its threshold."""
    above = np.int32(0)
    for k in range(count):
        above += np.int32(voxels[first + k] > low[shade + k])
    return above == 0


@compiled
def _find_runs(voxels, steps, shape, planes, runs, bright, values, flags, pointer):  # type: ignore[no-untyped-def]
    """
    Fill start and stop (`runs`), flags (`bright`) and the first of each line (`pointer`), and, while they are at hand,
    the values and flags of the voxels above c_min; return the numbers of runs, -1 if there is no room, and of voxels.
    """
    # Places are unsigned, and no line is an array of its own: what may count from the end is not vectorised, and views
    # count their references. With asking for the next page 81 -> 65 ms of 250 in bench_blobs.
    n_frames, n_rows, n_columns = shape
    start, stop, width = runs[0], runs[1], np.uint64(n_columns)
    low, seed, top, over = planes[0], planes[1], planes[2], planes[3]
    n, v, line = 0, 0, 0
    for z in range(n_frames):
        for y in range(n_rows):
            pointer[line] = n
            line += 1
            first = np.uint64(z * steps[0] + y * steps[1])
            shade = np.uint64(y * n_columns if low.size > n_columns else 0)
            x = np.uint64(0)
            while x < width:
                prefetch_beyond(voxels, first + x, MANY)
                last = min(x + MANY, width)
                if last - x == MANY and _none_above(voxels, first + x, low, shade + x, MANY):
                    x = last
                while x < last:
                    if x + FEW <= width and _none_above(voxels, first + x, low, shade + x, FEW):
                        x += FEW
                    elif not voxels[first + x] > low[shade + x]:
                        x += ONE
                    else:
                        if n == len(start):
                            return -1, v
                        start[n], together = x, 0
                        while x < width and voxels[first + x] > low[shade + x]:
                            if v == len(values):
                                return -1, v
                            value, p = voxels[first + x], shade + x
                            flag = (
                                SEED * (value > seed[p]) | TOP * (value > top[p]) | OVER * (value > over[p])
                            )
                            values[v], flags[v] = value, flag
                            together |= flag
                            x += ONE
                            v += 1
                        stop[n], bright[n] = x, together
                        n += 1
    pointer[line] = n
    return n, v


@inlined
def join_lines(start, stop, i, i_end, j, j_end, reach, parent):  # type: ignore[no-untyped-def]
    """Join the runs i to i_end of a line and j to j_end of a neighbouring one that touch."""
    while i < i_end and j < j_end:
        if (start[i] < stop[j] + reach) & (start[j] < stop[i] + reach):
            unite(parent, i, j)
        ends_first = np.int64(stop[i] < stop[j])
        i += ends_first
        j += 1 - ends_first


@compiled
def _join_runs(start, stop, pointer, n_rows, reach, parent):  # type: ignore[no-untyped-def]
    for line in range(len(pointer) - 1):
        i, end = pointer[line], pointer[line + 1]
        if i == end:
            continue
        y = line % n_rows
        if y > 0:
            join_lines(start, stop, i, end, pointer[line - 1], i, reach, parent)
        if line >= n_rows:
            for step in range(-reach, reach + 1):
                if 0 <= y + step < n_rows:
                    other = line - n_rows + step
                    join_lines(start, stop, i, end, pointer[other], pointer[other + 1], reach, parent)


@compiled
def _describe(shape, start, stop, bright, pointer, parent, faces):  # type: ignore[no-untyped-def]
    """
    Number the components by their first voxel.

    Returns the component of every run; SEEDED (by the flags of its runs, `bright`) and OPEN, and the voxels of each.
    """
    n_frames, n_rows, n_columns = shape
    component = np.empty(len(parent), np.int32)
    state = np.zeros(len(parent), np.uint8)
    sizes = np.zeros(len(parent), np.int64)
    n = 0
    for line in range(len(pointer) - 1):
        z, y = line // n_rows, line % n_rows
        outer = (
            (z == 0 and faces[0, 0])
            or (z == n_frames - 1 and faces[0, 1])
            or (y == 0 and faces[1, 0])
            or (y == n_rows - 1 and faces[1, 1])
        )
        for i in range(pointer[line], pointer[line + 1]):
            root = root_of(parent, i)
            if root == i:
                component[i] = n
                n += 1
            else:
                component[i] = component[root]
            c = component[i]
            sizes[c] += stop[i] - start[i]
            if outer or (start[i] == 0 and faces[2, 0]) or (stop[i] == n_columns and faces[2, 1]):
                state[c] |= OPEN
            if bright[i] & SEED:
                state[c] |= SEEDED
    return component, state[:n], sizes[:n]


@compiled
def _compact(start, stop, voxels, marks, pointer, component, number, n_voxels):  # type: ignore[no-untyped-def]
    # One component after the other: growth then works in a few kilobytes at a time (bench_blobs: twice as fast).
    n_runs, n_of = np.zeros(len(number) + 1, np.int64), np.zeros(len(number) + 1, np.int64)
    n_kept = 0
    for i in range(len(component)):
        c = number[component[i]]
        if c >= 0:
            n_kept += 1
            n_runs[c + 1] += 1
            n_of[c + 1] += stop[i] - start[i]
    for c in range(len(number)):
        n_runs[c + 1] += n_runs[c]
        n_of[c + 1] += n_of[c]
    lines = np.empty(n_kept, np.int32)
    starts, stops, components = np.empty_like(lines), np.empty_like(lines), np.empty_like(lines)
    values, flags = np.empty(n_voxels, voxels.dtype), np.empty(n_voxels, np.uint8)
    first = 0
    for line in range(len(pointer) - 1):
        for i in range(pointer[line], pointer[line + 1]):
            c, length = number[component[i]], stop[i] - start[i]
            if c >= 0:
                n, v = n_runs[c], n_of[c]
                n_runs[c] += 1
                n_of[c] += length
                lines[n], starts[n], stops[n], components[n] = line, start[i], stop[i], c
                for k in range(length):
                    values[v + k], flags[v + k] = voxels[first + k], marks[first + k]
            first += length
    return lines, starts, stops, components, values, flags
