"""
Blocks of a scan or a volume: lazy arrays with one task per block.

A block is what one task holds in memory. `map_blocks` turns a block function into lazy Dask
arrays, one for each result of the function; the task reads its own window (with halo) from storage,
so the number of tasks is linear in blocks and nothing is exchanged between them. Beside the tasks a
lazy array carries what a run must know before the first of them: bytes per block and the shape of
the stored chunks (`Layer`).
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import TYPE_CHECKING, Any

import numpy as np

from tomoscale.call import Call, Part, Piece, Source
from tomoscale.grid import (
    CHUNK_BYTES,
    MIB,
    Index,
    Window,
    covering,
    grow,
    lengths,
    scan_chunks,
    shape_of,
    spans,
    volume_chunks,
    volume_of,
)
from tomoscale.layers import facts, layer, layer_class, state, title_of
from tomoscale.resources import Resources, planned_for, resources

if TYPE_CHECKING:
    import dask.array as da

__all__ = [
    "CHUNK_BYTES",
    "MIB",
    "Call",
    "Cost",
    "Field",
    "Index",
    "Part",
    "Piece",
    "Resources",
    "Share",
    "Source",
    "Window",
    "assemble",
    "copied",
    "covering",
    "facts",
    "grow",
    "key_of",
    "layer",
    "layer_class",
    "lengths",
    "map_blocks",
    "once",
    "planned_for",
    "resources",
    "scan_chunks",
    "shape_of",
    "spans",
    "state",
    "title_of",
    "volume_chunks",
    "volume_of",
]


# ---------------------------------------------------------------- lazy blocks


@dataclass(frozen=True)
class Field:
    """
    One array that the blocks yield.

    Parameters
    ----------
    dtype : numpy.dtype
        Type of the array.
    chunks : tuple of tuple of int
        Lengths of the blocks along every axis, as Dask writes them.
    stored : tuple of int
        Shape of a stored chunk; every block consists of whole ones.
    streamed : bool
        Whether blocks are made a chunk at a time, while they are written (`stream.array`).
    """

    dtype: np.dtype
    chunks: tuple[tuple[int, ...], ...]
    stored: tuple[int, ...]
    streamed: bool = False

    @property
    def held_bytes(self) -> int:
        """Bytes that lie in memory at once: of the largest block, or of a chunk."""
        if self.streamed:
            return self.stored_bytes
        return int(np.prod([max(c) for c in self.chunks], dtype=np.int64)) * np.dtype(self.dtype).itemsize

    @property
    def stored_bytes(self) -> int:
        """Bytes of one decoded chunk."""
        return int(np.prod(self.stored, dtype=np.int64)) * np.dtype(self.dtype).itemsize


@dataclass(frozen=True)
class Cost:
    """
    Bytes that one block holds at once, and bytes decoded and written in all.

    Parameters
    ----------
    block : int
        With its neighbour, if that is read or written meanwhile.
    read, written : int
        Of all blocks.
    overlaps : bool
        Whether the next block is read and the last one written while one is computed.
    """

    block: int
    read: int
    written: int
    overlaps: bool = False


def map_blocks(
    function: Callable[..., Any],
    arguments: Callable[[Index], tuple[Any, ...]],
    fields: Mapping[str, Field],
    *,
    small: Sequence[Any] = (),
    scratch: int = 0,
    overlaps: bool = False,
    cut: Callable[..., Sequence[Part]] | None = None,
) -> dict[str, da.Array]:
    """
    Apply a function to every block of a grid, one task each.

    Parameters
    ----------
    function : callable
        Gets the arguments of its block, pieces as arrays, then the small arrays as a whole; returns one
        array for one field and a tuple for several, in the order of `fields`.
    arguments : callable
        From the index of a block to its arguments: pieces of sources (`volume.at(window)`) and numbers.
    fields : mapping of str to Field
        The lazy arrays to make; their grids of blocks have the same shape.
    small : sequence
        Results of `once` or of `parts.kept`, handed whole to every block, or a `Share` of them.
    scratch : int
        Bytes that the function holds beyond its input and output.
    overlaps : bool
        Let a worker read the next block and write the last one while it computes this one: for functions that take
        long, or leave the processor to a device, and hold much more than what they read and make.
    cut : callable, optional
        How to take a block in parts, for a memory that does not hold what it needs at once; see `Call`.

    Returns
    -------
    dict of str to dask.array.Array
        One lazy array for every field.
    """
    import dask.array as da
    from dask.highlevelgraph import HighLevelGraph

    name = f"{title_of(function)}-{uuid.uuid4().hex[:12]}"
    first = next(iter(fields.values()))
    grid = tuple(map(len, first.chunks))
    assert all(tuple(map(len, f.chunks)) == grid for f in fields.values()), "fields of one grid"
    calls = {i: Call(function, arguments(i), cut) for i in np.ndindex(*grid)}
    cost = cost_of(calls.values(), fields.values(), scratch, overlaps)

    shared = layer({(name, *i): (c, *(key_of(a, i) for a in small)) for i, c in calls.items()})
    graph = HighLevelGraph.from_collections(
        name, shared, dependencies=[getattr(a, "array", a) for a in small]
    )
    arrays = {}
    for position, (field_name, field) in enumerate(fields.items()):
        stated = {"stored": field.stored, "cost": cost, "made_by": name}
        if len(fields) == 1:
            shared.facts = stated
            arrays[field_name] = da.Array(graph, name, field.chunks, dtype=field.dtype)
            continue
        key = f"{field_name}-{name}"
        items = {(key, *i): (itemgetter(position), (name, *i)) for i in calls}
        whole = HighLevelGraph(
            {**graph.layers, key: layer(items, **stated)}, {**graph.dependencies, key: {name}}
        )
        arrays[field_name] = da.Array(whole, key, field.chunks, dtype=field.dtype)
    return arrays


def cost_of(calls: Any, fields: Any, scratch: int, overlaps: bool = False) -> Cost:
    """Add up the largest block: inputs, outputs, scratch, and one chunk each being decoded and encoded."""
    inputs = read = decoded = 0
    for call in calls:
        inputs = max(inputs, sum(p.nbytes for p in call.pieces))
        for p in call.pieces:
            read += p.source.decoded(p.window)
            chunk = int(np.prod(p.source.chunks, dtype=np.int64)) * p.source.dtype.itemsize
            decoded = max(decoded, chunk)
    outputs = sum(f.held_bytes for f in fields)
    encoded = max((f.stored_bytes for f in fields), default=0)
    written = sum(int(np.prod([sum(c) for c in f.chunks], dtype=np.int64)) * f.dtype.itemsize for f in fields)
    block = inputs + outputs + scratch + decoded + encoded
    if overlaps:
        block += max(inputs + decoded, outputs + encoded)  # the neighbour is read or written, never both
    return Cost(block, read, written, overlaps)


@dataclass(frozen=True)
class Share:
    """A result of `once` of which a block needs one part, that of its own place along the first axis."""

    array: Any


def key_of(small: Any, index: Index) -> tuple[Any, ...]:
    """Return the key of a small array, or of the part that the block of an index needs."""
    if isinstance(small, Share):
        parts = facts(small.array)["once"]
        return (parts.name, index[0]) + (0,) * (parts.ndim - 1)
    assert small.npartitions == 1, "small arrays come from `once`"
    return (small.name,) + (0,) * small.ndim


def once(array: da.Array) -> da.Array:
    """
    Mark a small array that every block needs: a run computes it first, keeps it, and hands it to every block.

    Parameters
    ----------
    array : dask.array.Array
        Small as a whole, in one or many blocks.

    Returns
    -------
    dask.array.Array
        The same in one block.
    """
    import dask.array as da
    from dask.highlevelgraph import HighLevelGraph

    name = f"once-{array.name}"
    key = (name,) + (0,) * array.ndim
    tasks = {key: (assemble, array.numblocks, [(array.name, *i) for i in np.ndindex(*array.numblocks)])}
    made = layer(tasks, once=array, stored=array.shape)
    graph = HighLevelGraph.from_collections(name, made, dependencies=[array])
    return da.Array(graph, name, tuple((n,) for n in array.shape), dtype=array.dtype)


def assemble(grid: tuple[int, ...], parts: list[np.ndarray]) -> np.ndarray:
    """Put the parts of an array side by side."""
    nested = np.empty(grid, dtype=object)
    for index, part in zip(np.ndindex(*grid), parts, strict=True):
        nested[index] = part
    return np.block(nested.tolist())


def copied(source: Source) -> da.Array:
    """Return a stored array as a lazy copy of itself, a few chunks at a time."""
    whole = int(np.prod(source.shape[1:], dtype=np.int64)) * source.dtype.itemsize
    edge = max(1, 16 * CHUNK_BYTES // whole)
    parts = spans(source.shape[0], edge)
    rest = tuple(slice(0, n) for n in source.shape[1:])
    chunks = (lengths(parts), *((n,) for n in source.shape[1:]))
    stored = (min(edge, source.shape[0]), *source.shape[1:])

    def arguments(index: Index) -> tuple[Any, ...]:
        return (source.at((parts[index[0]], *rest)),)

    return map_blocks(np.asarray, arguments, {"copy": Field(source.dtype, chunks, stored)})["copy"]
