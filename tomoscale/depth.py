"""Depth maps: how much grey values change along z, and the regions where they change most."""

from __future__ import annotations

import functools
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
from annotated_types import Ge, Le

from tomoscale import blocks, cubes, devices, histogram, passes, regions
from tomoscale.blocks import Field, Index, Window, spans
from tomoscale.cubes import checked_volume
from tomoscale.errors import TomoscaleError
from tomoscale.operation import operation
from tomoscale.parameters import Device, Finite, Volume, Width
from tomoscale.progress import human_bytes
from tomoscale.readings import AT_ONCE
from tomoscale.running import RunningSums, gradient_sums, smoothed_map

Sigma1 = Annotated[float, Ge(0), Le(1000)]
Percent = Annotated[float, Ge(0), Le(100)]
COLUMNS = ("label", "pixels", "row", "column", "row_min", "row_max", "column_min", "column_max", "total")


class Projected(NamedTuple):
    """A depth map."""

    map: Any


class Regions(NamedTuple):
    """A depth map, its threshold, and the connected regions above it with a table of them."""

    map: Any
    labels: Any
    threshold: Any
    table: Any


@operation("depth project")
def project(
    image: Volume,
    *,
    mode: Literal["total", "cumulative"] = "total",
    sigma: Sigma1 = 0.8,
    device: Device = "auto",
) -> Projected:
    """
    Sum the absolute gradient along z.

    Parameters
    ----------
    image : (z, y, x)
        Grey values of any type.
    mode
        The sum over all slices, a map (y, x) (`total`), or the running sum, a volume (`cumulative`).
    sigma
        Standard deviation in voxels of a Gaussian over the result; 0 for none.
    device
        Where blocks are computed: `auto` takes a GPU if there is one.

    Returns
    -------
    Projected
        Lazy array `map` (y, x) or (z, y, x), float32.

    Raises
    ------
    TomoscaleError
        Fewer than two slices, or whole columns that do not fit the memory; when it runs, NaN.

    Notes
    -----
    `numpy.abs(numpy.gradient(image, axis=0))`, summed in float64 in the order of the slices, rounded to float32, then
    `scipy.ndimage.gaussian_filter`: the same bits whatever the chunks.

    Examples
    --------
    >>> import numpy as np
    >>> from tomoscale import depth
    >>> image = np.zeros((4, 2, 2), np.uint8)
    >>> image[2:, 0, 0] = 10
    >>> depth.project(image, sigma=0).map.compute()
    array([[10.,  0.],
           [ 0.,  0.]], dtype=float32)
    """
    who = "depth.project"
    _check(who, image)
    image, place = _placed(who, image, device, mode, sigma)
    if mode == "total":
        made = _laid_out(image.shape[1:], _map_of(who, image, sigma), np.dtype("f4"), "map")
        blocks.state(made, **place)
        return Projected(made)
    view = RunningSums(image, who, sigma)
    made = cubes.each(view, cubes.cut(who, view, held=4, whole=(0,)), "f4", cubes.as_read)
    blocks.state(made, image="volume", **place)
    return Projected(made)


