"""Coarser levels of a block: means of grey values, the most frequent of labels."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from tomoscale.kernels._compile import compiled

Steps = Sequence[tuple[int, int, int]]
"""By how many each axis is coarsened from every level to the next: 1 or 2."""


def coarse_means(values: NDArray, steps: Steps) -> tuple[NDArray, ...]:
    """
    Return levels whose voxels are means of all voxels of the block that lie in them.

    Each level is rounded once, since sums are carried from level to level: of integers exactly, to even where two
    are as near. NaN count as not there; where nothing is there, NaN stay.

    Parameters
    ----------
    values : (z, y, x)
        Integers of at most 32 bits, or floats.
    steps : sequence of (int, int, int)
        By how many each axis is coarsened from every level to the next: 1 or 2.

    Returns
    -------
    tuple of numpy.ndarray
        One array of the same type for every step.
    """
    if values.dtype == np.float16:
        return tuple(level.astype(np.float16) for level in coarse_means(values.astype(np.float32), steps))
    sums, counts = values, None
    levels, lengths = [], [np.ones(n, np.int64) for n in values.shape]
    for step in steps:
        shape = tuple(-(-n // s) for n, s in zip(sums.shape, step, strict=True))
        lengths = [np.add.reduceat(n, np.arange(0, len(n), s)) for n, s in zip(lengths, step, strict=True)]
        level = np.empty(shape, values.dtype)
        if values.dtype.kind == "f":
            total, known = np.zeros(shape, np.float64), np.zeros(shape, np.int64)
            if counts is None:
                _add_known(sums, total, known, *step)
            else:
                _add(sums, total, *step)
                _add(counts, known, *step)
            _divide(total, known, level)
            counts = known
        else:
            total = np.zeros(shape, np.int64)
            _add(sums, total, *step)
            _divide_to_even(total, *lengths, level)
        sums = total
        levels.append(level)
    return tuple(levels)


def coarse_labels(labels: NDArray, steps: Steps) -> tuple[NDArray, ...]:
    """
    Return levels whose voxels are the most frequent of the up to eight voxels of the level before.

    Of labels that are as frequent, any other goes before 0, and the smallest before the others.

    Parameters
    ----------
    labels : (z, y, x)
        Any integers.
    steps : sequence of (int, int, int)
        By how many each axis is coarsened from every level to the next: 1 or 2.

    Returns
    -------
    tuple of numpy.ndarray
        One array of the same type for every step.
    """
    levels = []
    for step in steps:
        shape = tuple(-(-n // s) for n, s in zip(labels.shape, step, strict=True))
        level = np.empty(shape, labels.dtype)
        _most_frequent(labels, level, *step)
        levels.append(level)
        labels = level
    return tuple(levels)


@compiled
def _add(values, total, step_z, step_y, step_x):  # type: ignore[no-untyped-def]
    for z in range(values.shape[0]):
        for y in range(values.shape[1]):
            row, out = values[z, y], total[z // step_z, y // step_y]
            if step_x == 1:
                for x in range(len(row)):
                    out[x] += row[x]
                continue
            for x in range(len(row) // 2):
                out[x] += out.dtype.type(row[2 * x]) + out.dtype.type(row[2 * x + 1])
            if len(row) % 2:
                out[len(row) // 2] += row[len(row) - 1]


@compiled
def _add_known(values, total, known, step_z, step_y, step_x):  # type: ignore[no-untyped-def]
    for z in range(values.shape[0]):
        for y in range(values.shape[1]):
            row, out, n = values[z, y], total[z // step_z, y // step_y], known[z // step_z, y // step_y]
            for first in range(
                step_x
            ):  # not x // step_x: a division for every voxel takes as long as all the rest
                for i in range((len(row) - first + step_x - 1) // step_x):
                    value = np.float64(row[first + i * step_x])
                    is_there = value == value
                    out[i] += value if is_there else 0.0
                    n[i] += is_there


@compiled
def _divide(total, known, level):  # type: ignore[no-untyped-def]
    for z in range(total.shape[0]):
        for y in range(total.shape[1]):
            for x in range(total.shape[2]):
                n = known[z, y, x]
                level[z, y, x] = total[z, y, x] / n if n else np.nan


@compiled
def _divide_to_even(total, n_z, n_y, n_x, level):  # type: ignore[no-untyped-def]
    whole = n_z[0] * n_y[0] * n_x[0]
    shift = 0
    while 1 << shift < whole:
        shift += 1
    is_power = (
        1 << shift == whole
    )  # as of all but the last voxels of an axis: a division takes ten times as long
    for z in range(total.shape[0]):
        for y in range(total.shape[1]):
            for x in range(total.shape[2]):
                n = n_z[z] * n_y[y] * n_x[x]
                if n == whole and is_power:
                    floor = total[z, y, x] >> shift
                else:
                    floor = total[z, y, x] // n
                twice = 2 * (total[z, y, x] - floor * n)
                level[z, y, x] = floor + (twice > n or (twice == n and floor % 2 != 0))


@compiled
def _most_frequent(labels, level, step_z, step_y, step_x):  # type: ignore[no-untyped-def]
    n_z, n_y, n_x = labels.shape
    for z in range(level.shape[0]):
        z1 = min(n_z, (z + 1) * step_z)
        for y in range(level.shape[1]):
            y1 = min(n_y, (y + 1) * step_y)
            for x in range(level.shape[2]):
                around = labels[z * step_z : z1, y * step_y : y1, x * step_x : min(n_x, (x + 1) * step_x)]
                best, most = around[0, 0, 0], 0
                for c in around.flat:
                    count = 0
                    for d in around.flat:
                        count += c == d
                    if count == around.size:
                        best = c
                        break
                    first = best == 0 or (c != 0 and c < best)
                    if count > most or (count == most and first):
                        best, most = c, count
                level[z, y, x] = best
