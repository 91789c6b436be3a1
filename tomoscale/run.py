"""
Execute a plan: every block computed, written, made durable and recorded by one task of its own.

A lazy result is never handed to Dask as one graph. Small results that every block needs are computed
first and kept; then each block that the record does not hold yet is culled from the graph with all of
its fields and submitted, a few per thread at a time. So memory and scheduling cost stay flat, and a
run that is stopped at any moment goes on where it was.
"""

from __future__ import annotations

import itertools
import platform
import sys
import time
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from tomoscale import blocks, cluster, journal, schedule, store
from tomoscale._version import __version__
from tomoscale.blocks import Cost
from tomoscale.chunks import ChunkFiles
from tomoscale.cluster import Connection
from tomoscale.errors import BlocksFailedError, InterruptedRunError, TomoscaleError
from tomoscale.journal import Job, Record
from tomoscale.operation import Origin, fields_of
from tomoscale.plan import Pass, Plan, check_place
from tomoscale.progress import Progress
from tomoscale.schedule import Task, execute, retried

VERSIONED = ("dask", "numba", "numcodecs", "numpy", "zarr")


def write(
    result: Any,
    path: str | Path,
    *,
    overwrite: bool = False,
    dry_run: bool = False,
    quiet: bool = False,
    keep_going: bool = False,
    connection: Connection | None = None,
) -> Path:
    """
    Compute a lazy result and write it, block by block, so that nothing is lost if it is interrupted.

    Parameters
    ----------
    result : named tuple, mapping or dask.array.Array
        What an operation returned; field names become arrays of the output group.
    path : str or Path
        The output. While it is not complete it is called `path.incomplete`; the same call goes on there.
    overwrite : bool
        Replace an existing output, once the new one is complete.
    dry_run : bool
        Print the plan and stop.
    quiet : bool
        Print neither plan nor progress.
    keep_going : bool
        Go on after a block failed, so that all others are written.
    connection : Connection, optional
        The workers; the session's Dask client by default, else threads of this process.

    Returns
    -------
    Path
        The output.

    Raises
    ------
    TomoscaleError
        The plan does not fit, or the output exists, or another run writes it.
    BlocksFailedError
        Blocks failed; they are named, the others are kept.
    InterruptedRunError
        A signal came; what is finished is kept.
    """
    target = Path(path)
    writing = _Writing(result, target, quiet)
    inputs = [Path(i["path"]) for i in writing.origin.inputs.values() if "path" in i]
    check_place(target, inputs)
    if target.exists() and not overwrite:
        raise TomoscaleError(f"{target}: exists; give --overwrite to replace it, or another output with -o")
    with schedule.interruptible(), cluster.current(connection) as workers:
        writing.say(writing.plan.describe(workers, target))
        writing.plan.check_memory(workers)
        warning = writing.plan.check_disk(target)
        if warning:
            writing.say(f"warning: {warning}")
        if workers.dashboard and not dry_run:
            writing.say(f"  dashboard          {workers.dashboard}")
        if dry_run:
            return target
        writing.run(workers, overwrite, keep_going)
    return target


def plan(result: Any) -> Plan:
    """
    Return tasks, memory and traffic of a lazy result without computing anything.

    Parameters
    ----------
    result : named tuple, mapping or dask.array.Array
        What an operation returned.

    Returns
    -------
    Plan
        Its properties are figures; `describe()` is for people.
    """
    lazy, small, _ = _sorted_fields(result)
    origin = _origin(lazy)
    return Plan(origin.operation, tuple(_passes(lazy)), sum(a.nbytes for a in small.values()))


