"""The slowly varying background of a rotation scan: dark, margin level, moving median, subtraction, smoothing."""

from __future__ import annotations

import functools
import math
import warnings
from typing import Any, Literal, NamedTuple

import numpy as np

from tomoscale import blocks, columns
from tomoscale.blocks import Field, Index, Piece
from tomoscale.clean import (
    FRAME_SCRATCH,
    SCRATCH,
    Options,
    Windows,
    clean_columns,
    in_bands,
    is_ranked,
    prepare,
)
from tomoscale.columns import Columns
from tomoscale.errors import TomoscaleError
from tomoscale.margin import margin_level, margin_of
from tomoscale.operation import operation
from tomoscale.parameters import Count, Edge, Rect, Volume, Width

MOST_FRAMES = 10_000_000
"""More are a mistake: a plan of them alone would fill the memory."""
MUCH_READING = 8.0
"""Times that a scan is decoded before it is worth to lay it out anew first."""


class Cleaned(NamedTuple):
    """Frames without their background; the backgrounds, one per step; the margin level of every frame."""

    frames: Any
    background: Any
    level: Any


class CleanedHot(NamedTuple):
    """The same, and in which backgrounds a pixel was hot."""

    frames: Any
    background: Any
    level: Any
    hot: Any


@operation("background")
def remove(
    frames: Volume,
    *,
    dark: Volume | Literal["none"] | None = None,
    margin: Width = 0,
    margin_roi: tuple[Rect, ...] = (),
    margin_mask: Volume | None = None,
    half_window: Count = 250,
    step: Count = 50,
    ranking: Literal["fixed", "exact"] = "fixed",
    smoothing: Edge = 3,
    hot_pixels: bool = False,
    dtype: Literal["float32", "int32", "int16"] = "float32",
) -> Cleaned | CleanedHot:
    """
    Remove the slowly varying background of a rotation scan.

    The dark is subtracted, frames are divided by their level in a sample-free margin, the moving median
    of every pixel is subtracted, and each frame is smoothed by a small 2D median filter.

    Parameters
    ----------
    frames : (frame, row, column)
        Raw frames, any integer or floating type. NaN propagate as in `numpy.median`.
    dark : (row, column) or (n, row, column), optional
        Detector offset; of a stack the median is taken. Default: the `dark` beside the frames; `none`
        for no subtraction.
    margin
        Width in pixels of the border whose mean is the level of a frame; 0 for no normalisation.
    margin_roi
        Rectangles `r0:r1,c0:c1` to take the level from instead; may be repeated.
    margin_mask : (row, column), optional
        Image that is not zero where the level is to be taken.
    half_window
        Frames on each side that enter a median; the window is cut at both ends of the scan.
    step
        Frames that share one background; 1 gives every frame its own.
    ranking
        Whether the median is of the normalised frames rounded to whole counts (`fixed`, faster, off by
        half a count at most), or of the float32 values (`exact`). Without normalisation of integers both are
        the same.
    smoothing
        Edge in pixels of the median filter within each frame, odd; 0 for none.
    hot_pixels
        Replace pixels that stand out in most frames of a window by the median of their neighbours, and list
        them in `hot`.
    dtype
        Type of the cleaned frames; integers are rounded and saturated.

    Returns
    -------
    Cleaned
        Lazy arrays: `frames` (frame, row, column) float32; `background` (step, row, column) float32 in
        counts; `level` (frame,) float64 in counts, 1 without margin; with `hot_pixels` also `hot`
        (step, row, column) uint8.

    Raises
    ------
    TomoscaleError
        Shapes that do not fit, a margin outside the frame or with a level that is not positive and finite, a dark
        brighter than the frames, or a block that does not fit the memory.

    Notes
    -----
    For step j of D frames the window is [c - half_window, c + half_window] cut to the scan, around the frame
    c = min(j * step + step // 2, D - 1) [1]_. Frame k is cleaned with background k // step.

    References
    ----------
    .. [1] J. P. C. Bertoldo, "Segmentation for diffraction contrast tomography", Centre de Morphologie
       Mathématique, Mines ParisTech, 31 May 2021.

    Examples
    --------
    >>> import numpy as np
    >>> from tomoscale import background
    >>> scan = np.full((60, 8, 8), 100, np.uint16)
    >>> scan[30:32, 3:5, 3:5] += 50
    >>> cleaned = background.remove(scan, half_window=20, step=10)
    >>> cleaned.frames[30, 3, 3].compute(), cleaned.frames[0].compute().max()
    (np.float32(0.0), np.float32(0.0))
    >>> cleaned.background.shape
    (6, 8, 8)
    """
    shape = _scan_shape(frames)
    offset = _dark_of(frames, dark)
    where = margin_of(shape[1:], margin, margin_roi, margin_mask)
    options = Options(ranking, smoothing, hot_pixels, np.dtype(dtype))
    cut = columns.cut(
        shape,
        (frames.chunks[0], frames.chunks[1], frames.chunks[2]),
        halo=(half_window + step, options.reach, options.reach),
        step=step,
        itemsize=(frames.dtype.itemsize + _bytes_of_copy(frames.dtype), np.dtype(dtype).itemsize),
        held=(5 if hot_pixels else 4) / step,
        scratch=(FRAME_SCRATCH, SCRATCH),
        block_bytes=blocks.resources().block_bytes,
        threads=blocks.resources().threads,
        beside=_bytes_beside(offset),
        room=4 if hot_pixels else 0,
    )
    _warn_of_chunks(frames, cut)
    level = margin_level(frames, offset, where)
    made = _clean_all(frames, offset, level if where else None, cut, half_window, options)
    ready = functools.partial(
        prepare, frames.dtype, None if offset is None else offset.dtype, where is not None, options
    )
    beside = _beside(frames, offset)
    blocks.state(
        made["frames"],
        image="scan",
        carried={name: blocks.copied(volume) for name, volume in beside.items()},
        beside={name: volume.identity() for name, volume in beside.items()},
        prepare=ready,
    )
    result = Cleaned(made["frames"], made["background"], level)
    return CleanedHot(*result, made["hot"]) if hot_pixels else result


