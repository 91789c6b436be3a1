"""Diffraction blobs by the double threshold: seeds, growth by each blob's own maximum, size filter, table."""

from __future__ import annotations

import functools
import math
from dataclasses import replace
from typing import Any, Literal, NamedTuple

import numpy as np

from tomoscale import blocks, bricks, growth, labels, noise, parts, table, tally
from tomoscale.blocks import Field, Index
from tomoscale.errors import TomoscaleError
from tomoscale.growth import WHO, Rules
from tomoscale.noise import Threshold
from tomoscale.operation import operation
from tomoscale.parameters import Count, Rect, Shape3, Share, Span, Volume

Level = float | str
"""A threshold in counts, or a multiple of the noise: "8 sigma"."""


class Blobs(NamedTuple):
    """A volume of labels and a table with one row per blob; both lazy."""

    labels: Any
    table: Any


@operation("blobs", outcome=tally.of_blobs)
def segment(
    frames: Volume,
    *,
    seed_threshold: Level,
    tau: Share = 0.1,
    c_min: Level,
    c_max: Level = math.inf,
    range: Literal["literal", "clip"] = "literal",
    min_seed_voxels: Count = 1,
    min_size: Shape3 = (1, 1, 1),
    max_size: Shape3 | None = None,
    connectivity: Literal[6, 26] = 6,
    overlaps: Literal["keep", "claim"] = "keep",
    wrap: bool = False,
    exclude: tuple[Rect, ...] = (),
) -> Blobs:
    """
    Find the diffraction blobs of a scan by a double threshold.

    Bright voxels are seeds; each grows down to a share of its own maximum. The result is the same, bit for bit,
    for every chunking and any number of workers.

    Parameters
    ----------
    frames : (frame, row, column)
        Cleaned frames (of `background.remove`): integers of up to 32 bits, or floats. NaN is below every
        threshold.
    seed_threshold
        Connected voxels of at least this are a seed: counts, or a multiple of the noise such as `8 sigma`.
    tau
        Share of its maximum down to which a blob grows.
    c_min
        Counts, or sigma, below which no blob grows; positive, and not above the seed threshold.
    c_max
        Counts, or sigma; for `literal` the most that a voxel of a blob may have, for `clip` the most that the
        lower limit is raised to.
    range
        Voxels of a blob of maximum M: `literal` max(c_min, tau M) <= I <= min(c_max, M) (as published [1]_), or
        `clip` I >= tau M clipped to [c_min, c_max].
    min_seed_voxels
        Smaller seeds are left out.
    min_size, max_size
        Smallest and largest box of a blob: frames, rows, columns. Hot pixels are one pixel wide: 1,3,3.
    connectivity
        Neighbours of a voxel, 6 or 26.
    overlaps
        Where blobs overlap, `keep`: each counts all its voxels in the table, and in the labels they belong to the
        brighter one; `claim`: voxels of a brighter blob are gone for fainter ones, and a seed whose maximum is
        gone is absorbed. Blobs that the size filter rejects take no voxels.
    wrap
        The scan is a full turn: the last frame meets the first. A blob across the seam ends beyond the last frame.
    exclude
        Rectangles `r0:r1,c0:c1` of pixels without blobs, the direct beam; may be repeated. With `--roi` too they are
        counted from the first pixel of the whole frames.

    Returns
    -------
    Blobs
        Lazy: `labels` (frame, row, column) uint32 (uint64 where the scan and the memory hold more than 4,294,967,295
        seeds), 0 where there is none, numbered by descending maximum (of equals, by the smaller linear index);
        `table`, `.compute()` of which is a pyarrow Table, and which `run.write` puts beside the output as Parquet.

    Raises
    ------
    TomoscaleError
        Thresholds that contradict each other, or {I >= c_min} is no longer separate components.

    Notes
    -----
    A voxel is compared as a float64. sigma is the noise of its pixel: 1.4826 times the median absolute deviation of a
    tile of 8 x 8 pixels in 64 frames evenly spread over the scan, the largest of the tile and its eight neighbours.
    Where one threshold is given in counts and another in sigma, a seed is nowhere less than c_min.

    References
    ----------
    .. [1] J. P. C. Bertoldo, "Segmentation for diffraction contrast tomography", Centre de Morphologie
       Mathématique, Mines ParisTech, 31 May 2021.

    Examples
    --------
    >>> import numpy as np
    >>> from tomoscale import blobs
    >>> scan = np.zeros((9, 20, 20), np.float32)
    >>> scan[3:6, 4:8, 4:8], scan[4, 5, 5] = 20, 100
    >>> found = blobs.segment(scan, seed_threshold=50, c_min=5)
    >>> found.table.compute().select(["label", "peak", "voxels", "row"]).to_pylist()
    [{'label': 1, 'peak': 100.0, 'voxels': 48, 'row': 5.461538461538462}]
    >>> int((found.labels.compute() == 1).sum())
    48
    """
    shape = _scan_shape(frames)
    given = (("seed_threshold", seed_threshold), ("c_min", c_min), ("c_max", c_max))
    levels = {name: noise.threshold(name, level) for name, level in given}
    _check(**levels, literal=range == "literal")
    _check_sizes(min_size, max_size)
    exclude = _within(exclude, frames)
    largest = max_size or tuple(np.iinfo(np.int64).max for _ in shape)
    how = _growth(tau, range, min_seed_voxels, (min_size, largest), connectivity, overlaps, wrap)
    rules = _plan(frames, levels, how, exclude)
    return _lay_out(frames, rules, _omega_of(frames, shape[0]))


