"""Exact histograms and percentiles of volumes, out of core: the same whatever the chunks."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import numpy as np

from tomoscale import kernels, passes
from tomoscale.errors import TomoscaleError
from tomoscale.readings import Series

COUNTED = ("uint8", "int8", "uint16", "int16")


class Histogram(NamedTuple):
    """
    A histogram of a whole volume.

    Parameters
    ----------
    counts : (bin,) int64
        Lazy; of integers for every value of the type from the lowest on, else of bins of equal width.
    extremes : (2,) float64
        Lazy: lowest and highest value.
    dtype : numpy.dtype
        Of the values.
    """

    counts: Any
    extremes: Any
    dtype: np.dtype


def is_counted(dtype: np.dtype) -> bool:
    """Tell whether a histogram has a bin for every value of a type."""
    return dtype.name in COUNTED


def of(who: str, volume: Any, bins: int = 256) -> Histogram:
    """
    Return the histogram of a volume.

    Parameters
    ----------
    who : str
        The operation, for errors.
    volume : Volume
        Integers of 8 or 16 bits: one pass. Floating-point numbers: one for the extremes, one to count.
    bins : int
        Number of bins between the extremes, of floating-point numbers.

    Returns
    -------
    Histogram
        Lazy small arrays.

    Raises
    ------
    TomoscaleError
        Another type; when it runs, values that are NaN or infinite.
    """
    if is_counted(volume.dtype):
        counts = passes.fold(
            volume, count_values, np.zeros(256**volume.dtype.itemsize, np.int64), scratch=4 * 2**20
        )
        ends = functools.partial(_ends, np.iinfo(volume.dtype).min)
        return Histogram(counts, passes.derive(ends, np.zeros(2), (counts,)), volume.dtype)
    if volume.dtype.kind != "f":
        raise TomoscaleError(
            f"{who}: values of type {volume.dtype}; expected integers of 8 or 16 bits, or floats"
        )
    low_high = extremes(who, volume)
    counting = functools.partial(count_bins, bins=bins)
    counts = passes.fold(volume, counting, np.zeros(bins, np.int64), small=(low_high,), scratch=32 * bins)
    return Histogram(counts, low_high, volume.dtype)


def extremes(who: str, volume: Any) -> Any:
    """
    Return the lowest and the highest value of a volume.

    Parameters
    ----------
    who : str
        The operation, for errors.
    volume : Volume
        Integers of up to 32 bits or floating-point numbers.

    Returns
    -------
    dask.array.Array
        (2,) float64, lazy.

    Raises
    ------
    TomoscaleError
        Another type; when it runs, values that are NaN or infinite.
    """
    if volume.dtype.name not in (*COUNTED, "int32", "uint32", "float16", "float32", "float64"):
        raise TomoscaleError(
            f"{who}: values of type {volume.dtype}; expected integers up to 32 bits, or floats"
        )
    return passes.fold(volume, functools.partial(find_extremes, who), np.zeros(2), combine=widest)


def percentiles(who: str, volume: Any, percents: tuple[float, ...]) -> Any:
    """
    Return exact percentiles of a volume, as `numpy.percentile` interpolates them.

    Parameters
    ----------
    who : str
        The operation, for errors.
    volume : Volume
        Integers of 8 or 16 bits: one pass. float32 or float16: two, on halves of an ordered key.
    percents : tuple of float
        From 0 to 100.

    Returns
    -------
    dask.array.Array
        (percent,) float64, lazy.

    Raises
    ------
    TomoscaleError
        Another type; when it runs, values that are NaN or infinite.
    """
    n_voxels = int(np.prod(volume.shape, dtype=np.int64))
    places = np.asarray(percents, np.float64) / 100 * (n_voxels - 1)
    ranks = np.unique(np.concatenate([np.floor(places), np.ceil(places)]).astype(np.int64))
    if is_counted(volume.dtype):
        counts = of(who, volume).counts
        low = int(np.iinfo(volume.dtype).min)
        picked = functools.partial(_interpolated, ranks, places, volume.dtype, low)
        return passes.derive(picked, np.zeros(len(percents)), (counts,))
    if volume.dtype.name not in ("float16", "float32"):
        raise TomoscaleError(
            f"{who}: percentiles of {volume.dtype}; expected integers of 8 or 16 bits, or float32"
        )
    tops = passes.fold(volume, functools.partial(count_tops, who), np.zeros(65536, np.int64))
    chosen = passes.derive(functools.partial(_chosen, ranks), np.zeros((len(ranks), 2), np.int64), (tops,))
    lows = passes.fold(volume, count_lows, np.zeros((len(ranks), 65536), np.int64), small=(chosen,))
    picked = functools.partial(_of_keys, ranks, places, volume.dtype)
    return passes.derive(picked, np.zeros(len(percents)), (chosen, lows))


# ---------------------------------------------------------------- passes


def count_values(series: Series) -> np.ndarray:
    """Count every value of integers."""
    counts = None
    for _, values in series:
        counts = np.zeros(256**values.itemsize, np.int64) if counts is None else counts
        kernels.value_counts(values, counts)
    assert counts is not None
    return counts


def bins_between(low: float, high: float, bins: int, dtype: np.dtype) -> np.ndarray:
    """Return the ends of bins between two values, as `numpy.histogram` chooses them."""
    kind = np.float32 if dtype.name in ("float16", "float32") else np.float64
    if low == high:
        low, high = low - 0.5, high + 0.5
    return np.linspace(kind(low), kind(high), bins + 1, dtype=kind)


def count_bins(series: Series, low_high: np.ndarray, bins: int = 256) -> np.ndarray:
    """Count the values of bins between the extremes."""
    counts = None
    for _, values in series:
        edges = bins_between(low_high[0], low_high[1], bins, values.dtype)
        counts = np.zeros(bins, np.int64) if counts is None else counts
        kernels.bin_counts(values, edges, counts)
    assert counts is not None
    return counts


def find_extremes(who: str, series: Series) -> np.ndarray:
    """Return the lowest and the highest value, all of them finite."""
    found = np.array([np.inf, -np.inf])
    for window, values in series:
        ends = np.array([float(values.min()), float(values.max())])
        if not np.isfinite(ends).all():
            place = ", ".join(f"{w.start}:{w.stop}" for w in window)
            raise TomoscaleError(
                f"{who}: NaN or infinite values in [{place}]; replace them first, or leave them out with --roi"
            )
        found = widest(found, ends)
    return found


def widest(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return the range that holds two ranges."""
    return np.array([min(a[0], b[0]), max(a[1], b[1])])


