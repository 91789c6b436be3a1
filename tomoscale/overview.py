"""Labelled frames seen from two sides in one reading: along the rotation, and along the rows."""

from __future__ import annotations

import itertools
import math
import threading
from collections.abc import Iterator

import numpy as np

from tomoscale.blocks import MIB, Window, spans
from tomoscale.readings import in_threads
from tomoscale.store import Volume

WINDOW_BYTES = 16 * MIB
"""Of labels, read at a time by every thread, in whole chunks; the frames of the same window come on top."""
THREADS = 2


class View:
    """
    What is seen along one axis.

    Parameters
    ----------
    shape : (int, int)
        Sizes of the other two axes.

    Attributes
    ----------
    highest : (a, b) float32
        Highest value along the axis.
    labels : (a, b)
        Label of the brightest labelled voxel along the axis; of equally bright ones the smallest; 0 for none.
    """

    def __init__(self, shape: tuple[int, int]) -> None:
        self.highest = np.full(shape, -np.inf, np.float32)
        self.labels = np.zeros(shape, np.int64)
        self._best = np.full(shape, -np.inf, np.float32)

    def add(
        self,
        place: tuple[slice, slice],
        highest: np.ndarray,
        at: tuple[np.ndarray, np.ndarray],
        values: np.ndarray,
        labels: np.ndarray,
    ) -> None:
        """Add a window: its highest values, and its labelled voxels by their place in the view."""
        np.fmax(self.highest[place], highest, out=self.highest[place])
        # Of several values for one element NumPy keeps the last: the brightest, of these the smallest label.
        order = np.lexsort((-labels, values))
        first = tuple(a[order] for a in at)
        best, front = np.full(highest.shape, -np.inf, np.float32), np.zeros(highest.shape, np.int64)
        best[first], front[first] = values[order], labels[order]
        brighter = (best > self._best[place]) | ((best == self._best[place]) & (front < self.labels[place]))
        brighter &= front > 0
        self._best[place][brighter] = best[brighter]
        self.labels[place][brighter] = front[brighter]


class Overview:
    """
    What one reading of frames and their labels found.

    Parameters
    ----------
    shape : (int, int, int)
        Frames, rows, columns.

    Attributes
    ----------
    front : View
        Along the rotation: (row, column).
    side : View
        Along the rows: (frame, column).
    labelled : (frame,) int64
        Labelled pixels of every frame.
    """

    def __init__(self, shape: tuple[int, int, int]) -> None:
        self.front = View((shape[1], shape[2]))
        self.side = View((shape[0], shape[2]))
        self.labelled = np.zeros(shape[0], np.int64)
        self._lock = threading.Lock()

    def add(self, window: Window, values: np.ndarray, labels: np.ndarray) -> None:
        """Add the voxels of a window and their labels."""
        frame, row, column = np.nonzero(labels)
        bright = values[frame, row, column].astype(np.float32)
        found = labels[frame, row, column].astype(np.int64)
        counts = np.bincount(frame, minlength=labels.shape[0])
        # NaN are never the highest, unless there is nothing else.
        front, side = (np.fmax.reduce(values, axis=axis).astype(np.float32) for axis in (0, 1))
        with self._lock:
            self.front.add((window[1], window[2]), front, (row, column), bright, found)
            self.side.add((window[0], window[2]), side, (frame, column), bright, found)
            self.labelled[window[0]] += counts


def of(frames: Volume, labels: Volume, *, title: str = "overview", quiet: bool = False) -> Overview:
    """
    Read frames and labels once, window by window, in two threads.

    Parameters
    ----------
    frames : (frame, row, column)
        What was segmented.
    labels : (frame, row, column)
        Their labels; 0 is nothing.
    title : str
        What the progress is called.
    quiet : bool
        Show no progress.

    Returns
    -------
    Overview
        What was found; the same whatever the chunks.
    """
    found = Overview((labels.shape[0], labels.shape[1], labels.shape[2]))
    windows = list(_windows(labels))

    def read(window: Window) -> None:
        found.add(window, frames.read(window), labels.read(window))

    in_threads(read, windows, threads=THREADS, title=title, quiet=quiet)
    return found


def _windows(volume: Volume) -> Iterator[Window]:
    """Cut an array into windows of whole chunks, columns first."""
    allowed = max(1, WINDOW_BYTES // volume.dtype.itemsize)
    edges = [min(c, n) for c, n in zip(volume.chunks, volume.shape, strict=True)]
    for axis in (2, 1, 0):
        more = max(1, allowed // math.prod(edges))
        edges[axis] = min(edges[axis] * more, volume.shape[axis])
    yield from itertools.product(*(spans(n, e) for n, e in zip(volume.shape, edges, strict=True)))
