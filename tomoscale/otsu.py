"""Grey values to classes: scaling, local contrast, Otsu's thresholds, a first mask."""

from __future__ import annotations

import functools
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
from annotated_types import Ge, Le

from tomoscale import blocks, clahe, cubes, devices, histogram, passes
from tomoscale.cubes import checked_volume
from tomoscale.errors import TomoscaleError
from tomoscale.operation import operation
from tomoscale.parameters import Count, Device, Sigma, Volume
from tomoscale.smooth import smoothed
from tomoscale.thresholds import checked_range, classify, decided, masked, scaled, thresholds_of

Classes = Annotated[int, Ge(2), Le(5)]
"""How many classes a volume is cut into."""

Share = Annotated[float, Ge(0), Le(1)]
Bins = Annotated[int, Ge(2), Le(256)]
Percent = Annotated[float, Ge(0), Le(100)]


class Classified(NamedTuple):
    """The class of every voxel, and the thresholds between classes."""

    labels: Any
    thresholds: Any


class Scaled(NamedTuple):
    """A volume of values from 0 to 1."""

    volume: Any


class Mask(NamedTuple):
    """A volume of 0 and 1."""

    labels: Any


@operation("otsu")
def segment(
    image: Volume,
    *,
    classes: Classes = 2,
    sigma: Sigma = (0.0,),
    bins: Count = 256,
    device: Device = "auto",
) -> Classified:
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
    device
        Where blocks are computed: `auto` takes a GPU if there is one.

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
    image, place = devices.placed(who, image, device, rounds=any(sigma))
    view = smoothed(image, sigma)
    counted = histogram.of(who, view, bins)
    thresholds = thresholds_of(who, counted, classes)
    cut = cubes.cut(who, view, held=1)
    labels = cubes.each(view, cut, "u1", classify, small=(thresholds,))
    blocks.state(labels, image="volume", **place)
    return Classified(labels, thresholds)


