"""Highest value of every pixel, histogram and signal of every frame, in one reading of a block."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from tomoscale.kernels._compile import compiled


def survey(
    block: NDArray,
    low: float,
    per_count: float,
    threshold: float,
    peak: NDArray,
    counts: NDArray[np.int64],
    totals: NDArray[np.float64],
    signals: NDArray[np.float64],
) -> None:
    """
    Add a block to the sums of a survey, in place; NaN count nowhere but in the last bin.

    For a block without NaN, in NumPy:

        peak = maximum(peak, block.max(0))
        counts[:-1] += bincount(clip(floor((block - low) * per_count), 0, len(counts) - 2).ravel())
        totals += block.sum((1, 2)); signals += where(block > threshold, block, 0).sum((1, 2))

    Parameters
    ----------
    block : (frame, row, column)
        Some frames of some rows and columns.
    low : float
        Lower edge of the first bin.
    per_count : float
        Bins per count.
    threshold : float
        Values above it are signal.
    peak : (row, column)
        Highest value of every pixel so far.
    counts : (bin,) int64
        Voxels in every bin; what lies outside is counted in the outermost, the last is for NaN.
    totals : (frame,) float64
        Sum of every frame.
    signals : (frame,) float64
        Sum of what is above the threshold in every frame.
    """
    _survey(block, low, per_count, threshold, peak, counts, totals, signals)


@compiled
def _survey(block, low, per_count, threshold, peak, counts, totals, signals):  # type: ignore[no-untyped-def]
    n_frames, n_rows, n_columns = block.shape
    last = len(counts) - 2
    for k in range(n_frames):
        total = signal = 0.0
        for i in range(n_rows):
            for j in range(n_columns):
                value = block[k, i, j]
                v = np.float64(value)
                if v != v:
                    counts[last + 1] += 1
                    continue
                if value > peak[i, j]:
                    peak[i, j] = value
                place = (v - low) * per_count
                counts[int(min(max(place, 0.0), last))] += 1
                total += v
                if v > threshold:
                    signal += v
        totals[k] += total
        signals[k] += signal
