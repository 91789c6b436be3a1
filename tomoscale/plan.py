"""What a run will cost, as arithmetic, before anything runs."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tomoscale import blocks
from tomoscale.blocks import Cost
from tomoscale.cluster import USABLE, Connection, worker_bytes
from tomoscale.errors import TomoscaleError
from tomoscale.metadata import node_type
from tomoscale.progress import human_bytes
from tomoscale.record import record_of, tables_of
from tomoscale.result import Pass, Result, stored_chunks
from tomoscale.store import INCOMPLETE


@dataclass(frozen=True)
class Plan:
    """
    Tasks, memory and traffic of a run.

    Parameters
    ----------
    title : str
        The operation.
    passes : tuple of Pass
        Written one after the other.
    small_bytes : int
        Bytes of arrays that are not lazy.
    first : tuple of (parts.Pass, Cost)
        Passes that come first, whose parts are kept in the job.
    before : tuple of Cost
        Passes over the input for small results, which come before the blocks.
    perhaps : int
        How many of them are left out once a fit has settled.
    """

    title: str
    passes: tuple[Pass, ...]
    small_bytes: int = 0
    first: tuple[tuple[Any, Cost], ...] = ()
    before: tuple[Cost, ...] = ()
    perhaps: int = 0

    @classmethod
    def of(cls, result: Result) -> Plan:
        """Add up a result."""
        small = sum(a.nbytes for a in (*result.once.values(), *result.small.values()))
        needed = list(result.needed_first().values())
        first = [(f["kept"], f["cost"]) for f in needed if "kept" in f]
        costs = [(f, blocks.facts(f["once"]).get("cost")) for f in needed if "once" in f]
        reading = [(f, cost) for f, cost in costs if cost is not None and cost.read]
        return cls(
            result.origin.operation,
            tuple(result.passes),
            small,
            tuple(first),
            tuple(cost for _, cost in reading),
            sum(bool(f.get("settled")) for f, _ in reading),
        )

    @property
    def n_blocks(self) -> int:
        """Blocks of all passes; the scheduler gets one task for each."""
        return sum(p.n_blocks for p in self.passes) + sum(len(kept.keys) for kept, _ in self.first)

    @property
    def n_graph_tasks(self) -> int:
        """Tasks of the lazy arrays, those for small results that come first included."""
        layers: dict[str, int] = {}
        for p in self.passes:
            for array in p.arrays.values():
                layers.update({name: len(layer) for name, layer in array.dask.layers.items()})
        return sum(layers.values())

    @property
    def block_bytes(self) -> int:
        """Bytes that the largest block holds at once."""
        return max((cost.block for cost in (*self._costs, *self.before)), default=0)

    @property
    def read(self) -> int:
        """Bytes decoded from storage, without the passes that may be left out."""
        sure = sorted((c.read for c in self.before), reverse=True)[: len(self.before) - self.perhaps]
        return sum(sure) + sum(cost.read for cost in self._costs)

    @property
    def overlaps(self) -> bool:
        """Whether workers read and write blocks while they compute others."""
        return any(cost.overlaps for cost in (*self._costs, *self.before))

    @property
    def _costs(self) -> list[Cost]:
        return [cost for _, cost in self.first] + [p.cost for p in self.passes]

    @property
    def written(self) -> int:
        """Bytes written, before compression."""
        return sum(p.cost.written for p in self.passes) + self.small_bytes

    def worker_bytes(self, threads: int = 1) -> int:
        """Bytes that a worker with so many threads needs."""
        return worker_bytes(self.block_bytes, threads)

    def describe(self, connection: Connection | None = None, target: Path | None = None) -> str:
        """Return the plan for people."""
        lines = [self.title]
        for kept, _ in self.first:
            n = len(kept.keys)
            lines.append(f"  first              {kept.title}, {n} part{'s' * (n > 1)}")
        for p in self.passes:
            for name, array in p.arrays.items():
                lines.append(
                    f"  {name:<18} {_shape(array.shape)} {array.dtype}, "
                    f"{p.n_blocks} blocks of {_shape(array.chunksize)}, chunks {_shape(stored_chunks(array))}"
                )
        for p in self.passes:
            said = {k: v for a in p.arrays.values() for k, v in blocks.facts(a).get("says", {}).items()}
            lines += [f"  {name:<18} {text}" for name, text in said.items()]
        threads = connection.threads if connection else 1
        each = self.worker_bytes(threads)
        lines.append(f"  tasks              {self.n_blocks} submitted, {self.n_graph_tasks} in the graph")
        memory = (
            f"  memory             {human_bytes(self.block_bytes)} per block, {human_bytes(each)} per worker"
        )
        if connection:
            memory += (
                f", {human_bytes(each * connection.workers)} in all for {connection.where} "
                f"(limit {human_bytes(connection.memory)} each)"
            )
        lines.append(memory)
        if self.before:
            sure = len(self.before) - self.perhaps
            more = f", up to {self.perhaps} more until they settle" if self.perhaps else ""
            n_with = sum(p.cost.read > 0 for p in self.passes)
            then = f", {n_with} with them" if n_with else ""
            lines.append(f"  passes             {sure} before the blocks{more}{then}")
        lines.append(
            f"  reads, writes      {human_bytes(self.read)} decoded, {human_bytes(self.written)} before compression"
        )
        if target is not None:
            free = shutil.disk_usage(_existing(target)).free
            lines.append(f"  output             {target} ({human_bytes(free)} free)")
        return "\n".join(lines)

    def share(self, connection: Connection) -> str:
        """Say what a block takes of a worker, for one that had too little memory."""
        return (
            f"{human_bytes(self.block_bytes)} per block as planned, {human_bytes(connection.memory)} per worker; try a "
            "larger --memory, or fewer --workers or --threads"
        )

    def check_memory(self, connection: Connection) -> None:
        """
        Refuse a plan that does not fit the workers.

        Raises
        ------
        TomoscaleError
            With the figure, the limit and the option that helps.
        """
        need, limit = self.worker_bytes(connection.threads), int(USABLE * connection.memory)
        if need > limit:
            raise TomoscaleError(
                f"{self.title}: blocks of {human_bytes(self.block_bytes)} need {human_bytes(need)} per worker, "
                f"of its {human_bytes(connection.memory)} {USABLE:.0%} may be used; try fewer --threads or --workers, "
                "or a larger --memory"
            )

    def check_disk(self, target: Path, stored: int = 0) -> str | None:
        """
        Refuse an output that cannot fit even when it compresses well; return a warning if it may not.

        Parameters
        ----------
        target : Path
            The output.
        stored : int
            Bytes on the disk of an earlier run, which are kept if this one goes on there, and else make room.

        Returns
        -------
        str or None
            The warning.

        Raises
        ------
        TomoscaleError
            With bytes needed and free.
        """
        free, need = shutil.disk_usage(_existing(target)).free, self.written
        if free + stored < need / 4:
            raise TomoscaleError(
                f"{target}: {human_bytes(need)} are to be written and {human_bytes(free)} are free; even compressed "
                "fourfold they do not fit; free some space or give another output with -o"
            )
        if free + stored < need:
            return f"{human_bytes(need)} are to be written before compression and only {human_bytes(free)} are free"
        return None


def _shape(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))


def _existing(path: Path) -> Path:
    path = path.absolute()
    while not path.exists():
        path = path.parent
    return path


def check_place(target: Path, inputs: list[Path], files: Sequence[str] = ()) -> None:
    """
    Refuse an output that cannot be written, or that lies in, on or around an input.

    Parameters
    ----------
    target : Path
        The output.
    inputs : list of Path
        Arrays and groups that are read.
    files : sequence of str
        Other files that are read; the output may lie beside them.

    Raises
    ------
    TomoscaleError
        Before anything is computed.
    """
    target = Path(os.path.realpath(target))
    parent = target.parent
    if not parent.is_dir():
        raise TomoscaleError(f"{target}: the folder {parent} does not exist; create it first")
    if not os.access(parent, os.W_OK | os.X_OK) or os.statvfs(parent).f_flag & os.ST_RDONLY:
        raise TomoscaleError(f"{target}: the folder {parent} is not writable")
    for source in (Path(os.path.realpath(i)) for i in inputs):
        if source == target or target in source.parents or source in target.parents:
            raise TomoscaleError(f"{target}: the output lies in, on or around the input {source}")
    for folder in {Path(f).parent for f in files}:
        real = Path(os.path.realpath(folder))
        if target == real or target in real.parents:
            raise TomoscaleError(f"{target}: the output lies in, on or around the input {real}")
    if str(target) in map(os.path.realpath, files if target.is_file() else ()):
        raise TomoscaleError(f"{target}: the output is an input")


def check_replaced(target: Path, overwrite: bool) -> None:
    """
    Refuse to replace a result unasked, and what is no result at all: a folder of raw data, say, meant as the input.

    Parameters
    ----------
    target : Path
        The output.
    overwrite : bool
        Whether an earlier result may be replaced.

    Raises
    ------
    TomoscaleError
        It exists and may not be replaced; or it is a file, or a folder with other things in it.
    """
    if target.name.endswith(INCOMPLETE):
        raise TomoscaleError(f"{target}: unfinished results are called so; give another output with -o")
    if not os.path.lexists(target):
        return
    if target.exists() and not overwrite:
        raise TomoscaleError(f"{target}: exists; give --overwrite to replace it, or another output with -o")
    if target.is_symlink():
        raise TomoscaleError(f"{target}: is a link, and is not replaced; give the folder that it leads to")
    if not (target.is_dir() and (node_type(target) or not any(target.iterdir()))):
        raise TomoscaleError(
            f"{target}: is no Zarr, and is not replaced; give another output, or move it away"
        )
    if any(target.iterdir()) and not _is_ours(target):
        raise TomoscaleError(
            f"{target}: was not made by tomoscale, and is not replaced; give another output, or move it away"
        )


def check_table(target: Path, unfinished: Path) -> None:
    """
    Refuse to write a table over a file of somebody else, or under the name of another result's table.

    Parameters
    ----------
    target : Path
        The output, beside which the table is to lie.
    unfinished : Path
        Where an earlier run of it stopped.

    Raises
    ------
    TomoscaleError
        The output has no name of its own for a table, or a file has it already.
    """
    table = target.with_suffix(".parquet")
    if target.suffix != ".zarr":
        raise TomoscaleError(f"{target}: a table belongs to the result; give an output that ends in .zarr")
    if table.exists() and not (tables_of(target) or unfinished.exists()):
        raise TomoscaleError(
            f"{table}: exists, and would be replaced by the table of the result; move it away"
        )


def _is_ours(target: Path) -> bool:
    """Tell whether tomoscale wrote a group; also one whose record is damaged."""
    try:
        return record_of(target) is not None
    except TomoscaleError:
        return True
