"""What the report of blobs shows: where they are, how large and how bright, the brightest, and the rejected."""

from __future__ import annotations

from typing import Any

import numpy as np

from tomoscale import info, outlines, overview, pictures, plots
from tomoscale.overview import Overview
from tomoscale.page import Picture, Section, Table
from tomoscale.pictures import Panel
from tomoscale.plots import Distribution, Thumbnail
from tomoscale.shown import Shown, frame_of
from tomoscale.store import Volume

AXES = ("frame", "row", "column")
N_THUMBNAILS = 12
AROUND = 8
"""Pixels around a blob in its thumbnail."""
LARGE = 768
"""Frames with longer edges fill the page and are drawn once."""
LEAST, LARGEST = 32, 96
"""Edge of a thumbnail in pixels, at least and at most."""
Columns = dict[str, np.ndarray]


def is_of_blobs(shown: Shown) -> bool:
    """Tell whether a result is labels with a table of blobs beside."""
    return shown.array == "labels" and {"label", "peak", "peak_frame", "voxels", "absorbed_into"} <= set(
        shown.table
    )


def made(shown: Shown) -> tuple[str, list[tuple[str, str]], list[Section]]:
    """
    Return the report of blobs.

    Parameters
    ----------
    shown : Shown
        The result.

    Returns
    -------
    lead : str
        What it is, in a sentence.
    figures : list of (str, str)
        Key figures: value and what it is.
    sections : list of Section
        What follows.
    """
    found, own = shown.found.get("blobs", {}), shown.table["absorbed_into"] == 0
    blobs = {n: v[own] for n, v in shown.table.items()}
    rejected, counts = listed(found.get("brightest_rejected", [])), dict(found.get("rejected", {}))
    counts["absorbed"] = counts.get("absorbed", 0) + int(np.count_nonzero(~own))
    frames, note = shown.made_from
    sections = []
    if frames is not None and not shown.sampled:
        seen = overview.of(frames, shown.volume, title="report: reading", quiet=shown.quiet)
        noise = _noise(frames, seen)
        sections = [
            _over_the_frames(shown, frames, seen, noise),
            _over_the_rotation(shown, seen, noise, blobs),
        ]
    sections += [_distributions(found, shown.step, blobs, rejected), _reasons(blobs, counts)]
    if frames is not None:
        sections += _brightest(frames, shown.volume, blobs, "The brightest blobs", "brightest")
        sections += _brightest(frames, None, rejected, "The brightest of the rejected", "rejected")
    if note:
        sections[0].notes.append(note)
    return *_lead(shown, blobs, counts), sections


def listed(rejected: list[dict[str, Any]]) -> Columns:
    """
    Return the rejected seeds that a result lists, as columns of a table.

    Parameters
    ----------
    rejected : list of dict
        `reason`, `peak`, `position`, `voxels` and `box` of each; without voxels where it was rejected before it grew.

    Returns
    -------
    dict of str to (seed,)
        Columns as of blobs, and `reason`.
    """
    boxes = np.array([r["box"] for r in rejected], np.int64).reshape(-1, 3, 2)
    places = np.array([r["position"] for r in rejected], np.int64).reshape(-1, 3)
    columns = {
        "reason": np.array([r["reason"] for r in rejected], str),
        "peak": np.array([r["peak"] for r in rejected], np.float64),
        "voxels": np.array([r["voxels"] for r in rejected], np.int64),
    }
    for i, axis in enumerate(AXES):
        columns |= {
            f"peak_{axis}": places[:, i],
            f"{axis}_min": boxes[:, i, 0],
            f"{axis}_max": boxes[:, i, 1],
        }
    return columns


def _lead(shown: Shown, blobs: Columns, counts: dict[str, int]) -> tuple[str, list[tuple[str, str]]]:
    n, rows, columns = shown.volume.shape
    share = blobs["voxels"].sum() / (n * rows * columns)
    figures = [
        (f"{len(blobs['label'])}", "blobs"),
        (f"{sum(counts.values())}", "seeds rejected"),
        (f"{n} × {rows} × {columns}", "frame, row, column"),
        (f"{100 * share:.3g} %", "of the voxels in blobs"),
    ]
    if len(blobs["label"]):
        figures.append((f"{np.median(blobs['voxels']):.4g}", "voxels, median"))
        figures.append((f"{np.median(blobs['peak']):.4g} counts", "peak, median"))
    when = f" ({info.when(shown.step)})" if shown.step else ""
    return (
        f"Diffraction blobs of a rotation scan, made by {shown.step.get('operation', 'unknown')}{when}.",
        figures,
    )


# ---------------------------------------------------------------- where they are


