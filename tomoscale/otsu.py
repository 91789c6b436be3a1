"""Grey values to classes: scaling, local contrast, Otsu's thresholds, a first mask."""

from __future__ import annotations

import functools
from typing import Annotated, Any, NamedTuple

import numpy as np
from annotated_types import Ge, Le

from tomoscale import blocks, cubes, histogram, kernels, passes
from tomoscale.blocks import Index
from tomoscale.cubes import Cubes, checked_volume
from tomoscale.errors import TomoscaleError
from tomoscale.histogram import Histogram
from tomoscale.operation import operation
from tomoscale.parameters import Count, Sigma, Volume
from tomoscale.smooth import smoothed

Classes = Annotated[int, Ge(2), Le(5)]
"""How many classes a volume is cut into."""

Percent = Annotated[float, Ge(0), Le(100)]


class Classified(NamedTuple):
    """The class of every voxel, and the thresholds between classes."""

    labels: Any
    thresholds: Any


class Scaled(NamedTuple):
    """A volume of values from 0 to 1."""

    volume: Any


@operation("otsu")
def segment(image: Volume, *, classes: Classes = 2, sigma: Sigma = (0.0,), bins: Count = 256) -> Classified:
    """
    Cut a volume into classes by Otsu's thresholds of its whole histogram.

    Parameters
    ----------
    image : (z, y, x)
        Grey values: integers of 8 or 16 bits, or floating-point numbers.
    classes
        2 to 5.
    sigma
        Standard deviation in voxels of a Gaussian before the histogram, along z, y and x or one for all; 0 for
        none.
    bins
        Bins of the histogram of floating-point numbers; integers have one for every value.

    Returns
    -------
    Classified
        Lazy arrays: `labels` (z, y, x) uint8, 0 for the darkest class; `thresholds` (classes - 1,) float64. A
        voxel belongs to the class above a threshold if its value is larger.

    Raises
    ------
    TomoscaleError
        Not a volume of numbers; when it runs, NaN, or fewer different values than classes.

    Notes
    -----
    Thresholds are those of `skimage.filters.threshold_otsu` (2 classes) and `threshold_multiotsu` (3 to 5) of
    the whole volume [1]_, bit for bit, also where scikit-image's search through all combinations would take years.

    References
    ----------
    .. [1] N. Otsu, "A threshold selection method from gray-level histograms", IEEE Trans. Systems, Man, and
       Cybernetics 9 (1979), 62-66; P.-S. Liao, T.-S. Chen, P.-C. Chung, "A fast algorithm for multilevel
       thresholding", J. Information Science and Engineering 17 (2001), 713-727.

    Examples
    --------
    >>> import numpy as np
    >>> from tomoscale import otsu
    >>> image = np.repeat(np.arange(8, dtype=np.uint8) // 4 * 100, 64).reshape(8, 8, 8)
    >>> found = otsu.segment(image)
    >>> found.thresholds.compute(), np.bincount(found.labels.compute().ravel())
    (array([0.]), array([256, 256]))
    """
    who = "otsu.segment"
    checked_volume(who, image)
    view = smoothed(image, sigma)
    counted = histogram.of(who, view, bins)
    thresholds = thresholds_of(who, counted, classes)
    cut = cubes.cut(who, view, held=1)
    labels = each(view, cut, "u1", classify, small=(thresholds,))
    blocks.state(labels, image="volume")
    return Classified(labels, thresholds)


@operation("otsu scale")
def scale(image: Volume, *, percentiles: tuple[Percent, Percent] = (0.0, 100.0)) -> Scaled:
    """
    Scale a volume to values from 0 to 1.

    Parameters
    ----------
    image : (z, y, x)
        Grey values of any type.
    percentiles
        Of all voxels: the first becomes 0, the second 1, what lies beyond is cut. By default the lowest and the
        highest value.

    Returns
    -------
    Scaled
        Lazy array `volume` (z, y, x) float32.

    Raises
    ------
    TomoscaleError
        Percentiles out of order, or of a type without exact ones; when it runs, NaN, or one value only.

    Examples
    --------
    >>> import numpy as np
    >>> from tomoscale import otsu
    >>> otsu.scale(np.array([[[10, 20, 30]]], np.uint8)).volume.compute()
    array([[[0. , 0.5, 1. ]]], dtype=float32)
    """
    who = "otsu.scale"
    checked_volume(who, image)
    low, high = percentiles
    if not low < high:
        raise TomoscaleError(f"{who}: percentiles {low:g},{high:g}; expected the lower one first")
    if (low, high) == (0, 100):
        ends = histogram.extremes(who, image)
    else:
        ends = histogram.percentiles(who, image, (low, high))
    ends = passes.derive(functools.partial(checked_range, who), np.zeros(2), (ends,))
    cut = cubes.cut(who, image, held=4 + 8)
    volume = each(image, cut, "f4", scaled, small=(ends,), held=8)
    blocks.state(volume, image="volume")
    return Scaled(volume)


# ---------------------------------------------------------------- blocks


def each(
    view: Any, cut: Cubes, dtype: Any, function: Any, *, small: tuple[Any, ...] = (), held: int = 0
) -> Any:
    """Apply a function to every block; it gets the block and the small arrays, and `held` bytes per voxel."""
    window = tuple(slice(0, min(e, n)) for e, n in zip(cut.edges, cut.shape, strict=True))
    working = getattr(view, "working_bytes", lambda w: 0)(window)
    scratch = int(held * blocks.volume_of(window)) + working

    def arguments(index: Index) -> tuple[Any, ...]:
        return (view.at(cut.window(index)),)

    return blocks.map_blocks(function, arguments, {"out": cut.field(dtype)}, small=small, scratch=scratch)[
        "out"
    ]


def classify(values: np.ndarray, thresholds: np.ndarray) -> np.ndarray:
    """Return the class of every voxel."""
    if values.dtype == np.float16:
        values = values.astype(np.float32)
    return kernels.classes_of(values, thresholds.astype(values.dtype), np.empty(values.shape, np.uint8))


def scaled(values: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """Return values from 0 to 1, computed in float64 and rounded once."""
    wide = values.astype(np.float64)
    wide -= ends[0]
    wide /= ends[1] - ends[0]
    return np.clip(wide, 0, 1, out=wide).astype(np.float32)


def checked_range(who: str, ends: np.ndarray) -> np.ndarray:
    """Return a range that is not empty."""
    if not ends[0] < ends[1]:
        raise TomoscaleError(f"{who}: all values that count are {ends[0]:g}; there is nothing to tell apart")
    return ends


# ---------------------------------------------------------------- thresholds


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
