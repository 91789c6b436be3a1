"""Pictures of a result, and one HTML page that holds them."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from tomoscale import blob_page, class_page, depth_page, info, page, pictures, plots, store
from tomoscale._version import __version__
from tomoscale.errors import TomoscaleError, bad_input
from tomoscale.operation import command
from tomoscale.page import Picture, Section, Table
from tomoscale.pictures import RESIDUAL, Panel
from tomoscale.progress import human_bytes
from tomoscale.shown import Shown, frame_of, image_of

PAGE = "index.html"


@command("report")
def make(
    path: Path,
    *,
    output: Path | None = None,
    sampled: bool = False,
    quiet: bool = False,
) -> Path:
    """
    Draw a result: pictures, and one HTML page that holds them and the history.

    Of cleaned frames it shows the frame with the strongest signal before and after, on the same scale, and the
    background there; of every scan the level over omega, the maximum projection and the histogram; of a
    volume its middle slices; of classes and clusters the slices beside those of the volume, its histogram by class
    with thresholds or centres; of a depth map its regions; of blobs their outlines on the frames and over the
    rotation, how large and how bright they are, the brightest ones, and what was rejected.

    Parameters
    ----------
    path : Path
        A result, a scan or a volume.
    output : Path, optional
        Folder of the page; `OUT-report` beside OUT.zarr by default. Its files of an earlier report are replaced.
    sampled : bool
        Read samples instead of the whole array: quick, but without the maximum projection.
    quiet : bool
        Show no progress.

    Returns
    -------
    Path
        The page.

    Raises
    ------
    TomoscaleError
        A result that is not complete, one that has not three axes, or a folder with a page of another making.
    """
    volume = store.open_volume(path)
    with bad_input():
        shown = Shown(volume, sampled, quiet)
        folder = output or shown.name_beside("-report")
        if depth_page.is_of_depth(shown):
            lead, figures, sections = depth_page.made(shown)
        elif volume.ndim != 3:
            raise TomoscaleError(
                f"report: {path} has shape {volume.shape}; expected a scan or a volume of three axes"
            )
        elif blob_page.is_of_blobs(shown):
            lead, figures, sections = blob_page.made(shown)
        elif class_page.is_of_classes(shown):
            lead, figures, sections = class_page.made(shown)
        else:
            lead, figures, sections = *_lead(shown), _scan(shown) if shown.is_scan else _volume(shown)
        sections += _facts(shown)
    foot = f"Made by tomoscale {__version__}. The pictures are also files beside this page."
    return _written(folder, page.html(shown.title, lead, figures, sections, foot), sections)


def _written(folder: Path, text: str, sections: list[Section]) -> Path:
    """Write the page and its pictures; files of another making are left alone."""
    target = folder / PAGE
    if folder.is_file() or (
        target.exists() and page.GENERATOR not in target.read_text("utf-8", "replace")[:500]
    ):
        raise TomoscaleError(f"report: {target} exists and is no report; choose another folder with --output")
    folder.mkdir(parents=True, exist_ok=True)
    for picture in (p for s in sections for p in s.pictures):
        (folder / f"{picture.name}.png").write_bytes(picture.png)
    temporary = target.with_name(f".{PAGE}.{os.getpid()}")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(target)
    return target


# ---------------------------------------------------------------- a scan


def _scan(shown: Shown) -> list[Section]:
    k = shown.survey.strongest
    frame = frame_of(shown.volume, k)
    first = _cleaned_frame(shown, k, frame) if shown.is_cleaned else _raw_frame(shown, k, frame)
    return [first, *_level(shown, k), *_projection(shown), _histogram(shown)]


def _cleaned_frame(shown: Shown, k: int, after: np.ndarray) -> Section:
    """Show a frame before and after on the same scale, and the background there."""
    before, note = shown.before(k)
    behind = shown.background_of(k)
    low, high = _common_scale(behind if before is not None else None, after)
    panels = []
    if before is not None:
        panels.append(Panel("Before", before, low, high))
    if behind is not None:
        panels.append(Panel("Background", behind, low, high))
    panels.append(Panel("After, same scale" if before is not None else "After", after, low, high))
    symmetric = _own_scale(after)
    panels.append(Panel("After, own scale", after, -symmetric, symmetric, RESIDUAL))
    section = Section(f"One frame before and after: {shown.place(k)}")
    section.text.append(
        "The frame with the strongest signal" + (" among the samples." if shown.sampled else ".")
    )
    if before is not None:
        section.text[0] += (
            f" The median of its pixels is {np.nanmedian(before):.1f} counts before"
            f" and {np.nanmedian(after):.1f} after."
        )
    if note:
        section.notes.append(note)
    caption = pictures.shrunk(after)
    if before is not None:
        treated = "less the dark" if shown.volume.sibling("dark") is not None else "as stored"
        treated += "" if shown.level is None else " and brought to the mean level of the margin"
        caption = (
            f"Before is the raw frame, {treated}. The first three pictures share one scale, that of the background: "
            "diffraction goes beyond it. The last has a scale of its own, symmetric about zero. " + caption
        )
    alternative = f"{shown.place(k)}: " + ", ".join(p.title for p in panels)
    section.pictures.append(Picture("frame", pictures.png(pictures.images(panels)), alternative, caption))
    return section


def _own_scale(after: np.ndarray) -> float:
    """
    Return the end of a scale around zero: eight widths of the noise, or the largest value if that is less.

    >>> _own_scale(np.array([-3.0, -1.0, 0.0, 1.0, 2.0]))
    3.0
    """
    low, high = pictures.limits(after, low=16, high=84)
    largest = float(np.abs(after[np.isfinite(after)]).max(initial=0))
    return max(min(4 * (high - low), largest), 1e-6)


def _common_scale(background: np.ndarray | None, after: np.ndarray) -> tuple[float, float]:
    """Return a scale on which a background is seen: it would be lost on the scale of the brightest blob."""
    low, high = pictures.limits(after)
    return (min(0.0, low), 1.25 * pictures.limits(background)[1]) if background is not None else (low, high)


def _raw_frame(shown: Shown, k: int, frame: np.ndarray) -> Section:
    """Show a frame of a scan that is not cleaned; less its dark, if that lies beside it."""
    dark = shown.volume.sibling("dark")
    title, image = "As stored", frame
    if dark is not None and dark.shape[-2:] == frame.shape:
        image = frame - image_of(dark)
        title = "Less the dark"
    low, high = pictures.limits(image)
    linear = max((high - low) / 50, 1e-6)
    panels = [
        Panel(f"{title}, linear scale", image, low, high),
        Panel(f"{title}, logarithmic scale", image, min(low, 0.0), float(np.nanmax(image)), asinh=linear),
    ]
    section = Section(f"One frame: {shown.place(k)}")
    section.text.append(
        "The frame with the strongest signal" + (" among the samples." if shown.sampled else ".")
    )
    png = pictures.png(pictures.images(panels))
    section.pictures.append(Picture("frame", png, f"{shown.place(k)} on two scales", pictures.shrunk(frame)))
    return section


def _level(shown: Shown, k: int) -> list[Section]:
    """Show how level and signal go over the rotation."""
    x, name = shown.abscissa
    over = "omega" if shown.omega is not None else "the frames"
    lines = [("Level in the margin", shown.level)] if shown.level is not None else []
    lines += [] if lines or shown.sampled else [("Mean of every frame", shown.survey.means)]
    signal = shown.survey.signals / shown.volume.shape[1] / shown.volume.shape[2]
    if not shown.sampled:
        lines.append((f"Signal: sum of what is above {shown.survey.threshold:.4g} counts, per pixel", signal))
    section = Section(f"Level over {over}")
    if shown.is_cleaned and shown.level is None:
        section.text.append("Frames were not normalised to a level (no margin was given).")
    if shown.level is not None:
        spread = 100 * (shown.level.max() - shown.level.min()) / shown.level.mean()
        section.text.append(
            f"Mean level in the margin {shown.level.mean():.1f} counts, from lowest to highest {spread:.2f} %."
        )
    if lines:
        png = pictures.png(plots.curves(x, name, lines, (float(x[k]), f"frame {k}, shown above")))
        caption = (
            "Signal is what exceeds the 99.9th percentile of a sample of all voxels."
            if len(lines) > 1
            else ""
        )
        section.pictures.append(
            Picture("level", png, f"{' and '.join(n for n, _ in lines)} over {over}", caption)
        )
    return [section] if section.text or section.pictures else []


def _projection(shown: Shown) -> list[Section]:
    """Show the highest value of every pixel."""
    image = shown.survey.projection
    if image is None:
        return []
    noise = max(shown.survey.percentile(84) - shown.survey.percentile(16), shown.survey.width) / 2
    low, high = (float(v) for v in np.nanpercentile(image, (0.5, 99.95)))
    low, high = min(low, 0.0), max(high, low + 1e-6)
    scale = 3 * noise if shown.is_cleaned else max((high - low) / 50, 1e-6)
    panels = [Panel("Highest value of every pixel over all frames", image, low, high, asinh=scale)]
    png = pictures.png(pictures.images(panels, 1))
    caption = f"Linear below {scale:.3g} counts, logarithmic above. " + pictures.shrunk(image)
    picture = Picture("projection", png, "Maximum projection along the rotation", caption)
    return [Section("Maximum projection", pictures=[picture])]


# ---------------------------------------------------------------- a volume


def _volume(shown: Shown) -> list[Section]:
    """Show the middle slices along the three axes."""
    planes = plots.slices_of(shown.volume)
    low, high = pictures.limits(*(p for _, p, _ in planes), low=0.2)
    panels = [Panel(t, p, low, high, "gray", "value", axes=o, bar=p is planes[-1][1]) for t, p, o in planes]
    png = pictures.png(pictures.images(panels, 3))
    caption = "One scale for all. " + pictures.shrunk(planes[0][1], "mean")
    picture = Picture("slices", png, "Slices through the middle", caption)
    return [Section("Slices through the middle", pictures=[picture]), _histogram(shown)]


# ---------------------------------------------------------------- figures and facts


def _histogram(shown: Shown) -> Section:
    unit = "counts" if shown.is_scan else "value"
    found = shown.survey
    rows = [
        (name, f"{value:.5g}")
        for name, value in (
            ("lowest", found.lowest),
            *((f"{p:g} %", found.percentile(p)) for p in (1, 16)),
            ("median", found.percentile(50)),
            *((f"{p:g} %", found.percentile(p)) for p in (84, 99, 99.9, 99.99)),
            ("highest", found.highest),
        )
    ]
    how = "a sample of the voxels" if shown.sampled else "all voxels"
    text = [f"Of {how}: {int(found.counts.sum()):,} values, read once.".replace(",", " ")]
    notes = [f"{found.n_nan} voxels are NaN."] if found.n_nan else []
    picture = Picture(
        "histogram", pictures.png(pictures.histogram(found, unit)), f"Histogram of {how}, logarithmic", ""
    )
    table = Table([[v for _, v in rows]], [n for n, _ in rows])
    return Section("Histogram", text, notes, [picture], [table])


def _lead(shown: Shown) -> tuple[str, list[tuple[str, str]]]:
    """Return what it is in a sentence, and its key figures."""
    n, rows, columns = shown.volume.shape
    if shown.is_cleaned:
        kind = "Frames of a rotation scan without their background"
    else:
        kind = "Frames of a rotation scan" if shown.is_scan else "A volume"
    step = shown.step
    made = f", made by {step['operation']} ({info.when(step)})" if step else ""
    array = shown.facts["arrays"].get(shown.array or shown.root.name, {})
    figures = [(f"{n} × {rows} × {columns}", "frame, row, column" if shown.is_scan else "z, y, x")]
    figures.append((str(shown.volume.dtype), "type"))
    if array.get("stored_bytes"):
        figures.append((human_bytes(array["bytes"]), "uncompressed"))
        figures.append((human_bytes(array["stored_bytes"]), "stored"))
        figures.append((f"{array['bytes'] / array['stored_bytes']:.2f}", "compression ratio"))
    if shown.is_cleaned:
        noise = (shown.survey.percentile(84) - shown.survey.percentile(16)) / 2
        figures.append((f"{noise:.3g} counts", "half the 16–84 % range"))
    return f"{kind}{made}.", figures


def _facts(shown: Shown) -> list[Section]:
    """Return the arrays of the result and its history."""
    head = ("array", "shape", "type", "chunks", "codecs", "bytes", "stored", "ratio")
    arrays = Table([info.array_row(n, a) for n, a in shown.facts["arrays"].items()], head)
    where = Section("Arrays", [f"{shown.root}: {info.state(shown.facts)}."], tables=[arrays])
    history = Section("History")
    for number, step in enumerate(shown.facts["history"], 1):
        versions = ", ".join(f"{k} {v}" for k, v in step.get("versions", {}).items() if k != "tomoscale")
        rows = [*info.inputs(step), *([("versions", versions)] if versions else [])]
        title = f"{number}. {step['operation']}"
        history.tables.append(Table(rows, (), title, info.when(step), info.parameters(step)))
    if not history.tables:
        history.text.append("None: tomoscale did not write this.")
    return [where, history]