# ---------------------------------------------------------------- checks


def _scan_shape(frames: Any) -> tuple[int, int, int]:
    if frames.ndim != 3:
        raise TomoscaleError(f"{WHO}: frames have shape {frames.shape}; expected (frame, row, column)")
    kind, size = frames.dtype.kind, frames.dtype.itemsize
    if not (kind == "f" and size <= 8) and not (kind in "iu" and size <= 4):
        raise TomoscaleError(
            f"{WHO}: frames are {frames.dtype}; expected integers of up to 32 bits, or floats: convert them first"
        )
    return frames.shape


def _check(*, seed_threshold: Threshold, c_min: Threshold, c_max: Threshold, literal: bool) -> None:
    if not 0 < c_min.value < math.inf:
        raise TomoscaleError(f"{WHO}: c_min={c_min}; it must be positive, a few times the noise")
    if c_min.exceeds(c_max) or c_max.value <= 0:
        raise TomoscaleError(f"{WHO}: c_min={c_min} exceeds c_max={c_max}")
    if c_min.exceeds(seed_threshold) or not 0 < seed_threshold.value < math.inf:
        raise TomoscaleError(
            f"{WHO}: c_min={c_min} exceeds seed_threshold={seed_threshold}; blobs grow downwards from their seeds"
        )
    if literal and seed_threshold.exceeds(c_max):
        raise TomoscaleError(
            f"{WHO}: c_max={c_max} is below seed_threshold={seed_threshold}: with range='literal' no seed is part "
            "of its blob; raise c_max, or take range='clip'"
        )


def _check_sizes(smallest: tuple[int, ...], largest: tuple[int, ...] | None) -> None:
    for axis, low, high in zip(table.AXES, smallest, largest or smallest, strict=True):
        if low > high:
            raise TomoscaleError(f"{WHO}: min_size {low} exceeds max_size {high} along the {axis}s")


def _within(exclude: tuple[Rect, ...], frames: Any) -> tuple[Rect, ...]:
    """Return rectangles of whole frames as those of a part: one file of parameters serves both."""
    window, shape = frames.place
    found = []
    for rect in exclude:
        for (start, stop), size in zip(rect, shape[1:], strict=True):
            if not 0 <= start < stop <= size:
                raise TomoscaleError(
                    f"{WHO}: exclude {start}:{stop} lies outside frames of {shape[1]} x {shape[2]}"
                )
        rows, columns = (
            Span(max(a, s.start) - s.start, min(b, s.stop) - s.start)
            for (a, b), s in zip(rect, window[1:], strict=True)
        )
        if rows.start < rows.stop and columns.start < columns.stop:
            found.append(Rect(rows, columns))
    return tuple(found)


def _omega_of(frames: Any, n_frames: int) -> Any:
    omega = frames.sibling("omega")
    if omega is not None and omega.shape != (n_frames,):
        raise TomoscaleError(f"{WHO}: omega has shape {omega.shape}, there are {n_frames} frames")
    return omega


