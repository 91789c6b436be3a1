"""
What a run computes before its blocks: small results that every block needs, and passes whose parts are kept.

All of it is kept in the record of the job, so that a run that goes on does not repeat it.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from tomoscale import blocks, parts, passes, worker
from tomoscale.cluster import Connection
from tomoscale.journal import Job
from tomoscale.objects import checksum, write_object
from tomoscale.plan import Plan
from tomoscale.progress import Progress
from tomoscale.result import Result
from tomoscale.schedule import Task, execute


@dataclass
class First:
    """
    The first results of a run.

    Parameters
    ----------
    result : Result
        What is to be written.
    plan : Plan
        What it costs.
    job : Job
        Where they are kept.
    workers : Connection
        Who computes them.
    quiet : bool
        Say nothing.
    peak_bytes : int
        The most memory that a worker took for them.
    """

    result: Result
    plan: Plan
    job: Job
    workers: Connection
    quiet: bool
    peak_bytes: int = 0

    def compute(self, graph: dict[Any, Any]) -> dict[str, np.ndarray]:
        """Put all of them into the graph; return those that are arrays of the result."""
        for number, (key, facts) in enumerate(self.result.needed_first().items()):
            if "kept" in facts:
                graph[key] = self._kept(facts["kept"], graph)
                continue
            value = load(self.job, number)
            if value is None:
                value = passes.known(graph, facts)
            if value is None:
                value = self._gathered(facts, graph)
            keep(self.job, number, value)
            passes.place(graph, key, facts, value)
        return {name: graph[(a.name,) + (0,) * a.ndim] for name, a in self.result.once.items()}

    def _gathered(self, facts: dict[str, Any], graph: dict[Any, Any]) -> np.ndarray:
        """Compute the parts of a small result, and put them together."""
        array, gathering = facts["once"], passes.Gathering(facts)
        keys = [(array.name, *at) for at in gathering.indices]
        title = array.name.rsplit("-", 1)[0].replace("_", " ")

        calls = {i: (worker.compute_part, k, ()) for i, k in enumerate(keys)}
        cost = blocks.facts(array).get("cost")
        self._execute(title, calls, graph, gathering.add, overlaps=bool(cost and cost.overlaps))
        return gathering.value

    def _kept(self, one: parts.Pass, graph: dict[Any, Any]) -> parts.StoredParts:
        """Make the parts of a pass that are not there yet; return the reference to all of them."""
        stored = parts.StoredParts(self.job.folder, one.name, len(one.keys))
        missing = {i: k for i, k in enumerate(one.keys) if not stored[i].is_intact()}
        calls = {i: (worker.keep_part, k, (stored, i, self.job)) for i, k in missing.items()}

        def note(number: int, peak_bytes: int) -> None:
            self.peak_bytes = max(self.peak_bytes, peak_bytes)

        self._execute(one.title, calls, graph, note)
        return stored

    def _execute(
        self,
        title: str,
        calls: dict[int, Any],
        graph: dict[Any, Any],
        done: Callable[[int, Any], None],
        overlaps: bool = False,
    ) -> None:
        """Make numbered calls (function, key of the graph, further arguments) on the workers; hand on what comes."""
        from dask.optimization import cull

        tasks, numbers = [], {}
        for number, (function, key, more) in calls.items():

            def make(function: Any = function, key: Any = key, more: Any = more) -> Any:
                return function, (cull(graph, [key])[0], key, *more)

            tasks.append(Task(f"{title} {number}", make, overlaps))
            numbers[tasks[-1].label] = number
        title = f"{self.result.origin.operation}: {title}"
        with Progress(title, len(tasks), quiet=self.quiet or len(tasks) < 2) as progress:

            def finished(task: Task, came: Any) -> None:
                done(numbers[task.label], came)
                progress.advance()

            outcome = execute(tasks, self.workers, finished, tick=self.job.check)
        outcome.check(self.result.origin.who, self.plan.n_blocks, self.plan.share(self.workers))


def load(job: Job, number: int) -> np.ndarray | None:
    """Return a small result of an earlier run; None where there is none, or it is not what was kept."""
    try:
        raw = (job.folder / f"once-{number}.npy").read_bytes()
        if checksum(raw[:-4]) != int.from_bytes(raw[-4:], "little"):
            return None  # every block would be computed with it
        return np.load(io.BytesIO(raw[:-4]), allow_pickle=False)
    except (OSError, ValueError):
        return None


def keep(job: Job, number: int, array: np.ndarray) -> None:
    """Keep a small result for a run that goes on, with its checksum."""
    file = io.BytesIO()
    np.save(file, array, allow_pickle=False)
    raw = file.getvalue()
    write_object(job.folder / f"once-{number}.npy", [raw, checksum(raw).to_bytes(4, "little")])
