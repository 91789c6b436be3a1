"""Coarser levels of a volume or a scan, so that viewers show all of it at once."""

from __future__ import annotations

import contextlib
import functools
import math
import operator
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from tomoscale import blocks, cubes, kernels, metadata, record, store
from tomoscale.blocks import Field, Index
from tomoscale.cubes import Cubes, checked_volume
from tomoscale.errors import TomoscaleError
from tomoscale.operation import operation
from tomoscale.parameters import Count, Volume

WHO = "pyramid.levels"
STORED = {"scan": (8, 256, 256), "volume": (128, 128, 128)}
"""Chunks of the levels: of a scan, few frames at a time are looked at."""
UNIT = {"scan": (8, 1024, 1024), "volume": (256, 256, 256)}
"""Voxels of full resolution from which a block makes whole chunks of every level, where memory allows."""
COARSEST = 16
"""Pixels of the coarsest level along an axis that a block makes at least, where memory allows."""

Kind = Literal["scan", "volume"]


@operation("pyramid", joins=True)
def levels(
    volume: Volume,
    *,
    side: Count = 256,
    rule: Literal["auto", "mean", "labels"] = "auto",
    kind: Kind | None = None,
) -> dict[str, Any]:
    """
    Add coarser levels to a scan, a volume or labels, for viewers.

    Each level has half as many pixels along every axis of space; the frames of a scan are all kept. The levels become
    arrays of the same group (`frames-2`, `frames-4`), which OME-Zarr metadata list, unless another output is given:
    then they are a group of their own.

    Parameters
    ----------
    volume : (frame, row, column) or (z, y, x)
        An image, or other voxels of the shape of an image beside it, such as `scan.zarr/truth/labels`.
    side
        Levels are added until no axis of space is longer than this.
    rule : {"auto", "mean", "labels"}
        `mean`: the mean of all voxels of full resolution that there are and that are not NaN; integers are rounded, to
        even where two are as near. `labels`: the most frequent of the eight labels (four in a scan) of the level
        before; where several are, any other goes before 0 and the smallest before the others. `auto` takes `labels`
        for integer arrays of the name `labels`.
    kind : {"scan", "volume"}, optional
        Which axes are coarsened: all but the first, or all three. By default what the metadata say; where they say
        nothing, an array called `frames` is a scan.

    Returns
    -------
    dict
        A lazy array of the type of the volume for every level, by its name.

    Raises
    ------
    TomoscaleError
        Not three axes, none longer than `side`, 64-bit integers that are no labels, or a block that does not fit.

    Examples
    --------
    >>> import numpy as np
    >>> from tomoscale import pyramid
    >>> volume = np.arange(3 * 3 * 3, dtype=np.uint16).reshape(3, 3, 3)
    >>> pyramid.levels(volume, side=2)["volume-2"].compute()[0].tolist()
    [[6, 8], [11, 12]]
    """
    checked_volume(WHO, volume)
    image, is_listed = _image_of(volume, kind)
    are_spatial = [axis.get("type") == "space" for axis in image["axes"]]
    factors = _factors(volume.shape, are_spatial, side)
    are_labels = _are_labels(volume.dtype, image["name"], rule)
    made = _coarse(volume, image["name"], factors, are_labels, "volume" if all(are_spatial) else "scan")
    stated = {
        "multiscale": _multiscale(
            image, is_listed, volume, list(made), factors, "mode" if are_labels else "mean"
        ),
        "joins": _group(volume),
        "says": {"levels": "the most frequent labels" if are_labels else "means of full resolution"},
    }
    for array in made.values():
        blocks.state(array, **stated)
    return made


def _coarse(
    volume: Any, name: str, factors: Sequence[tuple[int, ...]], are_labels: bool, kind: Kind
) -> dict[str, Any]:
    """Return the levels as lazy arrays that one set of blocks makes together, each voxel read once."""
    share = sum(1 / math.prod(f) for f in factors)
    # Beside its levels a block holds sums, and of floats counts, of the one in work and of the one before.
    sums = 0.0 if are_labels else share * (16 if volume.dtype.kind == "f" else 8)
    sums += 4 if volume.dtype == np.float16 else 0
    cut, unit = _cut(volume, factors[-1], volume.dtype.itemsize * share + sums, kind)
    function = kernels.coarse_labels if are_labels else kernels.coarse_means

    def arguments(index: Index) -> tuple[Any, ...]:
        return (volume.at(cut.window(index)),)

    call = functools.partial(_coarser, function, _steps(factors))
    most = (max(_divisors(unit[0])), *STORED[kind][1:]) if kind == "scan" else STORED[kind]
    chunks = [min(u, n) for u, n in zip(unit, volume.shape, strict=True)], most
    fields = {f"{name}-{max(f)}": _field(volume.dtype, cut, f, *chunks) for f in factors}
    scratch = int(sums * math.prod(map(min, cut.edges, volume.shape)))
    return blocks.map_blocks(call, arguments, fields, scratch=scratch)