def _noise(frames: Volume, seen: Overview) -> float:
    """Return half the 16-84 % range of the frame with most labelled pixels."""
    low, high = pictures.limits(frame_of(frames, int(np.argmax(seen.labelled))), low=16, high=84)
    return max((high - low) / 2, 1e-6)


def _panel(title: str, image: np.ndarray, noise: float, axes: tuple[str, str] = ("row", "column")) -> Panel:
    image = image.astype(np.float32)
    image = np.where(np.isfinite(image), image, np.nan)
    low = min(0.0, pictures.limits(image, high=50)[0])
    high = max(float(np.nanmax(image, initial=low)), low + noise)
    return Panel(title, image, low, high, "gray", asinh=3 * noise, axes=axes)


def _over_the_frames(shown: Shown, frames: Volume, seen: Overview, noise: float) -> Section:
    """Show outlines on the maximum projection, and on the frame with most labelled pixels."""
    k = int(np.argmax(seen.labelled))
    labels = frame_of(shown.volume, k)
    frame = frame_of(frames, k)
    views = [
        ("Maximum over all frames", seen.front.highest, seen.front.labels),
        (shown.place(k).capitalize(), frame, labels),
    ]
    panels, marked = [], []
    is_large = max(frame.shape) > LARGE
    for title, image, regions in views:
        if not is_large:
            panels.append(_panel(title, image, noise))
        marked.append((len(panels), regions))
        title = f"{title if is_large else 'The same'}, {_several(regions)} outlined"
        panels.append(_panel(title, image, noise))
    figure = pictures.images(panels, 1 if is_large else 2)
    for position, regions in marked:
        outlines.draw(figure.axes[position], regions)
    caption = (
        f"Linear below {3 * noise:.3g} counts, logarithmic above. Where blobs lie behind each other along the "
        "rotation, the outline is that of the brighter one. The frame is that with most labelled pixels. "
    ) + pictures.shrunk(frame)
    picture = Picture(
        "blobs", pictures.png(figure), "Blobs outlined on the maximum projection and on a frame", caption
    )
    return Section("Blobs over the frames", pictures=[picture])


def _several(labels: np.ndarray) -> str:
    n = np.count_nonzero(np.unique(labels))
    return f"{n} blob{'' if n == 1 else 's'}"


def _over_the_rotation(shown: Shown, seen: Overview, noise: float, blobs: Columns) -> Section:
    """Show the highest value of every column in every frame, and in how many blobs a frame takes part."""
    x, name = shown.abscissa
    image, labels = seen.side.highest.T, seen.side.labels.T
    title = f"The same, {_several(labels)} outlined"
    panels = [_panel(t, image, noise, ("column", "frame")) for t in ("Maximum along the rows", title)]
    figure = plots.wide(panels)
    outlines.draw(figure.axes[1], labels)
    ends = (
        f" Frames 0 to {len(x) - 1} are omega {x[0]:.2f}° to {x[-1]:.2f}°." if shown.omega is not None else ""
    )
    section = Section("Blobs over the rotation")
    section.pictures.append(
        Picture(
            "rotation", pictures.png(figure), "Blobs outlined on the projection along the rows",
            f"What is long here takes part in many frames: it lies near the rotation axis.{ends}",
        )
    )  # fmt: skip
    lines = [
        ("Blobs in every frame", per_frame(blobs, len(x))),
        ("Labelled pixels of every frame", seen.labelled),
    ]
    drawn = plots.curves(x, name, lines, unit="number")
    section.pictures.append(Picture("per-frame", pictures.png(drawn), f"Number of blobs over {name}", ""))
    return section


def per_frame(blobs: Columns, n_frames: int) -> np.ndarray:
    """Count the blobs whose box holds a frame."""
    ends = np.zeros(2 * n_frames + 1, np.int64)
    np.add.at(ends, np.clip(blobs["frame_min"], 0, 2 * n_frames), 1)
    np.add.at(ends, np.clip(blobs["frame_max"], 0, 2 * n_frames), -1)
    inside = np.cumsum(ends)[: 2 * n_frames]
    # A blob that goes over the end of the rotation goes on in its first frames.
    return inside[:n_frames] + inside[n_frames:]


# ---------------------------------------------------------------- how many, how large, how bright