# ---------------------------------------------------------------- plan


def _scan_shape(frames: Any) -> tuple[int, int, int]:
    if frames.ndim != 3:
        raise TomoscaleError(
            f"background.remove: frames have shape {frames.shape}; expected (frame, row, column)"
        )
    if frames.shape[0] < 3:
        raise TomoscaleError(f"background.remove: {frames.shape[0]} frames; a moving median needs at least 3")
    if frames.shape[0] > MOST_FRAMES:
        raise TomoscaleError(
            f"background.remove: claims {frames.shape[0]} frames; at most {MOST_FRAMES} are read"
        )
    return frames.shape


def _dark_of(frames: Any, dark: Any) -> Any:
    """Return the dark to subtract: the given one, else the one beside the frames."""
    if isinstance(dark, str):
        return None
    dark = dark if dark is not None else frames.sibling("dark")
    if dark is None:
        return None
    if dark.shape[-2:] != frames.shape[1:] or dark.ndim not in (2, 3):
        raise TomoscaleError(
            f"background.remove: dark has shape {dark.shape}, frames have {frames.shape[1:]}; crop the dark"
        )
    middle, pixels = frames.shape[0] // 2, tuple(slice(0, n) for n in frames.shape[1:])
    raw = frames.read((slice(middle, middle + 1), *pixels))
    image = dark.read((slice(0, 1), *pixels) if dark.ndim == 3 else pixels)
    # Where hardly any light falls a dark may well be a count above the frame; a flat is far above it.
    if np.median(image) > 1.25 * np.median(raw) + 10:
        raise TomoscaleError("background.remove: the dark is brighter than the frames; is it a flat?")
    return dark


def _beside(frames: Any, dark: Any) -> dict[str, Any]:
    """Return what the output keeps of the input: the dark that is used, and the rotation angles."""
    omega = frames.sibling("omega")
    if omega is not None:
        if omega.shape != frames.shape[:1]:
            raise TomoscaleError(
                f"background.remove: omega has shape {omega.shape}; expected {frames.shape[0]} angles, one per frame"
            )
        angles = omega.whole()
        if (strange := np.flatnonzero(~np.isfinite(angles))).size:
            raise TomoscaleError(
                f"background.remove: omega of frame {strange[0]} is {angles[strange[0]]}; expected degrees"
            )
    kept = {"dark": dark, "omega": omega}
    return {name: volume for name, volume in kept.items() if volume is not None}


