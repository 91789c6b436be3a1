"""How simulated scans and volumes are cut into blocks, and what is done to each."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from tomoscale import blocks
from tomoscale.blocks import Field, Window
from tomoscale.errors import TomoscaleError
from tomoscale.simulate import composite, rotation, spots

if TYPE_CHECKING:
    import dask.array as da
    import pyarrow as pa

FLOAT: np.dtype = np.dtype("float32")
COUNTS: np.dtype = np.dtype("uint16")
LABELS: np.dtype = np.dtype("uint32")
CLASSES: np.dtype = np.dtype("uint8")
MAX_FRAMES = 64
"""Frames of a block at most: as many as a stored chunk has, so that small scans still fill all cores."""


# ---------------------------------------------------------------- scan


def scan_arrays(
    settings: rotation.Settings, placed: Sequence[spots.Blob], truth: bool
) -> dict[str, da.Array]:
    """Return the frames and their truth: one task for each band of frames."""
    dtypes = {"frames": COUNTS}
    if truth:
        dtypes |= {"truth/background": FLOAT, "truth/signal": FLOAT, "truth/labels": LABELS}
    fixed = rotation.Scan.held_bytes(settings) + spots.scratch_bytes(placed)
    spare = 0 if truth else FLOAT.itemsize * settings.frame_pixels  # the signal is needed all the same
    n_frames = _frames_per_block(settings, settings.shape[0], list(dtypes.values()), fixed, spare, truth)
    bands = blocks.spans(settings.shape[0], n_frames)
    members: list[list[spots.Blob]] = [[] for _ in bands]
    for blob in placed:
        for band in range(blob.box[0].start // n_frames, (blob.box[0].stop - 1) // n_frames + 1):
            members[band].append(blob)
    arrays = blocks.map_blocks(
        _expose,
        lambda index: (settings, bands[index[0]], members[index[0]], truth),
        _fields(settings, bands, dtypes),
        scratch=fixed + spare * n_frames,
    )
    blocks.state(arrays["frames"], image="scan", scale=(settings.degrees / settings.shape[0], 1.0, 1.0))
    return arrays


def _expose(settings: rotation.Settings, band: slice, members: list[spots.Blob], truth: bool) -> Any:
    """Make a band of frames: counts and, when asked for, background, signal and labels."""
    scan = rotation.scan_of(settings)
    shape = (band.stop - band.start, *settings.frame_shape)
    signal = np.zeros(shape, FLOAT)
    labels = np.zeros(shape, LABELS) if truth else None
    for blob in members:
        whole = spots.signal_of(blob, settings, scan.source)
        frames, rows, columns = blob.box
        first, last = max(frames.start, band.start), min(frames.stop, band.stop)
        part = whole[first - frames.start : last - frames.start]
        box = (slice(first - band.start, last - band.start), rows, columns)
        signal[box] += part
        if labels is not None:
            labels[box][part > spots.edge_of(whole, settings)] = blob.label
    counts = np.empty(shape, COUNTS)
    background = np.empty(shape, FLOAT) if truth else None
    scan.expose(range(band.start, band.stop), signal, counts, background)
    return (counts, background, signal, labels) if truth else counts


def dark_stack(settings: rotation.Settings, n_frames: int) -> da.Array:
    """Return frames that are taken without beam."""
    fixed = rotation.Scan.held_bytes(settings)
    bands = blocks.spans(n_frames, _frames_per_block(settings, n_frames, [COUNTS], fixed, 0, False))
    fields = _fields(settings, bands, {"dark": COUNTS})
    return blocks.map_blocks(_expose_dark, lambda i: (settings, bands[i[0]]), fields, scratch=fixed)["dark"]


def _expose_dark(settings: rotation.Settings, band: slice) -> np.ndarray:
    counts = np.empty((band.stop - band.start, *settings.frame_shape), COUNTS)
    rotation.scan_of(settings).expose_dark(range(band.start, band.stop), counts)
    return counts


def defect_map(settings: rotation.Settings) -> da.Array:
    """Return the map of hot (1) and dead (2) pixels, in one block."""
    fields = {"defects": Field(CLASSES, tuple((n,) for n in settings.frame_shape), settings.frame_shape)}
    scratch = int(64 * settings.hot_fraction * settings.frame_pixels) + 100_000
    return blocks.map_blocks(_map_defects, lambda _: (settings,), fields, scratch=scratch)["defects"]


def _map_defects(settings: rotation.Settings) -> np.ndarray:
    found = rotation.defects(settings)
    pixels = np.zeros(settings.frame_pixels, CLASSES)
    pixels[found.hot], pixels[found.dead] = 1, 2
    return pixels.reshape(settings.frame_shape)


def _frames_per_block(
    settings: rotation.Settings, n_frames: int, dtypes: list[np.dtype], fixed: int, spare: int, truth: bool
) -> int:
    """Return how many frames a block may have: a power of two, so that chunks of all scans fit each other."""
    frame = sum(d.itemsize for d in dtypes) * settings.frame_pixels + spare
    largest = MAX_FRAMES
    while largest > 1:
        if fixed + largest * frame + _encoded(settings, largest, dtypes) <= blocks.resources().block_bytes:
            return min(largest, n_frames)
        largest //= 2
    needed, allowed = fixed + frame + _encoded(settings, 1, dtypes), blocks.resources().block_bytes
    if needed > allowed:
        rows, columns = settings.frame_shape
        raise TomoscaleError(
            f"simulate.dct: a block of one frame of {rows} x {columns} takes {needed / 1e9:.2f} GB, "
            f"{allowed / 1e9:.2f} GB are allowed; give more --memory or fewer --threads"
            + (", or leave the truth out (--truth=false)" if truth else "")
        )
    return 1


def _encoded(settings: rotation.Settings, n_frames: int, dtypes: list[np.dtype]) -> int:
    """Bytes of the largest chunk being encoded."""
    stored = [blocks.scan_chunks((n_frames, *settings.frame_shape), d.itemsize, n_frames) for d in dtypes]
    return max(math.prod(s) * d.itemsize for s, d in zip(stored, dtypes, strict=True))


def _fields(settings: rotation.Settings, bands: list[slice], dtypes: dict[str, np.dtype]) -> dict[str, Field]:
    """Cut arrays of whole frames into bands; a stored chunk holds some rows of a band."""
    chunks = (blocks.lengths(bands), *((n,) for n in settings.frame_shape))
    shape = (bands[-1].stop, *settings.frame_shape)
    stored = {n: blocks.scan_chunks(shape, d.itemsize, chunks[0][0]) for n, d in dtypes.items()}
    return {n: Field(d, chunks, stored[n]) for n, d in dtypes.items()}


# ---------------------------------------------------------------- volume


def volume_arrays(
    settings: composite.Settings, packed: composite.Spheres, truth: bool
) -> dict[str, da.Array]:
    """Return the volume and its truth: one task for each brick of stored chunks."""
    dtypes = {"volume": FLOAT, "truth/labels": CLASSES} if truth else {"volume": FLOAT}
    edges = _brick_shape(settings)
    cuts = [blocks.spans(n, e) for n, e in zip(settings.shape, edges, strict=True)]

    def arguments(index: tuple[int, ...]) -> tuple[Any, ...]:
        window: Window = tuple(c[i] for c, i in zip(cuts, index, strict=True))
        return settings, window, packed.near(window, settings.reach), truth

    fields = {n: Field(d, tuple(map(blocks.lengths, cuts)), edges) for n, d in dtypes.items()}
    return blocks.map_blocks(_make_brick, arguments, fields, scratch=composite.scratch_bytes(edges))


def _make_brick(settings: composite.Settings, window: Window, near: composite.Spheres, truth: bool) -> Any:
    grey, labels = composite.brick(settings, window, near)
    return (grey, labels) if truth else grey


def _brick_shape(settings: composite.Settings) -> tuple[int, int, int]:
    """Return the block: a tile in y and x, and as many slices as memory allows."""
    allowed = blocks.resources().block_bytes
    depth, rows, columns = blocks.volume_chunks(settings.shape, composite.TILE)
    edge = composite.TILE
    while True:
        block = (min(edge, depth), rows, columns)
        needed = 9 * math.prod(block) + composite.scratch_bytes(block)
        if needed <= allowed:
            return block
        if edge == 1:
            raise TomoscaleError(
                f"simulate.spheres: a block of one slice of {rows} x {columns} takes {needed / 1e6:.1f} MB, "
                f"{allowed / 1e6:.1f} MB are allowed; give more --memory or fewer --threads"
            )
        edge //= 2


# ---------------------------------------------------------------- tables


def table(columns: dict[str, Any], types: dict[str, str]) -> pa.Table:
    """Make a table with stated types."""
    import pyarrow as pa

    return pa.table({n: pa.array(columns[n], pa.type_for_alias(t)) for n, t in types.items()})


SPHERES = {
    "label": "uint32",
    "z": "float64",
    "y": "float64",
    "x": "float64",
    "radius": "float64",
    "radius_um": "float64",
    "whole": "bool",
}
"""Columns of the table of spheres: centre and radius in voxels, and whether nothing cuts the sphere."""


def sphere_table(settings: composite.Settings, packed: composite.Spheres, voxel_um: float) -> pa.Table:
    """Return one row for each sphere that is at least partly inside."""
    z, y, x = packed.centres.T
    n = len(packed.radii)
    columns = {"label": np.arange(1, n + 1), "z": z, "y": y, "x": x, "radius": packed.radii}
    columns |= {"radius_um": packed.radii * voxel_um, "whole": composite.whole(settings, packed)}
    return table(columns, SPHERES)
