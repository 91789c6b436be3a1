"""
What both moving medians share: pixels in vector lanes, frames below each other in a sliding buffer.

A tile is `LANES` neighbouring pixels of the flattened image. Its samples lie in a buffer `[frame, lane]`, and
every inner loop runs over the lanes, so that the compiler turns it into vector instructions: no transpose, no
gather.
"""

from __future__ import annotations

import numpy as np

from tomoscale.kernels._compile import called, part

LANES = 256
"""Pixels per tile. A window of 501 frames then fits the second-level cache; with 32, stores wait for each other."""


@called
def load_keys(raw, flip, is_float, frame, first, key):  # type: ignore[no-untyped-def]
    """
    Write order-preserving unsigned keys of one frame's tile to `key`; return whether a sample is NaN.

    `raw` are the frames' bits as unsigned integers, `flip` the sign bit of a signed type, 0 of an unsigned
    one. Floats below zero are ordered by falling bits, so theirs are all inverted.
    """
    width = min(LANES, raw.shape[1] - first)
    bits = raw[frame, first : first + width]
    for j in range(width, LANES):
        key[j] = 0
    if not is_float:
        for j in range(width):
            key[j] = bits[j] ^ flip
        return False
    n_nan = np.int32(0)
    for j in range(width):
        b = np.uint32(bits[j])
        key[j] = b ^ (np.uint32(0xFFFFFFFF) if b >= np.uint32(0x80000000) else np.uint32(0x80000000))
        n_nan = np.int32(n_nan + is_nan(b))
    return n_nan > 0


@part
def is_nan(bits):  # type: ignore[no-untyped-def]
    """Tell NaN by the bits of a float32."""
    return (bits & np.uint32(0x7FFFFFFF)) > np.uint32(0x7F800000)


@called
def store_means(lower, upper, n_middle, flip, is_float, bits, out):  # type: ignore[no-untyped-def]
    """Write the mean of one or two middle samples as `numpy.median` does: of integers in float64, else in float32."""
    if not is_float:
        zero = np.float64(flip)
        for j in range(out.size):
            out[j] = np.float32((np.float64(lower[j]) + np.float64(upper[j])) * 0.5 - zero)
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
    """Slide frames [keep, filled) up if frames up to `stop` do not fit; return the frame that now lies in row 0."""
    if stop - origin <= buffer.shape[0]:
        return origin
    for k in range(keep, filled):
        for j in range(LANES):
            buffer[k - keep, j] = buffer[k - origin, j]
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
