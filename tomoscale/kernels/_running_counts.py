"""
Moving medians of samples that vary little: each pixel keeps a ladder of cumulative counts around its median.

Samples become 8-bit codes, clip(x - base, 0, 255), where `base` lies 128 below a median that is already
known. The ladder holds, for RUNGS consecutive codes, how many samples of the window lie below each of them.
Pieces of the scan that enter and leave correct the counts; both middle samples are read off. All of it runs in
8-bit lanes: 64 pixels per AVX-512 instruction.

A piece is counted when it enters and remembered until it leaves, which halves the work. A median that leaves its
ladder has all ladders of the tile moved and counted again. (To slide just that one is a quarter of the work, but
needed far more often: 20 against 7 ns per median at every frame.) One that leaves its 256 codes ends the run, and
the caller solves that window by brackets. So the answer is exact or not given.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from tomoscale.kernels._compile import called, part
from tomoscale.kernels._lanes import LANES

RUNGS = 16
"""Fewer are left more often, more are counted for longer."""
MOVES = 2
"""Moves of the ladders in one window before the run is given up."""
MOST = 248
"""Frames of a piece at most: eight-bit counts hold 255."""
SIGN = 128
"""Codes are stored as signed numbers, 128 less: AVX2 compares these in one instruction, unsigned ones in two."""


class Ladder(NamedTuple):
    base: Any  # key of code 0, per lane
    foot: Any  # code of the lowest rung, per lane
    below: Any  # (rung, lane): samples of the window below code foot + rung
    of_piece: (
        Any  # (slot, rung, lane): the same of every piece worth remembering; the last slot is for the others
    )
    under_lower: Any  # rungs not above the lower and the upper middle
    under_upper: Any
    rung: Any  # work space: two rungs at a time, as stored


def new_ladder(key: Any, n_slots: int) -> Ladder:
    """Allocate the ladders of one tile, and room for the counts of so many pieces."""
    return Ladder(
        np.zeros(LANES, key),
        np.zeros(LANES, np.uint8),
        np.zeros((RUNGS, LANES), np.uint16),
        np.empty((n_slots + 1, RUNGS, LANES), np.uint8),
        np.zeros(LANES, np.uint16),
        np.zeros(LANES, np.uint16),
        np.zeros((2, LANES), np.int8),
    )


@part
def rest_on(ladder, median):  # type: ignore[no-untyped-def]
    """Centre the codes on a median that is known, or guessed."""
    key = median.dtype.type
    for j in range(LANES):
        m = median[j]
        ladder.base[j] = m - key(128) if m >= key(128) else key(0)


@part
def find_feet(ladder, codes):  # type: ignore[no-untyped-def]
    """Centre the ladders on the lower median of the codes: by bisection."""
    foot, probe, other = ladder.foot, ladder.rung[0], ladder.rung[1]
    count, below = ladder.under_lower, ladder.of_piece[ladder.of_piece.shape[0] - 1]
    rank = np.uint16((codes.shape[0] - 1) // 2)
    foot[:] = 0
    other[:] = 0
    for bit in range(7, -1, -1):
        for j in range(LANES):
            probe[j] = np.int8(np.uint8(foot[j] + np.uint8(1 << bit)) ^ np.uint8(SIGN))
        count[:] = 0
        for first in range(0, codes.shape[0], MOST):
            _count_below_two(codes[first : first + MOST], probe, other, below[0], below[1])
            for j in range(LANES):
                count[j] += below[0, j]
        for j in range(LANES):
            foot[j] += np.uint8(1 << bit) if count[j] <= rank else np.uint8(0)
    for j in range(LANES):
        foot[j] = np.uint8(min(max(np.int32(foot[j]) - np.int32(RUNGS // 2), 0), 255 - RUNGS))


@part
def encode(bits, flip, base, code):  # type: ignore[no-untyped-def]
    """Write the stored codes of one frame's tile, whose keys are the bits after `flip`; lanes beyond hold zeros."""
    whole = base.dtype.type  # without the casts Numba computes in 64 bits, on an eighth of the lanes
    for j in range(bits.size):
        key = whole(bits[j] ^ flip)
        above = whole(max(key, base[j]) - base[j])
        code[j] = np.int8(np.uint8(min(above, whole(255))) ^ np.uint8(SIGN))
    code[bits.size :] = np.int8(-SIGN)


