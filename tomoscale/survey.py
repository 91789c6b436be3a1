"""A whole array in one reading: highest value of every pixel, histogram, signal of every frame."""

from __future__ import annotations

import itertools
import math
import os
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from tomoscale.blocks import MIB, Window, shape_of, spans
from tomoscale.readings import in_threads
from tomoscale.store import Volume

N_BINS = 2**16
WINDOW_BYTES = 16 * MIB
"""Read at a time by every thread, in whole chunks."""
MOST_THREADS = 4
SAMPLED_BYTES = 512 * MIB
SAMPLED_CHUNKS = 128
SIGNAL = 0.999
"""Share of the sampled voxels that are no signal."""


@dataclass
class Survey:
    """
    What one reading of an array found.

    Parameters
    ----------
    low, width : float
        Lower edge of the first bin, width of the bins.
    counts : (bin,) int64
        Voxels in every bin; the outermost also hold what lies outside.
    n_nan : int
        Voxels that are NaN.
    lowest, highest : float
        Extremes.
    threshold : float
        What is called signal is above it: the 99.9th percentile of a sample.
    totals, signals : (frame,) float64
        Sum of all voxels, and of those above the threshold, in every frame.
    n_voxels : (frame,) int64
        How many voxels of every frame were read.
    projection : (row, column) or None
        Highest value of every pixel; None if only samples were read.
    """

    low: float
    width: float
    counts: np.ndarray
    n_nan: int
    lowest: float
    highest: float
    threshold: float
    totals: np.ndarray
    signals: np.ndarray
    n_voxels: np.ndarray
    projection: np.ndarray | None

    @property
    def strongest(self) -> int:
        """The frame with the strongest signal."""
        return int(np.argmax(self.signals / np.maximum(self.n_voxels, 1)))

    @property
    def edges(self) -> np.ndarray:
        """Edges of the bins, one more than there are."""
        return self.low + self.width * np.arange(len(self.counts) + 1)

    @property
    def means(self) -> np.ndarray:
        """Mean of every frame; NaN where nothing of it was read."""
        with np.errstate(invalid="ignore"):
            return self.totals / np.where(self.n_voxels, self.n_voxels, np.nan)

    def percentile(self, percent: float) -> float:
        """Return a percentile, as exactly as the bins tell."""
        seen = np.cumsum(self.counts)
        if not seen[-1]:
            return math.nan
        place = int(np.searchsorted(seen, percent / 100 * seen[-1]))
        middle = self.low + self.width * (place + (0 if self.width == 1 else 0.5))
        return float(min(max(middle, self.lowest), self.highest))


def of(volume: Volume, *, sampled: bool = False, title: str = "survey", quiet: bool = False) -> Survey:
    """
    Read an array once, window by window, in a few threads.

    Parameters
    ----------
    volume : Volume
        Three axes; the first is that of the frames.
    sampled : bool
        Read up to 128 chunks, spread evenly, instead of all.
    title : str
        What the progress is called.
    quiet : bool
        Show no progress.

    Returns
    -------
    Survey
        What was found. Memory is that of a few windows and, per thread, one frame.
    """
    low, width, threshold = bins_of(volume)
    reading = _Reading(volume, low, width, threshold)
    windows = read_in_threads(volume, reading.add, sampled=sampled, title=title, quiet=quiet)
    return reading.joined(windows, projection=not sampled)


class _Sums:
    """What one thread has found so far."""

    def __init__(self, volume: Volume) -> None:
        n_frames, *frame = volume.shape
        dtype = volume.dtype
        least = np.iinfo(dtype).min if dtype.kind in "iu" else -np.inf
        self.peak = np.full(frame, least, np.float32 if dtype == np.float16 else dtype)
        self.counts = np.zeros(N_BINS + 1, np.int64)
        self.totals, self.signals = np.zeros((2, n_frames))
        self.lowest = math.inf


