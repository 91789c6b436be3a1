"""The table of blobs: one order for all of them, centroids and moments, and what was rejected."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from tomoscale.errors import TomoscaleError
from tomoscale.growth import BYTES_PER_SEED, WHO, Rules
from tomoscale.progress import human_bytes

FATES = ("kept", "too few seed voxels", "above c_max", "absorbed", "too small", "too large")
"""The fates of a seed of `tomoscale.kernels._growth`, in words."""
AXES = ("frame", "row", "column")
SHOWN = 50
"""Rejected seeds that are listed for every reason, the brightest."""


def number_blobs(rules: Rules, grown: Sequence[Any], *sigma: np.ndarray) -> dict[str, np.ndarray]:
    """
    Number the blobs by descending maximum, of equals the smaller index first.

    Parameters
    ----------
    rules : Rules
        Shape of the scan, memory.
    grown : sequence of mapping
        What `growth.grow_blobs` returned for every block.
    *sigma : (row, column) of tiles
        The noise, where it is needed.

    Returns
    -------
    dict
        The rows of all blobs in this order, the label of every seed of every block, and of the rejected seeds how
        many there are and the brightest; and least, median and largest of the noise, where it is known.

    Raises
    ------
    TomoscaleError
        More seeds than fit the memory.
    """
    parts = [_rows(part) for part in grown]
    counts = [len(p["peak"]) for p in parts]
    if sum(counts) * BYTES_PER_SEED > rules.room:
        raise TomoscaleError(
            f"{WHO}: {sum(counts):,} seeds need {human_bytes(sum(counts) * BYTES_PER_SEED)} of "
            f"{human_bytes(rules.room)}: raise seed_threshold or min_seed_voxels, or give a larger --memory"
        )
    rows = {n: np.concatenate([p[n] for p in parts]) for n in parts[0]}
    offset = np.concatenate([[0], np.cumsum(counts, dtype=np.int64)])
    order = np.lexsort((rows["place"], -rows["peak"]))
    blobs = order[rows["fate"][order] == 0]
    label = np.zeros(len(order), rules.label_type)
    label[blobs] = np.arange(1, len(blobs) + 1)
    owner = np.where(rows["owner"] >= 0, rows["owner"] + np.repeat(offset[:-1], counts), -1)
    owner_label = np.where(owner >= 0, label[owner] if len(label) else 0, 0)
    kept: dict[str, np.ndarray] = {n: rows[n][blobs] for n in ("peak", "place", "integers", "sums")}
    kept["absorbed_into"] = np.where(owner_label[blobs] == label[blobs], 0, owner_label[blobs])
    rejected = [order[rows["fate"][order] == f][:SHOWN] for f in range(1, len(FATES))]
    shown = np.concatenate(rejected)
    return {
        **kept,
        "offset": offset,
        "label": label,
        "sigma": np.quantile(sigma[0], (0, 0.5, 1)) if sigma else np.empty(0),
        "fates": np.bincount(rows["fate"], minlength=len(FATES)),
        **{f"rejected_{n}": rows[n][shown] for n in ("fate", "peak", "place", "integers")},
    }


_EMPTY: dict[str, np.ndarray] = {
    "fate": np.empty(0, np.int8),
    "peak": np.empty(0),
    "place": np.empty(0, np.int64),
    "owner": np.empty(0, np.int32),
    "integers": np.empty((0, 8), np.int64),
    "sums": np.empty((0, 10)),
}


def _rows(part: Any) -> dict[str, np.ndarray]:
    try:
        return {name: part[name] for name in _EMPTY}
    except KeyError:  # nothing was at home there
        return _EMPTY


def table_of(rules: Rules, omega: np.ndarray | None, numbered: Any) -> Any:
    """
    Return the table of blobs.

    Parameters
    ----------
    rules : Rules
        Shape of the scan, thresholds.
    omega : (frame,), optional
        Degrees.
    numbered : sequence of mapping
        Its only item is what `number_blobs` returned.

    Returns
    -------
    pyarrow.Table
        One row per blob; what holds for all of them, and the brightest rejected seeds, in its metadata.
    """
    import pyarrow as pa

    rows, shape = numbered[0], rules.bricks.shape
    integers, sums = rows["integers"], rows["sums"]
    peak = dict(zip(AXES, np.unravel_index(rows["place"], shape), strict=True))
    columns: dict[str, Any] = {
        "label": np.arange(1, len(integers) + 1, dtype=rules.label_type),
        "peak": rows["peak"],
        **{f"peak_{a}": peak[a].astype(np.int64) for a in AXES},
        "voxels": integers[:, 1],
    }
    for i, axis in enumerate(AXES):
        columns[f"{axis}_min"], columns[f"{axis}_max"] = integers[:, 2 + 2 * i], integers[:, 3 + 2 * i]
    columns["intensity"] = sums[:, 0]
    way = sums[:, 1:4] / sums[:, :1]
    for i, axis in enumerate(AXES):
        top = peak[axis] + np.where(peak[axis] < columns[f"{axis}_min"], shape[i], 0)
        columns[axis] = top + way[:, i]
    columns["omega"] = _angle_at(columns["frame"], omega)
    columns |= _second_moments(sums, way)
    columns["seed_voxels"] = integers[:, 0]
    columns["touches_border"] = _touches_border(integers, shape, rules.how.wrap)
    columns["absorbed_into"] = rows["absorbed_into"].astype(rules.label_type)
    found = json.dumps({"blobs": found_of(rules, rows)})
    return pa.table(columns).replace_schema_metadata({"tomoscale": found})


def _angle_at(frame: np.ndarray, omega: np.ndarray | None) -> Any:
    """Return degrees at a frame and its fraction, going on evenly beyond the last one; nulls without angles."""
    if omega is None:
        import pyarrow as pa

        return pa.nulls(len(frame), pa.float64())
    step = (omega[-1] - omega[0]) / max(1, len(omega) - 1)
    beyond = np.maximum(0, frame - (len(omega) - 1))
    return np.interp(frame, np.arange(len(omega)), omega) + beyond * step


def _second_moments(sums: np.ndarray, way: np.ndarray) -> dict[str, np.ndarray]:
    """Return the intensity-weighted second central moments, in squares of pixels and frames."""
    pairs = [(a, b) for a in (0, 1, 2) for b in (0, 1, 2) if a <= b]
    return {
        f"moment_{AXES[a]}_{AXES[b]}": sums[:, 4 + i] / sums[:, 0] - way[:, a] * way[:, b]
        for i, (a, b) in enumerate(pairs)
    }


def _touches_border(integers: np.ndarray, shape: tuple[int, ...], wrap: bool) -> np.ndarray:
    ends = [(integers[:, 2 + 2 * i] == 0) | (integers[:, 3 + 2 * i] >= n) for i, n in enumerate(shape)]
    return np.any(ends[1:] if wrap else ends, axis=0)


def found_of(rules: Rules, rows: Any) -> dict[str, Any]:
    """Return what holds for all blobs: thresholds in counts, at the median noise, and which seeds were rejected."""
    boxes, fates = rows["rejected_integers"], rows["rejected_fate"]
    places = np.stack(np.unravel_index(rows["rejected_place"], rules.bricks.shape), 1)
    rejected = [
        {
            "reason": FATES[fate], "peak": peak, "position": place, "seed_voxels": box[0], "voxels": box[1],
            "box": [[box[2], box[3]], [box[4], box[5]], [box[6], box[7]]],
        }
        for fate, peak, place, box in zip(
            fates.tolist(), rows["rejected_peak"].tolist(), places.tolist(), boxes.tolist(), strict=True
        )
    ]  # fmt: skip
    low, sigma, high = rows["sigma"].tolist() or (None, None, None)
    counts = {n: getattr(rules, n).at(sigma) for n in ("seed_threshold", "c_min", "c_max")}
    counts["c_max"] = None if math.isinf(counts["c_max"]) else counts["c_max"]
    return {
        "thresholds": {**counts, "sigma": sigma, "sigma_range": sigma and [low, high]},
        "count": int(rows["fates"][0]),
        "rejected": dict(zip(FATES[1:], rows["fates"][1:].tolist(), strict=True)),
        "brightest_rejected": rejected,
    }