def keys_of(values: np.ndarray) -> np.ndarray:
    """Return unsigned integers in the order of float32 numbers."""
    xp = kernels.namespace(values)
    bits = xp.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
    # All bits of a negative number are turned, of the others the sign alone.
    return bits ^ ((bits >> np.uint32(31)) * np.uint32(0x7FFFFFFF) | np.uint32(0x80000000))


def floats_of(keys: np.ndarray) -> np.ndarray:
    """Return the float32 numbers of their ordered keys."""
    bits = keys ^ np.where(keys >> 31, np.uint32(0x80000000), np.uint32(0xFFFFFFFF))
    return bits.astype(np.uint32).view(np.float32)


def count_tops(who: str, series: Series) -> np.ndarray:
    """Count the upper halves of the keys."""
    counts = np.zeros(65536, np.int64)
    for window, values in series:
        find_extremes(who, [(window, values)])  # type: ignore[arg-type]
        kernels.value_counts((keys_of(values) >> 16).astype(np.uint16), counts)
    return counts


def count_lows(series: Series, chosen: np.ndarray) -> np.ndarray:
    """Count the lower halves of the keys whose upper half holds a wanted rank."""
    counts = np.zeros((len(chosen), 65536), np.int64)
    for _, values in series:
        keys = keys_of(values)
        tops = keys >> 16
        for line, top in zip(counts, chosen[:, 0].tolist(), strict=True):
            kernels.value_counts((keys[tops == top] & 0xFFFF).astype(np.uint16), line)
    return counts


# ---------------------------------------------------------------- what follows from counts


def _ends(low: int, counts: np.ndarray) -> np.ndarray:
    there = np.flatnonzero(counts)
    return np.array([there[0] + low, there[-1] + low], np.float64)


def _chosen(ranks: np.ndarray, tops: np.ndarray) -> np.ndarray:
    """Return the upper half of the key at every rank, and how many keys lie below it."""
    cumulative = np.cumsum(tops)
    found = np.searchsorted(cumulative, ranks, side="right")
    return np.stack([found, cumulative[found] - tops[found]], axis=1)


def _of_keys(
    ranks: np.ndarray, places: np.ndarray, dtype: np.dtype, chosen: np.ndarray, lows: np.ndarray
) -> np.ndarray:
    low = [
        np.searchsorted(np.cumsum(c), r - below, side="right")
        for c, r, below in zip(lows, ranks, chosen[:, 1], strict=True)
    ]
    keys = (chosen[:, 0].astype(np.uint32) << 16) | np.array(low, np.uint32)
    return _between(ranks, places, floats_of(keys).astype(dtype))


def _interpolated(
    ranks: np.ndarray, places: np.ndarray, dtype: np.dtype, low: int, counts: np.ndarray
) -> np.ndarray:
    values = np.searchsorted(np.cumsum(counts), ranks, side="right") + low
    return _between(ranks, places, values.astype(dtype))


def _between(ranks: np.ndarray, places: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Interpolate between two order statistics by NumPy itself, so that it rounds alike."""
    found = []
    for place in places:
        a, b = (values[np.searchsorted(ranks, f(place))] for f in (np.floor, np.ceil))
        found.append(float(np.quantile(np.array([a, b]), place - np.floor(place))))
    return np.array(found)