class _Writing:
    """One result on its way to storage."""

    def __init__(self, result: Any, target: Path, quiet: bool) -> None:
        self.lazy, self.small, self.tables = _sorted_fields(result)
        self.origin = _origin(self.lazy)
        self.plan = plan(result)
        self.job = Job(target.absolute())
        self.quiet = quiet
        self.begin = time.monotonic()

    def say(self, text: str) -> None:
        if not self.quiet:
            print(text, file=sys.stderr, flush=True)

    # -------------------------------------------------------- the run

    def run(self, workers: Connection, overwrite: bool, keep_going: bool) -> None:
        resumed = self.job.begin(self.header(), overwrite=overwrite)
        try:
            files = self.create()
            done = self.job.finished() if resumed else {}
            if resumed:
                self.say(f"resuming: {len(done)} of {self.plan.n_blocks} blocks were finished")
            graph = _merged(self.lazy)
            self.compute_once(graph, workers)
            for number, one in enumerate(self.plan.passes):
                tasks = list(self.tasks(number, one, graph, files, done))
                self.execute(
                    f"{self.origin.operation}: {', '.join(one.arrays)}", tasks, one, workers, keep_going
                )
            for name, array in self.small.items():
                self.job.append(f"small {name}", {name: files[name].write((0,) * array.ndim, array)})
            self.write_tables()
            self.job.finish([*self.lazy, *self.small], self.attributes())
        except BaseException:
            if self.job.folder.is_dir():
                self.job.release()
            raise
        self.say(f"complete: {self.job.target} ({time.monotonic() - self.begin:.1f} s)")

    def header(self) -> dict[str, Any]:
        """Return the fingerprint: what must be equal for a run to go on."""
        arrays = {
            name: {"shape": list(a.shape), "dtype": str(a.dtype), "chunks": list(_stored(a))}
            for name, a in {**self.lazy, **self.small}.items()
        }
        return {
            "operation": self.origin.operation,
            "parameters": self.origin.parameters,
            "inputs": self.origin.inputs,
            "versions": versions(),
            "arrays": arrays,
        }

    def create(self) -> dict[str, ChunkFiles]:
        """Create the groups and the arrays, marked incomplete."""
        root = self.job.root
        store.create_group(root, {"tomoscale": {"complete": False}})
        files = {}
        for name, array in {**self.lazy, **self.small}.items():
            for parent in list(Path(name).parents)[:-1]:
                store.create_group(root / parent, {})
            names = [a["name"] for a in store.AXES["scan"]] if _image(array) == "scan" else None
            files[name] = store.create_array(root / name, array.shape, array.dtype, _stored(array), names)
        return files

    def compute_once(self, graph: dict[Any, Any], workers: Connection) -> None:
        """Compute the small results that every block needs, and put them into the graph."""
        from dask.optimization import cull

        for number, (key, array) in enumerate(_once(self.lazy)):
            kept = self.job.load_once(number)
            if kept is None:
                parts: dict[str, np.ndarray] = {}
                indices = {str(i): i for i in np.ndindex(*array.numblocks)}

                def make(index: tuple[int, ...], array: Any = array) -> Any:
                    wanted = (array.name, *index)
                    return compute_part, (cull(graph, [wanted])[0], wanted)

                tasks = [Task(label, lambda i=i: make(i)) for label, i in indices.items()]  # type: ignore[misc]
                title = f"{self.origin.operation}: {array.name.rsplit('-', 1)[0]}"
                with Progress(title, len(tasks), quiet=self.quiet) as progress:

                    def done(task: Task, part: Any, progress: Progress = progress) -> None:
                        parts[task.label] = part
                        progress.advance()

                    self.settle(execute(tasks, workers, done, tick=self.job.beat))
                kept = blocks.assemble(array.numblocks, [parts[label] for label in indices])
                self.job.keep_once(number, kept)
            graph[key] = kept

    def tasks(
        self,
        number: int,
        one: Pass,
        graph: dict[Any, Any],
        files: dict[str, ChunkFiles],
        done: dict[str, Record],
    ) -> Any:
        """Yield the task of every block, with its record of an earlier run."""
        from dask.optimization import cull

        starts = {name: [_starts(c) for c in a.chunks] for name, a in one.arrays.items()}
        for index in np.ndindex(*next(iter(one.arrays.values())).numblocks):
            label = f"{number} {' '.join(map(str, index))}"

            def make(index: tuple[int, ...] = index, label: str = label) -> Any:
                keys = [(a.name, *index) for a in one.arrays.values()]
                where = [
                    (name, files[name], tuple(s[i] for s, i in zip(starts[name], index, strict=True)))
                    for name in one.arrays
                ]
                return write_block, (cull(graph, keys)[0], keys, where, self.job, label, done.get(label))

            yield Task(label, make)

    def execute(
        self, title: str, tasks: list[Task], one: Pass, workers: Connection, keep_going: bool
    ) -> None:
        block_bytes = one.cost.written / max(1, len(tasks))
        with Progress(title, len(tasks), block_bytes=block_bytes, quiet=self.quiet) as progress:

            def done(task: Task, worked: bool) -> None:
                progress.advance(worked=worked)

            outcome = execute(tasks, workers, done, tick=self.job.beat, keep_going=keep_going)
        self.settle(outcome, one)

    def settle(self, outcome: schedule.Outcome, one: Pass | None = None) -> None:
        """Turn what went wrong into the error that says so."""
        if outcome.interrupted:
            raise InterruptedRunError(
                f"{outcome.interrupted}: {outcome.left} blocks are left; run the same command again to go on"
            )
        if outcome.failed:
            shown = [
                f"{_place(label, one)}: {_one_line(error)}"
                for label, error in itertools.islice(outcome.failed.items(), 5)
            ]
            more = f" and {len(outcome.failed) - 5} more" if len(outcome.failed) > 5 else ""
            raise BlocksFailedError(
                f"{self.origin.operation}: {len(outcome.failed)} blocks failed{more}, {outcome.left} not begun "
                f"(the same command goes on there): {'; '.join(shown)}"
            )

    # -------------------------------------------------------- beside the blocks

    def write_tables(self) -> None:
        if not self.tables:
            return
        import pyarrow.parquet

        for name, table in self.tables.items():
            suffix = ".parquet" if name == "table" else f"-{name}.parquet"
            final = (
                self.job.target.with_suffix(suffix)
                if name == "table"
                else Path(f"{self.job.target.with_suffix('')}{suffix}")
            )
            temporary = final.with_name(f".{final.name}.partial")
            pyarrow.parquet.write_table(table, temporary)
            temporary.replace(final)

    def attributes(self) -> dict[str, Any]:
        """Return the attributes of the complete group: history, and what viewers read."""
        step = {
            "operation": self.origin.operation,
            "parameters": self.origin.parameters,
            "inputs": self.origin.inputs,
            "versions": versions(),
            "finished": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            "seconds": round(time.monotonic() - self.begin, 1),
        }
        found: dict[str, Any] = {"tomoscale": {"complete": True, "history": [*self.origin.history, step]}}
        for name, array in self.lazy.items():
            if _image(array):
                facts = blocks.facts(array)
                found |= store.ome_image(
                    name, facts["image"], facts.get("scale", (1, 1, 1)), facts.get("unit")
                )
                break
        return found


