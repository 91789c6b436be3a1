"""How much grey values change along z: absolute gradients, summed in the order of the slices."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from tomoscale.kernels._arrays import on_both, plain
from tomoscale.kernels._compile import compiled, part

MOST_SLICES = 2**14
"""Slices whose steps of 16 bits add up within 32."""


@on_both
def add_gradients(
    slices: NDArray, first: int, own: tuple[int, int], depth: int, total: NDArray[np.float64]
) -> None:
    """
    Add the absolute gradients along z of some slices to a map.

    Parameters
    ----------
    slices : (z, y, x)
        With one slice more on each side, except at the ends of the volume.
    first : int
        Number of the first of them.
    own : (int, int)
        Slices whose gradients are added, half-open.
    depth : int
        Slices of the volume.
    total : (y, x)
        Changed in place.
    """
    image = plain(slices)
    add = _add_integers if image.dtype.kind in "iu" and image.itemsize <= 2 else _add
    add(image, first, own[0], own[1], depth, total)


@on_both
def running_gradients(slices: NDArray) -> NDArray[np.float32]:
    """
    Return the sum of the absolute gradients along z up to every slice.

    Parameters
    ----------
    slices : (z, y, x)
        All slices.

    Returns
    -------
    (z, y, x) float32
        Sums, made in float64.
    """
    out = np.empty(slices.shape, np.float32)
    _run(plain(slices), out)
    return out


@part
def _row(below, above, half, total):  # type: ignore[no-untyped-def]
    """Add one row; `half` is 0.5 between two slices and 1 at the ends, as `numpy.gradient` has it."""
    for x in range(total.size):
        total[x] += abs((np.float64(above[x]) - np.float64(below[x])) * half)


@compiled
def _add(slices, first, start, stop, depth, total):  # type: ignore[no-untyped-def]
    for z in range(start, stop):
        low, high = max(z - 1, 0), min(z + 1, depth - 1)
        half = 0.5 if high - low == 2 else 1.0
        for y in range(total.shape[0]):
            _row(slices[low - first, y], slices[high - first, y], half, total[y])


@part
def _steps(below, above, times, steps):  # type: ignore[no-untyped-def]
    for x in range(steps.size):
        steps[x] += times * abs(np.int32(above[x]) - np.int32(below[x]))


@compiled
def _add_integers(slices, first, start, stop, depth, total):  # type: ignore[no-untyped-def]
    # Halves of whole numbers add up exactly in any order: a row through all slices, in 32 bits, stays in the cache.
    steps = np.empty(total.shape[1], np.int32)
    for y in range(total.shape[0]):
        for begin in range(start, stop, MOST_SLICES):
            steps[:] = 0
            for z in range(begin, min(begin + MOST_SLICES, stop)):
                low, high = max(z - 1, 0), min(z + 1, depth - 1)
                times = np.int32(1 if high - low == 2 else 2)
                _steps(slices[low - first, y], slices[high - first, y], times, steps)
            for x in range(total.shape[1]):
                total[y, x] += 0.5 * steps[x]


@compiled
def _run(slices, out):  # type: ignore[no-untyped-def]
    depth, height, width = slices.shape
    total = np.zeros((height, width))
    for z in range(depth):
        low, high = max(z - 1, 0), min(z + 1, depth - 1)
        half = 0.5 if high - low == 2 else 1.0
        for y in range(height):
            _row(slices[low, y], slices[high, y], half, total[y])
            for x in range(width):
                out[z, y, x] = total[y, x]
