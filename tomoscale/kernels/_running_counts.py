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
ONE, FOUR, EIGHT = np.uint64(LANES), np.uint64(4 * LANES), np.uint64(8 * LANES)
"""Lanes of some rows; unsigned, since an index that may be negative is asked about."""
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
    rung: Any  # work space: the codes of all rungs, as stored


def new_ladder(key: Any, n_slots: int) -> Ladder:
    """Allocate the ladders of one tile, and room for the counts of so many pieces."""
    return Ladder(
        np.zeros(LANES, key),
        np.zeros(LANES, np.uint8),
        np.zeros((RUNGS, LANES), np.uint16),
        np.empty((n_slots + 1, RUNGS, LANES), np.uint8),
        np.zeros(LANES, np.uint16),
        np.zeros(LANES, np.uint16),
        np.zeros((RUNGS, LANES), np.int8),
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
    """Centre the ladders on the lower median of the codes: two bits at a time, by three thresholds."""
    foot, count = ladder.foot, ladder.under_lower
    probes, below = ladder.rung[:4], ladder.of_piece[ladder.of_piece.shape[0] - 1][:4]
    rank = np.uint16((codes.shape[0] - 1) // 2)
    total = ladder.below[:4]
    foot[:] = 0
    for bit in range(6, -1, -2):
        for i in range(4):  # the fourth is the first of the next higher bits, and not asked for
            for j in range(LANES):
                probes[i, j] = np.int8(np.uint8(foot[j] + np.uint8(i << bit)) ^ np.uint8(SIGN))
        total[:] = 0
        for first in range(0, codes.shape[0], MOST):
            rows = codes[first : first + MOST]
            _count_below(rows.reshape(-1), probes.reshape(-1), below.reshape(-1))
            for i in range(1, 4):
                for j in range(LANES):
                    total[i, j] += below[i, j]
        count[:] = 0
        for i in range(1, 4):
            for j in range(LANES):
                count[j] += total[i, j] <= rank
        for j in range(LANES):
            foot[j] += np.uint8(np.uint8(count[j]) << np.uint8(bit))
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
    for r in range(RUNGS):
        for j in range(LANES):
            ladder.rung[r, j] = np.int8(np.uint8(ladder.foot[j] + np.uint8(r)) ^ np.uint8(SIGN))
    _count_below(rows.reshape(-1), ladder.rung.reshape(-1), counts.reshape(-1))


@called
def _count_below(rows, thresholds, below):  # type: ignore[no-untyped-def]
    """
    Count, lane by lane, the rows below each of some thresholds: four, or a multiple.

    Eight rows are held against four thresholds for one visit of the counts, and against all while they are in the
    cache: 2.5 -> 1.5 µs for 50 rows, 27 -> 6 µs for 248. All arrays are flat, so that the compiler knows where lines
    lie and need not ask whether they overlap.
    """
    n = np.uint64(rows.size)
    for j in range(below.size):
        below[j] = 0
    k = np.uint64(0)
    while k + EIGHT <= n:
        row = rows[k : k + EIGHT]
        i = np.uint64(0)
        while i < np.uint64(thresholds.size):
            limit, count = thresholds[i : i + FOUR], below[i : i + FOUR]
            for j in range(LANES):
                a, b, c, d = row[j], row[j + LANES], row[j + 2 * LANES], row[j + 3 * LANES]
                e, f, g, h = (
                    row[j + 4 * LANES], row[j + 5 * LANES], row[j + 6 * LANES], row[j + 7 * LANES]
                )  # fmt: skip
                t = limit[j]
                count[j] += (a < t) + (b < t) + (c < t) + (d < t) + (e < t) + (f < t) + (g < t) + (h < t)
                t = limit[j + LANES]
                count[j + LANES] += (
                    (a < t) + (b < t) + (c < t) + (d < t) + (e < t) + (f < t) + (g < t) + (h < t)
                )
                t = limit[j + 2 * LANES]
                count[j + 2 * LANES] += (
                    (a < t) + (b < t) + (c < t) + (d < t) + (e < t) + (f < t) + (g < t) + (h < t)
                )
                t = limit[j + 3 * LANES]
                count[j + 3 * LANES] += (
                    (a < t) + (b < t) + (c < t) + (d < t) + (e < t) + (f < t) + (g < t) + (h < t)
                )
            i += FOUR
        k += EIGHT
    while k < n:
        row = rows[k : k + ONE]
        i = np.uint64(0)
        while i < np.uint64(thresholds.size):
            limit, count = thresholds[i : i + ONE], below[i : i + ONE]
            for j in range(LANES):
                count[j] += row[j] < limit[j]
            i += ONE
        k += ONE


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
