"""Tables of blobs: reading them, and pairing the blobs of two."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from tomoscale import metadata
from tomoscale.errors import TomoscaleError

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
        Its columns; rows with label 0 are no blobs.

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
    wanted = [*NEEDED, *(["omega"] if "omega" in table.column_names else [])]
    columns = {n: table[n].to_numpy(zero_copy_only=False) for n in wanted}
    return {n: v[columns["label"] > 0] for n, v in columns.items()}


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
    group = result.with_suffix(".zarr") if result.suffix == ".parquet" else result
    if metadata.node_type(group) != "group":
        return
    for step in metadata.attributes_of(group).get("tomoscale", {}).get("history", []):
        roi = step.get("inputs", {}).get("frames", {}).get("roi")
        if roi:
            yield roi


# ---------------------------------------------------------------- pairs


def pairs(found: Columns, true: Columns) -> tuple[np.ndarray, np.ndarray]:
    """
    Pair found and true blobs one to one.

    Parameters
    ----------
    found, true : dict of str to (blob,)
        Columns of tables of blobs.

    Returns
    -------
    found, true : (pair,) int
        Rows of the two tables, by ascending row of the true one.
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import min_weight_full_bipartite_matching

    n_found, n_true = len(found["label"]), len(true["label"])
    ours = candidates(found, true)
    theirs = candidates(true, found)
    both = set(zip(*ours, strict=True)) & {(f, t) for t, f in zip(*theirs, strict=True)}
    rows = np.array(sorted(both), np.int64).reshape(-1, 2)
    distance = distances(found, true, rows[:, 0], rows[:, 1])
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


def candidates(peaks: Columns, boxes: Columns) -> tuple[np.ndarray, np.ndarray]:
    """
    Find which peaks lie in which boxes.

    Parameters
    ----------
    peaks, boxes : dict of str to (blob,)
        Columns of tables of blobs.

    Returns
    -------
    peaks, boxes : (n,) int
        Rows of the two tables, for every peak in every box.
    """
    order = np.argsort(peaks["peak_frame"], kind="stable")
    frames = peaks["peak_frame"][order]
    first = np.searchsorted(frames, boxes["frame_min"])
    stop = np.searchsorted(frames, boxes["frame_max"])
    inside, around = [], []
    for box in range(len(first)):
        near = order[first[box] : stop[box]]
        for axis in ("row", "column"):
            at = peaks[f"peak_{axis}"][near]
            near = near[(at >= boxes[f"{axis}_min"][box]) & (at < boxes[f"{axis}_max"][box])]
        inside.append(near)
        around.append(np.full(len(near), box))
    if not inside:
        return np.empty(0, np.int64), np.empty(0, np.int64)
    return np.concatenate(inside), np.concatenate(around)


def distances(found: Columns, true: Columns, f: np.ndarray, t: np.ndarray) -> np.ndarray:
    """Return the distance between the centroids of pairs, in voxels."""
    return np.sqrt(np.sum([(found[a][f] - true[a][t]) ** 2 for a in AXES], axis=0))