@operation("depth")
def segment(
    image: Volume,
    *,
    mode: Literal["total", "cumulative"] = "total",
    sigma: Sigma1 = 0.8,
    percentile: Percent = 75.0,
    threshold: Finite | None = None,
    min_pixels: Width = 0,
    device: Device = "auto",
) -> Regions:
    """
    Label the connected regions where grey values change most along z.

    Parameters
    ----------
    image : (z, y, x)
        Grey values of any type.
    mode
        Regions of the map, the sum over all slices (`total`), or of the running sum, a volume (`cumulative`).
    sigma
        Standard deviation in voxels of a Gaussian over the map; 0 for none.
    percentile
        Of the map: regions lie above.
    threshold
        A value of the map instead of a percentile.
    min_pixels
        Regions of fewer pixels, or voxels, are left out.
    device
        Where blocks are computed: `auto` takes a GPU if there is one.

    Returns
    -------
    Regions
        Lazy arrays `map` (y, x) or (z, y, x) float32; `labels` of the same shape, uint32, 0 beside the regions;
        `threshold` (1,) float64; and a lazy table with a row for each region: pixels, centroid, box, sum of the
        map; or voxels, centroid and box.

    Raises
    ------
    TomoscaleError
        Fewer than two slices, or whole columns that do not fit the memory; when it runs, NaN, a map of one value,
        or nothing above the threshold.

    Notes
    -----
    Regions are those of `scipy.ndimage.label`, with its numbers: four neighbours (six in a volume), by the first one.

    Examples
    --------
    >>> import numpy as np
    >>> from tomoscale import depth
    >>> image = np.zeros((4, 3, 5), np.uint8)
    >>> image[2:, :, 0] = image[2:, :, 4] = 10
    >>> depth.segment(image, sigma=0, threshold=5).labels.compute()[1]
    array([1, 0, 0, 0, 2], dtype=uint32)
    """
    who = "depth.segment"
    _check(who, image)
    image, place = _placed(who, image, device, mode, sigma)
    if mode == "cumulative":
        found = _of_running_sums(who, image, sigma, percentile, threshold, min_pixels)
        blocks.state(found.map, image="volume", **place)
        return found
    whole = _map_of(who, image, sigma)
    level = passes.derive(functools.partial(_level, who, percentile, threshold), np.zeros(1), (whole,))
    like = np.zeros(image.shape[1:], np.uint32)
    labels = passes.derive(functools.partial(_regions, who, min_pixels), like, (whole, level))
    size = image.shape[1:]
    made = _laid_out(size, whole, np.dtype("f4"), "map")
    blocks.state(made, **place)
    return Regions(
        made,
        _laid_out(size, labels, np.dtype("u4"), "labels"),
        level,
        _table(whole, labels),
    )


def _of_running_sums(
    who: str, image: Any, sigma: float, percentile: float, threshold: float | None, min_pixels: int
) -> Regions:
    """Return the regions of the running sums: percentile, regions of blocks, labels, each from the source."""
    view = RunningSums(image, who, sigma)
    if threshold is None:
        level = histogram.percentiles(who, view, (percentile,))
    else:
        level = passes.derive(functools.partial(np.full, 1, float(threshold)), np.zeros(1), ())
    made, labels, table = regions.above(who, view, level, min_pixels)
    return Regions(made, labels, level, table)


def _placed(who: str, image: Any, device: Device, mode: str, sigma: float) -> tuple[Any, dict[str, Any]]:
    # A map is small and smoothed on the CPU; only running sums are smoothed where they are made.
    return devices.placed(who, image, device, rounds=mode == "cumulative" and sigma > 0)


def _check(who: str, image: Any) -> None:
    shape = checked_volume(who, image)
    if shape[0] < 2:
        raise TomoscaleError(f"{who}: one slice only; a gradient along z needs two")
    map_bytes = shape[1] * shape[2] * 8
    if 6 * map_bytes > blocks.resources().block_bytes:
        raise TomoscaleError(
            f"{who}: a map of {human_bytes(map_bytes)} does not fit a block; give a larger --memory, or a --roi"
        )


# ---------------------------------------------------------------- plan


def _map_of(who: str, image: Any, sigma: float) -> Any:
    """Return the smoothed map, computed once: one task for some rows, one pass."""
    _, height, width = image.shape
    bands = spans(height, max(1, min(image.chunks[1], height)))
    slabs = _slabs(image, bands[0])
    groups = [[(blocks.grow(z, 1, image.shape[0]), band, slice(0, width)) for z in slabs] for band in bands]
    sums = functools.partial(gradient_sums, who, image.shape, slabs)
    parts = passes.parts_of(
        image, groups, sums, (blocks.lengths(bands), (width,)), np.zeros(width), (), 0, bands
    )
    return passes.derive(
        functools.partial(smoothed_map, sigma), np.zeros((height, width), np.float32), (blocks.once(parts),)
    )


