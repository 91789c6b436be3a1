"""What the report of a depth map shows: the map, its regions outlined, its histogram with the threshold."""

from __future__ import annotations

from typing import Any

import numpy as np

from tomoscale import info, outlines, pictures, plots
from tomoscale.page import Picture, Section, Table
from tomoscale.pictures import Panel
from tomoscale.plots import slices_of
from tomoscale.shown import Shown
from tomoscale.store import Volume

N_ROWS = 15
"""Regions in the table of the page."""
MOST_VALUES = 1 << 24
"""Values of a map whose histogram is drawn; of larger ones every n-th row and column."""


def is_of_depth(shown: Shown) -> bool:
    """Tell whether a result is a depth map."""
    return shown.array == "map" and shown.step.get("operation") in ("depth.segment", "depth.project")


def made(shown: Shown) -> tuple[str, list[tuple[str, str]], list[Section]]:
    """
    Return the report of a depth map.

    Parameters
    ----------
    shown : Shown
        The result of `depth` or `depth project`: a map (y, x), or running sums (z, y, x).

    Returns
    -------
    lead : str
        What it is, in a sentence.
    figures : list of (str, str)
        Key figures: value and what it is.
    sections : list of Section
        What follows.
    """
    labels = shown.volume.sibling("labels")
    threshold = shown.volume.sibling("threshold")
    level = None if threshold is None else float(threshold.whole()[0])
    planes = _planes(shown.volume)
    sections = [_map(shown, planes, labels), _histogram(planes, level)]
    if shown.table:
        sections.append(_largest(shown.table))
    return *_lead(shown, level), sections


def _planes(volume: Volume) -> list[tuple[str, np.ndarray, tuple[str, str]]]:
    """Return what is drawn: the map, or the middle slices of running sums."""
    return [("Depth map", volume.whole(), ("y", "x"))] if volume.ndim == 2 else slices_of(volume)


def _lead(shown: Shown, level: float | None) -> tuple[str, list[tuple[str, str]]]:
    shape, axes = shown.volume.shape, "z, y, x"[-3 * shown.volume.ndim + 2 :]
    figures = [(" × ".join(map(str, shape)), axes)]
    if level is not None:
        figures.append((f"{level:.5g}", "threshold"))
    if shown.table:
        figures.append((f"{len(shown.table['label'])}", "regions"))
        share = _sizes(shown.table)[1].sum() / np.prod(shape)
        figures.append((f"{100 * share:.3g} %", "of the map in regions"))
    kind = "Absolute gradients along z, " + (
        "summed over all slices" if len(shape) == 2 else "summed up to every slice"
    )
    return f"{kind}; made by {shown.step['operation']} ({info.when(shown.step)}).", figures


def _sizes(table: dict[str, np.ndarray]) -> tuple[str, np.ndarray]:
    """Return the name and the values of the column of sizes."""
    name = "pixels" if "pixels" in table else "voxels"
    return name, table[name]


def _map(shown: Shown, planes: list[Any], labels: Volume | None) -> Section:
    """Show the map, or slices of the running sums; beside it the same with its regions outlined."""
    low, high = pictures.limits(*(p for _, p, _ in planes), low=0.2)
    regions = [] if labels is None else [p for _, p, _ in _planes(labels)]
    panels, marked = [], []
    for i, (title, plane, axes) in enumerate(planes):
        panels.append(Panel(title, plane, low, high, unit="sum", axes=axes))
        if regions:
            n = np.count_nonzero(np.unique(regions[i]))
            marked.append((len(panels), regions[i]))
            several = "region" if n == 1 else "regions"
            panels.append(Panel(f"{n} {several} outlined", plane, low, high, "gray", "sum", axes=axes))
    figure = pictures.images(panels, 2 if regions else min(3, len(panels)))
    for position, found in marked:
        outlines.draw(figure.axes[position], found)
    caption = "One scale for all. " if len(panels) > 1 else ""
    caption += pictures.shrunk(planes[0][1], "mean")
    picture = Picture("map", pictures.png(figure), "Depth map with its regions", caption)
    return Section("Depth map", pictures=[picture])


def _histogram(planes: list[Any], level: float | None) -> Section:
    """Show the values of what is drawn, and the threshold."""
    step = int(np.ceil(np.sqrt(max(1, sum(p.size for _, p, _ in planes) / MOST_VALUES))))
    values = np.concatenate([p[::step, ::step].ravel() for _, p, _ in planes])
    marks = () if level is None else ((level, "threshold"),)
    one = plots.Distribution("Values of the map", "sum", values, limits=marks, of="pixels")
    what = "the map" if len(planes) == 1 else "the slices above"
    picture = Picture("histogram", pictures.png(plots.distributions([one], 1)), f"Histogram of {what}", "")
    return Section("Histogram", [f"Of {what}."], pictures=[picture])


def _largest(table: dict[str, np.ndarray]) -> Section:
    """List the largest regions."""
    name, sizes = _sizes(table)
    order = np.argsort(-sizes, kind="stable")[:N_ROWS]
    centre = [a for a in ("z", "row", "column") if a in table]
    head = ["label", name, *centre, *(f"box: {a}" for a in centre)]
    rows = []
    for i in order:
        edges = (f"{table[f'{a}_min'][i]} to {table[f'{a}_max'][i] - 1}" for a in centre)
        rows.append([str(table["label"][i]), str(sizes[i]), *(f"{table[a][i]:.1f}" for a in centre), *edges])
    n = len(sizes)
    text = (
        f"The {len(rows)} largest of {n}, with centroid and box."
        if n > len(rows)
        else "With centroid and box."
    )
    return Section("The largest regions", [text], tables=[Table(rows, head)])
