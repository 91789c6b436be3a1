"""What a block of a network's run holds, by the shapes of what it sees and of itself: arithmetic before it runs."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple

from tomoscale import blocks
from tomoscale.tiling import Stage, Tiles

if TYPE_CHECKING:
    from tomoscale.learn.forward import How
    from tomoscale.learn.model import Model

MOST_ELEMENTS = 2**31 - 1
"""Kernels of PyTorch count the elements of a tensor in 32 bits."""
DEVICE_SHARE = 0.7
"""Of a GPU's memory; the rest is for its libraries."""
LIBRARY_BYTES = 650_000_000
"""What PyTorch takes in a worker before and beside its tensors: its code, compiled convolutions, and what the allocator
keeps of what was freed: with 400 MB here a run of 660 blocks took 1.29 GB per worker where 1.03 GB were planned."""
MOST_SLICES = 8
"""Slices that go through a network together: more are not faster."""


class Budget(NamedTuple):
    """
    What the blocks of a run hold.

    Parameters
    ----------
    model : Model
        The network.
    volume : Volume
        What it runs over.
    how : How
        Where and with which numbers.
    device_bytes : int or None
        Memory of the device; None if that is the worker's own.
    """

    model: Model
    volume: Any
    how: How
    device_bytes: int | None

    def forward(self, tiles: Tiles, batch: int = 1) -> int:
        """Count the bytes of a forward pass."""
        stages = (int(self.seen(tiles, s, batch) * s.bytes_per_voxel) for s in tiles.stages)
        return max(stages) + self.model.appetite.weights

    def seen(self, tiles: Tiles, stage: Stage, batch: int = 1) -> int:
        """Count the voxels that go through a stage of the network together."""
        depth, *plane = tiles.largest_of(stage)
        return (depth if self.model.dimensions == 3 else batch) * math.prod(plane)

    def scratch(self, tiles: Tiles, batch: int = 1) -> int:
        """Count what a block holds beside input and output: scaled, mirrored, its features, its logits."""
        window = 3 * 4 * math.prod(tiles.largest)
        logits = (3 if self.how.flips != "none" else 2) * 4 * self.model.outputs * math.prod(tiles.block)
        return (
            LIBRARY_BYTES + window + logits + (self.forward(tiles, batch) if self.device_bytes is None else 0)
        )

    def fits(self, tiles: Tiles, batch: int = 1) -> bool:
        """Tell whether blocks may be so large."""
        if any(self.seen(tiles, s, batch) * s.elements_per_voxel > MOST_ELEMENTS for s in tiles.stages):
            return False
        if self.device_bytes is not None and self.forward(tiles, batch) > DEVICE_SHARE * self.device_bytes:
            return False
        return self.block(tiles, batch) <= blocks.resources().most_bytes

    def block(self, tiles: Tiles, batch: int = 1) -> int:
        """Count the bytes of a block in all."""
        size = self.volume.dtype.itemsize
        each = 2 * self.model.outputs if self.how.probabilities else 1
        read = (math.prod(tiles.largest) + math.prod(self.volume.chunks)) * size
        written = 2 * each * math.prod(tiles.block)
        return read + written + max(read, written) + self.scratch(tiles, batch)

    def batch(self, tiles: Tiles) -> int:
        """Return how many slices go through the network together."""
        if self.model.dimensions == 3:
            return 1
        most = min(MOST_SLICES, tiles.largest[0])
        return max((n for n in range(1, most + 1) if self.fits(tiles, n)), default=1)