def _slabs(image: Any, band: slice) -> list[slice]:
    """Cut the slices into slabs of whole chunks; they are read with one slice more on each side."""
    row_bytes = (band.stop - band.start) * image.shape[2] * image.dtype.itemsize
    thick = max(1, AT_ONCE // row_bytes // image.chunks[0]) * image.chunks[0]
    return spans(image.shape[0], thick)


def _laid_out(shape: tuple[int, ...], whole: Any, dtype: np.dtype, name: str) -> Any:
    """Return a small map as blocks of stored chunks."""
    stored = tuple(min(1024, n) for n in shape)
    grid = [spans(n, s) for n, s in zip(shape, stored, strict=True)]

    def arguments(index: Index) -> tuple[Any, ...]:
        return (tuple(g[i] for g, i in zip(grid, index, strict=True)),)

    field = Field(dtype, tuple(blocks.lengths(g) for g in grid), stored)
    scratch = shape[0] * shape[1] * dtype.itemsize
    return blocks.map_blocks(cut_out, arguments, {name: field}, small=(whole,), scratch=scratch)[name]


def _table(whole: Any, labels: Any) -> Any:
    from dask.delayed import Delayed
    from dask.highlevelgraph import HighLevelGraph

    name = f"table-{labels.name}"
    keys = [(a.name, 0, 0) for a in (whole, labels)]
    return Delayed(
        name, HighLevelGraph.from_collections(name, {name: (table_of, *keys)}, dependencies=[whole, labels])
    )


# ---------------------------------------------------------------- blocks


def cut_out(window: Window, whole: np.ndarray) -> np.ndarray:
    """Return a window of a map."""
    return whole[window]


def _level(who: str, percentile: float, threshold: float | None, whole: np.ndarray) -> np.ndarray:
    if whole.min() == whole.max():
        raise TomoscaleError(f"{who}: the map is {whole.min():g} everywhere; nothing changes along z")
    # A list: for a number of Python's NumPy finds the place among float32 values in float32, off by some ranks.
    return np.percentile(whole, [percentile]) if threshold is None else np.array([threshold], np.float64)


def _regions(who: str, min_pixels: int, whole: np.ndarray, level: np.ndarray) -> np.ndarray:
    from scipy import ndimage

    labels, count = ndimage.label(whole > level[0])
    if not count:
        raise TomoscaleError(
            f"{who}: no pixel of the map exceeds {level[0]:g}, the highest is {whole.max():g}; lower the threshold"
        )
    keep = np.bincount(labels.ravel(), minlength=count + 1) >= max(1, min_pixels)
    keep[0] = False
    return (np.cumsum(keep) * keep)[labels].astype(np.uint32)


def table_of(whole: np.ndarray, labels: np.ndarray) -> Any:
    """
    Return the table of regions.

    Parameters
    ----------
    whole : (y, x)
        The map.
    labels : (y, x)
        Regions from 1 on.

    Returns
    -------
    pyarrow.Table
        One row for each region.
    """
    import pyarrow as pa
    from scipy import ndimage

    boxes = ndimage.find_objects(labels.astype(np.int64))
    rows = []
    for label, (r, c) in enumerate(boxes, 1):
        inside = labels[r, c] == label
        at = np.nonzero(inside)
        rows.append(
            (label, inside.sum(), at[0].mean() + r.start, at[1].mean() + c.start, r.start, r.stop, c.start, c.stop,
             whole[r, c][inside].sum(dtype=np.float64))
        )  # fmt: skip
    kinds = (np.uint32, np.int64, float, float, *(np.int64,) * 4, float)
    found = list(zip(*rows, strict=True)) or [()] * len(COLUMNS)
    return pa.table({n: np.array(v, k) for n, v, k in zip(COLUMNS, found, kinds, strict=True)})
