"""A trained network over a volume: what it would give on the whole, block by block."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from tomoscale import blocks, calibration
from tomoscale.blocks import Field, Index, Window
from tomoscale.budget import Budget
from tomoscale.errors import TomoscaleError
from tomoscale.operation import operation
from tomoscale.parameters import Device, Shape3, Volume
from tomoscale.progress import human_bytes
from tomoscale.store import CroppedVolume
from tomoscale.tiling import Tiles, cut

if TYPE_CHECKING:
    from tomoscale.learn.forward import How
    from tomoscale.learn.model import Model


@operation("predict")
def segment(
    volume: Volume,
    model: Path,
    *,
    probabilities: bool = False,
    flips: Literal["none", "yx", "zyx"] = "none",
    precision: Literal["auto", "float32", "bfloat16", "float16"] = "auto",
    device: Device = "auto",
    chunks: Shape3 | None = None,
) -> dict[str, Any]:
    """
    Segment a volume with a trained network, as if the network saw the whole volume at once.

    Every block is computed with all the voxels around it that its result depends on, so that there are no
    seams; InstanceNorm gets its statistics from passes over the whole volume.

    Parameters
    ----------
    volume : (z, y, x)
        Any numeric type; scaled as the checkpoint says.
    model : path
        A checkpoint. In Python also a `learn.networks.UNet`, or any network through `learn.model.stated`.
    probabilities
        Write the probability of every class instead of labels.
    flips
        Average the probabilities of mirrored copies: `yx` four of them, `zyx` eight.
    precision
        Numbers of the network; `auto` takes bfloat16 on a GPU that has units for it, else float32.
    device
        Where blocks are computed: `auto` takes a GPU if there is one.
    chunks
        Stored chunks; by default cubes of 128, smaller ones where that saves work.

    Returns
    -------
    dict
        `labels` (z, y, x) uint8: the most probable class, or with one output whether its probability exceeds
        0.5; or `probabilities` (class, z, y, x) float16; and, where InstanceNorm needed them,
        `statistics` (instance, flip, feature, 2) float64: mean and variance.

    Raises
    ------
    TomoscaleError
        No checkpoint or a damaged one, a volume that does not fit it, or blocks that do not fit the memory.

    Notes
    -----
    An axis that is no multiple of the network's stride is continued by reflection at its end. Of a region
    (`--roi`) the result is that part of the result for the whole volume. Blocks that begin on other voxels
    differ by rounding: at most 1e-4 of the standard deviation of the logits.
    """
    from tomoscale.learn import forward
    from tomoscale.learn.model import opened

    whole, region = _region_of(volume)
    network = opened(model)
    place = forward.device_of(device)
    how = forward.How(
        place,
        forward.precision_of(precision, place),
        "yx" if flips == "zyx" and network.dimensions == 2 else flips,
        1,
        probabilities,
    )
    budget = Budget(network, whole, how, forward.device_bytes(place))
    tiles = _cut(network, whole, region, budget, chunks)
    how = how._replace(batch=budget.batch(tiles))
    extremes = calibration.extremes(whole) if network.scaling.kind == "range" else None
    statistics = (
        None
        if not _is_measured(network, tiles)
        else calibration.statistics(whole, network, tiles, how, budget.scratch, extremes)
    )
    name = "probabilities" if probabilities else "labels"
    made = _segment_all(whole, network, tiles, how, budget, extremes, statistics)
    blocks.state(
        made,
        beside={"model": network.identity()},
        overhead=tiles.overhead,
        says={
            "network": _described(network, tiles, how, statistics is not None),
            "device": forward.name_of(place),
        },
        parameters={"device": "cpu" if place == "cpu" else "gpu"},
        **({} if probabilities else {"image": "volume"}),
    )
    return {name: made} if statistics is None else {name: made, "statistics": statistics}


def _region_of(volume: Any) -> tuple[Any, Window]:
    """Return the volume that a region lies in: its voxels around the region are seen too."""
    if volume.ndim != 3 or 0 in volume.shape:
        raise TomoscaleError(f"predict.segment: volume has shape {volume.shape}; expected (z, y, x)")
    if isinstance(volume, CroppedVolume):
        return volume.inner, volume.window
    return volume, tuple(slice(0, n) for n in volume.shape)


# ---------------------------------------------------------------- plan


def _cut(model: Model, volume: Any, region: Window, budget: Budget, chunks: Shape3 | None) -> Tiles:
    """Choose the blocks; whole slices if that spares a network over slices the passes for its statistics."""
    flat = 3 - model.dimensions
    stages = tuple(
        s._replace(halo=(0,) * flat + s.halo, stride=(1,) * flat + s.stride) for s in model.appetite.stages
    )

    def fits(tiles: Tiles) -> bool:
        return all(map(budget.fits, _passes(model, tiles)))

    threads = blocks.resources().threads
    given = None if chunks is None else tuple(map(min, chunks, volume.shape))
    if model.norms and model.dimensions == 2:
        everything = tuple(s._replace(halo=(0, *volume.shape[1:])) for s in stages)
        found = cut(
            volume.shape, region, everything, fits,
            threads=threads, chunks=given, whole=(False, True, True),
        )  # fmt: skip
        if found is not None:
            return found
    found = cut(volume.shape, region, stages, fits, threads=threads, chunks=given)
    if found is None:
        edge = tuple(min(c, n) for c, n in zip(given or (16, 16, 16), volume.shape, strict=True))
        least = Tiles(volume.shape, region, edge, edge, stages)
        need, may = max(map(budget.block, _passes(model, least))), blocks.resources().most_bytes
        advice = "smaller --chunks, or " if chunks and max(chunks) > 16 else ""
        raise TomoscaleError(
            f"predict.segment: a block of {_times(edge)} needs {_times(least.largest)} voxels around it, which take "
            f"{human_bytes(need)}, and may take {human_bytes(may)}; give {advice}more --memory, or fewer --threads"
        )
    return found


def _is_measured(model: Model, tiles: Tiles) -> bool:
    """Tell whether statistics must be known first: there are some, and blocks do not see all that they are of."""
    return bool(model.norms) and not tiles.are_whole(model.dimensions)


def _passes(model: Model, tiles: Tiles) -> list[Tiles]:
    """Return the blocks of the run, and those of the passes for statistics that come before."""
    return [tiles, calibration.swept(tiles)] if _is_measured(model, tiles) else [tiles]


def _described(model: Model, tiles: Tiles, how: How, calibrated: bool) -> str:
    """Say in the plan what it computes."""
    text = (
        f"{model.dimensions}D, halo {_times(model.halo)}, tiles of {_times(tiles.largest)}; "
        f"{tiles.overhead:.2f} times the work of the whole at once, {how.precision}"
    )
    if calibrated:
        text += f"; {len(model.norms)} passes over the volume for the statistics of InstanceNorm first"
    return text


def _times(shape: Sequence[int]) -> str:
    return " x ".join(map(str, shape))


# ---------------------------------------------------------------- blocks


def _segment_all(
    volume: Any, model: Model, tiles: Tiles, how: How, budget: Budget, extremes: Any, statistics: Any
) -> Any:
    """Lay the blocks out."""
    small = [a for a in (extremes, statistics) if a is not None]
    known = (extremes is not None, statistics is not None)

    def arguments(index: Index) -> tuple[Any, ...]:
        core = tiles.core(index[-3:])
        return volume.at(tiles.inside(tiles.window(core))), model, tiles, core, how, known

    lengths = tuple(blocks.lengths(g) for g in tiles.grid)
    field = Field(np.dtype("u1"), lengths, tiles.stored)
    if how.probabilities:
        n = model.outputs
        field = Field(np.dtype("f2"), ((n,), *lengths), (1, *tiles.stored))
    scratch = budget.scratch(tiles, how.batch)
    return blocks.map_blocks(
        _segment, arguments, {"made": field}, small=small, scratch=scratch, overlaps=True
    )["made"]


def _segment(
    raw: np.ndarray,
    model: Model,
    tiles: Tiles,
    core: Window,
    how: How,
    known: tuple[bool, bool],
    *small: np.ndarray,
) -> np.ndarray:
    """Return labels or probabilities of a block."""
    from tomoscale.learn import forward

    given = list(small)
    extremes = given.pop(0) if known[0] else None
    statistics = given.pop(0) if known[1] else None
    if statistics is not None and model.dimensions == 2:
        statistics = statistics[core[0]]
    block = forward.padded(model.scaling.apply(raw, extremes), tiles.window(core))
    return forward.infer(block, model, tiles, core, how, statistics)
