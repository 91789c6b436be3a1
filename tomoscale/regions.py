"""
Connected regions of a volume above a level, across blocks, numbered as `scipy.ndimage.label` numbers them.

Blocks are whole columns of voxels, so that regions go on through four faces only. A block keeps the labels on its
faces and a few sums of every region; faces are compared two by two, and what touches becomes one region.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from tomoscale import blocks, cubes, kernels, parts
from tomoscale.blocks import Index, Window
from tomoscale.cubes import Cubes
from tomoscale.errors import TomoscaleError
from tomoscale.progress import human_bytes

AXES = ("z", "row", "column")
FACES = (("first_row", (slice(None), 0)), ("last_row", (slice(None), -1)),
         ("first_column", (slice(None), slice(None), 0)), ("last_column", (slice(None), slice(None), -1)))  # fmt: skip
BYTES_PER_REGION = 400
"""What joining and numbering hold for a region of a block."""
MOST_BYTES = 2**28
"""What they may hold."""


def above(who: str, view: Any, level: Any, least: int) -> tuple[Any, Any, Any]:
    """
    Label what lies above a level.

    Parameters
    ----------
    who : str
        The operation, for errors.
    view : (z, y, x)
        Values, in chunks of whole columns.
    level : (1,)
        Lazy small array.
    least : int
        Smaller regions are left out.

    Returns
    -------
    values, labels : dask.array.Array
        (z, y, x) float32 and uint32, lazy.
    table : dask.delayed.Delayed
        A row for each region.
    """
    # Labels of 32 bits, and places of the voxels above: three of 64 bits for each of them.
    held = 4 + 4 + 3 * 8 + 8
    cut = cubes.cut(who, view, held=held, whole=(0,))
    windows = cut.windows
    largest = max(map(blocks.volume_of, windows))
    scratch = held * largest + max(map(view.working_bytes, windows))
    token = "x".join(map(str, cut.edges))
    kept = functools.partial(parts.kept, token=token)
    found = kept(
        find_regions,
        lambda n: (view.at(windows[n]), windows[n], view.shape),
        len(windows),
        small=[level],
        scratch=scratch,
    )
    joined = kept(join_regions, lambda n: (who, cut, least), 1, small=[level, found], scratch=MOST_BYTES)

    def arguments(index: Index) -> tuple[Any, ...]:
        return view.at(cut.window(index)), int(np.ravel_multi_index(index, [len(g) for g in cut.grid]))

    made = blocks.map_blocks(
        paint_regions,
        arguments,
        {"map": cut.field("f4"), "labels": cut.field("u4")},
        small=[level, joined],
        scratch=scratch,
    )
    return made["map"], made["labels"], parts.derived(table_of, joined)


# ---------------------------------------------------------------- one read of every block


def find_regions(
    values: np.ndarray, window: Window, shape: Sequence[int], level: np.ndarray
) -> dict[str, np.ndarray]:
    """Return size, sums of places, box and first voxel of the regions of a block, and the labels on its faces."""
    from scipy import ndimage

    # On the CPU also of a map on a GPU: SciPy's numbers are part of the result.
    labels, count = ndimage.label(kernels.host(values) > level[0])
    at = np.nonzero(labels)
    own = labels[at] - 1
    start = [s.start for s in window]
    sums = [np.bincount(own, a, count) for a in at]
    sizes = np.bincount(own, minlength=count)
    first = np.empty(count, np.int64)
    first[own[::-1]] = np.ravel_multi_index([a[::-1] + s for a, s in zip(at, start, strict=True)], shape)
    boxes = np.array(
        [[(s.start, s.stop) for s in b] for b in ndimage.find_objects(labels)], np.int64
    ).reshape(count, 3, 2)
    return {
        "sizes": sizes,
        # Of whole numbers below 2**53, so exact.
        "sums": np.stack([s.astype(np.int64) + sizes * o for s, o in zip(sums, start, strict=True)], 1),
        "boxes": boxes + np.reshape(start, (1, 3, 1)),
        "first": first,
        **{name: labels[face] for name, face in FACES},
    }


# ---------------------------------------------------------------- across the faces


def join_regions(
    who: str, cut: Cubes, least: int, level: np.ndarray, found: Sequence[Any]
) -> dict[str, np.ndarray]:
    """Join the regions of all blocks, leave out small ones, and number them by their first voxel."""
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    counts = [len(part["sizes"]) for part in found]
    offset = np.concatenate([[0], np.cumsum(counts, dtype=np.int64)])
    total = int(offset[-1])
    if not total:
        raise TomoscaleError(f"{who}: no voxel of the map exceeds {level[0]:g}; lower the threshold")
    if total * BYTES_PER_REGION > MOST_BYTES:
        raise TomoscaleError(
            f"{who}: {total:,} regions of blocks exceed {level[0]:g}; joining them takes "
            f"{human_bytes(total * BYTES_PER_REGION)} of {human_bytes(MOST_BYTES)}: raise the threshold, or sigma"
        )
    pairs = np.concatenate([np.empty((2, 0), np.int64), *_touching(cut, found, offset)], axis=1)
    graph = coo_matrix((np.ones(pairs.shape[1], bool), tuple(pairs)), (total, total))
    n_regions, region = connected_components(graph, directed=False)
    whole = {n: np.concatenate([part[n] for part in found]) for n in ("sizes", "sums", "boxes", "first")}
    order = np.argsort(region, kind="stable")
    begin = np.searchsorted(region[order], np.arange(n_regions))
    sizes, sums = (np.add.reduceat(whole[n][order], begin) for n in ("sizes", "sums"))
    low = np.minimum.reduceat(whole["boxes"][order, :, 0], begin)
    high = np.maximum.reduceat(whole["boxes"][order, :, 1], begin)
    by_place = np.argsort(np.minimum.reduceat(whole["first"][order], begin))
    by_place = by_place[sizes[by_place] >= least]
    number = np.zeros(n_regions, np.uint32)
    number[by_place] = np.arange(1, len(by_place) + 1)
    return {
        "offset": offset,
        "label": number[region],
        **{n: v[by_place] for n, v in (("sizes", sizes), ("sums", sums), ("low", low), ("high", high))},
    }


def _touching(cut: Cubes, found: Sequence[Any], offset: np.ndarray) -> Iterator[np.ndarray]:
    """Yield the pairs of regions that touch across each face between two blocks."""
    numbers = np.arange(len(found)).reshape([len(g) for g in cut.grid])[0]
    across = [("row", a, b) for a, b in zip(numbers[:-1].flat, numbers[1:].flat, strict=True)]
    across += [("column", a, b) for a, b in zip(numbers[:, :-1].flat, numbers[:, 1:].flat, strict=True)]
    for axis, a, b in across:
        here, there = found[a][f"last_{axis}"], found[b][f"first_{axis}"]
        both = (here > 0) & (there > 0)
        pairs = np.stack([here[both] - 1 + offset[a], there[both] - 1 + offset[b]])
        yield np.unique(pairs, axis=1)


def paint_regions(
    values: np.ndarray, number: int, level: np.ndarray, joined: Sequence[Any]
) -> tuple[np.ndarray, np.ndarray]:
    """Return the values of a block, and the numbers of its regions in the volume."""
    from scipy import ndimage

    values = kernels.host(values)
    labels, _ = ndimage.label(values > level[0])
    offset = joined[0]["offset"]
    own = joined[0]["label"][offset[number] : offset[number + 1]]
    return values, np.append(np.uint32(0), own)[labels]


def table_of(joined: Sequence[Any]) -> Any:
    """Return the table of regions: size, centroid, box (half-open)."""
    import pyarrow as pa

    rows = {n: joined[0][n] for n in ("sizes", "sums", "low", "high")}
    columns: dict[str, Any] = {"label": np.arange(1, len(rows["sizes"]) + 1, dtype=np.uint32)}
    columns["voxels"] = rows["sizes"]
    for i, axis in enumerate(AXES):
        columns[axis] = rows["sums"][:, i] / rows["sizes"]
    for i, axis in enumerate(AXES):
        columns[f"{axis}_min"], columns[f"{axis}_max"] = rows["low"][:, i], rows["high"][:, i]
    return pa.table(columns)
