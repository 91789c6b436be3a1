"""
Execute a plan: every block computed, written, made durable and recorded by one task of its own.

A lazy result is never handed to Dask as one graph. Small results that every block needs are computed
first and kept; then each block that the record does not hold yet is culled from the graph with all of
its fields and submitted, a few per thread at a time. So memory and scheduling cost stay flat, and a
run that is stopped at any moment goes on where it was.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from tomoscale import blocks, cluster, lock, store, worker
from tomoscale.addition import Addition
from tomoscale.chunks import ChunkFiles
from tomoscale.cluster import Connection
from tomoscale.errors import BlocksFailedError, TomoscaleError
from tomoscale.first import First
from tomoscale.journal import Job
from tomoscale.objects import Stored, write_object
from tomoscale.plan import Plan, check_place, check_replaced, check_table
from tomoscale.progress import Progress, human_bytes
from tomoscale.result import Pass, Result, stored_chunks
from tomoscale.schedule import Outcome, Task, execute, is_full, retried
from tomoscale.signals import interruptible


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
    writing = _Writing(Result.of(result), target, quiet)
    inputs = [Path(i["path"]) for i in writing.origin.inputs.values() if "path" in i]
    sources = [store.outermost_group(i) or i for i in inputs if not writing.is_addition]
    check_place(target, sources, writing.result.files)
    writing.check_replaced(overwrite or dry_run)
    if writing.result.tables:
        check_table(target, writing.job.root)
    with interruptible(), cluster.current(connection) as workers:
        writing.say(writing.plan.describe(workers, target))
        writing.plan.check_memory(workers)
        recorded = (o.length for objects in writing.job.finished().values() for o in objects.values())
        warning = writing.plan.check_disk(target, sum(recorded))
        if warning:
            writing.say(f"warning: {warning}")
        if not dry_run:
            try:
                writing.run(workers, overwrite, keep_going)
            except TomoscaleError as error:
                if type(error) is TomoscaleError and writing.is_new:
                    with contextlib.suppress(TomoscaleError):  # another run has it now
                        writing.job.forget()
                raise
            except OSError as error:
                hint = "free some space, then " if is_full(error) else ""
                raise BlocksFailedError(
                    f"{target}: {error.strerror or error} ({error.filename or 'while it was written'}); {hint}the same "
                    "command goes on there"
                ) from None
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
    return Plan.of(Result.of(result))


class _Writing:
    """One result on its way to storage."""

    def __init__(self, result: Result, target: Path, quiet: bool) -> None:
        self.result, self.quiet = result, quiet
        self.origin = result.origin
        self.plan = Plan.of(result)
        self.is_addition = result.joins == Path(os.path.realpath(target))
        self.job = Addition(result.joins) if self.is_addition else Job(target.absolute())  # type: ignore[arg-type]
        self.begin = time.monotonic()
        self.peak_bytes = 0
        self.found: dict[str, Any] = {}
        self.tables: dict[str, list[int]] = {}
        self.is_new = False
        self.parts = 1

    def check_replaced(self, allowed: bool) -> None:
        """Refuse to replace what exists, unless that is allowed."""
        if isinstance(self.job, Addition):
            self.job.check_replaced(list(self.result.arrays), allowed)
        else:
            check_replaced(self.job.target, allowed)

    def say(self, text: str) -> None:
        if not self.quiet:
            with contextlib.suppress(OSError):  # nobody listens any more
                print(text, file=sys.stderr, flush=True)

    def run(self, workers: Connection, overwrite: bool, keep_going: bool) -> None:
        resumed = self.job.begin(self.result.header(), overwrite=overwrite)
        self.is_new = not resumed
        with contextlib.ExitStack() as stack:
            stack.callback(self.job.release)
            stack.enter_context(lock.beating(self.job.lock))
            self.prepare()
            if self.plan.overlaps:
                workers.overlap()
            if workers.dashboard:
                self.say(f"  dashboard          {workers.dashboard}")
            files = self.create()
            done = self.job.finished() if resumed else {}
            if resumed:
                n_objects = sum(map(len, done.values()))
                self.say(f"going on where an earlier run stopped: {n_objects} objects are written")
            graph = self.result.graph()
            earlier = First(self.result, self.plan, self.job, workers, self.quiet)
            first = earlier.compute(graph)
            self.peak_bytes = earlier.peak_bytes
            outcome = Outcome()
            for number, one in enumerate(self.plan.passes, 1):
                tasks = list(self.tasks(one, graph, files, done))
                outcome += self.execute(one, tasks, workers, keep_going)
                if outcome.stopped or not keep_going:
                    outcome.check(
                        self.origin.who,
                        sum(p.n_blocks for p in self.plan.passes[number:]),
                        self.plan.share(workers),
                    )
            outcome.check(self.origin.who, 0, self.plan.share(workers))
            for name, array in {**first, **self.result.small}.items():
                stored = retried(files[name].write, (0,) * array.ndim, array)
                retried(self.job.append, name, {name: stored})
            self.check_replaced(overwrite)  # hours later: something else may have its name now
            self.write_tables(graph)
            with interruptible() as signals, signals.noted():
                self.job.finish(files, self.attributes())
        self.say(
            f"complete: {self.job.target} ({time.monotonic() - self.begin:.1f} s, "
            f"at most {human_bytes(self.peak_bytes)} per worker)"
        )

    def prepare(self) -> None:
        """Compile kernels here, so that workers find them: once instead of in every worker at the same time."""
        patience = threading.Timer(2.0, self.say, ["compiling kernels, once on this machine"])
        patience.daemon = True
        patience.start()
        for one in self.result.passes:
            for array in one.arrays.values():
                blocks.facts(array).get("prepare", lambda: None)()
        patience.cancel()

    def create(self) -> dict[str, ChunkFiles]:
        """Create the groups and the arrays, marked incomplete."""
        root = self.job.root
        store.create_group(root, {"tomoscale": {"complete": False}})
        files = {}
        for name, array in self.result.arrays.items():
            for parent in list(Path(name).parents)[:-1]:
                store.create_group(root / parent, {})
            axes = self.result.axes_of(name)
            files[name] = store.create_array(
                root / name, array.shape, array.dtype, stored_chunks(array), axes
            )
        return files

    def tasks(
        self,
        one: Pass,
        graph: dict[Any, Any],
        files: dict[str, ChunkFiles],
        done: dict[str, dict[str, Stored]],
    ) -> Iterator[Task]:
        """Yield the task of every block, with its record where an earlier run finished it."""
        from dask.optimization import cull

        for index in np.ndindex(*one.grid):

            def make(index: tuple[int, ...] = index) -> Any:
                keys = [(a.name, *index) for a in one.arrays.values()]
                places = worker.places_of(one, files, index)
                return worker.write_block, (
                    cull(graph, keys)[0],
                    keys,
                    places,
                    self.job,
                    worker.name_of_block(one, index),
                    worker.record_of(places, done),
                )

            yield Task(worker.name_of_block(one, index), make, one.cost.overlaps)

    def execute(self, one: Pass, tasks: list[Task], workers: Connection, keep_going: bool) -> Outcome:
        title = f"{self.origin.operation}: {', '.join(one.arrays)}"
        block_bytes = one.cost.written / max(1, len(tasks))
        with Progress(title, len(tasks), block_bytes=block_bytes, quiet=self.quiet) as progress:

            def done(task: Task, written: worker.Written) -> None:
                self.peak_bytes = max(self.peak_bytes, written.peak_bytes)
                if written.parts > self.parts:
                    self.parts = written.parts
                    self.say(
                        f"out of memory: {task.label} was computed in {self.parts} parts; the same result"
                    )
                progress.advance(worked=written.worked)

            return execute(tasks, workers, done, tick=self.job.check, keep_going=keep_going)

    def write_tables(self, graph: dict[Any, Any]) -> None:
        """Write the tables beside the output; what they say of the whole goes into the attributes."""
        import pyarrow
        import pyarrow.parquet
        from dask.optimization import cull

        for table in self.result.tables.values():
            if hasattr(table, "dask"):
                table = worker.compute(cull(graph, [table.key])[0], [table.key])[0]
            self.found |= json.loads((table.schema.metadata or {}).get(b"tomoscale", b"{}"))
            final = self.job.target.with_suffix(".parquet")
            sink = pyarrow.BufferOutputStream()
            pyarrow.parquet.write_table(table, sink)
            written = write_object(final, [sink.getvalue().to_pybytes()])
            self.tables[final.name] = [written.length, written.crc]

    def attributes(self) -> dict[str, Any]:
        """Return the attributes of the complete group: history, and what viewers read."""
        step = {
            **self.result.made_by(),
            "finished": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            "seconds": round(time.monotonic() - self.begin, 1),
            "peak_bytes": self.peak_bytes,
        }
        record = {
            "complete": True,
            "arrays": list(self.result.arrays),
            "history": [*self.origin.history, step],
            **({"found": self.found} if self.found else {}),
            **({"tables": self.tables} if self.tables else {}),
        }
        return {"tomoscale": record, **self.result.ome(self.job.root, alone=not self.is_addition)}
