"""Window, halo, tile and grid arithmetic: integers only."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence

Window = tuple[slice, ...]
Index = tuple[int, ...]

MIB = 2**20
CHUNK_BYTES = 2 * MIB
"""Size of a stored chunk: large enough for storage, small enough to stay in a core's share of cache."""


def spans(size: int, edge: int) -> list[slice]:
    """
    Cut an axis into half-open ranges.

    >>> spans(5, 2)
    [slice(0, 2, None), slice(2, 4, None), slice(4, 5, None)]
    """
    return [slice(a, min(a + edge, size)) for a in range(0, size, edge)]


def grow(span: slice, halo: int, size: int) -> slice:
    """Widen a range by a halo, cut to the axis."""
    return slice(max(0, span.start - halo), min(size, span.stop + halo))


def lengths(parts: Sequence[slice]) -> tuple[int, ...]:
    """Return the length of every range, as Dask's `chunks` want them."""
    return tuple(s.stop - s.start for s in parts)


def shape_of(window: Window) -> tuple[int, ...]:
    """Return the shape of a window."""
    return lengths(window)


def volume_of(window: Window) -> int:
    """Return the number of voxels of a window."""
    return math.prod(shape_of(window))


def covering(span: slice, edge: int, size: int) -> int:
    """Return how many voxels of whole chunks must be decoded for a range."""
    return min(-(-span.stop // edge) * edge, size) - span.start // edge * edge


def overlaps(window: Window, edges: Sequence[int]) -> Iterator[tuple[Index, Window]]:
    """
    Return the tiles that a window touches, each with its index and the part of the window in it.

    >>> list(overlaps((slice(3, 9),), (4,)))
    [((0,), (slice(3, 4, None),)), ((1,), (slice(4, 8, None),)), ((2,), (slice(8, 9, None),))]
    """
    touched = [range(s.start // e, -(-s.stop // e)) for s, e in zip(window, edges, strict=True)]
    for index in itertools.product(*touched):
        yield (
            index,
            tuple(
                slice(max(s.start, i * e), min(s.stop, (i + 1) * e))
                for s, i, e in zip(window, index, edges, strict=True)
            ),
        )


def indices(grid: Sequence[int]) -> Iterator[Index]:
    """
    Return all indices of a grid, one at a time; `itertools.product` would hold every axis in memory first.

    >>> list(indices((2, 2)))
    [(0, 0), (0, 1), (1, 0), (1, 1)]
    """
    if not grid:
        yield ()
        return
    for i in range(grid[0]):
        for rest in indices(grid[1:]):
            yield (i, *rest)


def shifted(window: Window, origin: Sequence[int]) -> Window:
    """Return a window as it is seen from an origin."""
    return tuple(slice(s.start - o, s.stop - o) for s, o in zip(window, origin, strict=True))


def scan_chunks(shape: Sequence[int], itemsize: int, n_frames: int = 64) -> tuple[int, int, int]:
    """
    Choose the stored chunks of a scan: bands of whole rows over some dozen frames.

    A task owns all frames of some rows. A band has neighbours above and below only, so that a halo
    around two bands costs twice the decoding; around a square tile of the same size it costs nine times.

    >>> scan_chunks((7200, 2048, 2048), 2)
    (64, 8, 2048)
    """
    frames, rows, columns = shape
    n_frames = min(n_frames, frames)
    row = n_frames * columns * itemsize
    enough = max(-(-rows // 16), CHUNK_BYTES // 16 // row)
    return n_frames, max(1, min(CHUNK_BYTES // row, enough, rows)), columns


def volume_chunks(shape: Sequence[int], edge: int = 128) -> tuple[int, ...]:
    """Choose the stored chunks of a reconstructed volume: cubes."""
    return tuple(min(edge, n) for n in shape)
