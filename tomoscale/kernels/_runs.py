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
from tomoscale.kernels._compile import compiled, part

_AT_ONCE = 64
"""Voxels that are looked at together while nothing is above the threshold: 64 beats 16 and 256 in bench_blobs."""


class Found(NamedTuple):
    """
    The components of a block that may hold a blob.

    Parameters
    ----------
    line, start, stop, component : (run,) int32
        Runs of the kept components within the block; components are numbered from 0 by their first voxel.
    values : (voxel,)
        The voxels of these runs, one run after the other.
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
    seeded: NDArray[np.bool_]
    voxels: NDArray[np.int64]
    shell: NDArray[np.int64]
    shell_component: NDArray[np.int32]
    foreground: int


def most_runs(shape: tuple[int, ...]) -> int:
    """Return how many runs `find_components` holds: an eighth of a large block's voxels, all that fit a small one."""
    n_lines, columns = int(np.prod(shape[:-1], dtype=np.int64)), shape[-1]
    return min(n_lines * ((columns + 1) // 2), max(1 << 18, n_lines * columns // 8))


def scratch_bytes(shape: tuple[int, ...], itemsize: int) -> int:
    """Bytes that `find_components` holds and returns at most, beyond the frames."""
    n_voxels = int(np.prod(shape, dtype=np.int64))
    return 40 * most_runs(shape) + 4 * (n_voxels // shape[-1] + 1) + (itemsize + 12) * (n_voxels // 4)


def find_components(
    frames: NDArray, threshold: float, seed: float, open_faces: Any, connectivity: int
) -> Found | None:
    """
    Find the connected components above a threshold that hold a seed voxel or touch an open face.

    Parameters
    ----------
    frames : (frame, row, column) array
        One block. NaN is below every threshold.
    threshold, seed : float
        Voxels >= threshold are foreground; a component with a voxel >= seed is kept.
    open_faces : (3, 2) bool
        Whether the volume goes on beyond the first and the last plane of every axis.
    connectivity : int
        6 or 26 neighbours.

    Returns
    -------
    Found or None
        None if there are more runs, or more voxels to keep, than `scratch_bytes` allows for.
    """
    frames = plain(frames)
    n_lines, n_rows, n_columns = frames.shape[0] * frames.shape[1], frames.shape[1], frames.shape[2]
    low, high = at_least(threshold, frames.dtype), at_least(seed, frames.dtype)
    if low is None or not frames.size:
        return _empty(frames.dtype)
    room = most_runs(frames.shape)
    start, stop = np.empty(room, np.int32), np.empty(room, np.int32)
    pointer = np.empty(n_lines + 1, np.int32)
    n_runs = _find_runs(frames, low, start, stop, pointer)
    if n_runs < 0:
        return None
    start, stop = start[:n_runs], stop[:n_runs]
    parent = np.arange(n_runs, dtype=np.int32)
    _join_runs(start, stop, pointer, n_rows, int(connectivity == 26), parent)
    faces = np.asarray(open_faces, np.bool_)
    seed_value = np.inf if high is None else float(high)
    component, flags, sizes = _describe(frames, start, stop, pointer, parent, seed_value, faces)
    kept = flags > 0
    n_voxels = int(sizes[kept].sum())
    if n_voxels > max(1 << 20, frames.size // 4):
        return None
    number = np.cumsum(kept, dtype=np.int32) - 1
    number[~kept] = -1
    found = _compact(frames, start, stop, pointer, component, number, n_voxels, faces)
    return Found(*found, (flags[kept] & 1).astype(bool), sizes[kept], *_shell(found, frames.shape, faces),
                 int(sizes.sum()))  # fmt: skip


def at_least(threshold: float, dtype: np.dtype) -> Any:
    """
    Return the smallest value of a type that is not below a threshold, or None if there is none.

    >>> at_least(2.5, np.dtype("u2")), at_least(70000, np.dtype("u2"))
    (np.uint16(3), None)
    """
    if dtype.kind in "iu":
        limits = np.iinfo(dtype)
        if threshold > limits.max:
            return None
        return dtype.type(max(limits.min, int(np.ceil(threshold))))
    value = dtype.type(threshold)
    return value if float(value) >= threshold else np.nextafter(value, dtype.type(np.inf))


def _empty(dtype: np.dtype) -> Found:
    none = np.empty(0, np.int32)
    return Found(none, none, none, none, np.empty(0, dtype), np.empty(0, bool), np.empty(0, np.int64),
                 np.empty(0, np.int64), none, 0)  # fmt: skip


@compiled
def _find_runs(frames, low, start, stop, pointer):  # type: ignore[no-untyped-def]
    n_frames, n_rows, n_columns = frames.shape
    room, n, line = len(start), 0, 0
    for z in range(n_frames):
        for y in range(n_rows):
            pointer[line] = n
            line += 1
            row = frames[z, y]
            x = 0
            while x < n_columns:
                if x + _AT_ONCE <= n_columns:
                    above = np.int32(0)
                    for k in range(_AT_ONCE):
                        above += np.int32(row[x + k] >= low)
                    if above == 0:
                        x += _AT_ONCE
                        continue
                last = min(x + _AT_ONCE, n_columns)
                while x < last:
                    if row[x] >= low:
                        if n == room:
                            return -1
                        start[n] = x
                        while x < n_columns and row[x] >= low:
                            x += 1
                        stop[n] = x
                        n += 1
                    x += 1
    pointer[line] = n
    return n


@part
def _root(parent, i):  # type: ignore[no-untyped-def]
    while parent[i] != i:
        parent[i] = parent[parent[i]]
        i = parent[i]
    return i


@part
def _union(parent, a, b):  # type: ignore[no-untyped-def]
    """Join two sets; the smaller number stays the root, so that a root is its set's first run."""
    a, b = _root(parent, a), _root(parent, b)
    if a < b:
        parent[b] = a
    elif b < a:
        parent[a] = b


@part
def _join_lines(start, stop, i, i_end, j, j_end, reach, parent):  # type: ignore[no-untyped-def]
    while i < i_end and j < j_end:
        if start[i] < stop[j] + reach and start[j] < stop[i] + reach:
            _union(parent, i, j)
        if stop[i] < stop[j]:
            i += 1
        else:
            j += 1


@compiled
def _join_runs(start, stop, pointer, n_rows, reach, parent):  # type: ignore[no-untyped-def]
    for line in range(len(pointer) - 1):
        i, end = pointer[line], pointer[line + 1]
        if i == end:
            continue
        y = line % n_rows
        if y > 0:
            _join_lines(start, stop, i, end, pointer[line - 1], i, reach, parent)
        if line >= n_rows:
            for step in range(-reach, reach + 1):
                if 0 <= y + step < n_rows:
                    other = line - n_rows + step
                    _join_lines(start, stop, i, end, pointer[other], pointer[other + 1], reach, parent)


@compiled
def _describe(frames, start, stop, pointer, parent, seed, faces):  # type: ignore[no-untyped-def]
    """Number the components by their first voxel; flag 1: has a seed voxel, flag 2: touches an open face."""
    n_frames, n_rows, n_columns = frames.shape
    component = np.empty(len(parent), np.int32)
    flags = np.zeros(len(parent), np.uint8)
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
            root = _root(parent, i)
            if root == i:
                component[i] = n
                n += 1
            else:
                component[i] = component[root]
            c = component[i]
            sizes[c] += stop[i] - start[i]
            if outer or (start[i] == 0 and faces[2, 0]) or (stop[i] == n_columns and faces[2, 1]):
                flags[c] |= 2
            if not flags[c] & 1:
                for x in range(start[i], stop[i]):
                    if frames[z, y, x] >= seed:
                        flags[c] |= 1
                        break
    return component, flags[:n], sizes[:n]


@compiled
def _compact(frames, start, stop, pointer, component, number, n_voxels, faces):  # type: ignore[no-untyped-def]
    n_rows = frames.shape[1]
    n_kept = 0
    for i in range(len(component)):
        n_kept += number[component[i]] >= 0
    lines = np.empty(n_kept, np.int32)
    starts, stops, components = np.empty_like(lines), np.empty_like(lines), np.empty_like(lines)
    values = np.empty(n_voxels, frames.dtype)
    n = v = 0
    for line in range(len(pointer) - 1):
        for i in range(pointer[line], pointer[line + 1]):
            c = number[component[i]]
            if c >= 0:
                lines[n], starts[n], stops[n], components[n] = line, start[i], stop[i], c
                n += 1
                row = frames[line // n_rows, line % n_rows]
                for x in range(start[i], stop[i]):
                    values[v] = row[x]
                    v += 1
    return lines, starts, stops, components, values


def _shell(found: Any, shape: tuple[int, ...], faces: NDArray) -> tuple[NDArray, NDArray]:
    lines, starts, stops, components, _ = found
    count = _shell_voxels(lines, starts, stops, components, *shape, faces, np.empty(0, np.int64),
                          np.empty(0, np.int32))  # fmt: skip
    index, of = np.empty(count, np.int64), np.empty(count, np.int32)
    _shell_voxels(lines, starts, stops, components, *shape, faces, index, of)
    return index, of


@compiled
def _shell_voxels(lines, starts, stops, components, n_frames, n_rows, n_columns, faces, index, of):  # type: ignore[no-untyped-def]
    """Count the voxels on open faces; list them where there is room."""
    n = 0
    for i in range(len(lines)):
        z, y = lines[i] // n_rows, lines[i] % n_rows
        outer = (
            (z == 0 and faces[0, 0])
            or (z == n_frames - 1 and faces[0, 1])
            or (y == 0 and faces[1, 0])
            or (y == n_rows - 1 and faces[1, 1])
        )
        for x in range(starts[i], stops[i]):
            if outer or (x == 0 and faces[2, 0]) or (x == n_columns - 1 and faces[2, 1]):
                if n < len(index):
                    index[n] = np.int64(lines[i]) * n_columns + x
                    of[n] = components[i]
                n += 1
    return n


@compiled
def join_voxels(index, component, n_components, shape, connectivity, wrap):  # type: ignore[no-untyped-def]
    """
    Join components by neighbouring voxels, given as sorted linear indices of a volume.

    Returns the smallest component of every component's set.
    """
    n_frames, n_rows, n_columns = shape
    parent = np.arange(n_components)
    for dz in range(2):
        for dy in range(-1 if dz else 0, 2):
            for dx in range(-1 if dz or dy else 0, 2):
                steps = dz + abs(dy) + abs(dx)
                if steps == 0 or (connectivity == 6 and steps > 1):
                    continue
                _join_offset(index, component, n_frames, n_rows, n_columns, dz, dy, dx, False, parent)
                if wrap and dz and n_frames > 1:
                    _join_offset(index, component, n_frames, n_rows, n_columns, dz, dy, dx, True, parent)
    for i in range(n_components):
        parent[i] = _root(parent, i)
    return parent


@part
def _join_offset(index, component, n_frames, n_rows, n_columns, dz, dy, dx, around, parent):  # type: ignore[no-untyped-def]
    """Walk two pointers over the voxels: the neighbours of sorted voxels are sorted as well."""
    plane = n_rows * n_columns
    jump = dz * plane + dy * n_columns + dx - (n_frames * plane if around else 0)
    j = 0
    for i in range(len(index)):
        z, inside = index[i] // plane, index[i] % plane
        y, x = inside // n_columns, inside % n_columns
        if (z + dz >= n_frames) != around or not 0 <= y + dy < n_rows or not 0 <= x + dx < n_columns:
            continue
        wanted = index[i] + jump
        while j < len(index) and index[j] < wanted:
            j += 1
        if j < len(index) and index[j] == wanted:
            _union(parent, component[i], component[j])
