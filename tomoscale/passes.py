"""Passes over a volume before its blocks: small results of all voxels, for which storage is read once each."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from tomoscale import blocks, cubes
from tomoscale.blocks import Cost, Field, Window
from tomoscale.readings import Series, readings

if TYPE_CHECKING:
    import dask.array as da

TASKS_PER_THREAD = 6


def fold(
    volume: Any,
    function: Callable[..., np.ndarray],
    like: np.ndarray,
    *,
    combine: Callable[[np.ndarray, np.ndarray], np.ndarray] = np.add,
    small: Sequence[da.Array] = (),
    scratch: int = 0,
    settled: Callable[..., np.ndarray | None] | None = None,
) -> da.Array:
    """
    Reduce all voxels to one small array, reading the volume once.

    Parameters
    ----------
    volume : Volume
        What is read.
    function : callable
        From a `Series` and the small arrays to the part of these windows; parts are of one shape.
    like : numpy.ndarray
        Shape and type of a part, and of the result.
    combine : callable
        From two parts to one. Parts are combined in a fixed order, but where one ends depends on the chunks: so
        sum integers, not rounded numbers.
    small : sequence of dask.array.Array
        Small results that the function needs, of `fold`, `derive` or `blocks.once`.
    scratch : int
        Bytes that the function holds beyond a window and its result.
    settled : callable, optional
        From the small arrays to the result where it is known without reading, else None.

    Returns
    -------
    dask.array.Array
        The result in one block, computed once per run.
    """
    import dask.array as da
    from dask.highlevelgraph import HighLevelGraph

    windows = readings(volume)
    if any(volume.halo):
        # As large as blocks: of smaller windows most is read for the halo, again and again (9 times in all).
        windows = cubes.cut(blocks.title_of(function), volume, held=0).windows
    tasks = min(len(windows), TASKS_PER_THREAD * blocks.resources().threads)
    cuts = [round(i * len(windows) / tasks) for i in range(tasks + 1)]
    groups = [windows[a:b] for a, b in zip(cuts, cuts[1:], strict=False)]
    keys, rest = [_key(a) for a in small], (0,) * like.ndim
    call = _Part(function, settled, like)
    chunks = ((1,) * tasks, *((n,) for n in like.shape))
    parts = parts_of(volume, groups, call, chunks, like, small, scratch)
    name = parts.name
    key = f"once-{name}"
    summed = blocks.layer(
        {(key, *rest): (combined, combine, [(name, i, *rest) for i in range(tasks)])},
        once=parts,
        stored=like.shape,
        combine=combine,
        settled=None if settled is None else (settled, keys),
    )
    whole = HighLevelGraph.from_collections(key, summed, dependencies=[parts])
    return da.Array(whole, key, tuple((n,) for n in like.shape), dtype=like.dtype)


def stack(
    volume: Any,
    function: Callable[..., np.ndarray],
    slabs: Sequence[slice],
    like: np.ndarray,
    *,
    small: Sequence[Any] = (),
    scratch: int = 0,
) -> da.Array:
    """
    Reduce every slice to a small array of its own, reading the volume once; one task for some slices.

    Parameters
    ----------
    volume : Volume
        What is read.
    function : callable
        From a `Series`, the slab and the small arrays to (slice, ...) of that slab.
    slabs : sequence of slice
        Slices that one task takes.
    like : numpy.ndarray
        Shape and type of what becomes of one slice.
    small : sequence
        Small results that the function needs, or a `Share` of them.
    scratch : int
        Bytes that the function holds beyond a window and its result.

    Returns
    -------
    dask.array.Array
        (slice, ...) in one block, computed once per run.
    """
    rest = [slice(0, n) for n in volume.shape[1:]]
    groups = [readings(volume, (s, *rest)) for s in slabs]
    chunks = (blocks.lengths(slabs), *((n,) for n in like.shape))
    return blocks.once(parts_of(volume, groups, function, chunks, like, small, scratch, slabs))


def parts_of(
    volume: Any,
    groups: Sequence[Sequence[Window]],
    call: Callable[..., np.ndarray],
    chunks: tuple[tuple[int, ...], ...],
    like: np.ndarray,
    small: Sequence[Any],
    scratch: int,
    slabs: Sequence[slice] | None = None,
) -> da.Array:
    """
    Make the tasks of a pass: one for each group of windows, whose results lie side by side along the first axis.

    Parameters
    ----------
    volume : Volume
        What is read.
    groups : sequence of sequence of tuple of slice
        Windows that one task reads, one after the other.
    call : callable
        From a `Series`, the slab if there are any, and the small arrays to a part.
    chunks : tuple of tuple of int
        Lengths of the parts, as Dask writes them.
    like : numpy.ndarray
        Shape and type of one row of a part.
    small : sequence
        Small results, or a `Share` of them.
    scratch : int
        Bytes that the function holds beyond a window and its result.
    slabs : sequence of slice, optional
        What every part stands for.

    Returns
    -------
    dask.array.Array
        The parts, lazy.
    """
    import dask.array as da
    from dask.highlevelgraph import HighLevelGraph

    title = call.function if isinstance(call, _Part) else call
    name = f"{blocks.title_of(title)}-{uuid.uuid4().hex[:12]}"
    tasks = {}
    for i, windows in enumerate(groups):
        where = () if slabs is None else (slabs[i],)
        index = (i,) + (0,) * like.ndim
        tasks[(name, *index)] = (
            call,
            Series.of(volume, windows),
            *where,
            *(blocks.key_of(a, index) for a in small),
        )
    most = max(chunks[0]) * like.nbytes
    layer = blocks.layer(tasks, cost=_cost(volume, [w for g in groups for w in g], 3 * most + scratch))
    whole = [getattr(a, "array", a) for a in small]
    graph = HighLevelGraph.from_collections(name, layer, dependencies=whole)
    return da.Array(graph, name, chunks, dtype=like.dtype)


def derive(
    function: Callable[..., np.ndarray],
    like: np.ndarray,
    small: Sequence[da.Array],
    *,
    settled: Callable[..., np.ndarray | None] | None = None,
) -> da.Array:
    """
    Compute a small array from others: thresholds from a histogram.

    Parameters
    ----------
    function : callable
        From the small arrays to the result.
    like : numpy.ndarray
        Shape and type of the result.
    small : sequence of dask.array.Array
        Results of `fold`, `derive` or `blocks.once`.
    settled : callable, optional
        From the small arrays to the result where it needs no task, else None.

    Returns
    -------
    dask.array.Array
        The result, computed once per run.
    """
    field = Field(like.dtype, tuple((n,) for n in like.shape), like.shape)
    call = function if settled is None else _Unless(function, settled)
    made = blocks.once(blocks.map_blocks(call, lambda index: (), {"small": field}, small=small)["small"])
    if settled is not None:
        blocks.state(made, settled=(settled, [_key(a) for a in small]))
    return made


@dataclass(frozen=True)
class _Unless:
    """A function that is not called where its result is known."""

    func: Callable[..., np.ndarray]
    settled: Callable[..., np.ndarray | None]

    def __call__(self, *small: np.ndarray) -> np.ndarray:
        found = self.settled(*small)
        return self.func(*small) if found is None else found


def known(graph: Mapping[Any, Any], facts: Mapping[str, Any]) -> np.ndarray | None:
    """Return a small result that needs no task any more, or None; `graph` holds those before it."""
    if not facts.get("settled"):
        return None
    function, keys = facts["settled"]
    return function(*(graph[k] for k in keys))


def place(graph: dict[Any, Any], key: Any, facts: Mapping[str, Any], kept: np.ndarray) -> None:
    """Put a small result into a graph, also its parts: a block may need one of them only."""
    from dask.array.core import slices_from_chunks

    graph[key] = kept
    array = facts["once"]
    if facts.get("combine") is None:
        for at, window in zip(np.ndindex(*array.numblocks), slices_from_chunks(array.chunks), strict=True):
            graph[(array.name, *at)] = kept[window]


class Gathering:
    """
    Parts of a small result, put together in a fixed order as they come in.

    Parameters
    ----------
    facts : mapping
        Of the layer of the small result: `once`, and `combine` unless parts lie side by side.
    """

    def __init__(self, facts: Mapping[str, Any]) -> None:
        self.array, self.combine = facts["once"], facts.get("combine")
        self.indices = list(np.ndindex(*self.array.numblocks))
        self._parts: dict[int, np.ndarray] = {}
        self._first: int = 0
        self._sum: np.ndarray | None = None

    def add(self, position: int, part: np.ndarray) -> None:
        """Take a part; those whose turn has come are combined and forgotten."""
        self._parts[position] = part
        while self.combine is not None and self._first in self._parts:
            ready = self._parts.pop(self._first)[0]
            self._sum = ready if self._sum is None else self.combine(self._sum, ready)
            self._first += 1

    @property
    def value(self) -> np.ndarray:
        """The whole."""
        if self._sum is not None:
            return self._sum
        return blocks.assemble(self.array.numblocks, [self._parts[i] for i in range(len(self.indices))])


def combined(
    combine: Callable[[np.ndarray, np.ndarray], np.ndarray], parts: Sequence[np.ndarray]
) -> np.ndarray:
    """Combine parts in their order."""
    total = parts[0][0]
    for part in parts[1:]:
        total = combine(total, part[0])
    return total


@dataclass(frozen=True)
class _Part:
    """The function of a pass; what is known already is not read again."""

    function: Callable[..., np.ndarray]
    settled: Callable[..., np.ndarray | None] | None
    like: np.ndarray

    def __call__(self, series: Series, *small: np.ndarray) -> np.ndarray:
        found = None if self.settled is None else self.settled(*small)
        part = self.function(series, *small) if found is None else found
        assert part.shape == self.like.shape, (part.shape, self.like.shape)
        return part[None]


def _key(array: da.Array) -> tuple[Any, ...]:
    assert array.npartitions == 1, "small arrays come from `fold`, `derive` or `once`"
    return (array.name,) + (0,) * array.ndim


def _cost(volume: Any, windows: Sequence[Window], scratch: int) -> Cost:
    """Add up a pass: one window at a time, one chunk being decoded."""
    itemsize = volume.dtype.itemsize
    read = sum(map(volume.decoded, windows))
    chunk = int(np.prod(volume.chunks, dtype=np.int64)) * itemsize
    largest = max(blocks.volume_of(w) for w in windows) * itemsize
    held = getattr(volume, "working_bytes", lambda window: 0)
    return Cost(block=largest + chunk + scratch + max(held(w) for w in windows), read=read, written=0)
