"""The noise of cleaned frames, and thresholds given as multiples of it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from tomoscale.blocks import Window
from tomoscale.errors import TomoscaleError
from tomoscale.parameters import Rect

SAMPLED = (4, 4, 4)
"""Boxes that are sampled along every axis ..."""
EDGE = 64
"""... and their edge in voxels."""
OF_NORMAL = 1.4826
"""Standard deviation of a normal distribution over its median absolute deviation."""


def sampled_windows(shape: Sequence[int]) -> list[Window]:
    """
    Return up to 64 boxes of 64^3 voxels, evenly spread over a volume: they depend on its shape only.

    >>> len(sampled_windows((300, 100, 100))), sampled_windows((10, 20, 30))
    (16, [(slice(0, 10, None), slice(0, 20, None), slice(0, 30, None))])
    """
    axes = []
    for size, count in zip(shape, SAMPLED, strict=True):
        edge = min(EDGE, size)
        n = min(count, -(-size // EDGE))
        starts = {round(i * (size - edge) / max(1, n - 1)) for i in range(n)}
        axes.append([slice(s, s + edge) for s in sorted(starts)])
    return [(f, r, c) for f in axes[0] for r in axes[1] for c in axes[2]]


def sigma_of(frames: Any, exclude: Sequence[Rect] = ()) -> float:
    """
    Return the noise of frames: 1.4826 times the median absolute deviation of sampled voxels.

    Parameters
    ----------
    frames : Volume
        Cleaned frames, (frame, row, column).
    exclude : sequence of Rect
        Pixels to leave out.

    Returns
    -------
    float
        In counts. The sample is the same for every chunking; NaN are left out.
    """
    values = []
    for window in sampled_windows(frames.shape):
        box = np.asarray(frames.read(window), np.float64 if frames.dtype.itemsize > 4 else np.float32)
        own = np.isfinite(box)
        for rows, columns in exclude:
            own[:, _within(rows, window[1]), _within(columns, window[2])] = False
        values.append(box[own])
    sample = np.concatenate(values)
    if not sample.size:
        return 0.0
    middle = np.median(sample)
    return float(OF_NORMAL * np.median(np.abs(sample - middle)))


def _within(span: Any, axis: slice) -> slice:
    return slice(max(0, span[0] - axis.start), max(0, span[1] - axis.start))


def is_relative(level: float | str) -> bool:
    """Tell whether a threshold is a multiple of the noise: a number and the word sigma."""
    return isinstance(level, str) and level.strip().lower().endswith(("sigma", "σ"))


def in_counts(name: str, level: float | str, sigma: float | None) -> float:
    """
    Return a threshold in counts.

    >>> in_counts("seed_threshold", "8 sigma", 2.5), in_counts("c_min", 7, None)
    (20.0, 7.0)

    Raises
    ------
    TomoscaleError
        Neither a number nor a multiple of sigma, or a multiple of nothing.
    """
    text = str(level).strip().lower()
    number = text.removesuffix("sigma").removesuffix("σ").strip()
    try:
        value = float(number)
    except ValueError:
        value = math.nan
    if math.isnan(value):
        raise TomoscaleError(f"blobs.segment: {name}={level!r}; expected counts, such as 50, or '8 sigma'")
    if number == text:
        return value
    if not sigma:
        raise TomoscaleError(
            f"blobs.segment: {name}={level!r}, and the noise is 0: more than half of the sampled voxels are equal; "
            "give counts"
        )
    return value * sigma
