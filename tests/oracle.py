"""The background of a scan by the definition, in NumPy on the whole scan: what every run must return."""

from __future__ import annotations

import numpy as np
from scipy.ndimage import median_filter


def level_of(frames, dark, margin):
    """Mean over a boolean margin, less the dark's."""
    raw = frames[:, margin].astype(np.float64).sum(axis=1)
    offset = 0.0 if dark is None else np.asarray(dark, np.float64)[margin].sum()
    return (raw - offset) / margin.sum()


def normalised(frames, dark=None, margin=None):
    """Frames less dark, times mean level over level, rounded to float32 after each step; and the level."""
    shifted = frames if dark is None else (frames.astype(np.float64) - dark)
    shifted = shifted.astype(np.float32)
    if margin is None:
        return shifted, np.ones(len(frames))
    level = level_of(frames, dark, margin)
    scale = (level.mean() / level).astype(np.float32)
    return shifted * scale[:, None, None], level


def remove(
    frames, dark=None, margin=None, half_window=250, step=50, ranking="fixed", smoothing=3, dtype="float32"
):
    """Background removal step by step."""
    if dark is not None and dark.ndim == 3:
        dark = np.median(dark, axis=0)
    values, level = normalised(frames, dark, margin)
    n_frames = len(frames)
    n_steps = -(-n_frames // step)
    ranked = np.rint(values) if ranking == "fixed" else values
    if dark is None and margin is None and frames.dtype.kind in "iu":
        ranked = frames
    background = np.empty((n_steps, *frames.shape[1:]), np.float32)
    for j in range(n_steps):
        centre = min(j * step + step // 2, n_frames - 1)
        window = ranked[max(0, centre - half_window) : centre + half_window + 1]
        background[j] = np.median(window, axis=0)
    cleaned = values - background[np.arange(n_frames) // step]
    if smoothing > 1:
        cleaned = np.stack([median_filter(f, smoothing, mode="nearest") for f in cleaned])
    if dtype != "float32":
        limits = np.iinfo(dtype)
        cleaned = np.clip(np.rint(cleaned.astype(np.float64)), limits.min, limits.max).astype(dtype)
    return cleaned, background, level