def _warn_of_chunks(frames: Any, cut: Columns) -> None:
    """Say when the layout of the input makes a run read far more than the scan."""
    times = cut.decoded((frames.chunks[0], frames.chunks[1], frames.chunks[2])) / math.prod(frames.shape)
    if times > MUCH_READING and times * frames.nbytes > 10**10:
        warnings.warn(
            f"chunks of {frames.chunks} are decoded {times:.0f} times each on average; `tomoscale convert` lays the "
            "scan out so that it is read about twice"
        )


def _bytes_of_copy(dtype: np.dtype) -> int:
    """Count the float32 copy of a voxel of a type that kernels do not rank."""
    return 0 if is_ranked(dtype) else 4


def _bytes_beside(dark: Any) -> tuple[int, int]:
    """Count the bytes of a dark for one pixel, and of one of its chunks."""
    if dark is None:
        return 0, 0
    n = dark.shape[0] if dark.ndim == 3 else 1
    return n * dark.dtype.itemsize, math.prod(dark.chunks) * dark.dtype.itemsize


def _every(dark: Any) -> tuple[slice, ...]:
    """Return the leading part of a dark's window: all of a stack, nothing for an image."""
    return (slice(0, dark.shape[0]),) if dark.ndim == 3 else ()


def _clean_all(
    frames: Any, dark: Any, level: Any, cut: Columns, half_window: int, options: Options
) -> dict[str, Any]:
    """Lay the blocks out and hand each its frames, its dark and its windows."""
    n_frames, step = cut.shape[0], cut.step
    starts, stops = windows(n_frames, half_window, step)
    small = () if level is None else (level,)

    def arguments(index: Index) -> tuple[Any, ...]:
        window, grown = cut.window(index), cut.grown(index)
        groups = slice(window[0].start // step, -(-window[0].stop // step))
        read = slice(int(starts[groups.start]), int(stops[groups.stop - 1]))
        read = slice(min(read.start, window[0].start), max(read.stop, window[0].stop))
        around: Piece | None = None if dark is None else dark.at((*_every(dark), *grown[1:]))
        task = Windows(
            first=read.start,
            frames=window[0],
            starts=starts[groups] - read.start,
            stops=stops[groups] - read.start,
            step=step,
            crop=tuple(w.start - g.start for w, g in zip(window[1:], grown[1:], strict=True)),
            shape=tuple(w.stop - w.start for w in window[1:]),
        )
        return frames.at((read, *grown[1:])), around, task, options

    lengths = [blocks.lengths(g) for g in cut.grid]
    groups = tuple(-(-n // step) for n in lengths[0])
    stored = (min(cut.group_chunk, sum(groups)), *cut.stored[1:])
    fields = {
        "frames": Field(options.dtype, tuple(lengths), cut.stored, streamed=True),
        "background": Field(np.dtype("f4"), (groups, *lengths[1:]), stored),
    }
    if options.hot_pixels:
        fields["hot"] = Field(np.dtype("u1"), (groups, *lengths[1:]), stored)
    scratch = cut.n_read * FRAME_SCRATCH + SCRATCH + cut.around * _bytes_of_copy(frames.dtype)
    if options.hot_pixels:  # a chunk with what it is smoothed with, before and after the repair
        scratch += 4 * cut.around_chunk
    return blocks.map_blocks(clean_columns, arguments, fields, small=small, scratch=scratch, cut=in_bands)


def windows(n_frames: int, half_window: int, step: int) -> tuple[np.ndarray, np.ndarray]:
    """
    Return the half-open windows of frames that enter each background.

    >>> windows(10, 2, 4)
    (array([0, 4, 7]), array([ 5,  9, 10]))
    """
    centres = np.minimum(np.arange(math.ceil(n_frames / step)) * step + step // 2, n_frames - 1)
    return np.maximum(centres - half_window, 0), np.minimum(centres + half_window + 1, n_frames)
