"""What a block of a network's run holds, by the shapes of its window and of itself: arithmetic before anything runs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from tomoscale import blocks
from tomoscale.tiling import Tiles

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

    def forward(self, window: Sequence[int], batch: int = 1) -> int:
        """Count the bytes of a forward pass."""
        return (
            int(self.seen(window, batch) * self.model.appetite.bytes_per_voxel) + self.model.appetite.weights
        )

    def seen(self, window: Sequence[int], batch: int = 1) -> int:
        """Count the voxels that go through the network together."""
        return math.prod(window) if self.model.dimensions == 3 else batch * math.prod(window[1:])

    def scratch(self, window: Sequence[int], block: Sequence[int], batch: int = 1) -> int:
        """Count what a block holds beside input and output: scaled, mirrored, its features, its logits."""
        tile = 3 * 4 * math.prod(window)
        logits = (3 if self.how.flips != "none" else 2) * 4 * self.model.outputs * math.prod(block)
        return (
            LIBRARY_BYTES + tile + logits + (self.forward(window, batch) if self.device_bytes is None else 0)
        )

    def fits(self, window: tuple[int, ...], block: tuple[int, ...], batch: int = 1) -> bool:
        """Tell whether a block may be so large."""
        if self.seen(window, batch) * self.model.appetite.elements_per_voxel > MOST_ELEMENTS:
            return False
        if self.device_bytes is not None and self.forward(window, batch) > DEVICE_SHARE * self.device_bytes:
            return False
        return self.block(window, block, batch) <= blocks.resources().most_bytes

    def block(self, window: Sequence[int], block: Sequence[int], batch: int = 1) -> int:
        """Count the bytes of a block in all."""
        size = self.volume.dtype.itemsize
        each = 2 * self.model.outputs if self.how.probabilities else 1
        read = (math.prod(window) + math.prod(self.volume.chunks)) * size
        written = 2 * each * math.prod(block)
        return read + written + max(read, written) + self.scratch(window, block, batch)

    def batch(self, tiles: Tiles) -> int:
        """Return how many slices go through the network together."""
        fitting = [n for n in range(1, MOST_SLICES + 1) if self.fits(tiles.largest, tiles.block, n)]
        return 1 if self.model.dimensions == 3 else max(fitting, default=1)
