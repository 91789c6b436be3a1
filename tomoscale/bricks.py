"""How a volume is cut into compact blocks: several whole chunks along each axis, as many as memory allows."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tomoscale.blocks import CHUNK_BYTES, Index, Window, lengths, spans, volume_chunks
from tomoscale.errors import TomoscaleError
from tomoscale.progress import human_bytes

MOST_VOXELS = 1 << 26
"""A larger block gains nothing: its surface is small already, and a stopped run loses more."""
BLOCKS_PER_THREAD = 4


@dataclass(frozen=True)
class Bricks:
    """
    A volume cut into blocks.

    Parameters
    ----------
    shape : tuple of int
        Of the volume.
    edges : tuple of int
        Of one block.
    stored : tuple of int
        Chunk of the output; blocks hold whole ones.
    """

    shape: tuple[int, ...]
    edges: tuple[int, ...]
    stored: tuple[int, ...]

    @property
    def spans(self) -> tuple[list[slice], ...]:
        """Ranges of the blocks along every axis."""
        return tuple(spans(n, e) for n, e in zip(self.shape, self.edges, strict=True))

    @property
    def grid(self) -> tuple[int, ...]:
        """Number of blocks along every axis."""
        return tuple(-(-n // e) for n, e in zip(self.shape, self.edges, strict=True))

    @property
    def count(self) -> int:
        """Number of blocks."""
        return math.prod(self.grid)

    @property
    def chunks(self) -> tuple[tuple[int, ...], ...]:
        """Lengths of the blocks along every axis, as Dask writes them."""
        return tuple(map(lengths, self.spans))

    def index(self, number: int) -> Index:
        """Return the index of a block from its number in row-major order."""
        found = []
        for n in reversed(self.grid):
            number, i = divmod(number, n)
            found.append(i)
        return tuple(reversed(found))

    def window(self, number: int) -> Window:
        """Return the ranges of a block."""
        return tuple(
            slice(i * e, min((i + 1) * e, n))
            for i, e, n in zip(self.index(number), self.edges, self.shape, strict=True)
        )

    @property
    def token(self) -> str:
        """Name the way of cutting."""
        return "x".join(map(str, self.edges))


def cut(
    shape: Sequence[int],
    chunks: Sequence[int],
    cost: Callable[[tuple[int, ...]], int],
    *,
    itemsize: int,
    block_bytes: int,
    threads: int,
    who: str,
) -> Bricks:
    """
    Choose blocks as compact as whole chunks allow.

    Parameters
    ----------
    shape, chunks : sequence of int
        Of the stored volume.
    cost : callable
        From the edges of a block to the bytes that it holds.
    itemsize : int
        Bytes of a voxel of the output.
    block_bytes : int
        Bytes that one block may cost.
    threads : int
        Threads that share the blocks.
    who : str
        The operation, for the error.

    Returns
    -------
    Bricks
        Edges are multiples of the output's chunks, which are the input's unless those are huge.

    Raises
    ------
    TomoscaleError
        Not even one chunk fits.
    """
    shape = tuple(shape)
    stored = tuple(min(c, n) for c, n in zip(chunks, shape, strict=True))
    if math.prod(stored) * itemsize > 16 * CHUNK_BYTES:
        stored = volume_chunks(shape)
    edges = stored
    if cost(edges) > block_bytes:
        raise TomoscaleError(
            f"{who}: the smallest block of a volume {shape} in chunks {tuple(chunks)} costs {human_bytes(cost(edges))}, "
            f"{human_bytes(block_bytes)} are allowed; try a larger --memory, or lay it out with `tomoscale convert`"
        )
    growing = True
    while growing:
        growing = False
        # Along the shortest edge first: the face between blocks is what they must agree upon.
        for axis in sorted(range(len(shape)), key=lambda a: (edges[a], a)):
            if edges[axis] >= shape[axis]:
                continue
            larger = tuple(2 * e if a == axis else e for a, e in enumerate(edges))
            n_blocks = math.prod(-(-n // e) for n, e in zip(shape, larger, strict=True))
            shared = n_blocks >= BLOCKS_PER_THREAD * threads or math.prod(larger) <= CHUNK_BYTES
            if shared and math.prod(larger) <= MOST_VOXELS and cost(larger) <= block_bytes:
                edges, growing = larger, True
                break
    return Bricks(shape, edges, stored)
