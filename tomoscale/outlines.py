"""Outlines of labelled regions, drawn along the edges of pixels."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LINE = "#ff3b30"


def seen_from_the_front(values: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """
    Return the label of the brightest labelled voxel along the first axis; 0 where there is none.

    Parameters
    ----------
    values, labels : (frame, row, column)
        An image and its labels.

    Returns
    -------
    (row, column)
        Labels.

    Examples
    --------
    >>> seen_from_the_front(np.array([[[5, 9]], [[7, 1]]]), np.array([[[1, 0]], [[2, 3]]]))
    array([[2, 3]])
    """
    top = np.zeros(labels.shape[1:], labels.dtype)
    best = np.zeros(values.shape[1:], values.dtype)
    for image, here in zip(values, labels, strict=True):
        brighter = (here > 0) & ((image > best) | (top == 0))
        np.copyto(best, image, where=brighter)
        np.copyto(top, here, where=brighter)
    return top


def edges(labels: np.ndarray) -> np.ndarray:
    """
    Return the edges of pixels between different labels.

    Parameters
    ----------
    labels : (row, column)
        Labels; 0 is no region, nor is what lies outside of the image.

    Returns
    -------
    (edge, 2, 2) float
        Both ends of every edge as (x, y), where pixel (row, column) fills x from column - 0.5 to column + 0.5.
        Edges in line between the same two labels are one.

    Examples
    --------
    >>> edges(np.array([[0, 1, 1]])).tolist()
    [[[0.5, -0.5], [2.5, -0.5]], [[0.5, 0.5], [2.5, 0.5]], [[0.5, -0.5], [0.5, 0.5]], [[2.5, -0.5], [2.5, 0.5]]]
    """
    padded = np.pad(labels.astype(np.int64), 1)
    level = _runs(padded[:-1, 1:-1], padded[1:, 1:-1])
    upright = _runs(padded[1:-1, :-1].T, padded[1:-1, 1:].T)
    return np.concatenate([level, upright[..., ::-1]])


def _runs(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Return where neighbouring lines differ, as runs along the lines: (x, y) of both ends."""
    differ = first != second
    same = (first[:, 1:] == first[:, :-1]) & (second[:, 1:] == second[:, :-1])
    joined = np.zeros_like(differ)
    joined[:, 1:] = differ[:, 1:] & differ[:, :-1] & same
    line, start = np.nonzero(differ & ~joined)
    ends = differ.copy()
    ends[:, :-1] &= ~joined[:, 1:]
    stop = np.nonzero(ends)[1] + 1
    y = line - 0.5
    return np.stack([np.stack([start - 0.5, y], -1), np.stack([stop - 0.5, y], -1)], 1)


def draw(axes: Axes, labels: np.ndarray, *, width: float = 0.7, first: tuple[int, int] = (0, 0)) -> None:
    """
    Draw the outlines of labels over an image.

    Parameters
    ----------
    axes : matplotlib.axes.Axes
        Where the image is.
    labels : (row, column)
        Labels; 0 is no region.
    width : float
        Width of the lines in points.
    first : (int, int)
        Row and column of the first pixel.
    """
    from matplotlib.collections import LineCollection

    lines = edges(labels) + np.array(first[::-1])
    axes.add_collection(LineCollection(lines.tolist(), colors=LINE, linewidths=width), autolim=False)


def over(voxels: np.ndarray, labels: np.ndarray, title: str, region: Any) -> Any:
    """
    Draw outlines of labels over an image.

    Parameters
    ----------
    voxels, labels : (frame, row, column) or (z, y, x)
        An image and its labels.
    title : str
        Above the picture.
    region : Volume
        What the image is a part of: a scan is shown by its maximum projection and its busiest frame, a volume by its
        middle slices; frames, rows and columns are numbered as in the whole.

    Returns
    -------
    matplotlib.figure.Figure
        The picture.
    """
    from tomoscale import pictures
    from tomoscale.pictures import Panel

    spread = pictures.limits(voxels, low=16, high=84)
    frame, row, column = (s.start for s in region.place[0])
    noise = max((spread[1] - spread[0]) / 2, 1e-6)
    if _is_scan(region):
        k = int(np.argmax(np.count_nonzero(labels, axis=(1, 2))))
        first = row, column
        planes = [
            ("Maximum over all frames", voxels.max(0), seen_from_the_front(voxels, labels), first),
            (f"Frame {frame + k}, the one with most labelled pixels", voxels[k], labels[k], first),
        ]
        low = min(0.0, spread[0])
        high = max(float(np.nanmax(voxels)), low + 1e-6)
        panels = [
            Panel(t, p.astype(np.float32), low, high, "gray", asinh=3 * noise, first=f)
            for t, p, _, f in planes
        ]
    else:
        z, y = (n // 2 for n in voxels.shape[:2])
        planes = [
            (f"z = {frame + z}", voxels[z], labels[z], (row, column)),
            (f"y = {row + y}", voxels[:, y], labels[:, y], (frame, column)),
        ]
        low, high = pictures.limits(voxels, low=0.2)
        panels = [
            Panel(t, p.astype(np.float32), low, high, "gray", "value", axes=(a, "x"), first=f)
            for a, (t, p, _, f) in zip("yz", planes, strict=True)
        ]
    figure = pictures.images(panels, head=title)
    for place, (_, _, regions, first) in zip(figure.axes, planes, strict=True):
        draw(place, regions, first=first)
    return figure


def _is_scan(region: Any) -> bool:
    """Tell whether the first axis is that of the frames."""
    stored = getattr(region, "inner", region)
    names = getattr(getattr(stored, "info", None), "dimension_names", None)
    return names[0] != "z" if names else getattr(getattr(stored, "path", None), "name", "") != "volume"
