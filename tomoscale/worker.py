"""What happens to one block, on a worker: computed, written, read back, recorded."""

from __future__ import annotations

import itertools
import resource
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tomoscale import buffers, stream
from tomoscale.call import tally
from tomoscale.chunks import ChunkFiles
from tomoscale.journal import Job, Record
from tomoscale.layers import facts
from tomoscale.objects import Stored
from tomoscale.parts import StoredParts
from tomoscale.result import Pass
from tomoscale.schedule import retried
from tomoscale.stream import Stream


class Place(NamedTuple):
    """Where one field of a block is stored, and whether it is just what a block function makes."""

    field: str
    files: ChunkFiles
    start: tuple[int, ...]
    shape: tuple[int, ...]
    as_made: bool

    def keys(self) -> list[str]:
        """Return the names of its chunks."""
        return self.files.keys_of(self.start, self.shape)


def places_of(one: Pass, files: Mapping[str, ChunkFiles], index: tuple[int, ...]) -> list[Place]:
    """Return where the fields of a block are stored."""
    places = []
    for name, array in one.arrays.items():
        start = tuple(_starts(c)[i] for c, i in zip(array.chunks, index, strict=True))
        shape = tuple(c[i] for c, i in zip(array.chunks, index, strict=True))
        places.append(Place(name, files[name], start, shape, "made_by" in facts(array)))
    return places


class Written(NamedTuple):
    """Whether a block had to be computed, the most memory that its worker took so far, the parts it was cut into."""

    worked: bool
    peak_bytes: int
    parts: int = 1


def write_block(
    graph: dict[Any, Any],
    keys: list[Any],
    places: list[Place],
    job: Job,
    label: str,
    record: Record | None,
) -> Written:
    """
    Compute all fields of one block, write them, record it.

    Returns
    -------
    Written
        Whether there was work, and the memory that the worker took.
    """
    tally.parts = 1
    record = record or _recorded_meanwhile(places, job)
    worked = record is None or not job.is_intact(record)
    if worked:
        # What is computed from a field, `frames + 1` say, needs an array.
        with buffers.reused(), stream.allowed(all(p.as_made for p in places)):
            fields = retried(compute, graph, keys)
        written = {p.field: retried(_store, job, p, field) for p, field in zip(places, fields, strict=True)}
        job.check_fingerprint()
        retried(job.append, label, written)
    return Written(worked, peak_bytes(), tally.parts)


def _store(job: Job, place: Place, field: np.ndarray | Stream) -> list[Stored]:
    """Write one field of a block, unless its run was replaced, which is looked at again when storage fails."""
    job.check_fingerprint()
    return place.files.write(place.start, field)


def record_of(places: list[Place], done: Mapping[str, Mapping[str, Stored]]) -> Record | None:
    """Return what is recorded of a block; None if any of its objects is not."""
    found = {p.field: [done.get(p.field, {}).get(key) for key in p.keys()] for p in places}
    return None if any(None in objects for objects in found.values()) else found  # type: ignore[return-value]


def _recorded_meanwhile(places: list[Place], job: Job) -> Record | None:
    """Return what is recorded of a block whose worker died after it, before the client knew."""
    first = places[0]
    if not (first.files.folder / first.keys()[0]).exists():
        return None  # as for nearly every block
    return record_of(places, job.finished())


def peak_bytes() -> int:
    """Return the most memory that this process has held since its program started."""
    try:  # ru_maxrss of Linux begins with the memory of the process that started this one
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))
    except (OSError, StopIteration):
        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def compute_part(graph: dict[Any, Any], key: Any) -> np.ndarray:
    """Compute one part of a small result."""
    return np.asarray(retried(compute, graph, [key])[0])


def keep_part(graph: dict[Any, Any], key: Any, stored: StoredParts, number: int, job: Job) -> int:
    """Compute one part of a pass and keep it; return the memory that the worker took."""
    with buffers.reused():
        arrays = retried(compute, graph, [key])[0]
    job.check_fingerprint()
    retried(stored.write, number, arrays)
    return peak_bytes()


def compute(graph: dict[Any, Any], keys: list[Any]) -> Any:
    """Compute the fields of a block in this thread."""
    from dask.local import get_sync

    return get_sync(graph, keys)


def _starts(lengths: tuple[int, ...]) -> list[int]:
    return [0, *itertools.accumulate(lengths)][:-1]


def name_of_block(one: Pass, index: tuple[int, ...]) -> str:
    """Say where in the output a block lies: `frames[0:7200, 16:32, 0:2048]`."""
    name, array = next(iter(one.arrays.items()))
    starts = [_starts(c)[i] for c, i in zip(array.chunks, index, strict=True)]
    ranges = [f"{s}:{s + c[i]}" for s, c, i in zip(starts, array.chunks, index, strict=True)]
    return f"{name}[{', '.join(ranges)}]"
