"""
Results of unknown size: one part for every block, kept on disk in a run, handed on by reference.

A pass over blocks may find little or much in each (sparse voxels, rows of a table). `kept` makes such a pass: a lazy
sequence of parts, where every part is a mapping of names to arrays. Computed by Dask alone the parts stay in memory;
in a run each is a file of the job, written as one block is, and a later task gets the sequence and reads what it needs.
"""

from __future__ import annotations

import json
import os
import struct
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tomoscale import blocks
from tomoscale.errors import DamagedError
from tomoscale.objects import checksum, write_object

if TYPE_CHECKING:
    import dask.array as da
    from dask.delayed import Delayed

Arrays = Mapping[str, np.ndarray]
_END = struct.Struct("<QI")
"""Length and checksum of the list of arrays."""


@dataclass(frozen=True)
class StoredPart:
    """
    One part on disk: arrays end to end, a list of them, the length of the list and the checksum of all before.

    An array is read when it is asked for, by one call to a file of its own; the list is read and checked with it.
    """

    path: Path

    def __getitem__(self, name: str) -> np.ndarray:
        with open(self.path, "rb", buffering=0) as file:
            size = os.fstat(file.fileno()).st_size
            listed = self._listed(file.fileno(), size)
            if name not in listed:
                raise KeyError(name)
            dtype, shape, start, length, crc = listed[name]
            raw = os.pread(file.fileno(), length, start)
        if len(raw) != length or checksum(raw) != crc:
            raise self._damaged(f"the bytes of {name} have changed")
        return np.ndarray(tuple(shape), dtype, bytearray(raw))

    def is_intact(self) -> bool:
        """Tell whether it is there, every byte as it was written."""
        try:
            with open(self.path, "rb", buffering=0) as file:
                names = list(self._listed(file.fileno(), os.fstat(file.fileno()).st_size))
            return all(self[name] is not None for name in names)
        except (DamagedError, OSError):
            return False

    def _listed(self, descriptor: int, size: int) -> dict[str, Any]:
        """Return type, shape, start, length and checksum of every array by name."""
        end = os.pread(descriptor, _END.size, max(0, size - _END.size))
        if len(end) == _END.size:
            length, crc = _END.unpack(end)
            start = size - _END.size - length
            if start >= 0 and checksum(raw := os.pread(descriptor, length, start)) == crc:
                return json.loads(raw)
        raise self._damaged("its list of arrays has changed, or is cut off")

    def _damaged(self, why: str) -> DamagedError:
        return DamagedError(f"{self.path}: {why}; run the same command again, which makes it again")


@dataclass(frozen=True)
class StoredParts:
    """
    The parts of a pass on disk.

    Parameters
    ----------
    folder : Path
        Of the job.
    name : str
        Of the pass.
    count : int
        Number of parts.
    """

    folder: Path
    name: str
    count: int

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, number: int) -> StoredPart:
        if not 0 <= number < self.count:
            raise IndexError(number)
        return StoredPart(self.path(number))

    def path(self, number: int) -> Path:
        """Return the file of a part."""
        return self.folder / f"{self.name}-{number}.part"

    def write(self, number: int, arrays: Arrays) -> None:
        """Write a part so that it is whole or absent."""
        pieces, listed, start = [], {}, 0
        for name, array in arrays.items():
            raw = array.tobytes()
            listed[name] = (array.dtype.str, array.shape, start, len(raw), checksum(raw))
            pieces.append(raw)
            start += len(raw)
        index = json.dumps(listed).encode()
        write_object(self.path(number), [*pieces, index, _END.pack(len(index), checksum(index))])


def kept(
    function: Callable[..., Arrays],
    arguments: Callable[[int], tuple[Any, ...]],
    count: int,
    *,
    small: Sequence[da.Array] = (),
    scratch: int = 0,
    token: str = "",
) -> da.Array:
    """
    Apply a function to every block, where nobody knows how much it returns.

    Parameters
    ----------
    function : callable
        Gets the arguments of its part, pieces as arrays, then the small results; returns arrays by name.
    arguments : callable
        From the number of a part to its arguments.
    count : int
        Number of parts.
    small : sequence of dask.array.Array
        Results of `blocks.once` and of other passes.
    scratch : int
        Bytes that the function holds, and returns, beyond its input.
    token : str
        What tells this pass from one over other blocks: parts of a stopped run are used again if it is the same.

    Returns
    -------
    dask.array.Array
        Without axes: its only item is the sequence of parts.
    """
    import dask.array as da
    from dask.highlevelgraph import HighLevelGraph

    word = function.__name__.strip("_")
    name = f"{word}-{uuid.uuid4().hex[:12]}"
    whole = f"all-{name}"
    keys = [(a.name,) + (0,) * a.ndim for a in small]
    calls = [blocks.Call(function, arguments(i)) for i in range(count)]
    make_layer = blocks.layer_class()
    parts = make_layer({(name, i): (call, *keys) for i, call in enumerate(calls)})
    graph = HighLevelGraph.from_collections(name, parts, dependencies=list(small))
    gather = make_layer(
        {(whole,): (list, [(name, i) for i in range(count)])},
        kept=Pass(f"{word}-{token}".strip("-"), [(name, i) for i in range(count)]),
        cost=blocks.cost_of(calls, (), scratch),
    )
    graph = HighLevelGraph({**graph.layers, whole: gather}, {**graph.dependencies, whole: {name}})
    return da.Array(graph, whole, (), dtype=object)


@dataclass(frozen=True)
class Pass:
    """The name of a pass over blocks, and the keys of its parts in the graph."""

    name: str
    keys: list[Any]

    @property
    def title(self) -> str:
        """For people: what it does."""
        return self.name.split("-")[0].replace("_", " ")


def derived(function: Callable[..., Any], source: da.Array, *more: Any) -> Delayed:
    """
    Return a lazy value (a table) made of the parts of a pass.

    Parameters
    ----------
    function : callable
        Gets the sequence of parts.
    source : dask.array.Array
        From `kept`.
    *more
        Further arguments.

    Returns
    -------
    dask.delayed.Delayed
        Computed by `.compute()`, or when its run is written.
    """
    from dask.delayed import Delayed
    from dask.highlevelgraph import HighLevelGraph

    name = f"{function.__name__.strip('_')}-{uuid.uuid4().hex[:12]}"
    task = {name: (blocks.Call(function, more), (source.name,))}
    return Delayed(name, HighLevelGraph.from_collections(name, task, dependencies=[source]))