@part
def count_window(ladder, pieces, w, codes):  # type: ignore[no-untyped-def]
    """Count the ladders of a whole window, whose first frame lies in the first row of `codes`."""
    ladder.below[:] = 0
    _enter(ladder, pieces, pieces.begins[w], pieces.ends[w], codes, pieces.bounds[pieces.begins[w]])


@part
def update(ladder, pieces, w, codes, origin):  # type: ignore[no-untyped-def]
    """Turn the counts of the window before into those of window `w`; frame `origin` lies in the first row."""
    for p in range(pieces.begins[w - 1], pieces.begins[w]):
        counts = ladder.of_piece[pieces.slots[p]]
        if pieces.slots[p] == ladder.of_piece.shape[0] - 1:
            _count(ladder, codes[pieces.bounds[p] - origin : pieces.bounds[p + 1] - origin], counts)
        for r in range(RUNGS):
            for j in range(LANES):
                ladder.below[r, j] -= counts[r, j]
    _enter(ladder, pieces, pieces.ends[w - 1], pieces.ends[w], codes, origin)


@part
def _enter(ladder, pieces, begin, end, codes, origin):  # type: ignore[no-untyped-def]
    """Count pieces and add them, short neighbours together: a window of single frames has 501 of them."""
    bounds, slots, others = pieces.bounds, pieces.slots, ladder.of_piece.shape[0] - 1
    p = begin
    while p < end:
        q = p + 1
        while slots[p] == others and q < end and slots[q] == others and bounds[q + 1] - bounds[p] <= MOST:
            q += 1
        counts = ladder.of_piece[slots[p]]
        _count(ladder, codes[bounds[p] - origin : bounds[q] - origin], counts)
        for r in range(RUNGS):
            for j in range(LANES):
                ladder.below[r, j] += counts[r, j]
        p = q


@part
def _count(ladder, rows, counts):  # type: ignore[no-untyped-def]
    """Count the codes below every rung."""
    first, second = ladder.rung[0], ladder.rung[1]
    for r in range(0, RUNGS, 2):
        for j in range(LANES):
            code = np.uint8(ladder.foot[j] + np.uint8(r)) ^ np.uint8(SIGN)
            first[j] = np.int8(code)
            second[j] = np.int8(code + np.uint8(1))
        _count_below_two(rows, first, second, counts[r], counts[r + 1])


@called
def _count_below_two(rows, first, second, below_first, below_second):  # type: ignore[no-untyped-def]
    """Count the rows below two thresholds at a time: that loads each row half as often."""
    below_first[:] = 0
    below_second[:] = 0
    n = rows.shape[0]
    k = 0
    # Eight rows for one visit of the counts: one row at a time mostly loads and stores those (3x slower).
    while k + 8 <= n:
        r0, r1, r2, r3 = rows[k], rows[k + 1], rows[k + 2], rows[k + 3]
        r4, r5, r6, r7 = rows[k + 4], rows[k + 5], rows[k + 6], rows[k + 7]
        for j in range(LANES):
            a, b, c, d, e, f, g, h = r0[j], r1[j], r2[j], r3[j], r4[j], r5[j], r6[j], r7[j]
            t = first[j]
            below_first[j] += (a < t) + (b < t) + (c < t) + (d < t) + (e < t) + (f < t) + (g < t) + (h < t)
            t = second[j]
            below_second[j] += (a < t) + (b < t) + (c < t) + (d < t) + (e < t) + (f < t) + (g < t) + (h < t)
        k += 8
    while k < n:
        row = rows[k]
        for j in range(LANES):
            below_first[j] += row[j] < first[j]
            below_second[j] += row[j] < second[j]
        k += 1


@part
def read_middles(ladder, pieces, w, codes, lower, upper):  # type: ignore[no-untyped-def]
    """Write the two middle keys of window `w`; False if a pixel has left its codes."""
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
        count_window(ladder, pieces, w, codes)
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
