"""
Samples from bit planes, placed where they belong.

Blosc's bit shuffle stores the lowest bits of all samples first, eight in a byte, then the next bits. Putting the
samples together again takes its library twice as long as decompressing them; and a chunk that lies across a block
would then still be copied, and wholly decoded for a halo of one row.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from tomoscale.kernels._bit_vectors import TOGETHER, join
from tomoscale.kernels._compile import compiled, inlined

ITEMSIZES = (1, 2, 4)
"""Bytes of a sample; with eight, 64 planes do not fit the registers."""
_UNSIGNED = {n: np.dtype(f"u{n}") for n in ITEMSIZES}


def from_bit_planes(
    planes: NDArray[np.uint8],
    shape: Sequence[int],
    per_block: int,
    window: Sequence[slice],
    out: NDArray,
    corner: Sequence[int],
) -> None:
    """
    Write a window of a chunk that is stored as bit planes into an array.

    Parameters
    ----------
    planes : (at least bytes of the chunk + TOGETHER,) array of uint8
        Block after block, each plane after plane from the lowest bit on, in each the first sample in the lowest bit.
    shape : sequence of int
        Of the chunk, in C order; a multiple of eight samples.
    per_block : int
        Samples in a block, a multiple of eight; the last one may have fewer.
    window : sequence of slice
        Half-open ranges within the chunk.
    out : array
        C-contiguous, samples of one, two or four bytes.
    corner : sequence of int
        Where the first sample of the window goes.

    Raises
    ------
    ValueError
        Something leaves the chunk or `out`, or is not as above.

    References
    ----------
    K. Masui et al., "A compression scheme for radio data in high performance computing", Astronomy and
    Computing 12 (2015), the layout; H. S. Warren, "Hacker's Delight" (2013), 7-3, bits of 8 x 8 transposed.
    """
    size, itemsize = math.prod(shape), out.itemsize
    if itemsize not in ITEMSIZES or not out.flags.c_contiguous:
        raise ValueError(
            f"from_bit_planes: out is {out.dtype}, strides {out.strides}; need 1, 2 or 4 bytes in C order"
        )
    if size % 8 or per_block % 8 or per_block < 8 or len(planes) < size * itemsize + TOGETHER:
        raise ValueError(
            f"from_bit_planes: {len(planes)} bytes, blocks of {per_block}, do not make {tuple(shape)}"
        )
    flat = out.reshape(-1).view(_UNSIGNED[itemsize])
    begin, to, runs = _runs(window, shape, corner, out.shape)
    # All but three axes are gone by now, nearly always.
    for index in itertools.product(*(range(n) for n, _, _ in runs[:-3])):
        k, j = (sum(i * run[axis] for i, run in zip(index, runs, strict=False)) for axis in (1, 2))
        _place(planes, size, per_block, begin + k, flat, to + j, np.array(runs[-3:]))


def _runs(
    window: Sequence[slice], shape: Sequence[int], corner: Sequence[int], whole: Sequence[int]
) -> tuple[int, int, list[tuple[int, int, int]]]:
    """
    Return the first sample in the chunk and in the array; then length, step in the one and in the other of every axis.

    The last axis is that of samples side by side in both. Axes that go on where the one within ends are one; there are
    three at least.

    >>> _runs((slice(0, 4), slice(1, 3), slice(0, 5)), (4, 4, 5), (0, 1, 0), (4, 6, 5))
    (5, 5, [(1, 0, 0), (4, 20, 30), (10, 1, 1)])
    """
    runs = [(1, 1, 1)]
    begin, to, step, step_out = 0, 0, 1, 1
    axes = zip(reversed(window), reversed(shape), reversed(corner), reversed(whole), strict=True)
    for w, size, c, size_out in axes:
        n = w.stop - w.start
        if not (0 <= w.start <= w.stop <= size and 0 <= c <= c + n <= size_out):
            raise ValueError(
                f"from_bit_planes: {window} at {corner} leaves a chunk {shape} or an array {whole}"
            )
        inner, inner_step, inner_step_out = runs[0]
        if step == inner_step * inner and step_out == inner_step_out * inner:
            runs[0] = (n * inner, inner_step, inner_step_out)
        elif n != 1:
            runs.insert(0, (n, step, step_out))
        begin, to = begin + w.start * step, to + c * step_out
        step, step_out = step * size, step_out * size_out
    return begin, to, [(1, 0, 0)] * (3 - len(runs)) + runs


@compiled
def _place(planes, size, per_block, begin, out, to, runs):  # type: ignore[no-untyped-def]
    """Write the samples of all runs, from sample `begin` of the chunk and `to` of the array on."""
    room = np.empty(8 * TOGETHER, out.dtype)
    for a in range(runs[0, 0]):
        for b in range(runs[1, 0]):
            first = begin + a * runs[0, 1] + b * runs[1, 1]
            place = to + a * runs[0, 2] + b * runs[1, 2]
            _place_run(planes, size, per_block, first, first + runs[2, 0], out, place, room)


@inlined
def _place_run(planes, size, per_block, k, end, out, to, room):  # type: ignore[no-untyped-def]
    """Write samples [k, end) of a chunk."""
    while k < end:
        block = k // per_block * per_block
        n = min(per_block, size - block)
        stop, plane = min(end, block + n), n // 8
        while k < stop:
            skipped = (k - block) % 8
            at = block * out.itemsize + (k - block) // 8
            if skipped == 0 and stop - k >= room.size:
                join(planes, at, plane, out, to * out.itemsize)
                count = room.size
            else:
                join(planes, at, plane, room, 0)
                count = min(room.size - skipped, stop - k)
                for i in range(count):
                    out[to + i] = room[skipped + i]
            k += count
            to += count
