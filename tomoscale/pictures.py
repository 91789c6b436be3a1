"""Figures of frames, projections, slices and histograms, drawn without a screen."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from tomoscale.survey import Survey

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MOST_PIXELS = 1024
"""Frames with longer edges are reduced before they are drawn."""
DPI = 150
WIDTH = 10.0
COUNTS, RESIDUAL = "viridis", "RdBu_r"
STYLE: dict[str, Any] = {
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 10,
    "axes.titlesize": 10.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.linewidth": 0.7,
    "axes.edgecolor": "#444444",
    "axes.grid": False,
    "grid.color": "#dddddd",
    "grid.linewidth": 0.6,
    "xtick.color": "#444444",
    "ytick.color": "#444444",
    "legend.frameon": False,
    "lines.linewidth": 1.1,
}
BLUE, ORANGE, GREY = "#1f5a96", "#c8541b", "#777777"


@dataclass(frozen=True)
class Panel:
    """
    One image with its scale.

    Parameters
    ----------
    title : str
        What it is.
    image : (row, column)
        Values.
    low, high : float
        Ends of the scale.
    colours : str or sequence of str
        Colour map; or one colour for each of the numbers between `low` and `high`, of an image of classes.
    unit : str
        Label of the colour bar.
    asinh : float
        Below this value the scale is linear, above logarithmic; 0 for a linear scale.
    axes : (str, str)
        Names of the vertical and the horizontal axis.
    bar : bool
        Draw a colour bar.
    shape : (int, int), optional
        Of the image before it was reduced.
    first : (int, int)
        Where its first pixel lies, if it is a part.
    """

    title: str
    image: np.ndarray
    low: float
    high: float
    colours: str | Sequence[str] = COUNTS
    unit: str = "counts"
    asinh: float = 0.0
    axes: tuple[str, str] = ("row", "column")
    bar: bool = True
    shape: tuple[int, int] | None = None
    first: tuple[int, int] = (0, 0)


def reduced(image: np.ndarray, how: str = "maximum", most: int = MOST_PIXELS) -> tuple[np.ndarray, int]:
    """
    Reduce an image to at most so many pixels along its longer edge.

    Parameters
    ----------
    image : (row, column)
        Any type.
    how : {"maximum", "mean"}
        What becomes of the pixels that share one.
    most : int
        Longest edge of the result.

    Returns
    -------
    image : (row, column)
        The reduced image, or the same.
    n : int
        How many pixels share one along each axis.

    Examples
    --------
    >>> reduced(np.arange(10).reshape(2, 5), "maximum", most=2)
    (array([[7, 9]]), 3)
    """
    n = math.ceil(max(image.shape) / most)
    if n <= 1:
        return image, 1
    function = {"maximum": np.maximum, "mean": np.add}[how]
    values = image if how == "maximum" else image.astype(np.float64)
    for axis, size in enumerate(image.shape):
        values = function.reduceat(values, np.arange(0, size, n), axis=axis)
    if how == "mean":
        rows, columns = (np.diff([*range(0, size, n), size]) for size in image.shape)
        values = values / (rows[:, None] * columns)
    return values, n


def shrunk(image: np.ndarray, how: str = "maximum") -> str:
    """Say in a caption what a picture does with an image that has more pixels."""
    n = reduced(image[:, :], how)[1]
    return "" if n == 1 else f"Every point of the picture is the {how} of {n} × {n} pixels. "


def limits(*images: np.ndarray, low: float = 0.5, high: float = 99.8) -> tuple[float, float]:
    """Return a scale from percentiles of all finite values together."""
    values = np.concatenate([i[np.isfinite(i)].ravel() for i in images])
    if not values.size:
        return 0.0, 1.0
    a, b = (float(v) for v in np.percentile(values, (low, high)))
    return (a, b) if b > a else (a - 0.5, a + 0.5)


# ---------------------------------------------------------------- figures


LEFT, RIGHT, TOP, BOTTOM = 0.72, 1.05, 0.32, 0.62
"""Inches around an image: row numbers, colour bar, title, column numbers."""


def images(panels: Sequence[Panel], n_columns: int = 2, head: str = "") -> Figure:
    """Draw images side by side, pixels of one size, each with its colour bar; `head` stands above all."""
    width = min(WIDTH, 7.0 * n_columns)
    right = RIGHT if all(p.bar for p in panels) else 0.15
    room = (width - n_columns * (LEFT + right) - (RIGHT - right)) / n_columns
    rows, columns = (max(p.image.shape[axis] for p in panels) for axis in (0, 1))
    pixel = min(room / columns, 1.6 * room / rows)
    lines = [panels[i : i + n_columns] for i in range(0, len(panels), n_columns)]
    heights = [TOP + BOTTOM + pixel * max(p.image.shape[0] for p in line) for line in lines]
    whole = width, _dots(sum(heights) + (TOP if head else 0.0))
    figure = canvas(*whole)
    with style():
        figure.text(LEFT / width, 1 - 0.08 / whole[1], head, va="top", wrap=True)
        top = sum(heights)
        for line, line_height in zip(lines, heights, strict=True):
            for position, panel in enumerate(line):
                height, breadth = (pixel * n for n in panel.image.shape)
                left = LEFT + position * (LEFT + room + right)
                box = (_dots(v) for v in (left, top - TOP - height, breadth, height))
                draw_image(figure.add_axes(tuple(v / n for v, n in zip(box, whole * 2, strict=True))), panel)
            top -= line_height
    return figure


def _dots(inches: float) -> float:
    """Round a length to whole dots, so that an image fills its frame."""
    return round(inches * DPI) / DPI


def draw_image(axes: Axes, panel: Panel) -> None:
    """Draw an image with its scale into axes, stretched to fill them."""
    from matplotlib.colors import AsinhNorm, ListedColormap, Normalize

    image, n = reduced(panel.image, "mean" if panel.axes[0] in "zyx" else "maximum")
    rows, columns = panel.shape or panel.image.shape
    top, left = (n - 0.5 for n in panel.first)
    norm = AsinhNorm(panel.asinh, panel.low, panel.high) if panel.asinh else Normalize(panel.low, panel.high)
    drawn = axes.imshow(
        image,
        cmap=panel.colours if isinstance(panel.colours, str) else ListedColormap(panel.colours),
        norm=norm,
        interpolation="nearest" if n > 1 or columns > 300 else "none",
        extent=(left, left + columns, top + rows, top),
    )
    axes.set_aspect("auto")
    axes.set_title(panel.title)
    axes.set_ylabel(panel.axes[0])
    axes.set_xlabel(panel.axes[1])
    if panel.bar:
        _colour_bar(axes, drawn, panel)


def _colour_bar(axes: Axes, drawn: Any, panel: Panel) -> None:
    """Draw the scale beside an image, as high as the image; arrows tell that values go beyond it."""
    finite = panel.image[np.isfinite(panel.image)]
    above, below = (finite > panel.high).any(), (finite < panel.low).any()
    extend = {(True, True): "both", (True, False): "max", (False, True): "min"}.get((above, below), "neither")
    breadth = axes.get_position().width * axes.figure.get_figwidth()
    beside = axes.inset_axes((1 + 0.1 / breadth, 0, 0.13 / breadth, 1))
    bar = axes.figure.colorbar(drawn, cax=beside, extend=extend, extendfrac=0.03)
    bar.set_label(panel.unit)
    bar.outline.set_linewidth(0.6)
    if panel.asinh:
        _decades(bar, panel)
    elif not isinstance(panel.colours, str):
        every = math.ceil(len(panel.colours) / 12)
        bar.set_ticks(range(math.ceil(panel.low), math.ceil(panel.high), every))
        bar.ax.minorticks_off()


def _decades(bar: Any, panel: Panel) -> None:
    """Put 0, 10, 100 ... on a scale that is linear near zero, where there is room."""
    from matplotlib.ticker import MaxNLocator

    decades = [10.0**p for p in range(-6, 12)]
    ticks = [v for d in decades for v in (d, 3 * d) if panel.asinh * 0.9 <= v <= panel.high]
    if len(ticks) >= 2:
        ticks = [*([0.0] if panel.low <= 0 else []), *ticks]
    else:  # nearly all of it is linear
        ticks = [t for t in MaxNLocator(4).tick_values(panel.low, panel.high) if panel.low <= t <= panel.high]
    bar.set_ticks(ticks)
    bar.set_ticklabels([f"{t:.4g}" if abs(t) < 1 else f"{t:.0f}" for t in ticks])
    bar.ax.minorticks_off()


def histogram(survey: Survey, unit: str = "counts") -> Figure:
    """Draw how many voxels have which value: near the bulk, and over the whole range, both in log counts."""
    figure = canvas(WIDTH, 3.1)
    figure.subplots_adjust(*edges(WIDTH, 3.1), wspace=0.2)
    low, high = survey.percentile(0.1), survey.percentile(99.0)
    reach = max(high - low, survey.width)
    low, high = max(survey.lowest, low - 0.5 * reach), min(survey.highest, high + reach)
    ranges = [("From lowest to highest", survey.lowest, survey.highest)]
    if high - low < 0.7 * (survey.highest - survey.lowest):
        ranges.insert(0, ("Where most voxels are", low, high))
    with style():
        for position, (title, a, b) in enumerate(ranges, 1):
            axes = figure.add_subplot(1, len(ranges), position)
            bins, density = _rebinned(survey, a, b)
            axes.stairs(density, bins, fill=True, color=BLUE, alpha=0.25, baseline=0.5)
            axes.stairs(density, bins, color=BLUE, baseline=0.5, linewidth=1.0)
            axes.set_yscale("log")
            axes.set_ylim(0.7, max(10, density.max() * 2))
            axes.set_title(title)
            axes.set_xlabel(unit)
            axes.set_ylabel("voxels per bin")
            axes.grid(visible=True, axis="both")
            axes.set_axisbelow(True)
            axes.spines[["top", "right"]].set_visible(False)
            for line, (percent, name) in enumerate(((50, "median"), (99.9, "99.9 %"))):
                value = survey.percentile(percent)
                if a <= value <= b:
                    axes.axvline(value, color=ORANGE, linewidth=0.9, linestyle="--")
                    axes.annotate(
                        name, (value, 1), (3, -2 - 12 * line), xycoords=("data", "axes fraction"), color=ORANGE,
                        textcoords="offset points", va="top", ha="left", fontsize=9,
                    )  # fmt: skip
    return figure


def _rebinned(survey: Survey, low: float, high: float, n: int = 200) -> tuple[np.ndarray, np.ndarray]:
    """Return edges and counts of about n bins of a range, each of whole bins of the survey."""
    first = max(0, math.floor((low - survey.low) / survey.width))
    stop = min(len(survey.counts), math.floor((high - survey.low) / survey.width) + 1)
    stop = max(stop, first + 1)
    share = max(1, math.ceil((stop - first) / n))
    starts = np.arange(first, stop, share)
    edges = survey.low + survey.width * np.append(starts, starts[-1] + share)
    return edges, np.add.reduceat(survey.counts[: starts[-1] + share], starts)


# ---------------------------------------------------------------- drawing


def png(figure: Figure) -> bytes:
    """Return a figure as a PNG file."""
    import io

    from matplotlib.backends.backend_agg import FigureCanvasAgg

    file = io.BytesIO()
    with style():
        FigureCanvasAgg(figure).print_png(file, metadata={"Software": None})
    return file.getvalue()


def canvas(width: float, height: float) -> Figure:
    """Return an empty figure of so many inches."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), dpi=DPI)


def edges(width: float, height: float) -> tuple[float, float, float, float]:
    """Return left, bottom, right and top of what axes fill: a layout engine would take half the time of a report."""
    return 0.9 / width, 0.55 / height, 1 - 0.15 / width, 1 - TOP / height


def style() -> Any:
    """Return the context in which figures are drawn."""
    import matplotlib

    return matplotlib.rc_context(STYLE)
