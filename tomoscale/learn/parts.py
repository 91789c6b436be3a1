"""A tile in parts when memory runs out: halves, and halves of halves, each with what it must see."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator

import numpy as np
import torch

from tomoscale import call
from tomoscale.errors import TomoscaleError
from tomoscale.grid import Window, lengths
from tomoscale.learn.model import Model
from tomoscale.tiling import Tiles

_too_large: dict[str, int] = {}
"""Voxels of the smallest tile for which the memory of a device was too small."""


def is_exhausted(error: BaseException) -> bool:
    """Tell whether memory ran out: as elsewhere, or as PyTorch says it on the CPU."""
    return call.is_exhausted(error) or "can't allocate memory" in str(error)


def in_parts(
    core: Window,
    tiles: Tiles,
    device: str,
    model: Model,
    run: Callable[[Window, Window], np.ndarray],
    *,
    seams: bool,
) -> Iterator[tuple[Window, np.ndarray]]:
    """
    Yield parts of a tile and what is made of them: the whole if memory allows, else halves of halves.

    Parameters
    ----------
    core : tuple of slice
        The whole.
    tiles : Tiles
        What a part must see.
    device : str
        Whose memory may run out.
    model : Model
        The network.
    run : callable
        From a part and what it sees to what is made of it.
    seams : bool
        Whether a part must see whole slices, or the whole volume.

    Yields
    ------
    tuple of slice, numpy.ndarray
        A part, and what was made of it.

    Raises
    ------
    TomoscaleError
        The smallest part is too large.
    """
    queue = [core]
    while queue:
        part = queue.pop()
        seen = tiles.window(part)
        voxels = int(np.prod(lengths(seen)))
        failed = ""
        if voxels < _too_large.get(device, 2**62):
            try:
                result = run(part, seen)
            except (RuntimeError, MemoryError) as error:
                if not is_exhausted(error):
                    raise
                failed = " ".join(str(error).split())[:120]
            else:
                yield part, result
                continue
        halves = _halves(part, model, seams)
        if not halves:
            shape = " x ".join(map(str, lengths(seen)))
            raise TomoscaleError(
                f"predict.segment: the memory of {device} cannot hold a tile of {shape}, which cannot be cut; "
                "give --device cpu, or fewer --threads"
            )
        if failed:
            # Only here, after the error, what it held is free.
            _too_large[device] = voxels
            if device != "cpu":
                torch.cuda.empty_cache()
            shape = " x ".join(map(str, lengths(seen)))
            warnings.warn(
                f"predict.segment: {device} has no memory for a tile of {shape}, goes on with halves ({failed})"
            )
        queue += halves[::-1]


def _halves(part: Window, model: Model, seams: bool) -> list[Window]:
    """Cut a part along its longest axis, on the grid of the stride; slices of a network over slices come first."""
    strides = (1,) * (3 - model.dimensions) + model.stride
    order = sorted(range(3), key=lambda a: -lengths(part)[a])
    if model.dimensions == 2:
        order = [0] if seams or lengths(part)[0] > 1 else order
    elif seams:
        return []
    for axis in order:
        span = part[axis]
        middle = (span.start + span.stop) // 2 // strides[axis] * strides[axis]
        if span.start < middle < span.stop:
            return [
                (*part[:axis], slice(span.start, middle), *part[axis + 1 :]),
                (*part[:axis], slice(middle, span.stop), *part[axis + 1 :]),
            ]
    return []