# ---------------------------------------------------------------- on a worker


def write_block(
    graph: dict[Any, Any],
    keys: list[Any],
    where: list[tuple[str, ChunkFiles, tuple[int, ...]]],
    job: Job,
    label: str,
    record: Record | None,
) -> bool:
    """
    Compute all fields of one block, write them, record it.

    Returns
    -------
    bool
        False if an earlier run had finished the block and it is still intact.
    """
    if record is not None and job.is_intact(record):
        return False
    fields = retried(_compute_all, graph, keys)
    written = {
        name: retried(files.write, start, field)
        for (name, files, start), field in zip(where, fields, strict=True)
    }
    job.append(label, written)
    return True


def compute_part(graph: dict[Any, Any], key: Any) -> np.ndarray:
    return np.asarray(retried(_compute_all, graph, [key])[0])


def _compute_all(graph: dict[Any, Any], keys: list[Any]) -> Any:
    from dask.local import get_sync

    return get_sync(graph, keys)


# ---------------------------------------------------------------- what a result holds


def _sorted_fields(result: Any) -> tuple[dict[str, Any], dict[str, np.ndarray], dict[str, Any]]:
    """Sort the fields of a result, and what it carries over, into lazy arrays, arrays and tables."""
    fields = fields_of(result)
    for value in list(fields.values()):
        fields |= (
            {n: v for n, v in blocks.facts(value).get("carried", {}).items() if n not in fields}
            if hasattr(value, "dask")
            else {}
        )
    lazy = {n: v for n, v in fields.items() if hasattr(v, "dask")}
    small = {n: v for n, v in fields.items() if isinstance(v, np.ndarray)}
    tables = {n: v for n, v in fields.items() if hasattr(v, "column_names")}
    unknown = set(fields) - set(lazy) - set(small) - set(tables)
    if unknown:
        raise TomoscaleError(f"run.write: {', '.join(sorted(unknown))}: neither an array nor a table")
    return lazy, small, tables


