"""What every kernel means, in a few lines of NumPy: the oracle of the tests, the first row of the benchmarks."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import ndimage


def moving_median(frames: NDArray, half_window: int, step: int) -> NDArray[np.float32]:
    """Median of the frames within `half_window` of every `step`-th frame, cut to the scan."""
    n_frames = len(frames)
    centre = np.minimum(np.arange(0, n_frames, step) + step // 2, n_frames - 1)
    return moving_median_windows(frames, np.maximum(centre - half_window, 0), centre + half_window + 1)


def moving_median_windows(frames: NDArray, starts: ArrayLike, stops: ArrayLike) -> NDArray[np.float32]:
    """Median of frames[start:stop]; NaN where a sample is NaN."""
    windows = zip(np.asarray(starts), np.asarray(stops), strict=True)
    return np.stack([np.median(frames[a:b], axis=0).astype(np.float32) for a, b in windows])


def normalise(frames: NDArray, dark: NDArray | None, scale: ArrayLike | None) -> NDArray[np.float32]:
    """Frames without offset, at one level: the difference and the product are each rounded to float32."""
    offset = 0 if dark is None else dark
    factor = np.float32(1) if scale is None else np.asarray(scale, np.float32)[:, None, None]
    return (frames - offset).astype(np.float32) * factor


def normalise_rint(frames: NDArray, dark: NDArray | None, scale: ArrayLike | None) -> NDArray[np.int32]:
    """Normalised frames, rounded to whole counts."""
    return np.rint(normalise(frames, dark, scale)).astype(np.int32)


def frame_median(frames: NDArray, size: int) -> NDArray:
    """Median of `size` x `size` neighbours, the nearest pixel beyond the edge; NaN where one of them is NaN."""
    smooth = np.stack([ndimage.median_filter(frame, size, mode="nearest") for frame in frames])
    if frames.dtype.kind == "f":
        near_nan = [ndimage.maximum_filter(np.isnan(frame), size, mode="nearest") for frame in frames]
        smooth[np.stack(near_nan)] = np.nan
    return smooth


def clean_frames(
    frames: NDArray,
    dark: NDArray | None,
    scale: ArrayLike | None,
    background: NDArray[np.float32],
    window_of_frame: ArrayLike,
    size: int,
) -> NDArray[np.float32]:
    """Normalised frames minus their background, then the median of neighbours."""
    return frame_median(normalise(frames, dark, scale) - background[np.asarray(window_of_frame)], size)