class _Reading:
    """Threads that read windows, each with sums of its own."""

    def __init__(self, volume: Volume, low: float, width: float, threshold: float) -> None:
        self.volume, self.low, self.width, self.threshold = volume, low, width, threshold
        self.own = threading.local()
        self.sums: list[_Sums] = []

    def add(self, window: Window) -> None:
        """Read a window and add it to the sums of this thread."""
        from tomoscale.kernels._survey import survey

        block = self.volume.read(window)
        if not hasattr(self.own, "sums"):
            self.own.sums = _Sums(self.volume)
            self.sums.append(self.own.sums)
        sums, frames = self.own.sums, window[0]
        part = sums.peak[window[1:]]
        survey(
            block if block.dtype != np.float16 else block.astype(np.float32),
            self.low,
            1 / self.width,
            self.threshold,
            part,
            sums.counts,
            sums.totals[frames],
            sums.signals[frames],
        )
        sums.lowest = min(sums.lowest, float(np.fmin.reduce(block, axis=None)))

    def joined(self, windows: list[Window], *, projection: bool) -> Survey:
        """Return the sums of all threads."""
        counts = np.sum([s.counts for s in self.sums], axis=0)
        peak = np.maximum.reduce([s.peak for s in self.sums]).astype(self.volume.dtype, copy=False)
        n_voxels = np.zeros(self.volume.shape[0], np.int64)
        for window in windows:
            n_voxels[window[0]] += math.prod(shape_of(window[1:]))
        if peak.dtype.kind == "f":
            peak[np.isneginf(peak)] = np.nan
        seen = np.flatnonzero(counts[:-1])
        return Survey(
            low=self.low,
            width=self.width,
            counts=counts[:-1],
            n_nan=int(counts[-1]),
            lowest=min(s.lowest for s in self.sums) if len(seen) else math.nan,
            highest=float(np.nanmax(peak)) if len(seen) else math.nan,
            threshold=self.threshold,
            totals=np.sum([s.totals for s in self.sums], axis=0),
            signals=np.sum([s.signals for s in self.sums], axis=0),
            n_voxels=n_voxels,
            projection=peak if projection else None,
        )


# ---------------------------------------------------------------- what is read


def read_in_threads(
    volume: Volume, function: Callable[[Window], None], *, sampled: bool, title: str, quiet: bool
) -> list[Window]:
    """
    Call a function for all windows of an array, or for those of a sample, in a few threads.

    Parameters
    ----------
    volume : Volume
        Three axes.
    function : callable
        Reads a window and keeps what it finds.
    sampled : bool
        Up to 128 chunks, spread evenly, instead of all.
    title : str
        What the progress is called.
    quiet : bool
        Show no progress.

    Returns
    -------
    list of tuple of slice
        The windows.
    """
    windows = list(_samples(volume, SAMPLED_CHUNKS) if sampled else _windows(volume))
    threads = min(MOST_THREADS, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 2)
    window_bytes = sum(math.prod(shape_of(w)) for w in windows) * volume.dtype.itemsize / len(windows)
    in_threads(function, windows, threads=threads, title=title, quiet=quiet, window_bytes=window_bytes)
    return windows


def _windows(volume: Volume) -> Iterator[Window]:
    """Cut an array into windows of whole chunks, frames first: a few chunks of the same pixels follow each other."""
    allowed = max(1, WINDOW_BYTES // volume.dtype.itemsize)
    edges = [min(c, n) for c, n in zip(volume.chunks, volume.shape, strict=True)]
    for axis in (2, 1, 0):
        more = max(1, allowed // math.prod(edges))
        edges[axis] = min(edges[axis] * more, volume.shape[axis])
    grid = [spans(n, e) for n, e in zip(volume.shape, edges, strict=True)]
    for rows, columns, frames in itertools.product(grid[1], grid[2], grid[0]):
        yield frames, rows, columns


def _samples(volume: Volume, most: int) -> Iterator[Window]:
    """Choose chunks that are spread over all frames and, from one to the next, over the pixels."""
    grid = [spans(n, min(c, n)) for n, c in zip(volume.shape, volume.chunks, strict=True)]
    pixels = list(itertools.product(*grid[1:]))
    chunk_bytes = math.prod(volume.chunks) * volume.dtype.itemsize
    most = max(1, min(most, SAMPLED_BYTES // chunk_bytes, math.prod(map(len, grid))))
    order = np.random.default_rng(0).permutation(len(pixels))
    chosen = [(i * len(grid[0]) // most, order[i % len(pixels)]) for i in range(most)]
    for frame, pixel in sorted(set(chosen)):
        yield grid[0][frame], *pixels[pixel]


def bins_of(volume: Volume) -> tuple[float, float, float]:
    """
    Return lower edge and width of the 65,536 bins of a histogram, and a threshold of signal, from a sample.

    Parameters
    ----------
    volume : Volume
        Three axes.

    Returns
    -------
    low, width : float
        One bin for each value of 8 and 16 bits; else they go over five times the range of the sample.
    threshold : float
        The 99.9th percentile of the sample.
    """
    parts = []
    for window in _samples(volume, 24):
        block = volume.read(window)
        step = max(1, block.size // 2**16) | 1
        parts.append(block.reshape(-1)[::step].copy())
    values = np.concatenate(parts).astype(np.float64)
    values = values[np.isfinite(values)]
    if not len(values):
        return 0.0, 1.0, math.inf
    threshold = float(np.quantile(values, SIGNAL))
    info = np.iinfo(volume.dtype) if volume.dtype.kind in "iu" else None
    if info is not None and info.max - info.min < N_BINS:
        return float(info.min), 1.0, threshold
    low, high = float(values.min()), float(values.max())
    room = max(high - low, 1e-6 * max(1.0, abs(low), abs(high)))
    low, high = low - room, high + 3 * room
    if info is not None:
        return math.floor(low), float(math.ceil((high - low) / N_BINS)), threshold
    return low, (high - low) / N_BINS, threshold