@operation("otsu scale")
def scale(
    image: Volume, *, percentiles: tuple[Percent, Percent] = (0.0, 100.0), device: Device = "auto"
) -> Scaled:
    """
    Scale a volume to values from 0 to 1.

    Parameters
    ----------
    image : (z, y, x)
        Grey values of any type.
    percentiles
        Of all voxels: the first becomes 0, the second 1, what lies beyond is cut. By default the lowest and the
        highest value.
    device
        Where blocks are computed: `auto` takes a GPU if there is one.

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
    image, place = devices.placed(who, image, device)
    if (low, high) == (0, 100):
        ends = histogram.extremes(who, image)
    else:
        ends = histogram.percentiles(who, image, (low, high))
    ends = passes.derive(functools.partial(checked_range, who), np.zeros(2), (ends,))
    cut = cubes.cut(who, image, held=4 + 8)
    volume = cubes.each(image, cut, "f4", scaled, small=(ends,), held=8)
    blocks.state(volume, image="volume", **place)
    return Scaled(volume)


@operation("otsu equalize")
def equalize(
    image: Volume,
    *,
    dimensions: Literal[2, 3] = 2,
    tile: tuple[Count, ...] = (),
    clip_limit: Share = 0.01,
    bins: Bins = 256,
    dtype: Literal["float32", "float64"] = "float32",
    device: Device = "auto",
) -> Scaled:
    """
    Equalise the local contrast of every slice, or of a volume (CLAHE).

    Parameters
    ----------
    image : (z, y, x)
        Grey values: integers of 8 or 16 bits, or floating-point numbers from 0 to 1, as of `otsu scale`.
    dimensions
        2 for every slice by itself, 3 for the volume as a whole.
    tile
        Edges of the tiles whose histograms count, one or as many as dimensions; by default an eighth of every axis.
    clip_limit
        Share of a tile's voxels that a bin may hold: the larger, the more contrast; 0 for no limit.
    bins
        Grey bins of a tile.
    dtype
        Type of the result. scikit-image's is float64 for integers and float32 for float32.
    device
        Where blocks are computed: `auto` takes a GPU if there is one.

    Returns
    -------
    Scaled
        Lazy array `volume` (z, y, x), values from 0 to 1.

    Raises
    ------
    TomoscaleError
        Tiles larger than the slice; when it runs, NaN, or values beyond -1 and 1.

    Notes
    -----
    Equal, bit for bit, to `skimage.exposure.equalize_adapthist` of every slice or of the whole volume [1]_, whatever
    the chunks. Four passes: extremes, histograms of the tiles, range of the interpolated levels, result.

    References
    ----------
    .. [1] K. Zuiderveld, "Contrast limited adaptive histogram equalization", Graphics Gems IV (1994), 474-485.

    Examples
    --------
    >>> import numpy as np
    >>> from tomoscale import otsu
    >>> ramp = np.tile(np.arange(64, dtype=np.uint8), (2, 64, 1))
    >>> even = otsu.equalize(ramp).volume.compute()
    >>> even.shape, float(even.min()), float(even.max())
    ((2, 64, 64), 0.0, 1.0)
    """
    who = "otsu.equalize"
    checked_volume(who, image)
    how = clahe.tiles_of(who, image, dimensions, tile, clip_limit, bins)
    image, place = devices.placed(who, image, device)
    plan = clahe.equalised(image, how, held=np.dtype(dtype).itemsize)
    volume = clahe.blocks_of(image, plan, as_it_is, dtype, held=0)
    blocks.state(volume, image="volume", **place)
    return Scaled(volume)


@operation("otsu mask")
def initial_mask(
    image: Volume,
    *,
    dimensions: Literal[2, 3] = 2,
    tile: tuple[Count, ...] = (),
    clip_limit: Share = 0.01,
    invert: Literal["auto", "slice", "yes", "no"] = "auto",
    device: Device = "auto",
) -> Mask:
    """
    Make a first mask: local contrast, Otsu's threshold, the rarer phase as foreground.

    Parameters
    ----------
    image : (z, y, x)
        Grey values: integers of 8 or 16 bits, or floating-point numbers from 0 to 1, as of `otsu scale`.
    dimensions, tile, clip_limit
        Of the local contrast, as of `otsu equalize`.
    invert
        Which side of the threshold is foreground: the rarer one of the volume (`auto`) or of every `slice`,
        the darker one (`yes`), or the brighter one (`no`).
    device
        Where blocks are computed: `auto` takes a GPU if there is one.

    Returns
    -------
    Mask
        Lazy array `labels` (z, y, x) uint8, 1 in the foreground.

    Raises
    ------
    TomoscaleError
        Tiles larger than the slice; when it runs, NaN, values beyond -1 and 1, or one value only.

    Notes
    -----
    The threshold is `skimage.filters.threshold_otsu` of the equalised volume. Four passes.

    Examples
    --------
    >>> import numpy as np
    >>> from tomoscale import otsu
    >>> image = np.zeros((2, 32, 32), np.uint8)
    >>> image[:, 8:16, 8:16] = 200
    >>> int(otsu.initial_mask(image).labels.compute().sum())
    128
    """
    who = "otsu.initial_mask"
    checked_volume(who, image)
    how = clahe.tiles_of(who, image, dimensions, tile, clip_limit, 256)
    image, place = devices.placed(who, image, device)
    plan = clahe.equalised(image, how, held=1)
    decide = functools.partial(decided, who, how.dtype, invert, image.shape[0])
    decision = passes.derive(decide, np.zeros(1 + image.shape[0]), (plan.levels,))
    labels = clahe.blocks_of(image, plan, masked, "u1", small=(decision,), held=8)
    blocks.state(labels, image="volume", **place)
    return Mask(labels)


# ---------------------------------------------------------------- blocks


def as_it_is(values: np.ndarray, z: int) -> np.ndarray:
    """Return an equalised slice."""
    return values
