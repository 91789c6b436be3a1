"""What every kernel means, in a few lines of NumPy: the oracle of the tests, the first row of the benchmarks."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray


def moving_median(frames: NDArray, half_window: int, step: int) -> NDArray[np.float32]:
    """Median of the frames within `half_window` of every `step`-th frame, cut to the scan."""
    n_frames = len(frames)
    centre = np.minimum(np.arange(0, n_frames, step) + step // 2, n_frames - 1)
    return moving_median_windows(frames, np.maximum(centre - half_window, 0), centre + half_window + 1)


def moving_median_windows(frames: NDArray, starts: ArrayLike, stops: ArrayLike) -> NDArray[np.float32]:
    """Median of frames[start:stop]; NaN where a sample is NaN."""
    windows = zip(np.asarray(starts), np.asarray(stops), strict=True)
    return np.stack([np.median(frames[a:b], axis=0).astype(np.float32) for a, b in windows])