def _coarser(function: Any, steps: list[tuple[int, ...]], block: np.ndarray) -> Any:
    """Return all levels of a block."""
    made = function(block, steps)
    return made if len(made) > 1 else made[0]


# ---------------------------------------------------------------- plan: integers


def _factors(shape: Sequence[int], are_spatial: Sequence[bool], side: int) -> list[tuple[int, int, int]]:
    """
    Return by how many each axis of every level is coarsened: powers of two, of an axis no more than make one pixel.

    >>> _factors((100, 600, 3), (False, True, True), 200)
    [(1, 2, 2), (1, 4, 4)]
    """
    axes = list(zip(shape, are_spatial, strict=True))
    longest = max((n for n, is_spatial in axes if is_spatial), default=0)
    if longest <= side:
        raise TomoscaleError(
            f"{WHO}: no axis of space of {tuple(shape)} is longer than {side}; give a smaller --side for more levels"
        )
    n_levels = (-(-longest // side) - 1).bit_length()
    found = []
    for level in range(1, n_levels + 1):
        z, y, x = (min(2**level, 1 << (n - 1).bit_length()) if space else 1 for n, space in axes)
        found.append((z, y, x))
    return found


def _steps(factors: Sequence[tuple[int, ...]]) -> list[tuple[int, ...]]:
    """
    Return by how many each axis is coarsened from every level to the next.

    >>> _steps([(1, 2, 2), (1, 4, 2)])
    [(1, 2, 2), (1, 2, 1)]
    """
    before = [(1, 1, 1), *factors[:-1]]
    return [tuple(f // b for f, b in zip(*both, strict=True)) for both in zip(factors, before, strict=True)]


def _cut(volume: Any, factors: tuple[int, ...], held: float, kind: Kind) -> tuple[Cubes, tuple[int, ...]]:
    """Cut the volume into blocks of units, which are whole pixels of all levels and smaller where the memory is."""
    least, largest = max(factors), UNIT[kind]
    if kind == "scan" and volume.chunks[0] <= 64 and max(_divisors(volume.chunks[0])) > 3:
        largest = (volume.chunks[0], *largest[1:])  # so that no stored chunk is decoded twice

    def widest(
        unit: Sequence[int],
    ) -> int:  # of the axes that are coarsened; one of a single pixel stays as it is
        return max(e for e, f in zip(unit, factors, strict=True) if f > 1)

    units: list[tuple[int, ...]] = []
    while not units or widest(units[-1]) > least:
        edges = (max(u, COARSEST * least) >> len(units) for u in largest)
        units.append(
            tuple(max(e, f) if f > 1 else u for e, f, u in zip(edges, factors, largest, strict=True))
        )
    found: list[tuple[int, Cubes, tuple[int, ...]]] = []
    for unit in units:
        if found and widest(unit) < COARSEST * least:
            break
        with contextlib.suppress(TomoscaleError):
            cut = cubes.cut(WHO, volume, held=held, unit=unit)
            found.append((cut.decoded(volume.chunks), cut, unit))
    if not found:
        return cubes.cut(WHO, volume, held=held, unit=units[-1]), units[-1]  # which says what it would take
    return min(found, key=operator.itemgetter(0))[1:]


def _divisors(n_frames: int) -> list[int]:
    """Return how many frames of a block may lie in a chunk: as many in each, and few."""
    return [n for n in range(1, STORED["scan"][0] + 1) if n_frames % n == 0]


def _field(
    dtype: np.dtype, cut: Cubes, factors: tuple[int, ...], unit: Sequence[int], most: Sequence[int]
) -> Field:
    """Return a level: of every unit whole chunks, whatever blocks are made of them."""
    axes = zip(cut.grid, factors, strict=True)
    chunks = tuple(tuple(-(-n // f) for n in blocks.lengths(spans)) for spans, f in axes)
    return Field(
        dtype, chunks, tuple(min(m, -(-u // f)) for m, u, f in zip(most, unit, factors, strict=True))
    )


def _are_labels(dtype: np.dtype, name: str, rule: str) -> bool:
    """Tell whether voxels are labels; refuse what neither rule can do."""
    are_integers = dtype.kind in "iu"
    if rule == "labels" and not are_integers:
        raise TomoscaleError(f"{WHO}: labels of {dtype}; expected integers, or --rule mean")
    if rule == "labels" or (rule == "auto" and are_integers and Path(name).name == "labels"):
        return True
    if are_integers and dtype.itemsize == 8:
        raise TomoscaleError(
            f"{WHO}: no means of {dtype}, whose sums overflow; --rule labels if these are labels"
        )
    return False


# ---------------------------------------------------------------- what viewers read


def _image_of(volume: Any, kind: Kind | None) -> tuple[dict[str, Any], bool]:
    """
    Return OME-NGFF metadata: of these voxels, else of an image of their shape beside them, else the plainest.

    And whether the voxels themselves may be listed with their levels: OME-NGFF asks for the names of their axes.
    """
    stored = volume
    while isinstance(stored, store.CroppedVolume):
        stored = stored.inner
    if not isinstance(stored, store.StoredVolume):
        return store.ome_image("volume", kind or "volume")["ome"]["multiscales"][0], True
    outermost = stored.group or stored.path.parent
    name = stored.path.relative_to(outermost).as_posix() if stored.is_ours else stored.path.name
    for group in (p for p in stored.path.parents if p == outermost or outermost in p.parents):
        for image in record.images_of(group):
            if _is_like(stored, group, image):
                dataset = {**image["datasets"][0], "path": name}
                axes = store.AXES[kind] if kind else image["axes"]
                known = {k: v for k, v in image.items() if k != "version"}  # of 0.4, which has it there
                is_named = stored.info.dimension_names == tuple(axis["name"] for axis in axes)
                return {**known, "name": name, "axes": axes, "datasets": [dataset]}, is_named
    kind = kind or ("scan" if stored.path.name == "frames" else "volume")
    return store.ome_image(name, kind)["ome"]["multiscales"][0], True


def _is_like(stored: store.StoredVolume, group: Path, image: dict[str, Any]) -> bool:
    """Tell whether an image of a group has the shape of an array, and metadata that can be carried on."""
    if _transformations(image) is None or not record.is_inside(image["datasets"][0].get("path")):
        return False
    path = group / image["datasets"][0]["path"]
    return metadata.node_type(path) == "array" and metadata.array_info(path).shape == stored.shape


def _transformations(image: dict[str, Any]) -> tuple[list[float], list[float]] | None:
    """Return scale and translation of the first dataset; None where these or the axes are not as expected."""
    try:
        found = {t["type"]: t[t["type"]] for t in image["datasets"][0]["coordinateTransformations"]}
        scale, shift = found["scale"], found.get("translation", [0.0] * 3)
        numbers = [float(n) for n in (*scale, *shift)]
        sound = len(scale) == len(shift) == len(image["axes"]) == 3 and all(map(math.isfinite, numbers))
        named = all(isinstance(axis["name"], str) for axis in image["axes"])
        return (numbers[:3], numbers[3:]) if sound and named else None
    except (KeyError, IndexError, TypeError, ValueError):
        return None


def _multiscale(
    image: dict[str, Any],
    is_listed: bool,
    volume: Any,
    names: Sequence[str],
    factors: Sequence[tuple[int, ...]],
    method: str,
) -> dict[str, Any]:
    """Return the metadata of an image with its levels; pixel 0 of a level lies in the middle of those it stands for."""
    found = _transformations(image)
    assert found is not None
    datasets = list(image["datasets"]) if is_listed else []
    for name, level in zip(names, factors, strict=True):
        axes = list(zip(*found, level, volume.place[0], strict=True))
        scale = [s * f for s, _, f, _ in axes]
        shift = [t + s * (p.start + (f - 1) / 2) for s, t, f, p in axes]
        moves = [{"type": "scale", "scale": scale}, {"type": "translation", "translation": shift}]
        datasets.append({"path": name, "coordinateTransformations": moves})
    return {**image, "datasets": datasets, "type": method}


def _group(volume: Any) -> Path | None:
    """Return the result that the voxels belong to."""
    return Path(os.path.realpath(volume.group)) if getattr(volume, "is_ours", False) else None
