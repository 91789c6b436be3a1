"""
Moving medians of samples that vary little: each pixel keeps a ladder of cumulative counts around its median.

Samples become 8-bit codes, clip(x - base, 0, 255), where `base` lies 128 below a median that is already
known. The ladder holds, for RUNGS consecutive codes, how many samples of the window lie below each of them.
Frames that enter and leave correct the counts; both middle samples are read off. All of it runs in 8-bit
lanes: 64 pixels per AVX-512 instruction.

A median that leaves its ladder has all ladders of the tile moved and counted again. (To slide just that one
is a quarter of the work, but needed far more often: 20 against 7 ns per median at every frame.) One that
leaves its 256 codes ends the run, and the caller solves that window by brackets. So the answer is exact or
not given.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from tomoscale.kernels._compile import part
from tomoscale.kernels._lanes import LANES, count_below

RUNGS = 16
MOVES = 2
"""Moves of the ladders in one window before the run is given up."""


class Ladder(NamedTuple):
    base: Any  # key of code 0, per lane
    foot: Any  # code of the lowest rung, per lane
    below: Any  # (rung, lane): samples of the window below code foot + rung
    under_lower: Any  # rungs not above the lower and the upper middle
    under_upper: Any
    rung: Any  # work space
    partial: Any


@part
def new_ladder(key):  # type: ignore[no-untyped-def]
    return Ladder(
        np.zeros(LANES, key),
        np.zeros(LANES, np.uint8),
        np.zeros((RUNGS, LANES), np.uint16),
        np.zeros(LANES, np.uint16),
        np.zeros(LANES, np.uint16),
        np.zeros(LANES, np.uint8),
        np.zeros(LANES, np.uint8),
    )


@part
def rest_on(ladder, median):  # type: ignore[no-untyped-def]
    """Centre codes and ladders on a median that is known."""
    key = median.dtype.type
    for j in range(LANES):
        m = median[j]
        base = m - key(128) if m >= key(128) else key(0)
        ladder.base[j] = base
        ladder.foot[j] = np.uint8(max(np.int32(m - base) - np.int32(RUNGS // 2), np.int32(0)))


@part
def encode(key, base, code):  # type: ignore[no-untyped-def]
    """Write the 8-bit codes of one frame's tile."""
    whole = key.dtype.type  # without the casts Numba computes in 64 bits, on an eighth of the lanes
    for j in range(LANES):
        above = whole(max(key[j], base[j]) - base[j])
        code[j] = np.uint8(min(above, whole(255)))


@part
def count_window(ladder, codes):  # type: ignore[no-untyped-def]
    """Count the ladders of a whole window."""
    ladder.below[:] = 0
    update(ladder, codes, codes[:0])


@part
def update(ladder, entered, left):  # type: ignore[no-untyped-def]
    """Correct the counts by the frames that entered the window and left it."""
    below, rung, partial = ladder.below, ladder.rung, ladder.partial
    for first in range(0, max(entered.shape[0], left.shape[0]), 248):  # eight-bit counts hold 255
        came, went = entered[first : first + 248], left[first : first + 248]
        for r in range(RUNGS):
            for j in range(LANES):
                rung[j] = ladder.foot[j] + np.uint8(r)
            count_below(came, rung, partial)
            for j in range(LANES):
                below[r, j] += partial[j]
            count_below(went, rung, partial)
            for j in range(LANES):
                below[r, j] -= partial[j]


@part
def read_middles(ladder, codes, lower, upper):  # type: ignore[no-untyped-def]
    """Write the two middle keys; False if a pixel has left its codes."""
    n = codes.shape[0]
    for moves in range(MOVES + 1):
        _climb(ladder, np.uint16((n - 1) // 2), np.uint16(n // 2))
        n_off, n_lost = _astray(ladder)
        if n_lost > 0 or (n_off > 0 and moves == MOVES):
            break
        if n_off == 0:
            _keys(ladder, lower, upper)
            return True
        _move(ladder)
        count_window(ladder, codes)
    return False


@part
def _climb(ladder, rank_lower, rank_upper):  # type: ignore[no-untyped-def]
    """Count the rungs that lie not above the two middles."""
    under_lower, under_upper = ladder.under_lower, ladder.under_upper
    under_lower[:] = np.uint16(0)
    under_upper[:] = np.uint16(0)
    for r in range(RUNGS):
        below = ladder.below[r]
        for j in range(LANES):
            under_lower[j] += below[j] <= rank_lower
            under_upper[j] += below[j] <= rank_upper


@part
def _astray(ladder):  # type: ignore[no-untyped-def]
    """Count the pixels that are off their ladder, and those that are off their codes as well."""
    n_off = np.int32(0)
    n_lost = np.int32(0)
    for j in range(LANES):
        low, high, foot = ladder.under_lower[j], ladder.under_upper[j], ladder.foot[j]
        off = low == 0 or high == RUNGS
        at_end = foot == 0 or foot >= 255 - RUNGS
        # Code 0 also stands for everything below the base, unless no key lies below it.
        unsure = foot == 0 and low == 1 and ladder.base[j] > 0
        n_off += off
        n_lost += (off and at_end) or unsure
    return n_off, n_lost


@part
def _move(ladder):  # type: ignore[no-untyped-def]
    """Move ladders that lost their median by almost their length, and centre the others."""
    for j in range(LANES):
        foot = np.int32(ladder.foot[j])
        low, high = np.int32(ladder.under_lower[j]), np.int32(ladder.under_upper[j])
        centred = foot + low - np.int32(1 + RUNGS // 2)
        to = foot - (RUNGS - 4) if low == 0 else (foot + (RUNGS - 4) if high == RUNGS else centred)
        ladder.foot[j] = np.uint8(min(max(to, 0), 255 - RUNGS))


@part
def _keys(ladder, lower, upper):  # type: ignore[no-untyped-def]
    key = lower.dtype.type
    for j in range(LANES):
        foot = ladder.base[j] + key(ladder.foot[j]) - key(1)
        lower[j] = foot + key(ladder.under_lower[j])
        upper[j] = foot + key(ladder.under_upper[j])
