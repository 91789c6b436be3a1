"""What the report of classes shows: slices beside their classes, the histogram with its cuts, how much there is."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from tomoscale import info, pictures, shares, smooth
from tomoscale.page import Picture, Section, Table
from tomoscale.pictures import GREY, WIDTH, Panel
from tomoscale.plots import slices_of
from tomoscale.shares import Shares
from tomoscale.shown import Shown

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

OPERATIONS = ("otsu.segment", "otsu.initial_mask", "kmeans.segment")
N_BINS = 250
COLOURS = (
    "#1f5a96", "#e08a1e", "#3c9a5f", "#b13c3c", "#7d5ba6", "#8a6a4f", "#d774b5", "#9aa21f", "#2aa6b8",
)  # fmt: skip
LEFT_OUT = "#d9dce2"
"""Of voxels below the threshold, which belong to no cluster."""


def is_of_classes(shown: Shown) -> bool:
    """Tell whether a result is labels of a few classes."""
    return shown.array == "labels" and shown.step.get("operation") in OPERATIONS


def made(shown: Shown) -> tuple[str, list[tuple[str, str]], list[Section]]:
    """
    Return the report of classes.

    Parameters
    ----------
    shown : Shown
        The result of `otsu`, `otsu mask` or `kmeans`.

    Returns
    -------
    lead : str
        What it is, in a sentence.
    figures : list of (str, str)
        Key figures: value and what it is.
    sections : list of Section
        What follows.
    """
    volume, note = seen_by_the_operation(shown)
    n_classes = _n_classes(shown)
    found = None
    if volume is not None:
        found = shares.of(volume, shown.volume, n_classes, sampled=shown.sampled, quiet=shown.quiet)
        voxels = found.voxels
    else:
        voxels = shown.survey.counts[:n_classes]
    colours = colours_of(n_classes, is_first_left_out=_is_kmeans(shown))
    sections = [_slices(shown, volume, colours)]
    if found is not None:
        sections.append(_histogram(shown, found, colours))
    sections.append(_classes(shown, voxels, found))
    if note:
        sections[0].notes.append(note)
    return *_lead(shown, voxels), sections


def seen_by_the_operation(shown: Shown) -> tuple[Any, str]:
    """Return the volume whose values were classified, smoothed where they were, or why it cannot be shown."""
    volume, note = shown.made_from
    sigma = shown.step.get("parameters", {}).get("sigma", [0.0])
    return (None if volume is None else smooth.smoothed(volume, tuple(sigma))), note


def _is_kmeans(shown: Shown) -> bool:
    return shown.step["operation"] == "kmeans.segment"


def _n_classes(shown: Shown) -> int:
    """Return how many numbers the labels may have."""
    parameters = shown.step.get("parameters", {})
    return int(parameters["k"]) + 1 if _is_kmeans(shown) else int(parameters.get("classes", 2))


def _first(shown: Shown) -> int:
    """Return the lowest number that labels can have: clusters count from 1, 0 is what a threshold left out."""
    parameters = shown.step.get("parameters", {})
    leaves_out = parameters.get("threshold") is not None and parameters.get("below") != "zero"
    return int(_is_kmeans(shown) and not leaves_out)


def colours_of(n: int, *, is_first_left_out: bool) -> list[str]:
    """Return a colour for each class, the same in all pictures."""
    from matplotlib import colormaps
    from matplotlib.colors import to_hex

    n_own = n - is_first_left_out
    own = list(COLOURS[:n_own])
    if n_own > len(COLOURS):
        own = [to_hex(colormaps["turbo"](i / (n_own - 1))) for i in range(n_own)]
    return [LEFT_OUT, *own] if is_first_left_out else own


def _lead(shown: Shown, voxels: np.ndarray) -> tuple[str, list[tuple[str, str]]]:
    n, rows, columns = shown.volume.shape
    figures = [(f"{n} × {rows} × {columns}", "z, y, x")]
    if _is_kmeans(shown):
        kind = "Clusters of a volume"
        figures.append((f"{len(voxels) - 1}", "clusters"))
        for name, what in (("iterations", "passes of the fit"), ("inertia", "sum of squared distances")):
            array = shown.volume.sibling(name)
            if array is not None:
                figures.append((f"{array.whole()[0]:.6g}", what))
        if voxels[0]:
            figures.append((f"{100 * voxels[0] / voxels.sum():.3g} %", "below the threshold"))
    else:
        kind = "Classes of a volume" if _thresholds(shown) is not None else "A mask of a volume"
        shares_of = 100 * voxels / max(1, voxels.sum())
        figures += [(f"{share:.3g} %", f"in class {c}") for c, share in enumerate(shares_of)]
    return f"{kind}, made by {shown.step['operation']} ({info.when(shown.step)}).", figures


def _thresholds(shown: Shown) -> np.ndarray | None:
    array = shown.volume.sibling("thresholds")
    return None if array is None else array.whole()


def _centres(shown: Shown) -> np.ndarray | None:
    array = shown.volume.sibling("centres")
    return None if array is None else array.whole()


# ---------------------------------------------------------------- slices


def _slices(shown: Shown, volume: Any, colours: Sequence[str]) -> Section:
    """Show the middle slices along the three axes, grey values beside classes."""
    planes = [] if volume is None else slices_of(volume)
    classes = slices_of(shown.volume)
    low, high = pictures.limits(*(p for _, p, _ in planes), low=0.2) if planes else (0.0, 1.0)
    panels = []
    for i, (title, plane, axes) in enumerate(classes):
        if planes:
            panels.append(Panel(title, planes[i][1], low, high, "gray", "value", axes=axes))
        panels.append(class_panel(f"{title}, classes", plane, axes, colours, _first(shown)))
    png = pictures.png(pictures.images(panels, 2 if planes else 3))
    caption = "One scale for all grey values. " if planes else ""
    if any(shown.step.get("parameters", {}).get("sigma", [])):
        caption += "Values are shown as they were classified, after the Gaussian. "
    if pictures.reduced(classes[0][1])[1] > 1:
        caption += "Large slices are reduced: grey values to means, classes to every n-th voxel."
    picture = Picture("slices", png, "Middle slices along z, y and x beside their classes", caption)
    return Section("Slices through the middle", pictures=[picture])


def class_panel(
    title: str, plane: np.ndarray, axes: tuple[str, str], colours: Sequence[str], first: int = 0
) -> Panel:
    """Return a slice of classes; of a large one every n-th voxel, since a mean of classes is none."""
    n = math.ceil(max(plane.shape) / pictures.MOST_PIXELS)
    shape = (plane.shape[0], plane.shape[1])
    image = plane[n // 2 :: n, n // 2 :: n]
    low, high = first - 0.5, len(colours) - 0.5
    return Panel(title, image, low, high, colours[first:], "class", axes=axes, shape=shape)


# ---------------------------------------------------------------- histogram


def _histogram(shown: Shown, found: Shares, colours: Sequence[str]) -> Section:
    """Show the values of every class, and what parts them."""
    thresholds, centres = _thresholds(shown), _centres(shown)
    marks, text = [], []
    if thresholds is not None:
        marks = [(float(t), f"{t:.5g}") for t in thresholds]
        text.append("A voxel belongs to the class above a threshold if its value is larger.")
    elif centres is not None:
        marks = [(float(c), "") for c in centres[:, 0]]
        text.append("Dashed: the intensities of the centres.")
        if np.isfinite(centres[:, 1:]).all():
            text.append("Clusters overlap here where their places part them.")
    else:
        text.append(
            "The threshold was found after local contrast, so the same grey value may be on both sides of it."
        )
    how = "a sample of the voxels" if shown.sampled else "all voxels"
    picture = Picture(
        "histogram", pictures.png(histograms(found, colours, marks)), f"Histogram of {how} by class", ""
    )
    return Section("Histogram by class", [f"Of {how}. {' '.join(text)}"], pictures=[picture])


def histograms(found: Shares, colours: Sequence[str], marks: Sequence[tuple[float, str]]) -> Figure:
    """Draw the histogram of every class on top of each other, linear and logarithmic."""
    values = [*found.ends(0.0005, 0.9995), *(m for m, _ in marks)]
    low, high = min(values), max(values)
    reach = max(high - low, found.width)
    every_low, every_high = found.ends(0.0, 1.0)
    low, high = max(every_low, low - 0.05 * reach), min(every_high, high + 0.05 * reach)
    edges, counts = found.within(low, high, N_BINS)
    figure = pictures.canvas(WIDTH, 3.3)
    figure.subplots_adjust(*pictures.edges(WIDTH, 3.3), wspace=0.2)
    with pictures.style():
        for position, is_logarithmic in enumerate((False, True), 1):
            axes = figure.add_subplot(1, 2, position)
            for c in np.flatnonzero(counts.any(axis=1)).tolist():
                baseline = 0.5 if is_logarithmic else 0
                axes.stairs(counts[c], edges, fill=True, color=colours[c], alpha=0.35, baseline=baseline)
                axes.stairs(counts[c], edges, color=colours[c], baseline=baseline, label=f"class {c}")
            axes.set_title("The same, logarithmic" if is_logarithmic else "Voxels of every class")
            _finish(axes, counts, marks, is_logarithmic)
    return figure


def _finish(axes: Axes, counts: np.ndarray, marks: Sequence[tuple[float, str]], is_logarithmic: bool) -> None:
    if is_logarithmic:
        axes.set_yscale("log")
        axes.set_ylim(0.7, max(10, counts.max() * 4))
    else:
        axes.set_ylim(0, max(1.0, 1.15 * counts.max()))
        if len(counts) <= 10:
            axes.legend(fontsize=9)
    for value, name in marks:
        axes.axvline(value, color=GREY, linewidth=0.9, linestyle="--")
        axes.annotate(
            name, (value, 1), (3, -3), xycoords=("data", "axes fraction"), textcoords="offset points", va="top",
            color="#333333", fontsize=9,
        )  # fmt: skip
    axes.set_xlabel("value")
    axes.set_ylabel("voxels per bin")
    axes.grid(visible=True)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


# ---------------------------------------------------------------- how much there is


def _classes(shown: Shown, voxels: np.ndarray, found: Shares | None) -> Section:
    """List the classes: how many voxels, which values, and where the centres of clusters are."""
    centres = _centres(shown)
    head, rows = ["class", "voxels", "share"], []
    means = None if found is None else found.means
    head += [] if means is None else ["mean value"]
    head += [] if centres is None else ["centre: value", "z", "y", "x"]
    for c, n in enumerate(voxels):
        if c == 0 and _is_kmeans(shown) and not n:
            continue
        row = [str(c), f"{n:,}".replace(",", " "), f"{100 * n / max(1, voxels.sum()):.3g} %"]
        row += [] if means is None else [f"{means[c]:.5g}" if n else "–"]
        if centres is not None:
            row += ["–"] * 4 if c == 0 else [f"{v:.5g}" if np.isfinite(v) else "–" for v in centres[c - 1]]
        rows.append(row)
    text = ["Class 0 is what lies below the threshold."] if _is_kmeans(shown) and voxels[0] else []
    return Section("Classes", text, tables=[Table(rows, head)])
