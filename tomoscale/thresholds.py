"""Otsu's thresholds of a histogram, as scikit-image computes them; values of blocks cut and scaled."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from tomoscale import histogram, kernels, passes
from tomoscale.errors import TomoscaleError
from tomoscale.histogram import Histogram


def thresholds_of(who: str, counted: Histogram, classes: int) -> Any:
    """Return Otsu's thresholds of a histogram, lazy."""
    found = functools.partial(otsu_thresholds, who, classes, counted.dtype)
    return passes.derive(found, np.zeros(classes - 1), (counted.counts, counted.extremes))


def otsu_thresholds(
    who: str, classes: int, dtype: np.dtype, counts: np.ndarray, extremes: np.ndarray
) -> np.ndarray:
    """
    Return the thresholds of a histogram, as scikit-image computes them.

    Parameters
    ----------
    who : str
        The operation, for errors.
    classes : int
        2 to 5.
    dtype : numpy.dtype
        Of the values.
    counts : (bin,)
        Of every value of an integer type, or of bins between the extremes.
    extremes : (2,)
        Lowest and highest value.

    Returns
    -------
    (classes - 1,) float64
        In ascending order.

    Raises
    ------
    TomoscaleError
        Fewer occupied bins than classes.
    """
    n_values = np.count_nonzero(counts)
    if n_values < classes:
        what = "one value" if n_values == 1 else f"{n_values} different values"
        raise TomoscaleError(
            f"{who}: the volume has {what} only ({extremes[0]:g} to {extremes[1]:g}), {classes} classes need "
            f"{classes}; give fewer classes, or another volume"
        )
    centres: np.ndarray
    if dtype.kind in "iu":
        there = np.flatnonzero(counts)
        counts = counts[there[0] : there[-1] + 1]
        centres = np.arange(int(extremes[0]), int(extremes[1]) + 1)
    else:
        edges = histogram.bins_between(extremes[0], extremes[1], len(counts), dtype)
        centres = (edges[:-1] + edges[1:]) / 2.0
    if classes == 2:
        return centres[[_split(counts.astype(np.float32), centres)]].astype(np.float64)
    probability = (counts / np.sum(counts)).astype(np.float32)
    if np.count_nonzero(probability) == classes:
        return centres[np.flatnonzero(probability)[:-1]].astype(np.float64)
    return centres[kernels.otsu_indices(probability, classes)].astype(np.float64)


def _split(counts: np.ndarray, centres: np.ndarray) -> int:
    """Return the bin that parts two classes best; sums in float32 as in scikit-image, so that ties fall alike."""
    below, above = np.cumsum(counts), np.cumsum(counts[::-1])[::-1]
    moment = counts * centres
    mean_below = np.cumsum(moment) / below
    mean_above = (np.cumsum(moment[::-1]) / above[::-1])[::-1]
    between = below[:-1] * above[1:] * (mean_below[:-1] - mean_above[1:]) ** 2
    return int(np.argmax(between))


# ---------------------------------------------------------------- blocks


def classify(values: np.ndarray, thresholds: np.ndarray) -> np.ndarray:
    """Return the class of every voxel."""
    if values.dtype == np.float16:
        values = values.astype(np.float32)
    return kernels.classes_of(values, thresholds.astype(values.dtype))


def scaled(values: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """Return values from 0 to 1, computed in float64 and rounded once."""
    low, high = ends.tolist()
    wide = values.astype(np.float64)
    wide -= low
    wide /= high - low
    return kernels.namespace(values).clip(wide, 0, 1, out=wide).astype(np.float32)


def checked_range(who: str, ends: np.ndarray) -> np.ndarray:
    """Return a range that is not empty."""
    if not ends[0] < ends[1]:
        raise TomoscaleError(f"{who}: all values that count are {ends[0]:g}; there is nothing to tell apart")
    return ends


def decided(who: str, dtype: np.dtype, invert: str, depth: int, levels: np.ndarray) -> np.ndarray:
    """Return the threshold of equalised values, then 1 for every slice whose darker side is foreground."""
    counts = levels[..., 2:].reshape(-1, levels.shape[-1] - 2)
    ends = np.array([0.0, 1.0])
    total = counts.sum(axis=0).astype(np.int64).reshape(-1, 2).sum(axis=1)
    threshold = otsu_thresholds(who, 2, dtype, total, ends)[0]
    own = int(threshold * total.size)
    above = counts[:, 2 * own + 1 :].sum(axis=1)
    if invert == "slice" and len(counts) > 1:
        dark = 2 * above > counts.sum(axis=1)
    else:
        dark = np.full(depth, invert == "yes" or (invert != "no" and 2 * above.sum() > total.sum()))
    return np.concatenate([[threshold], np.broadcast_to(dark, depth)])


def masked(values: np.ndarray, z: int, decision: np.ndarray) -> np.ndarray:
    """Return the foreground of an equalised slice."""
    return (values > values.dtype.type(decision[0])) ^ bool(decision[1 + z])
