"""What must be known of a whole volume before a network runs over its blocks: extremes, statistics of InstanceNorm."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from tomoscale import blocks
from tomoscale.blocks import Field, Index, Window
from tomoscale.tiling import Tiles

if TYPE_CHECKING:
    from tomoscale.learn.forward import How
    from tomoscale.learn.model import Model


def extremes(volume: Any) -> Any:
    """
    Return the smallest and the largest value of a volume.

    Returns
    -------
    dask.array.Array
        (2,) float64, computed once per run.
    """
    edge = tuple(-(-min(256, n) // c) * c for n, c in zip(volume.shape, volume.chunks, strict=True))
    parts = [blocks.spans(n, e) for n, e in zip(volume.shape, edge, strict=True)]
    indices = list(np.ndindex(*map(len, parts)))

    def arguments(index: Index) -> tuple[Any, ...]:
        return (volume.at(tuple(p[i] for p, i in zip(parts, indices[index[0]], strict=True))),)

    field = Field(np.dtype("f8"), ((1,) * len(indices), (2,)), (1, 2))
    each = blocks.once(blocks.map_blocks(_extremes_of, arguments, {"found": field})["found"])
    field = Field(np.dtype("f8"), ((2,),), (2,))
    return blocks.once(
        blocks.map_blocks(_extremes_of_all, lambda _: (), {"found": field}, small=[each])["found"]
    )


def _extremes_of(block: np.ndarray) -> np.ndarray:
    return np.array([[block.min(), block.max()]], np.float64)


def _extremes_of_all(each: np.ndarray) -> np.ndarray:
    return np.array([each[:, 0].min(), each[:, 1].max()])


def swept(tiles: Tiles) -> Tiles:
    """Return the blocks of a pass for statistics: those of the run, over the volume as it is continued."""
    size = tuple(-(-n // s) * s for n, s in zip(tiles.size, tiles.stride, strict=True))
    edge = tuple(max(s, min(b, n) // s * s) for b, n, s in zip(tiles.block, size, tiles.stride, strict=True))
    return Tiles(tiles.size, tuple(slice(0, n) for n in size), edge, edge, tiles.stages)


def statistics(
    volume: Any,
    model: Model,
    tiles: Tiles,
    how: How,
    scratch: Callable[[Tiles, int], int],
    scaled: Any,
) -> Any:
    """
    Return the statistics of every InstanceNorm over the whole volume: one pass for each, on the grid of the stride.

    A layer sees the volume as it was continued, so the blocks cover that.

    Parameters
    ----------
    volume : Volume
        The whole.
    model : Model
        The network.
    tiles : Tiles
        The blocks of the run that comes after.
    how : How
        As the run that comes after.
    scratch : callable
        From tiles and batch to the bytes that a block holds beside input and output.
    scaled : dask.array.Array or None
        Smallest and largest value, where intensities are scaled by them.

    Returns
    -------
    dask.array.Array
        (instance, flip, feature, 2) float64: mean and variance, the features of all layers one behind the other;
        an instance is a slice for a network over slices, else the volume. Computed once per run.
    """
    from tomoscale.learn.forward import FLIPS

    sweep = swept(tiles)
    slabs, rest = sweep.grid[0], list(np.ndindex(len(sweep.grid[1]), len(sweep.grid[2])))
    flat = model.dimensions == 2
    rows = blocks.lengths(slabs) if flat else (1,) * len(slabs)
    n_flips = len(FLIPS[how.flips])
    held = scratch(sweep, how.batch)
    fixed: list[Any] = []
    for layer, (_, n_features) in enumerate(model.norms):
        small = [a for a in (scaled, *fixed) if a is not None]

        def arguments(index: Index, layer: int = layer) -> tuple[Any, ...]:
            core = sweep.core((index[0], *rest[index[1]]))
            return (
                volume.at(sweep.inside(sweep.window(core))),
                model,
                sweep,
                core,
                how,
                layer,
                scaled is not None,
            )

        grid = (rows, (1,) * len(rest), (n_flips,), (n_features,), (3,))
        field = Field(np.dtype("f8"), grid, (1, 1, n_flips, n_features, 3))
        seen = blocks.map_blocks(
            _measure, arguments, {"seen": field}, small=small, scratch=held, overlaps=True
        )["seen"]
        fixed.append(
            _reduced(
                [blocks.once(seen)],
                _mean_and_variance,
                flat,
                (sum(rows) if flat else 1, n_flips, n_features, 2),
            )
        )
    total = sum(n for _, n in model.norms)
    return _reduced(fixed, _side_by_side, flat, (sum(rows) if flat else 1, n_flips, total, 2))


def _reduced(small: list[Any], function: Any, flat: bool, shape: tuple[int, ...]) -> Any:
    """Return what a function makes of small arrays, computed once."""
    field = Field(np.dtype("f8"), tuple((n,) for n in shape), shape)
    return blocks.once(blocks.map_blocks(function, lambda _: (flat,), {"made": field}, small=small)["made"])


def _measure(
    raw: np.ndarray,
    model: Model,
    tiles: Tiles,
    core: Window,
    how: How,
    layer: int,
    scaled: bool,
    *small: np.ndarray,
) -> np.ndarray:
    """Return what a layer sees of a block: (instance, 1, flip, feature, 3)."""
    from tomoscale.learn import forward

    extremes, fixed = (small[0], small[1:]) if scaled else (None, small)
    known = None
    if fixed:
        known = np.concatenate(fixed, 2)
        known = known[core[0]] if model.dimensions == 2 else known
    block = forward.padded(model.scaling.apply(raw, extremes), tiles.window(core))
    return forward.measure(block, model, tiles, core, how, layer, known)[:, None]


def _mean_and_variance(flat: bool, seen: np.ndarray) -> np.ndarray:
    """Add up what a layer saw in all blocks: of every slice, or of the volume."""
    from tomoscale.learn.statistics import together

    every = together(seen, 1) if flat else together(seen.reshape(-1, *seen.shape[2:]), 0)[None]
    return np.stack([every[..., 1], every[..., 2] / every[..., 0]], -1)


def _side_by_side(flat: bool, *fixed: np.ndarray) -> np.ndarray:
    return np.concatenate(fixed, 2)