def _origin(lazy: Mapping[str, Any]) -> Origin:
    for array in lazy.values():
        if "origin" in blocks.facts(array):
            return blocks.facts(array)["origin"]
    return Origin("run.write", {}, {}, [])


def _passes(lazy: Mapping[str, Any]) -> list[Pass]:
    """Put together the arrays that the same tasks yield."""
    groups: dict[Any, dict[str, Any]] = {}
    costs: dict[Any, Cost] = {}
    for name, array in lazy.items():
        facts = blocks.facts(array)
        group = facts.get("made_by", array.name)
        groups.setdefault(group, {})[name] = array
        block = int(np.prod(array.chunksize)) * array.dtype.itemsize
        costs[group] = facts.get("cost") or Cost(block=3 * block, read=0, written=array.nbytes)
    return [Pass(arrays, costs[group]) for group, arrays in groups.items()]


def _once(lazy: Mapping[str, Any]) -> list[tuple[Any, Any]]:
    """Return the small results by their key in the graph, in a fixed order."""
    found: dict[Any, Any] = {}
    for array in lazy.values():
        for name, layer in array.dask.layers.items():
            once = getattr(layer, "facts", {}).get("once")
            if once is not None:
                found[(name,) + (0,) * once.ndim] = once
    return list(found.items())


def _merged(lazy: Mapping[str, Any]) -> dict[Any, Any]:
    graph: dict[Any, Any] = {}
    for array in lazy.values():
        for layer in array.dask.layers.values():
            graph.update(layer)
    return graph


def _stored(array: Any) -> tuple[int, ...]:
    if isinstance(array, np.ndarray):
        return tuple(max(1, n) for n in array.shape)
    stored = tuple(blocks.facts(array).get("stored", array.chunksize))
    whole = all(n % c == 0 for lengths, c in zip(array.chunks, stored, strict=True) for n in lengths[:-1])
    if not whole:
        raise TomoscaleError(
            f"run.write: blocks {array.chunks} are not whole chunks of {stored}; rechunk the array"
        )
    return tuple(min(c, n) for c, n in zip(stored, array.shape, strict=True))


def _image(array: Any) -> str | None:
    return None if isinstance(array, np.ndarray) else blocks.facts(array).get("image")


def _starts(lengths: tuple[int, ...]) -> list[int]:
    return [0, *itertools.accumulate(lengths)][:-1]


def _place(label: str, one: Pass | None) -> str:
    """Say where in the output a block lies."""
    if one is None:
        return f"part {label}"
    index = [int(i) for i in label.split()[1:]]
    name, array = next(iter(one.arrays.items()))
    ranges = [f"{_starts(c)[i]}:{_starts(c)[i] + c[i]}" for c, i in zip(array.chunks, index, strict=True)]
    return f"block {'-'.join(map(str, index))} ({name} {','.join(ranges)})"


def _one_line(error: BaseException) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, MemoryError):
        text = f"out of memory: {text}"
    if type(error).__name__ == "KilledWorker":
        text = "its worker died every time, of too little memory perhaps"
    return text if isinstance(error, TomoscaleError) else f"{type(error).__name__}: {text}"


def versions() -> dict[str, str]:
    """Return the versions that a result depends on."""
    return {
        "tomoscale": __version__,
        "python": platform.python_version(),
        **{n: version(n) for n in VERSIONED},
    }