# ---------------------------------------------------------------- plan


def _growth(
    tau: float, range: str, seeds: int, sizes: Any, connectivity: int, overlaps: str, wrap: bool
) -> Any:
    from tomoscale.kernels._growth import Growth

    return Growth(
        tau, range == "literal", seeds, np.array(sizes, np.int64), connectivity, overlaps == "claim", wrap
    )


def _plan(frames: Any, levels: dict[str, Threshold], how: Any, exclude: tuple[Rect, ...]) -> Rules:
    """Cut the scan, so that the dearest pass fits."""
    itemsize = max(4, frames.dtype.itemsize)
    resources = blocks.resources()
    room = resources.most_bytes
    label_type = labels.dtype_of(frames.shape, how.min_seed_voxels, room // growth.BYTES_PER_SEED)

    def ruled(cut: bricks.Bricks) -> Rules:
        return Rules(
            cut, **levels, how=how, exclude=exclude, itemsize=itemsize, room=room, label_type=label_type
        )

    def cost(edges: tuple[int, ...]) -> int:
        n_voxels, chunk = math.prod(edges), math.prod(frames.chunks)
        find = (n_voxels + chunk) * itemsize + growth.find_bytes(edges, itemsize, bool(exclude))
        gather = ruled(bricks.Bricks(frames.shape, edges, edges)).gather_bytes
        return max(find, gather, (n_voxels + chunk) * label_type.itemsize)

    cut = bricks.cut(
        frames.shape, frames.chunks, cost, itemsize=label_type.itemsize, block_bytes=resources.block_bytes,
        threads=resources.threads, who=WHO,
    )  # fmt: skip
    return ruled(cut)


def _lay_out(frames: Any, rules: Rules, omega: Any) -> Blobs:
    cut = rules.bricks
    sigma = [noise.local(frames, rules.exclude)] if rules.is_relative else []
    kept = functools.partial(parts.kept, token=cut.token)
    find_bytes = growth.find_bytes(cut.edges, rules.itemsize, bool(rules.exclude))
    found = kept(
        growth.find_components, lambda n: (frames.at(cut.window(n)), n, rules), cut.count, small=sigma,
        scratch=find_bytes,
    )  # fmt: skip
    sparse = rules.gather_bytes
    joined = kept(growth.join_components, lambda n: (rules,), 1, small=[found], scratch=sparse)
    grown = kept(growth.grow_blobs, lambda n: (n, rules), cut.count, small=[found, joined], scratch=sparse)
    numbered = kept(table.number_blobs, lambda n: (rules,), 1, small=[grown, *sigma], scratch=sparse)

    def arguments(index: Index) -> tuple[Any, ...]:
        return int(np.ravel_multi_index(index, cut.grid)), rules

    field = Field(rules.label_type, cut.chunks, cut.stored)
    painted = blocks.map_blocks(
        growth.paint_labels, arguments, {"labels": field}, small=[grown, joined, numbered]
    )["labels"]
    beside = {} if omega is None else {"omega": omega}
    blocks.state(
        painted,
        image="scan",
        carried={name: blocks.copied(volume) for name, volume in beside.items()},
        beside={name: volume.identity() for name, volume in beside.items()},
        prepare=functools.partial(prepare, frames.dtype, rules),
    )
    angles = None if omega is None else omega.whole().astype(np.float64)
    return Blobs(painted, parts.derived(table.table_of, numbered, rules, angles))


def prepare(dtype: np.dtype, rules: Rules) -> None:
    """Compile the kernels on a scan of one blob."""
    scan = np.zeros((4, 4, 4), dtype)
    scan[1:3, 1:3, 1:3] = 2
    low, high = noise.Threshold(1, relative=False), noise.Threshold(9, relative=False)
    rules = replace(
        rules, bricks=bricks.Bricks(scan.shape, scan.shape, scan.shape), seed_threshold=low, c_min=low, c_max=high,
        exclude=(),
    )  # fmt: skip
    found = [growth.find_components(scan, 0, rules)]
    joined = [growth.join_components(rules, found)]
    grown = [growth.grow_blobs(0, rules, found, joined)]
    growth.paint_labels(0, rules, grown, joined, [table.number_blobs(rules, grown)])
