"""
How a scan is cut into columns of pixels: every column holds all its frames, or several windows of them.

A moving median wants all frames of a pixel; a filter across pixels wants a halo; storage wants whole
chunks. The planner weighs what each way of cutting decodes and computes twice, and how evenly the
blocks fill the workers, among the ways that fit the memory of one block.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from tomoscale.blocks import CHUNK_BYTES, Window, covering, grow, scan_chunks, spans
from tomoscale.errors import TomoscaleError
from tomoscale.progress import human_bytes

DECODE_S = 0.6e-9  # per byte; these three are ratios measured by bench_background
COMPUTE_S = 2.2e-9  # per voxel, with its halo
ENCODE_S = 1.1e-9  # per byte


@dataclass(frozen=True)
class Columns:
    """
    A scan cut into blocks.

    Parameters
    ----------
    shape : tuple of int
        Frames, rows and columns of the scan.
    edges : tuple of int
        Of one block.
    stored : tuple of int
        Chunk of the output.
    halo : tuple of int
        Frames, rows and columns read around a block.
    step : int
        Frames that share one background; blocks hold whole ones.
    """

    shape: tuple[int, int, int]
    edges: tuple[int, int, int]
    stored: tuple[int, int, int]
    halo: tuple[int, int, int]
    step: int

    @property
    def grid(self) -> tuple[list[slice], ...]:
        """Ranges of the blocks along every axis."""
        return tuple(spans(n, e) for n, e in zip(self.shape, self.edges, strict=True))

    def window(self, index: Sequence[int]) -> Window:
        """Return the frames, rows and columns of a block."""
        return tuple(g[i] for g, i in zip(self.grid, index, strict=True))

    def grown(self, index: Sequence[int]) -> Window:
        """Return the same with the halo, cut to the scan."""
        return tuple(grow(s, h, n) for s, h, n in zip(self.window(index), self.halo, self.shape, strict=True))

    @property
    def inside(self) -> int:
        """Voxels of the largest block."""
        return math.prod(map(min, self.edges, self.shape))

    @property
    def around(self) -> int:
        """Voxels of the largest block with its halo."""
        return math.prod(min(e + 2 * h, n) for e, h, n in zip(self.edges, self.halo, self.shape, strict=True))

    @property
    def pixels(self) -> int:
        """Pixels of the largest block with its halo."""
        return math.prod(
            min(e + 2 * h, n) for e, h, n in zip(self.edges[1:], self.halo[1:], self.shape[1:], strict=True)
        )

    @property
    def around_chunk(self) -> int:
        """Voxels of a stored chunk with its halo within the frame."""
        return self.stored[0] * math.prod(
            n + 2 * h for n, h in zip(self.stored[1:], self.halo[1:], strict=True)
        )

    @property
    def n_read(self) -> int:
        """Frames that the largest block reads."""
        return min(self.edges[0] + 2 * self.halo[0], self.shape[0])

    def decoded(self, chunks: tuple[int, int, int]) -> int:
        """Return how many voxels are decoded in all, with the chunks around every halo."""
        return math.prod(
            sum(covering(grow(s, h, n), c, n) for s in spans(n, e))
            for e, h, n, c in zip(self.edges, self.halo, self.shape, chunks, strict=True)
        )

    @property
    def whole(self) -> bool:
        """Whether every block holds all frames of its pixels."""
        return self.edges[0] >= self.shape[0]

    @property
    def group_chunk(self) -> int:
        """Backgrounds in a stored chunk of them."""
        return _together(self.stored, self.step) // self.step


def cut(
    shape: tuple[int, int, int],
    chunks: tuple[int, int, int],
    *,
    halo: tuple[int, int, int],
    step: int,
    itemsize: tuple[int, int],
    held: float,
    scratch: tuple[int, int],
    block_bytes: int,
    threads: int,
    beside: tuple[int, int] = (0, 0),
    room: int = 0,
) -> Columns:
    """
    Choose how to cut a scan.

    Parameters
    ----------
    shape, chunks : tuple of int
        Of the stored scan.
    halo : tuple of int
        Frames, rows and columns that a block needs around it.
    step : int
        Frames that share one background.
    itemsize : (int, int)
        Bytes of a voxel read, its copies included, and of a voxel written, which is made a chunk at a time.
    held : float
        Bytes that a block holds for every voxel beyond the input.
    scratch : tuple of int
        Bytes that a block holds besides: for every frame read, and in any case.
    block_bytes : int
        Bytes that one block may cost.
    threads : int
        Threads that share the blocks.
    beside : (int, int)
        Bytes that a block reads beside the frames for every pixel, with its halo, and those of one chunk of it: a dark.
    room : int
        Bytes held for every voxel of a stored chunk with its halo.

    Returns
    -------
    Columns
        The cheapest way that fits.

    Raises
    ------
    TomoscaleError
        Nothing fits.
    """
    best: tuple[float, int, Columns] | None = None
    smallest = None
    for columns in _ways(shape, chunks, halo, step):
        inside, around = columns.inside, columns.around
        need = int(around * itemsize[0] + inside * held) + columns.n_read * scratch[0] + scratch[1]
        need += columns.pixels * beside[0] + room * columns.around_chunk
        # A chunk being decoded, one being made and one being encoded.
        need += max(math.prod(chunks) * itemsize[0], beside[1]) + 2 * math.prod(columns.stored) * 4
        smallest = need if smallest is None else min(need, smallest)
        if need > block_bytes:
            continue
        n_blocks = math.prod(map(len, columns.grid))
        decoded = columns.decoded(chunks) / n_blocks
        seconds = DECODE_S * decoded * itemsize[0] + COMPUTE_S * around + ENCODE_S * inside * itemsize[1]
        # A tenth of a block more: so much later than the others the last thread ends.
        rating = ((-(-n_blocks // threads) + 0.1) * seconds, need, columns)
        if best is None or rating[:2] < best[:2]:
            best = rating
    if best is None:
        raise TomoscaleError(
            f"background.remove: the smallest block of a scan {shape} in chunks {chunks} costs "
            f"{human_bytes(smallest or 0)}, {human_bytes(block_bytes)} are allowed; try a larger --memory, or lay the "
            "scan out with `tomoscale convert`"
        )
    return best[2]


def _ways(
    shape: tuple[int, int, int], chunks: tuple[int, int, int], halo: tuple[int, int, int], step: int
) -> Iterator[Columns]:
    stored = _stored(shape, chunks, step)
    rows, columns = (_multiples(n, e) for n, e in zip(shape[1:], stored[1:], strict=True))
    for frames, r, c in itertools.product(
        [shape[0], *_multiples(shape[0], _together(stored, step))], rows, columns
    ):
        around = (0 if frames >= shape[0] else halo[0], halo[1], halo[2])
        yield Columns(shape, (min(frames, shape[0]), r, c), stored, around, step)


def _stored(shape: tuple[int, int, int], chunks: tuple[int, int, int], step: int) -> tuple[int, int, int]:
    """
    Choose the output's chunks: tiles of the input where they are of a sensible size, whole steps of frames.

    They depend on nothing but scan and step, so that a run goes on with other workers and memory.
    """
    n_frames = _frames_in_step(step)
    _, band, width = scan_chunks(shape, 4, n_frames)
    tile = n_frames * chunks[1] * chunks[2] * 4
    if CHUNK_BYTES // 64 <= tile <= 4 * CHUNK_BYTES:
        return n_frames, chunks[1], chunks[2]
    return n_frames, band, width


def _together(stored: tuple[int, int, int], step: int) -> int:
    """Return the frames after which chunks of frames, chunks of backgrounds and steps all end."""
    unit = math.lcm(stored[0], step)
    background = unit // step * stored[1] * stored[2] * 4
    return unit * max(1, min(512 // unit, 2 * CHUNK_BYTES // background))


def _frames_in_step(step: int) -> int:
    """
    Return frames per chunk, about 64 where the step has such a divisor, so that few chunks make whole steps.

    >>> [_frames_in_step(s) for s in (1, 25, 50, 250, 499)]
    [64, 75, 50, 50, 499]
    """
    if step <= 96:
        return step * max(1, round(64 / step))
    divisors = [d for d in range(32, 129) if step % d == 0]
    return min(divisors, key=lambda d: abs(d - 64), default=step)


def _multiples(size: int, edge: int) -> list[int]:
    """Return some multiples of an edge, up to the whole axis."""
    found = []
    n = 1
    while n * edge < size:
        found.append(n * edge)
        n = n + 1 if n < 8 else n * 5 // 4
    return [*found, -(-size // edge) * edge]
