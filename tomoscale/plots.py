"""Figures of many numbers: quantities over the frames, distributions, and what single blobs look like."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from tomoscale import outlines, pictures
from tomoscale.pictures import BLUE, ORANGE, WIDTH, Panel
from tomoscale.store import Volume

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

N_BINS = 40
THIN = 25
"""Times longer than deep, a stack seen from the side is a line."""


@dataclass(frozen=True)
class Distribution:
    """
    One quantity of many blobs, or pixels.

    Parameters
    ----------
    name, unit : str
        What it is.
    values : (blob,)
        Of every blob.
    others : (blob,), optional
        The same of those that were rejected.
    limits : sequence of (float, str)
        Values to mark, with their names.
    of : str
        What is counted.
    """

    name: str
    unit: str
    values: np.ndarray
    others: np.ndarray | None = None
    limits: Sequence[tuple[float, str]] = ()
    of: str = "blobs"


@dataclass(frozen=True)
class Thumbnail:
    """
    One blob in the frame of its peak.

    Parameters
    ----------
    title : str
        Which it is.
    image : (row, column)
        Its surroundings.
    first : (int, int)
        Row and column of the first pixel of the image.
    high : float
        End of the scale, in counts; it begins at 0.
    labels : (row, column), optional
        Regions to outline.
    box : (int, int, int, int), optional
        First and last row, first and last column to outline, half-open.
    """

    title: str
    image: np.ndarray
    first: tuple[int, int]
    high: float
    labels: np.ndarray | None = None
    box: tuple[int, int, int, int] | None = None


def slices_of(volume: Volume) -> list[tuple[str, np.ndarray, tuple[str, str]]]:
    """Return title, values and axes of the middle slices along z, y and x; of a stack of few slices that along z."""
    found = []
    is_thin = THIN * volume.shape[0] < max(volume.shape[1:])
    for axis, name in enumerate("z" if is_thin else "zyx"):
        middle = volume.shape[axis] // 2
        window = [slice(0, n) for n in volume.shape]
        window[axis] = slice(middle, middle + 1)
        across, along = (n for n in "zyx" if n != name)
        found.append((f"{name} = {middle}", volume.read(tuple(window)).squeeze(axis), (across, along)))
    return found


def curves(
    x: np.ndarray,
    x_name: str,
    lines: Sequence[tuple[str, np.ndarray]],
    mark: tuple[float, str] | None = None,
    unit: str = "counts",
) -> Figure:
    """Draw quantities over the frames, one below the other; `mark` is a position and its name."""
    height = 0.6 + 1.9 * len(lines)
    figure = pictures.canvas(WIDTH, height)
    figure.subplots_adjust(*pictures.edges(WIDTH, height), hspace=0.22)
    with pictures.style():
        first = None
        for position, (name, y) in enumerate(lines, 1):
            axes = figure.add_subplot(len(lines), 1, position, sharex=first)
            first = first or axes
            axes.plot(x, y, color=BLUE, linewidth=0.9)
            axes.set_title(name)
            axes.set_ylabel(unit)
            axes.yaxis.get_major_locator().set_params(integer=unit == "number")
            axes.grid(visible=True)
            axes.margins(x=0.005)
            axes.spines[["top", "right"]].set_visible(False)
            if mark is not None:
                axes.axvline(mark[0], color=ORANGE, linewidth=0.9, linestyle="--")
            if mark is not None and position == 1:
                axes.annotate(
                    mark[1], (mark[0], 1), (3, -3), xycoords=("data", "axes fraction"), color=ORANGE,
                    textcoords="offset points", va="top", ha="left", fontsize=9,
                )  # fmt: skip
            if position < len(lines):
                axes.tick_params(labelbottom=False)
        axes.set_xlabel(x_name)
    return figure


def wide(panels: Sequence[Panel], height: float = 2.6) -> Figure:
    """Draw images one below the other, each as wide as the page, whatever their shape: two axes of different kind."""
    line = pictures.TOP + height + pictures.BOTTOM
    figure = pictures.canvas(WIDTH, len(panels) * line)
    with pictures.style():
        for position, panel in enumerate(panels):
            bottom = (len(panels) - 1 - position) * line + pictures.BOTTOM
            across = WIDTH - pictures.LEFT - pictures.RIGHT
            box = (
                pictures.LEFT / WIDTH,
                bottom / line / len(panels),
                across / WIDTH,
                height / line / len(panels),
            )
            pictures.draw_image(figure.add_axes(box), _each_axis_reduced(panel))
    return figure


def _each_axis_reduced(panel: Panel) -> Panel:
    """Reduce an image along each axis on its own to what can be seen, by its maximum."""
    image = panel.image
    for axis, size in enumerate(image.shape):
        image = np.fmax.reduceat(image, np.arange(0, size, math.ceil(size / pictures.MOST_PIXELS)), axis)
    return replace(panel, image=image, shape=(panel.image.shape[0], panel.image.shape[1]))


def distributions(shown: Sequence[Distribution], n_columns: int = 2) -> Figure:
    """
    Draw histograms; quantities that go over more than a factor of thirty have a logarithmic scale.

    Parameters
    ----------
    shown : sequence of Distribution
        One panel for each.
    n_columns : int
        Panels side by side.

    Returns
    -------
    matplotlib.figure.Figure
        The histograms, of the rejected ones on top.
    """
    lines = math.ceil(len(shown) / n_columns)
    height = 0.35 + 2.35 * lines
    figure = pictures.canvas(WIDTH, height)
    figure.subplots_adjust(*pictures.edges(WIDTH, height), hspace=0.55, wspace=0.2)
    with pictures.style():
        for position, one in enumerate(shown, 1):
            _distribution(figure.add_subplot(lines, n_columns, position), one)
    return figure


def _distribution(axes: Axes, one: Distribution) -> None:
    everything = np.concatenate([one.values, one.others if one.others is not None else []])
    edges, is_logarithmic = bins_of(everything)
    counts = np.histogram(one.values, edges)[0]
    axes.stairs(counts, edges, fill=True, color=BLUE, alpha=0.3, label="kept")
    axes.stairs(counts, edges, color=BLUE)
    if one.others is not None and len(one.others):
        lower, counts = counts, counts + np.histogram(one.others, edges)[0]
        axes.stairs(counts, edges, baseline=lower, fill=True, color=ORANGE, alpha=0.75, label="rejected")
        axes.legend(fontsize=9, loc="center right")
    for value, name in one.limits:
        if edges[0] <= value <= edges[-1]:
            is_left = value - edges[0] < (edges[-1] - edges[0]) / 2
            axes.axvline(value, color=pictures.GREY, linewidth=0.9, linestyle="--")
            axes.annotate(
                name, (value, 1), (3 if is_left else -3, -3), xycoords=("data", "axes fraction"), va="top",
                textcoords="offset points", ha="left" if is_left else "right", color=pictures.GREY, fontsize=9,
            )  # fmt: skip
    if is_logarithmic:
        axes.set_xscale("log")
    axes.set_ylim(0, max(1.0, 1.12 * counts.max(initial=0)))
    axes.set_title(one.name)
    axes.set_xlabel(one.unit)
    axes.set_ylabel(f"{one.of} per bin")
    axes.yaxis.get_major_locator().set_params(integer=True)
    axes.grid(visible=True)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def bins_of(values: np.ndarray) -> tuple[np.ndarray, bool]:
    """
    Return edges of bins for a histogram, and whether they are evenly spaced on a logarithmic scale.

    Parameters
    ----------
    values : (n,)
        All of them; integers get bins of whole numbers.

    Returns
    -------
    edges : (bin + 1,) float64
        The last bin holds its upper edge.
    is_logarithmic : bool
        Whether values are positive and go over more than a factor of thirty.

    Examples
    --------
    >>> bins_of(np.array([1, 2, 2, 4]))
    (array([0.5, 1.5, 2.5, 3.5, 4.5]), False)
    """
    values = values[np.isfinite(values)]
    if not len(values):
        return np.array([0.0, 1.0]), False
    low, high = float(values.min()), float(values.max())
    is_whole = values.dtype.kind in "iu" or bool(np.all(values == np.rint(values)))
    if low > 1e-12 * high and high > 30 * low:
        edges = np.geomspace(low, high, N_BINS + 1)
        if is_whole:
            edges = np.unique(np.floor(edges) + 0.5)
            edges = np.concatenate([[low - 0.5], edges[edges < high], [high + 0.5]])
        else:
            edges[[0, -1]] = low, high
        return np.unique(edges), True
    if is_whole:
        step = max(1, math.ceil((high - low + 1) / N_BINS))
        n = math.ceil((high - low + 1) / step)
        return low - 0.5 + step * np.arange(n + 1), False
    if high - low <= 1e-9 * max(abs(low), abs(high)) or high - low < 1e-290:
        return np.array([low - 0.5, high + 0.5]), False
    return np.linspace(low, high, N_BINS + 1), False


def thumbnails(shown: Sequence[Thumbnail], n_columns: int = 4) -> Figure:
    """
    Draw blobs side by side, each on its own scale: that of the square root, so that their edges are seen.

    Parameters
    ----------
    shown : sequence of Thumbnail
        One image for each.
    n_columns : int
        Images side by side.

    Returns
    -------
    matplotlib.figure.Figure
        The images with the rows and columns of the detector.
    """
    lines = math.ceil(len(shown) / n_columns)
    edge, gap, above, below = 1.85, 0.62, 0.5, 0.42
    height = lines * (edge + above + below)
    figure = pictures.canvas(WIDTH, height)
    with pictures.style():
        for position, one in enumerate(shown):
            line, place = divmod(position, n_columns)
            left = gap + place * (edge + gap)
            bottom = height - line * (edge + above + below) - above - edge
            axes = figure.add_axes((left / WIDTH, bottom / height, edge / WIDTH, edge / height))
            _thumbnail(axes, one)
    return figure


def _thumbnail(axes: Axes, one: Thumbnail) -> None:
    from matplotlib.colors import PowerNorm

    rows, columns = one.image.shape
    top, left = one.first
    axes.imshow(
        one.image, cmap="gray", norm=PowerNorm(0.5, 0, max(one.high, 1e-6), clip=True), interpolation="nearest",
        extent=(left - 0.5, left + columns - 0.5, top + rows - 0.5, top - 0.5),
    )  # fmt: skip
    if one.labels is not None:
        outlines.draw(axes, one.labels, width=1.0, first=one.first)
    if one.box is not None:
        r0, r1, c0, c1 = (v - 0.5 for v in one.box)
        axes.plot([c0, c1, c1, c0, c0], [r0, r0, r1, r1, r0], color=ORANGE, linestyle="--", linewidth=1.0)
    axes.set_title(one.title, fontsize=9, fontweight="normal")
    axes.tick_params(labelsize=8)
    for axis in (axes.xaxis, axes.yaxis):
        axis.get_major_locator().set_params(nbins=4, integer=True)
