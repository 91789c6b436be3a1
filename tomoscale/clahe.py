"""Local contrast (CLAHE) of slices or of a volume, out of core: what scikit-image gives for the whole."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tomoscale import blocks, cubes, histogram, passes, tiles
from tomoscale.blocks import Index, Share
from tomoscale.cubes import Cubes
from tomoscale.errors import TomoscaleError
from tomoscale.histogram import is_counted
from tomoscale.progress import human_bytes
from tomoscale.readings import AT_ONCE
from tomoscale.tiles import Tiles


@dataclass(frozen=True)
class Equalised:
    """The small results of the three passes, and the blocks of the fourth."""

    how: Tiles
    cut: Cubes
    small: tuple[Any, ...]

    @property
    def levels(self) -> Any:
        """Lowest and highest level, then the half bins of the values, of the volume or of every slice."""
        return getattr(self.small[-1], "array", self.small[-1])


def tiles_of(
    who: str, image: Any, dimensions: int, tile: tuple[int, ...], clip_limit: float, bins: int
) -> Tiles:
    """
    Check how a volume is to be equalised.

    Parameters
    ----------
    who : str
        The operation, for errors.
    image : Volume
        The volume.
    dimensions : int
        2 for every slice by itself, 3 for the volume.
    tile : tuple of int
        Edges of a tile, one for all axes, or none for an eighth of every axis.
    clip_limit : float
        Share of a tile's voxels that a bin may hold.
    bins : int
        Of the histogram of a tile.

    Returns
    -------
    Tiles
        The plan.

    Raises
    ------
    TomoscaleError
        Another number of edges, or a tile that is larger than the slice or the volume.
    """
    shape = image.shape[3 - dimensions :]
    edges = tile * dimensions if len(tile) == 1 else tile or tuple(max(n // 8, 1) for n in shape)
    if len(edges) != dimensions:
        raise TomoscaleError(f"{who}: tile has {len(edges)} edges; expected 1, or {dimensions}")
    if any(k > n for k, n in zip(edges, shape, strict=True)):
        what = "slice" if dimensions == 2 else "volume"
        raise TomoscaleError(
            f"{who}: a tile of {by(edges)} is larger than the {what} of {by(shape)}; give a smaller --tile"
        )
    if not (is_counted(image.dtype) or image.dtype.name in ("float16", "float32", "float64")):
        raise TomoscaleError(
            f"{who}: values of type {image.dtype}; expected integers of 8 or 16 bits, or floats"
        )
    wide = image.dtype.kind in "iu" or image.dtype == np.float64
    dtype = np.dtype("f8" if wide else "f4")
    padded = (1, *edges) if dimensions == 2 else edges
    how = Tiles(who, image.shape, padded, dimensions == 2, clip_limit, bins, dtype)  # type: ignore[arg-type]
    tables = int(np.prod(how.grid)) * bins * 8 * (min(image.shape[0], 128) if dimensions == 2 else 1)
    if 6 * tables > blocks.resources().block_bytes:
        raise TomoscaleError(
            f"{who}: tiles of {by(edges)} need tables of {human_bytes(tables)}; give a larger --tile or more --memory"
        )
    return how


def equalised(image: Any, how: Tiles, *, held: float) -> Equalised:
    """
    Plan three passes over a volume: extremes, tile histograms, range of the result.

    Parameters
    ----------
    image : Volume
        Grey values.
    how : Tiles
        Tiles, limits and bins.
    held : float
        Bytes that a block holds for a voxel beside the one read and its bin and level.

    Returns
    -------
    Equalised
        What every block needs.
    """
    rows, bins = how.grid, how.bins
    tables = int(np.prod(rows)) * bins
    depth = min(128, how.shape[0]) if how.per_slice else 1
    cut = cubes.cut(how.who, image, held=held + 3, fixed=tables * depth * 20)
    working = AT_ONCE * 4 + tables * depth * 16
    if how.per_slice:
        slabs = cut.grid[0]
        stack = functools.partial(passes.stack, image, slabs=slabs, scratch=working)
        ends = stack(functools.partial(tiles.slice_ends, how), like=np.zeros(2))
        own: tuple[Share, ...] = (Share(ends),)
        maps = stack(
            functools.partial(tiles.slice_tables, how), like=np.zeros((*rows, bins), np.uint16), small=own
        )
        own = (Share(ends), Share(maps))
        reach = stack(functools.partial(tiles.slice_levels, how), like=np.zeros(2 + tiles.HALVES), small=own)
        return Equalised(how, cut, (*own, Share(reach)))
    ends = histogram.extremes(how.who, image)
    counts = passes.fold(
        image,
        functools.partial(tiles.volume_counts, how),
        np.zeros((*rows, bins), np.int64),
        small=(ends,),
        scratch=working,
    )
    maps = passes.derive(
        functools.partial(tiles.tables_of, how), np.zeros((*rows, bins), np.uint16), (counts,)
    )
    counted = passes.fold(
        image,
        functools.partial(tiles.volume_levels, how),
        np.zeros(tiles.LEVELS, np.int64),
        small=(ends, maps),
        scratch=working,
    )
    like = np.zeros(2 + tiles.HALVES)
    reach = passes.derive(functools.partial(tiles.summary, how), like, (counted,))
    return Equalised(how, cut, (ends, maps, reach))


def blocks_of(
    image: Any, plan: Equalised, function: Any, dtype: Any, *, small: tuple[Any, ...] = (), held: float
) -> Any:
    """Apply a function to every equalised slice of every block; it gets values, number of the slice, `small`."""
    cut = plan.cut
    window = tuple(slice(0, min(e, n)) for e, n in zip(cut.edges, cut.shape, strict=True))
    tables = int(np.prod(plan.how.grid)) * plan.how.bins
    scratch = int((held + 3) * blocks.volume_of(window)) + 20 * tables
    call = functools.partial(tiles.equalise_block, plan.how, function, np.dtype(dtype))

    def arguments(index: Index) -> tuple[Any, ...]:
        return cut.window(index), image.at(cut.window(index))

    field = {"out": cut.field(dtype)}
    return blocks.map_blocks(call, arguments, field, small=(*plan.small, *small), scratch=scratch)["out"]


def by(edges: Sequence[int]) -> str:
    """Return edges for people: 16 x 16."""
    return " x ".join(map(str, edges))