def _distributions(found: dict[str, Any], step: dict[str, Any], blobs: Columns, rejected: Columns) -> Section:
    section = Section("Sizes and intensities")
    if not len(blobs["label"]) + len(rejected["peak"]):
        section.text.append("Nothing was found.")
        return section
    parameters, thresholds = step.get("parameters", {}), found.get("thresholds", {})
    names = (("c_min", "c_min"), ("seed_threshold", "seed threshold"))
    marks = {"peak": [(float(thresholds[n]), w) for n, w in names if thresholds.get(n) is not None]}
    for position, axis in enumerate(AXES):
        # Both ends are allowed: the line is drawn beyond the bin.
        ends = (("min_size", "smallest", -0.5), ("max_size", "largest", 0.5))
        marks[axis] = [(parameters[n][position] + d, w) for n, w, d in ends if parameters.get(n)]
    grown = {n: v[rejected["voxels"] > 0] for n, v in rejected.items()}

    def length(table: Columns, axis: str) -> np.ndarray:
        return table[f"{axis}_max"] - table[f"{axis}_min"]

    figures = [
        Distribution("Peak", "counts", blobs["peak"], rejected["peak"], marks["peak"]),
        Distribution("Integrated intensity", "counts", blobs["intensity"]),
        Distribution("Volume", "voxels", blobs["voxels"], grown["voxels"]),
        *(
            Distribution(f"Length in {a}s", f"{a}s", length(blobs, a), length(grown, a), marks[a])
            for a in AXES
        ),
    ]
    png = pictures.png(plots.distributions(figures))
    what = ", ".join(f.name.lower() for f in figures)
    caption = "Lengths are edges of the box. "
    if len(rejected["peak"]):
        caption += "On top, the brightest seeds that were rejected; those that did not grow have a peak only."
    section.pictures.append(Picture("sizes", png, f"Histograms: {what}", caption))
    return section


def _reasons(blobs: Columns, counts: dict[str, int]) -> Section:
    """Count what became of all seeds."""
    section = Section("What was kept and what was rejected")
    rows = [("kept", f"{len(blobs['label'])}"), *((reason, f"{n}") for reason, n in counts.items())]
    section.tables.append(Table(rows, ("", "seeds")))
    if counts["absorbed"]:
        section.text.append(
            "Absorbed: the peak belongs to a brighter blob. They are not counted as blobs here."
        )
    touching = int(np.count_nonzero(blobs["touches_border"])) if "touches_border" in blobs else 0
    if touching:
        section.text.append(f"{touching} of the kept ones touch the border of the scan.")
    return section


# ---------------------------------------------------------------- single ones


def _brightest(frames: Volume, labels: Volume | None, blobs: Columns, title: str, name: str) -> list[Section]:
    """Show the brightest in the frame of their peak."""
    order = np.argsort(-blobs["peak"], kind="stable")[:N_THUMBNAILS]
    if not len(order):
        return []
    shown = [_thumbnail(frames, labels, {n: v[i] for n, v in blobs.items()}) for i in order]
    caption = (
        "Rows and columns around the blob in the frame of its peak; its size in frames, rows and columns. The scale is "
        "that of the square root, from 0 to the peak. "
    )
    caption += (
        "All blobs there are outlined."
        if labels is not None
        else ("The box is dashed; of a seed that did not grow, a square around its peak.")
    )
    png = pictures.png(plots.thumbnails(shown))
    return [Section(title, pictures=[Picture(name, png, f"{title}, one image each", caption)])]


def _thumbnail(frames: Volume, labels: Volume | None, blob: dict[str, Any]) -> Thumbnail:
    k = int(blob["peak_frame"])
    window = [slice(k, k + 1)]
    sizes = [int(blob[f"{a}_max"]) - int(blob[f"{a}_min"]) for a in AXES]
    edge = min(max(*sizes[1:], LEAST - 2 * AROUND) + 2 * AROUND, LARGEST)
    for axis, n in zip(AXES[1:], frames.shape[1:], strict=True):
        a, b = int(blob[f"{axis}_min"]), int(blob[f"{axis}_max"])
        middle = (a + b) // 2 if 0 < b - a <= edge else int(blob[f"peak_{axis}"])
        start = max(0, min(middle - edge // 2, n - edge))
        window.append(slice(start, min(n, start + edge)))
    row, column = int(blob["peak_row"]), int(blob["peak_column"])
    box = (row - 1, row + 2, column - 1, column + 2)
    if blob["voxels"]:
        box = (blob["row_min"], blob["row_max"], blob["column_min"], blob["column_max"])
    name = f"{blob['label']}, peak" if "label" in blob else f"{blob['reason']},"
    size = f", {' × '.join(map(str, sizes))}" if blob["voxels"] else ""
    return Thumbnail(
        f"{name} {blob['peak']:.4g}\nframe {k}{size}",
        frames.read(tuple(window))[0].astype(np.float32),
        (window[1].start, window[2].start),
        float(blob["peak"]),
        None if labels is None else labels.read(tuple(window))[0],
        None if labels is not None else box,
    )
