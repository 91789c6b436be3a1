"""Diffraction blobs: where they lie, what they add to the frames, and what is true of each."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from tomoscale.blocks import Window
from tomoscale.simulate.rotation import Settings
from tomoscale.simulate.streams import knots, smooth, stream

CUT = 0.01
"""A blob ends where its smooth shape falls to this share of its peak."""
REACH = math.log(1 / CUT) ** (1 / 3)
"""That distance, in half-axes: the shape is exp(-distance ** 3)."""
GAP = 2
"""Pixels and frames between the boxes of two blobs, so that every voxel has one owner."""
BATCH = 2048
CELL = (96, 48, 48)


class Blob(NamedTuple):
    """One blob: an ellipsoid in (frame, row, column) that moves over the detector while it shines."""

    label: int
    texture: int
    """Number of the random stream of its texture."""
    frame: float
    row: float
    column: float
    counts: float
    half_frames: float
    major: float
    minor: float
    tilt: float
    row_step: float
    """Rows that it moves from one frame to the next."""
    column_step: float
    box: Window
    """Half-open ranges of frames, rows and columns outside of which it is zero."""


def place(settings: Settings) -> list[Blob]:
    """
    Place blobs on broken diffraction rings, at random, with their boxes apart.

    A blob at azimuth eta from the vertical rotation axis crosses the diffraction condition in a time that
    grows as 1/|sin eta|: close to the axis blobs are long in omega. None lies in the margin of the frame
    or on the beam in the middle. Fewer than `settings.blobs` come back where there is no room for more.
    """
    blobs: list[Blob] = []
    taken: dict[tuple[int, int, int], list[list[int]]] = {}
    n_batches = 8 + 100 * settings.blobs // BATCH
    for batch in range(n_batches):
        for form, box in _candidates(settings, batch):
            if len(blobs) == settings.blobs:
                return blobs
            cells = [
                (f, r, c)
                for f in range((box[0] - GAP) // CELL[0], (box[1] + GAP) // CELL[0] + 1)
                for r in range((box[2] - GAP) // CELL[1], (box[3] + GAP) // CELL[1] + 1)
                for c in range((box[4] - GAP) // CELL[2], (box[5] + GAP) // CELL[2] + 1)
            ]
            if any(_touch(box, other) for cell in cells for other in taken.get(cell, ())):
                continue
            for cell in cells:
                taken.setdefault(cell, []).append(box)
            frames = slice(max(0, box[0]), min(box[1], settings.shape[0]))
            window = (frames, slice(*box[2:4]), slice(*box[4:6]))
            blobs.append(Blob._make((len(blobs) + 1, len(blobs) + 1, *form, window)))
    return blobs


def _candidates(settings: Settings, batch: int) -> Iterable[tuple[list[float], list[int]]]:
    """Draw blobs and yield those on the free part of the frame: fields `frame` to `column_step`, and box."""
    s = settings
    n_frames, rows, columns = s.shape
    rng = stream(s.seed, "blobs", batch)
    eta = rng.uniform(0, 2 * np.pi, BATCH)
    rings = np.sqrt(np.linspace(0.06, 0.5, 7)) * min(rows, columns)
    radius = rng.choice(rings, BATCH) + rng.normal(0, 0.03 * columns, BATCH)
    row = (rows - 1) / 2 + radius * np.cos(eta)
    column = (columns - 1) / 2 + radius * np.sin(eta)
    frame = rng.uniform(-0.5, n_frames - 0.5, BATCH)
    half = rng.uniform(*s.blob_frames, BATCH) / np.maximum(abs(np.sin(eta)), 1e-3)
    half = np.minimum(half, s.max_half_frames)
    minor = rng.uniform(*s.blob_radius, BATCH) * rng.uniform(0.5, 1, BATCH)
    major = minor + rng.uniform(0, 1, BATCH) * (s.blob_radius[1] - minor)
    tilt = rng.uniform(0, np.pi, BATCH)
    lowest, highest = s.peak_counts
    counts = np.exp(rng.uniform(math.log(lowest), math.log(highest), BATCH)) / np.sqrt(
        half / s.blob_frames[0]
    )
    steps = rng.normal(0, 0.2, (2, BATCH)) * np.minimum(1, 3 / half)

    centre = np.stack([frame, row, column])
    extent = REACH * np.stack([half, major + abs(steps[0]) * half, major + abs(steps[1]) * half])
    low, high = np.floor(centre - extent).astype(int), np.ceil(centre + extent).astype(int) + 1
    free = np.ones(BATCH, bool)
    on_beam = np.ones(BATCH, bool)
    for axis, n, half_beam in ((1, rows, s.beam_half()[0]), (2, columns, s.beam_half()[1])):
        margin = s.margin_fraction * n
        free &= (low[axis] >= margin) & (high[axis] <= n - margin)
        on_beam &= (high[axis] > (n - 1) / 2 - half_beam - 4) & (low[axis] < (n - 1) / 2 + half_beam + 5)
    form = np.stack([frame, row, column, counts, half, major, minor, tilt, *steps])
    box = np.stack([low, high], axis=1).reshape(6, BATCH)
    for i in np.flatnonzero(free & ~on_beam):
        yield form[:, i].tolist(), box[:, i].tolist()


def _touch(a: Sequence[int], b: Sequence[int]) -> bool:
    """Tell whether two boxes overlap or lie closer than the gap."""
    return (
        a[0] < b[1] + GAP
        and b[0] < a[1] + GAP
        and a[2] < b[3] + GAP
        and b[2] < a[3] + GAP
        and a[4] < b[5] + GAP
        and b[4] < a[5] + GAP
    )


def signal_of(blob: Blob, settings: Settings, source: np.ndarray) -> np.ndarray:
    """Return the noise-free counts of a whole blob in its box, float32: the same bits for every block."""
    frames, rows, columns = (np.arange(s.start, s.stop, dtype=np.float32) for s in blob.box)
    f = (frames - blob.frame)[:, None, None]
    r = (rows - blob.row)[:, None] - blob.row_step * f
    c = (columns - blob.column) - blob.column_step * f
    cosine, sine = math.cos(blob.tilt), math.sin(blob.tilt)
    along = cosine * r + sine * c
    along /= blob.major
    along *= along
    across = cosine * c - sine * r
    across /= blob.minor
    across *= across
    along += across
    along += (f / blob.half_frames) ** 2
    outside = along >= REACH**2
    np.sqrt(along, out=across)
    along *= across
    np.negative(along, out=along)
    np.exp(along, out=along)  # flat top and steep side: the shadow of a grain
    along[outside] = 0
    along *= blob.counts
    texture = smooth(knots(stream(settings.seed, "texture", blob.texture), 2, 3), along.shape)
    texture *= 0.25
    texture += 1
    along *= texture
    along *= source[blob.box[0], None, None]
    return along


def edge_of(signal: np.ndarray, settings: Settings) -> np.float32:
    """Return the counts above which a voxel carries the label of its blob."""
    return np.float32(settings.edge_level) * signal.max()


def scratch_bytes(blobs: Iterable[Blob]) -> int:
    """Bytes that `signal_of` holds at most."""
    return 24 * max((math.prod(s.stop - s.start for s in b.box) for b in blobs), default=0)


def measured(
    blobs: Iterable[Blob], settings: Settings, source: np.ndarray
) -> tuple[list[Blob], dict[str, Any]]:
    """
    Measure every blob on its noise-free signal, and number them by descending peak.

    Returns
    -------
    blobs : list of Blob
        In the order of their labels 1, 2, 3 ...
    columns : dict of str to list
        The columns of their table.
    """
    found = [(blob, _measure(blob, settings, source)) for blob in blobs]
    found.sort(key=lambda item: (-item[1]["peak"], item[0].label))
    numbered = [blob._replace(label=n) for n, (blob, _) in enumerate(found, 1)]
    rows = [{"label": n, **row} for n, (_, row) in enumerate(found, 1)]
    return numbered, {name: [row[name] for row in rows] for name in COLUMNS}


AXES = ("frame", "row", "column")
COLUMNS = {
    "label": "uint32",
    "peak": "float32",
    **{f"peak_{a}": "int64" for a in AXES},
    "voxels": "int64",
    **{f"{a}_{end}": "int64" for a in AXES for end in ("min", "max")},
    "intensity": "float64",
    **dict.fromkeys((*AXES, "omega"), "float64"),
}
"""Columns of the table of true blobs, with their Arrow types."""


def _measure(blob: Blob, settings: Settings, source: np.ndarray) -> dict[str, Any]:
    """Measure the voxels that carry the label."""
    signal = signal_of(blob, settings, source)
    first = [s.start for s in blob.box]
    top = np.unravel_index(int(signal.argmax()), signal.shape)
    inside = signal > edge_of(signal, settings)
    weights = np.where(inside, signal, 0).astype(np.float64)
    intensity = float(weights.sum())
    row: dict[str, Any] = {"peak": float(signal[top]), "voxels": int(inside.sum()), "intensity": intensity}
    for axis, name in enumerate(AXES):
        others = tuple({0, 1, 2} - {axis})
        where = np.flatnonzero(inside.any(others)) + first[axis]
        row[f"peak_{name}"] = int(top[axis]) + first[axis]
        row[f"{name}_min"], row[f"{name}_max"] = int(where[0]), int(where[-1]) + 1
        profile = weights.sum(others)
        row[name] = float((profile * np.arange(len(profile))).sum()) / intensity + first[axis]
    row["omega"] = row["frame"] * settings.degrees / settings.shape[0]
    return row
