"""How many voxels have which value, and in which class each of them is."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from tomoscale.kernels._arrays import on_both, plain
from tomoscale.kernels._compile import compiled, inlined

MOST_COUNTED = 2**31
"""Values after which counters of 32 bits are emptied."""


@on_both
def value_counts(values: NDArray, counts: NDArray[np.int64]) -> None:
    """
    Add the number of voxels of every value to counts.

    Parameters
    ----------
    values : any shape
        Integers of 8 or 16 bits.
    counts : (256,) or (65536,)
        Counts by value, beginning with the lowest of the type; changed in place.
    """
    flat = plain(values).reshape(-1)
    flat = flat.view(f"u{flat.itemsize}")
    count = _count_bytes if flat.itemsize == 1 else _count_pairs
    # Signed values in the order of their bits begin in the middle.
    shift = counts.size // 2 if values.dtype.kind == "i" else 0
    for begin in range(0, flat.size, MOST_COUNTED):
        part = flat[begin : begin + MOST_COUNTED]
        whole = part.size // 8 * 8
        table = np.bincount(part[whole:], minlength=counts.size).astype(np.uint32)
        count(part[:whole].view(np.uint64), table)
        counts += np.roll(table, shift)


@on_both
def bin_counts(values: NDArray, edges: NDArray, counts: NDArray[np.int64]) -> None:
    """
    Add the number of voxels of every bin to counts, as `numpy.histogram` counts them.

    Parameters
    ----------
    values : any shape
        Numbers within the edges.
    edges : (n + 1,)
        Ends of bins of equal width, in the type in which values are compared; the last bin holds its upper end.
    counts : (n,)
        Changed in place.
    """
    if values.dtype.kind == "f" and values.dtype == edges.dtype:
        _count_bins(plain(values).reshape(-1), plain(edges), counts)
    else:
        _count_bins(plain(values, edges.dtype).reshape(-1), plain(edges), counts)


@on_both
def classes_of(values: NDArray, thresholds: NDArray) -> NDArray[np.uint8]:
    """
    Return for every voxel how many thresholds lie below its value.

    Parameters
    ----------
    values : any shape
        Numbers.
    thresholds : (n,)
        In the type of values, ascending.

    Returns
    -------
    as values, uint8
        Classes.
    """
    out = np.empty(values.shape, np.uint8)
    _classes(plain(values).reshape(-1), plain(thresholds, values.dtype), out.reshape(-1))
    return out


def class_counts(
    values: NDArray, classes: NDArray[np.uint8], low: float, width: float, counts: NDArray[np.int64]
) -> None:
    """
    Add the number of voxels of every class in every bin to counts.

    Parameters
    ----------
    values : any shape
        Numbers; NaN count nowhere.
    classes : as values
        The class of every voxel.
    low, width : float
        Lower edge of the first bin, and width of all.
    counts : (class, bin)
        Changed in place; the outermost bins also hold what lies outside.
    """
    _count_classes(plain(values).reshape(-1), plain(classes).reshape(-1), low, 1 / width, counts)


# Eight bytes are read at a time: one value at a time, reading is half of the work (two noisy phases, 1.2 -> 2.3
# Gvoxel/s). Several tables in turn, so that equal neighbours need not wait for each other, gain nothing on a processor
# that renames memory (AMD's since 2019), and crowd the cache: four of 65,536 counters are a megabyte (1.6 Gvoxel/s).


@compiled
def _count_pairs(words, table):  # type: ignore[no-untyped-def]
    low, one = np.uint64(0xFFFF), np.uint32(1)
    for i in range(words.size):
        four = words[i]
        table[four & low] += one
        table[(four >> np.uint64(16)) & low] += one
        table[(four >> np.uint64(32)) & low] += one
        table[four >> np.uint64(48)] += one


@compiled
def _count_bytes(words, table):  # type: ignore[no-untyped-def]
    low, one = np.uint64(0xFF), np.uint32(1)
    for i in range(words.size):
        eight = words[i]
        for k in range(8):
            table[(eight >> np.uint64(8 * k)) & low] += one


@compiled
def _count_bins(values, edges, counts):  # type: ignore[no-untyped-def]
    n = counts.size
    low = np.float64(edges[0])
    scale = n / (np.float64(edges[n]) - low)
    table = np.zeros((4, n), np.int64)
    for i in range(values.size):
        v = values[i]
        b = min(max(np.int64((np.float64(v) - low) * scale), 0), n - 1)
        # The guess is off by a rounding at most; the edges decide.
        b -= np.int64(v < edges[b])
        b += np.int64((v >= edges[b + 1]) & (b < n - 1))
        table[i & 3, b] += 1
    for b in range(n):
        counts[b] += table[0, b] + table[1, b] + table[2, b] + table[3, b]


@compiled
def _count_classes(values, classes, low, scale, counts):  # type: ignore[no-untyped-def]
    last = counts.shape[1] - 1
    for i in range(values.size):
        place = (np.float64(values[i]) - low) * scale
        if place == place:
            counts[classes[i], np.int64(min(max(place, 0.0), last))] += 1


@inlined
def _above(values, threshold, out):  # type: ignore[no-untyped-def]
    for i in range(values.size):
        out[i] = np.uint8(out[i] + (values[i] > threshold))


@compiled
def _classes(values, thresholds, out):  # type: ignore[no-untyped-def]
    step = 4096  # stays in the L1 cache for all thresholds
    for begin in range(0, values.size, step):
        part, into = values[begin : begin + step], out[begin : begin + step]
        for i in range(into.size):
            into[i] = 0
        for k in range(thresholds.size):
            _above(part, thresholds[k], into)


@on_both
def confusion(
    true: NDArray[np.uint8], found: NDArray[np.uint8], counted: NDArray[np.uint8], counts: NDArray[np.int64]
) -> None:
    """
    Add the voxels of every pair of classes in every slice to counts.

    Parameters
    ----------
    true, found : (z, y, x) uint8
        Classes.
    counted : (z, y, x) or (1, 1, 1) uint8
        Not zero where voxels count.
    counts : (z, true, found)
        Changed in place.
    """
    whole = np.broadcast_to(counted, true.shape)
    _confusion(plain(true), plain(found), plain(whole), counts)


@compiled
def _confusion(true, found, counted, counts):  # type: ignore[no-untyped-def]
    for z in range(true.shape[0]):
        for y in range(true.shape[1]):
            for x in range(true.shape[2]):
                if counted[z, y, x]:
                    counts[z, true[z, y, x], found[z, y, x]] += 1
