"""The level of every frame in a sample-free margin, read from the chunks that the margin touches."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import numpy as np

from tomoscale import blocks
from tomoscale.blocks import Field, Index
from tomoscale.errors import TomoscaleError
from tomoscale.parameters import Rect


class Patch(NamedTuple):
    """A rectangle of pixels, and which of them count (None: all)."""

    rows: slice
    columns: slice
    own: np.ndarray | None


Margin = list[Patch]


def margin_of(frame: tuple[int, ...], width: int, rects: tuple[Rect, ...], mask: Any) -> Margin | None:
    """
    Return the margin as disjoint patches.

    Parameters
    ----------
    frame : tuple of int
        Rows and columns.
    width : int
        Width of a border; 0 for none.
    rects : tuple of Rect
        Rectangles; where they overlap a pixel counts once.
    mask : Volume, optional
        Image, not zero in the margin.

    Returns
    -------
    list of Patch or None
        None without normalisation.

    Raises
    ------
    TomoscaleError
        A margin outside the frame, an empty one, or several at once.
    """
    if (width > 0) + bool(rects) + (mask is not None) > 1:
        raise TomoscaleError("background.remove: give one of margin, margin_roi and margin_mask")
    if mask is not None:
        return _of_mask(frame, mask)
    if rects:
        return _of_rects(frame, rects)
    return _of_border(frame, width) if width else None


def _of_border(frame: tuple[int, ...], width: int) -> Margin:
    rows, columns = frame
    if 2 * width > min(frame):
        raise TomoscaleError(
            f"background.remove: a margin of {width} pixels does not fit frames of {rows} x {columns}; give "
            f"{min(frame) // 2} at most"
        )
    middle = slice(width, rows - width)
    patches = [
        Patch(slice(0, width), slice(0, columns), None),
        Patch(slice(rows - width, rows), slice(0, columns), None),
        Patch(middle, slice(0, width), None),
        Patch(middle, slice(columns - width, columns), None),
    ]
    return [p for p in patches if p.rows.stop > p.rows.start]


def _of_rects(frame: tuple[int, ...], rects: tuple[Rect, ...]) -> Margin:
    taken = np.zeros(frame, bool)
    patches = []
    for rect in rects:
        for (start, stop), size in zip(rect, frame, strict=True):
            if not 0 <= start < stop <= size:
                raise TomoscaleError(
                    f"background.remove: margin_roi {start}:{stop} lies outside frames of {frame[0]} x {frame[1]}"
                )
        rows, columns = slice(*rect.rows), slice(*rect.columns)
        own = ~taken[rows, columns]
        taken[rows, columns] = True
        if own.any():
            patches.append(Patch(rows, columns, None if own.all() else own))
    return patches


def _of_mask(frame: tuple[int, ...], mask: Any) -> Margin:
    if mask.shape != frame:
        raise TomoscaleError(f"background.remove: margin_mask has shape {mask.shape}, frames have {frame}")
    own = mask.whole() != 0
    if not own.any():
        raise TomoscaleError("background.remove: margin_mask is zero everywhere")
    rows, columns = (np.flatnonzero(own.any(axis)) for axis in (1, 0))
    box = slice(int(rows[0]), int(rows[-1]) + 1), slice(int(columns[0]), int(columns[-1]) + 1)
    return [Patch(*box, own[box])]


def margin_level(frames: Any, dark: Any, margin: Margin | None) -> Any:
    """
    Return the mean of every frame over the margin, less the dark's; ones without a margin.

    Integers are summed as integers, and a frame's sum is made in one task in a fixed order, so that the level
    does not depend on chunks.

    Returns
    -------
    dask.array.Array
        (frame,) float64 in counts, computed once per run.
    """
    import dask.array as da

    n_frames = frames.shape[0]
    if margin is None:
        # An array as it is: `da.ones` would make every worker import dask.array.
        level = blocks.once(da.from_array(np.ones(n_frames), chunks=-1))
        blocks.state(level, settled=(functools.partial(np.ones, n_frames), ()))  # no worker is asked for it
        return level
    parts = blocks.spans(n_frames, _frames_per_part(frames, margin))

    def arguments(index: Index) -> tuple[Any, ...]:
        pieces = [frames.at((parts[index[0]], p.rows, p.columns)) for p in margin]
        offsets = []
        if dark is not None:
            every = (slice(0, dark.shape[0]),) if dark.ndim == 3 else ()
            offsets = [dark.at((*every, p.rows, p.columns)) for p in margin]
        return (parts[index[0]].start, [p.own for p in margin], len(pieces), *pieces, *offsets)

    lengths = blocks.lengths(parts)
    field = Field(np.dtype("f8"), (lengths,), (lengths[0],))
    return blocks.once(blocks.map_blocks(_margin_means, arguments, {"level": field})["level"])


def _frames_per_part(frames: Any, margin: Margin) -> int:
    """Read whole chunks, and as many frames at a time as fit easily."""
    pixels = sum((p.rows.stop - p.rows.start) * (p.columns.stop - p.columns.start) for p in margin)
    fits = blocks.resources().block_bytes // 4 // max(1, pixels * frames.dtype.itemsize)
    edge = frames.chunks[0]
    shared = -(-frames.shape[0] // (4 * blocks.resources().threads))
    return max(1, min(max(edge, shared // edge * edge), fits // edge * edge or fits))


def _margin_means(first: int, owns: list[np.ndarray | None], count: int, *pieces: np.ndarray) -> np.ndarray:
    """Return the mean level of some frames."""
    raw, darks = pieces[:count], pieces[count:]
    n_pixels = sum(r[0].size if own is None else int(own.sum()) for r, own in zip(raw, owns, strict=True))
    total = sum(_sums(r, own) for r, own in zip(raw, owns, strict=True))
    images = [np.median(d, axis=0) if d.ndim == 3 else d for d in darks]
    offset = sum(_sums(i[None], own)[0] for i, own in zip(images, owns, strict=True)) if images else 0
    level = (np.asarray(total) - offset).astype(np.float64) / n_pixels
    for k, value in enumerate(level):
        if not 0 < value < np.inf:
            raise TomoscaleError(
                f"background.remove: the margin of frame {first + k} has level {value:g}; it must be positive "
                "and finite: choose a margin in the open beam, or check the dark"
            )
    return level


def _sums(stack: np.ndarray, own: np.ndarray | None) -> np.ndarray:
    """Sum every image over its own pixels, integers exactly."""
    exact = np.dtype("i8") if stack.dtype.kind in "iu" else np.dtype("f8")
    values = stack.reshape(len(stack), -1) if own is None else stack[:, own]
    return values.sum(axis=1, dtype=exact)
