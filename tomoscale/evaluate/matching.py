"""Tables of blobs: reading them, and pairing the blobs of two."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from tomoscale import metadata
from tomoscale.errors import TomoscaleError
from tomoscale.record import record_of

AXES = ("frame", "row", "column")
NEEDED = (
    "label",
    "peak",
    *(f"peak_{a}" for a in AXES),
    *(f"{a}_{end}" for a in AXES for end in ("min", "max")),
    *AXES,
    "voxels",
    "intensity",
)
Columns = dict[str, np.ndarray]


# ---------------------------------------------------------------- tables


def read_table(path: Path) -> Columns:
    """
    Read a table of blobs.

    Parameters
    ----------
    path : Path
        The Parquet file, or the Zarr group that it lies beside.

    Returns
    -------
    dict of str to (blob,)
        Its columns; `absorbed_into` is 0 where the table does not have it.

    Raises
    ------
    TomoscaleError
        There is none, or it lacks columns.
    """
    import pyarrow as pa
    import pyarrow.parquet

    file = path if path.suffix == ".parquet" else path.with_suffix(".parquet")
    if not file.is_file():
        beside = "" if file == path else f"; expected the table of the blobs of {path} there"
        raise TomoscaleError(f"{file}: does not exist{beside}")
    try:
        table = pyarrow.parquet.read_table(file)
    except (pa.ArrowInvalid, OSError) as error:
        raise TomoscaleError(f"{file}: is no Parquet file: {error}") from None
    lacking = [n for n in NEEDED if n not in table.column_names]
    if lacking:
        raise TomoscaleError(f"{file}: has no column {', '.join(lacking)}; is it a table of blobs?")
    wanted = [*NEEDED, *(n for n in ("omega", "absorbed_into") if n in table.column_names)]
    columns = {n: table[n].to_numpy(zero_copy_only=False) for n in wanted}
    return {"absorbed_into": np.zeros(table.num_rows, np.uint32), **columns}


def moved(found: Columns, result: Path) -> Callable[[Columns], np.ndarray]:
    """Bring the positions of a result of a part to those of the whole scan; return what tells true blobs inside."""
    start, shape = [0, 0, 0], [np.iinfo(np.int64).max] * 3
    for roi in _rois(result):
        start = [s + a for s, (a, _) in zip(start, roi, strict=True)]
        shape = [b - a for a, b in roi]
    for axis, name in enumerate(AXES):
        for column in (f"peak_{name}", f"{name}_min", f"{name}_max", name):
            found[column] = found[column] + start[axis]

    def inside(true: Columns) -> np.ndarray:
        return np.logical_and.reduce(
            [
                (true[f"peak_{n}"] >= a) & (true[f"peak_{n}"] - a < size)
                for n, a, size in zip(AXES, start, shape, strict=True)
            ]
        )

    return inside


def _rois(result: Path) -> Iterator[list[list[int]]]:
    """Yield the parts that were cut out of the frames on the way to a result, in the order of its history."""
    for step in _history(_group_of(result)):
        roi = step.get("inputs", {}).get("frames", {}).get("roi")
        if roi:
            yield roi


def _group_of(result: Path) -> Path:
    return result.with_suffix(".zarr") if result.suffix == ".parquet" else result


def _history(group: Path) -> list[dict[str, Any]]:
    record = record_of(group) if metadata.node_type(group) == "group" else None
    return (record or {}).get("history", [])


# ---------------------------------------------------------------- pairs


def period_of(result: Path) -> int:
    """Return the frames of a full turn if blobs may go over its end, else 0."""
    group = _group_of(result)
    steps = _history(group)
    if not steps or not steps[-1].get("parameters", {}).get("wrap"):
        return 0
    return metadata.array_info(group / "labels").shape[0]


def pairs(found: Columns, true: Columns, period: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """
    Pair found and true blobs one to one.

    Parameters
    ----------
    found, true : dict of str to (blob,)
        Columns of tables of blobs.
    period : int
        Frames of a full turn, where found blobs may go over its end; 0 where they do not.

    Returns
    -------
    found, true : (pair,) int
        Rows of the two tables, by ascending row of the true one.
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import min_weight_full_bipartite_matching

    n_found, n_true = len(found["label"]), len(true["label"])
    ours = candidates(found, true)
    theirs = candidates(true, found, period)
    both = set(zip(*ours, strict=True)) & {(f, t) for t, f in zip(*theirs, strict=True)}
    rows = np.array(sorted(both), np.int64).reshape(-1, 2)
    distance = distances(found, true, rows[:, 0], rows[:, 1], period)
    # Every true blob may also stay alone, at a price above that of all pairs together: so most pairs come first.
    alone = float(distance.sum()) + 2.0
    if not n_true:
        return np.empty(0, np.int64), np.empty(0, np.int64)
    weights = np.concatenate([distance + 1.0, np.full(n_true, alone + 1.0)])
    left = np.concatenate([rows[:, 1], np.arange(n_true)])
    right = np.concatenate([rows[:, 0], n_found + np.arange(n_true)])
    graph = coo_array((weights, (left, right)), shape=(n_true, n_found + n_true)).tocsr()
    of_true, of_found = min_weight_full_bipartite_matching(graph)
    order = np.argsort(of_true)
    of_true, of_found = of_true[order], of_found[order]
    paired = of_found < n_found
    return of_found[paired].astype(np.int64), of_true[paired].astype(np.int64)


def candidates(peaks: Columns, boxes: Columns, period: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """
    Find which peaks lie in which boxes.

    Parameters
    ----------
    peaks, boxes : dict of str to (blob,)
        Columns of tables of blobs.
    period : int
        Frames of a full turn, where boxes may go over its end; 0 where they do not.

    Returns
    -------
    peaks, boxes : (n,) int
        Rows of the two tables, for every peak in every box.
    """
    order = np.argsort(peaks["peak_frame"], kind="stable")
    frames = peaks["peak_frame"][order]
    inside, around = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
    for turn in (0, period) if period else (0,):
        first = np.searchsorted(frames, boxes["frame_min"] - turn)
        stop = np.searchsorted(frames, boxes["frame_max"] - turn)
        for box in np.flatnonzero(stop > first):
            near = order[first[box] : stop[box]]
            for axis in ("row", "column"):
                at = peaks[f"peak_{axis}"][near]
                near = near[(at >= boxes[f"{axis}_min"][box]) & (at < boxes[f"{axis}_max"][box])]
            inside.append(near)
            around.append(np.full(len(near), box))
    return np.concatenate(inside), np.concatenate(around)


def differences(
    found: Columns, true: Columns, f: np.ndarray, t: np.ndarray, axis: str, period: int = 0
) -> np.ndarray:
    """Return how far centroids of pairs are apart along an axis; the short way round a full turn."""
    apart = found[axis][f] - true[axis][t]
    return (apart + period / 2) % period - period / 2 if period and axis == "frame" else apart


def distances(found: Columns, true: Columns, f: np.ndarray, t: np.ndarray, period: int = 0) -> np.ndarray:
    """Return the distance between the centroids of pairs, in voxels."""
    return np.sqrt(np.sum([differences(found, true, f, t, a, period) ** 2 for a in AXES], axis=0))
