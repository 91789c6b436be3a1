"""
What both moving medians share: pixels in vector lanes, frames below each other in a sliding buffer.

A tile is `LANES` neighbouring pixels of the flattened image. Its samples lie in a buffer `[frame, lane]`, and
every inner loop runs over the lanes, so that the compiler turns it into vector instructions: no transpose, no
gather.
"""

from __future__ import annotations

import numpy as np

from tomoscale.kernels._compile import called, part
from tomoscale.kernels._prefetch import prefetch_tile

LANES = 256
"""Pixels per tile. A window of 501 frames then fits the second-level cache; with 32, stores wait for each other."""
SIGN = 128
"""Codes are stored as signed numbers, 128 less: AVX2 compares these in one instruction, unsigned ones in two."""


@called
def load_keys(raw, flip, is_float, begin, end, first, keys):  # type: ignore[no-untyped-def]
    """
    Write order-preserving unsigned keys of a tile of frames [begin, end), a row each; tell whether a sample is NaN.

    `raw` are the frames' bits as unsigned integers, `flip` the sign bit of a signed type, 0 of an unsigned
    one. No row is made a view, here and in `load_codes`: to count the references to 500 of them takes as long as to
    load them.
    """
    width = min(LANES, raw.shape[1] - first)
    column, n_nan = np.uint64(first), np.int64(0)
    for k in range(begin, end):
        prefetch_tile(raw, k, first, width)
        frame, row = np.uint64(k), np.uint64(k - begin)
        for j in range(width, LANES):
            keys[row, np.uint64(j)] = 0
        if is_float:
            nan = np.int32(0)
            for j in range(width):
                b = np.uint32(raw[frame, column + np.uint64(j)])
                keys[row, np.uint64(j)] = key_of_float(b)
                nan = np.int32(nan + is_nan(b))
            n_nan += nan
        else:
            for j in range(width):
                keys[row, np.uint64(j)] = raw[frame, column + np.uint64(j)] ^ flip
    return n_nan > 0


@called
def load_codes(raw, flip, is_float, begin, end, first, base, codes, origin):  # type: ignore[no-untyped-def]
    """
    Write the 8-bit codes of a tile of frames [begin, end), a row each; return whether a sample is NaN.

    Rows are flat, that of frame `origin` comes first. A code is clip(key - base, 0, 255), less `SIGN`; of lanes
    beyond the image it is 0.
    """
    whole = base.dtype.type  # without the casts Numba computes in 64 bits, on an eighth of the lanes
    width = min(LANES, raw.shape[1] - first)
    column, n_nan = np.uint64(first), np.int64(0)
    for k in range(begin, end):
        prefetch_tile(raw, k, first, width)
        frame, row = np.uint64(k), np.uint64((k - origin) * LANES)
        for j in range(width, LANES):
            codes[row + np.uint64(j)] = np.int8(-SIGN)
        if is_float:
            nan = np.int32(0)
            for j in range(width):
                b = np.uint32(raw[frame, column + np.uint64(j)])
                codes[row + np.uint64(j)] = _code(whole(key_of_float(b)), base[j])
                nan = np.int32(nan + is_nan(b))
            n_nan += nan
        else:
            for j in range(width):
                codes[row + np.uint64(j)] = _code(whole(raw[frame, column + np.uint64(j)] ^ flip), base[j])
    return n_nan > 0


@part
def _code(key, base):  # type: ignore[no-untyped-def]
    whole = type(base)
    above = whole(max(key, base) - base)
    return np.int8(np.uint8(min(above, whole(255))) ^ np.uint8(SIGN))


@part
def key_of_float(bits):  # type: ignore[no-untyped-def]
    """Turn the bits of a float32 into a number of the same order: floats below zero are ordered by falling bits."""
    return bits ^ (np.uint32(0xFFFFFFFF) if bits >= np.uint32(0x80000000) else np.uint32(0x80000000))


@part
def is_nan(bits):  # type: ignore[no-untyped-def]
    """Tell NaN by the bits of a float32."""
    return (bits & np.uint32(0x7FFFFFFF)) > np.uint32(0x7F800000)


@called
def store_means(lower, upper, n_middle, flip, is_float, bits, out):  # type: ignore[no-untyped-def]
    """Write the mean of one or two middle samples as `numpy.median` does: of integers in float64, else in float32."""
    if not is_float and lower.itemsize == 2:  # their sum is exact in float32 too
        for j in range(out.size):
            out[j] = (np.float32(lower[j]) + np.float32(upper[j])) * np.float32(0.5) - np.float32(flip)
        return
    if not is_float:
        for j in range(out.size):
            out[j] = np.float32((np.float64(lower[j]) + np.float64(upper[j])) * 0.5 - np.float64(flip))
        return
    out[:] = 0  # a sum that starts with zero is never -0.0
    for m in range(n_middle):
        middle = upper if m else lower
        for j in range(LANES):
            k = np.uint32(middle[j])
            bits[j] = k ^ (np.uint32(0x80000000) if k >= np.uint32(0x80000000) else np.uint32(0xFFFFFFFF))
        value = bits.view(np.float32)
        for j in range(out.size):
            out[j] += value[j]
    if n_middle == 2:
        for j in range(out.size):
            out[j] *= np.float32(0.5)


@part
def make_room(buffer, origin, keep, filled, stop):  # type: ignore[no-untyped-def]
    """
    Slide frames [keep, filled) up if frames up to `stop` do not fit; return the frame that now comes first.

    The buffer is flat, frame after frame.
    """
    if (stop - origin) * LANES <= buffer.size:
        return origin
    for k in range(keep, filled):
        to, begin = np.uint64((k - keep) * LANES), np.uint64((k - origin) * LANES)
        for j in range(LANES):
            buffer[to + np.uint64(j)] = buffer[begin + np.uint64(j)]
    return keep


@called
def count_below(rows, threshold, count):  # type: ignore[no-untyped-def]
    """Set `count` to the number of rows below the threshold, lane by lane; it must be able to hold that number."""
    count[:] = 0
    n = rows.shape[0]
    k = 0
    # Eight rows for one visit of `count`: one row at a time mostly loads and stores the counts (3x slower).
    while k + 8 <= n:
        a, b, c, d = rows[k], rows[k + 1], rows[k + 2], rows[k + 3]
        e, f, g, h = rows[k + 4], rows[k + 5], rows[k + 6], rows[k + 7]
        for j in range(LANES):
            t = threshold[j]
            count[j] += (
                (a[j] < t) + (b[j] < t) + (c[j] < t) + (d[j] < t)
                + (e[j] < t) + (f[j] < t) + (g[j] < t) + (h[j] < t)
            )  # fmt: skip
        k += 8
    while k < n:
        a = rows[k]
        for j in range(LANES):
            count[j] += a[j] < threshold[j]
        k += 1
