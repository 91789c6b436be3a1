"""Detector files to a chunked scan, once and in one pass: TIFF, HDF5 and NeXus, EDF, NumPy, Zarr."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from tomoscale import blocks, sources, store
from tomoscale.blocks import Field, Part, Piece
from tomoscale.errors import TomoscaleError
from tomoscale.export import is_export, to_tiff
from tomoscale.operation import operation
from tomoscale.parameters import Grid, Shape3, Span
from tomoscale.progress import human_bytes

__all__ = ["is_export", "scan", "to_tiff"]

BAND_BYTES = 256 * blocks.MIB
"""Bytes of a block where memory allows more: long reads, and blocks enough for every worker."""


@operation("convert", instead=(is_export, to_tiff))
def scan(
    source: tuple[Path, ...] | Path,
    *,
    dark: Path | None = None,
    flat: Path | None = None,
    dataset: str | None = None,
    grid: Grid | None = None,
    chunks: Shape3 | None = None,
    kind: Literal["scan", "volume"] = "scan",
    roi: tuple[Span, ...] | None = None,
) -> dict[str, Any]:
    """
    Convert the files of a detector to a chunked scan.

    The pixels keep their values and their type. Darks, flats and angles that a file holds beside its
    frames (NeXus `image_key` and `rotation_angle`, or arrays called so) come along.

    Parameters
    ----------
    source : path or sequence of paths
        A folder of files, a pattern, or files: TIFF, HDF5 or NeXus, EDF, .npy, .npz, Zarr. Files are
        sorted by the number in their names; a gap in the numbers is an error.
    dark : path, optional
        Detector offset, one image or several: as `source`. `none` leaves out those found in the source.
    flat : path, optional
        Open beam, one image or several: as `source`. `none` leaves out those found in the source.
    dataset : str, optional
        Dataset of an HDF5 file, or array of an .npz archive, where a file holds several.
    grid : rows x columns, optional
        Every image of the detector is a grid of frames, `2x2` say, taken one after the other in reading
        order, all on the same pixels: it becomes rows * columns frames. Darks and flats may be such
        grids, or have the shape of one frame. The angle of an image is that of its first frame; the
        others follow in equal steps.
    chunks : (int, int, int), optional
        Stored chunks; by default bands of whole rows through 64 frames, and cubes of 128 for a volume;
        fewer frames where a block of so many does not fit the memory.
    kind : {"scan", "volume"}
        What the source is: a scan becomes the array `frames` (omega, y, x), a reconstruction the array
        `volume` (z, y, x).
    roi : ranges, optional
        Part of the source, in frames, rows and columns (after `grid`).

    Returns
    -------
    dict
        `frames` (or `volume`), and `dark`, `flat` and `omega` (degrees) where there are some.
    """
    if kind == "volume" and (dark or flat or grid):
        raise TomoscaleError("convert.scan: a volume has neither dark, flat nor grid; leave them out")
    found = _opened(source, dataset)
    found = found._replace(dark=_beside(dark, "dark", found, grid), flat=_beside(flat, "flat", found, grid))
    if grid is not None:
        found = _split(found, grid)
    if roi is not None:
        found = _cut(found, roi)
    _refuse_unwritten(found)
    _refuse_strange_angles(found.omega)
    if kind == "volume":
        return _stated({"volume": _lazy(found.frames, kind, chunks)}, found, "volume")
    result: dict[str, Any] = {"frames": _lazy(found.frames, kind, chunks)}
    for role in ("dark", "flat"):
        stack = getattr(found, role)
        if stack is not None:
            result[role] = _lazy(stack, kind, None)
    if found.omega is not None:
        result["omega"] = found.omega
    return _stated(result, found, "scan")


def _stated(result: dict[str, Any], found: sources.Scan, image: str) -> dict[str, Any]:
    """State what viewers see, and from which files it comes, so that a changed input is noticed."""
    first = next(iter(result.values()))
    inputs = {"source": found.frames.identity()}
    files = [f for stack in found[:3] if stack is not None for f in sources.files_of(stack)]
    for role in ("dark", "flat"):
        if role in result:
            inputs[role] = getattr(found, role).identity()
    for array in result.values():
        if hasattr(array, "dask"):
            blocks.state(array, inputs=inputs, history=found.frames.history(), files=files)
    blocks.state(first, image=image)
    return result


# ---------------------------------------------------------------- what is converted


def _opened(source: Any, dataset: str | None) -> sources.Scan:
    """Open files by path; take an opened volume as it is."""
    if isinstance(source, store.Volume):
        if len(source.shape) != 3:
            raise TomoscaleError(
                f"convert.scan: array of shape {source.shape}; expected (frame, row, column)"
            )
        return sources.Scan(source)
    if isinstance(source, np.ndarray):
        raise TomoscaleError("convert.scan: an array in memory; expected files, or store.as_volume(array)")
    return sources.open_source(source, dataset)


def _beside(
    path: Path | None, role: Literal["dark", "flat"], scan: sources.Scan, grid: Grid | None
) -> store.Volume | None:
    """Return the darks or flats: those asked for, else those found."""
    if path is None:
        return getattr(scan, role)
    if str(path) == "none":
        return None
    rows, columns = scan.frames.shape[1:]
    shapes = [(rows, columns)]
    if grid is not None:
        shapes.append((rows // grid.rows, columns // grid.columns))
    return sources.stack_of(path, role, shapes)


def _split(scan: sources.Scan, grid: Grid) -> sources.Scan:
    """Cut images that are grids into frames."""
    rows, columns = scan.frames.shape[1:]
    if rows % grid.rows or columns % grid.columns:
        raise TomoscaleError(
            f"convert.scan: images of {rows} x {columns} cannot be cut into {grid.rows} x "
            f"{grid.columns} equal frames"
        )

    def cut(stack: store.Volume | None) -> store.Volume | None:
        if stack is None or stack.shape[1:] != (rows, columns):
            return stack
        return sources.Gridded(stack, *grid)

    omega = None if scan.omega is None else _between(scan.omega, math.prod(grid))
    return sources.Scan(sources.Gridded(scan.frames, *grid), cut(scan.dark), cut(scan.flat), omega)


def _between(omega: np.ndarray, each: int) -> np.ndarray:
    """
    Return the angles of the frames in images that are grids.

    >>> _between(np.array([0.0, 2.0]), 4).tolist()
    [0.0, 0.5, 1.0, 1.5, 2.0, 2.5, 3.0, 3.5]
    """
    steps = np.diff(omega, append=2 * omega[-1] - omega[-2]) if len(omega) > 1 else np.zeros(1)
    return (omega[:, None] + steps[:, None] * np.arange(each) / each).ravel()


def _cut(scan: sources.Scan, roi: Sequence[tuple[int, int]]) -> sources.Scan:
    """Return a part of a scan, and the same pixels of its darks and flats."""
    window = store.crop(scan.frames, roi).window
    frames, *pixels = window

    def cut(stack: store.Volume | None) -> store.Volume | None:
        return None if stack is None else sources.Cropped(stack, (slice(0, stack.shape[0]), *pixels))

    omega = None if scan.omega is None else scan.omega[frames]
    return sources.Scan(sources.Cropped(scan.frames, window), cut(scan.dark), cut(scan.flat), omega)


def _refuse_unwritten(scan: sources.Scan) -> None:
    """Hold back frames that a file declares but does not hold."""
    for role, stack in zip(("frames", "dark", "flat"), scan[:3], strict=True):
        if stack is not None and (lost := sources.unwritten_of(stack)).size:
            raise TomoscaleError(
                f"convert.scan: {lost.size} of {stack.shape[0]} {role} were never written, first "
                f"{int(lost[0])} "
                "(an acquisition that stopped early?); take the others with --roi"
            )


def _refuse_strange_angles(omega: np.ndarray | None) -> None:
    """Hold back angles that are not numbers."""
    if omega is not None and (strange := np.flatnonzero(~np.isfinite(omega))).size:
        raise TomoscaleError(
            f"convert.scan: the angle of frame {strange[0]} is {omega[strange[0]]}; expected degrees"
        )


# ---------------------------------------------------------------- blocks


def _lazy(stack: store.Volume, kind: str, chunks: Shape3 | None) -> Any:
    """Return frames as a lazy array: one task for every band of whole frames."""
    stored, length = _layout(stack, kind, chunks)
    n, rows, columns = stack.shape
    parts = blocks.spans(n, length)
    grid = (blocks.lengths(parts), (rows,), (columns,))
    nbytes = length * rows * columns * stack.dtype.itemsize

    def arguments(index: tuple[int, ...]) -> tuple[Any, ...]:
        return (stack.at((parts[index[0]], slice(0, rows), slice(0, columns))),)

    scratch = sources.held_by(stack) - (nbytes if _is_direct(stack) else 0)
    field = Field(stack.dtype, grid, stored)
    made = blocks.map_blocks(_convert, arguments, {"frames": field}, scratch=scratch, cut=_in_bands)
    return made["frames"]


def _convert(band: np.ndarray) -> np.ndarray:
    """Hand a band of frames through: what was read is what is written."""
    return band


def _in_bands(n: int, band: Piece) -> list[Part]:
    """Cut the frames of a block into n parts."""
    frames, *pixels = band.window
    length = frames.stop - frames.start
    ends = [length * i // n for i in range(n + 1)] if n <= length else []
    return [
        ((replace(band, window=(slice(frames.start + a, frames.start + b), *pixels)),), (slice(a, b),))
        for a, b in itertools.pairwise(ends)
    ]


def _is_direct(stack: store.Volume) -> bool:
    """Tell whether input and output of a block are one array."""
    return isinstance(stack, sources.Frames) and stack.direct


def _layout(stack: store.Volume, kind: str, chunks: Shape3 | None) -> tuple[tuple[int, ...], int]:
    """Return the shape of the stored chunks, and the frames of a block: whole chunks."""
    n, rows, columns = stack.shape
    allowed, threads, _ = blocks.resources()
    frame = rows * columns * stack.dtype.itemsize * (1 if _is_direct(stack) else 2)
    held = sources.held_by(stack) + math.prod(stack.chunks) * stack.dtype.itemsize

    def cost(stored: Sequence[int], length: int) -> int:
        return frame * min(length, n) + held + math.prod(stored) * stack.dtype.itemsize

    depth = 128 if kind == "volume" else 64
    while True:
        stored = _stored(stack, kind, depth) if chunks is None else tuple(map(min, chunks, stack.shape))
        if cost(stored, stored[0]) <= allowed:
            break
        if chunks is not None or depth == 1:
            hint = getattr(stack, "hint", "give more --memory, fewer --threads, or a part with --roi")
            if chunks is not None and stored[0] > 1:
                hint = f"try --chunks with fewer frames than {stored[0]}, or more --memory"
            raise TomoscaleError(
                f"convert.scan: a block of {stored[0]} frames of {rows} x {columns} {stack.dtype} takes "
                f"{human_bytes(cost(stored, stored[0]))}, and may take {human_bytes(allowed)}; {hint}"
            )
        depth //= 2
    fits = (allowed - cost(stored, 0)) // (frame * stored[0])
    enough = min(fits, BAND_BYTES // (frame * stored[0]), -(-n // (4 * threads * stored[0])))
    length = stored[0] * max(1, enough)
    together = math.lcm(stored[0], stack.chunks[0])  # so that no chunk of the source is decoded twice
    if length % together and cost(stored, -(-length // together) * together) <= allowed:
        length = -(-length // together) * together
    return stored, length


def _stored(stack: store.Volume, kind: str, depth: int) -> tuple[int, ...]:
    """Return the stored chunks by default."""
    if kind == "volume":
        return min(depth, stack.shape[0]), *blocks.volume_chunks(stack.shape[1:])
    return blocks.scan_chunks(stack.shape, stack.dtype.itemsize, depth)
