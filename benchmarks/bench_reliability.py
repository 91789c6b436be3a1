"""
What it costs that nothing can be lost, and how fast a result is held against its manifest.

Rows: the background of a scan as a run writes it, flushed, read back and recorded block by block; the same
without any fsync; the same without fsync and journal; then `verify`, in full and quick, and reading the same bytes
with nothing checked (the reference of those two). The three runs alternate, since a shared disk has moods.
`python benchmarks/bench_reliability.py` prints the table, asv runs the class on a small scan.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr
from io import StringIO
from pathlib import Path
from typing import Any
from unittest.mock import patch

from tomoscale import background, cluster, metadata, run, simulate
from tomoscale.journal import Job
from tomoscale.verify import find_damage

ROUNDS = 5


@contextmanager
def no_fsync() -> Iterator[None]:
    """Let writers return before anything is on the disk."""
    with patch("os.fsync", lambda descriptor: None):
        yield


@contextmanager
def no_fsync_no_journal() -> Iterator[None]:
    """Keep the records in memory instead of the journal."""
    kept: dict[str, dict[str, Any]] = {}

    def append(job: Job, block: str, record: Any) -> None:
        for name, objects in record.items():
            kept.setdefault(name, {}).update({o.key: o for o in objects})

    with no_fsync(), patch.object(Job, "append", append), patch.object(Job, "finished", lambda job: kept):
        yield


@contextmanager
def as_it_is() -> Iterator[None]:
    """Change nothing."""
    yield


RUNS = {"as it is": as_it_is, "without fsync": no_fsync, "without fsync and journal": no_fsync_no_journal}


def timed(call: Callable[[], Any]) -> float:
    """Return the seconds of a call."""
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin


def clean(source: Path, target: Path, threads: int) -> None:
    """Run the background of a scan on threads, so that what is patched here holds in the run."""
    shutil.rmtree(target, ignore_errors=True)
    os.sync()
    with cluster.connect("threads", threads=threads) as workers:
        run.write(background.remove(source, dark="none"), target, connection=workers, quiet=True)


def read_all(path: Path) -> None:
    """Read every file of a result and check nothing."""
    for file in path.rglob("*"):
        if file.is_file():
            file.read_bytes()


def check(path: Path, quick: bool) -> None:
    """Hold a result against its manifests."""
    arrays = metadata.attributes_of(path)["tomoscale"]["arrays"]
    with redirect_stderr(StringIO()):
        damaged, _, _ = find_damage(path, arrays, quick=quick)
    assert not damaged


class Reliability:
    """A run on a small scan, and its check, for asv."""

    params = tuple(RUNS)
    param_names = ("run",)
    timeout = 120

    def setup(self, how: str) -> None:
        self.folder = Path(tempfile.mkdtemp())
        self.source = self.folder / "scan.zarr"
        run.write(simulate.dct(shape=(200, 64, 64), truth=False), self.source, quiet=True)
        clean(self.source, self.folder / "sound.zarr", 1)

    def teardown(self, how: str) -> None:
        shutil.rmtree(self.folder)

    def time_run(self, how: str) -> None:
        with RUNS[how]():
            clean(self.source, self.folder / "out.zarr", 1)

    def time_verify(self, how: str) -> None:
        check(self.folder / "sound.zarr", quick=False)


def main() -> None:
    """Print the table."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--shape", type=int, nargs=3, default=(1000, 512, 1024))
    arguments.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    arguments.add_argument(
        "--folder", type=Path, default=None, help="where to write; default: the temporary folder"
    )
    chosen = arguments.parse_args()
    folder = Path(tempfile.mkdtemp(dir=chosen.folder))
    try:
        source, target = folder / "scan.zarr", folder / "out.zarr"
        run.write(simulate.dct(shape=tuple(chosen.shape), truth=False), source, quiet=True)
        clean(source, target, chosen.threads)
        seconds: dict[str, list[float]] = {name: [] for name in RUNS}
        for _ in range(ROUNDS):
            for name, how in RUNS.items():
                with how():
                    seconds[name].append(timed(lambda: clean(source, target, chosen.threads)))
        clean(source, target, chosen.threads)
        stored = sum(f.stat().st_size for f in target.rglob("*") if f.is_file())
        print(f"{' x '.join(map(str, chosen.shape))} uint16, {chosen.threads} threads, {ROUNDS} rounds\n")
        print("| background of a scan | median s | least s |\n|---|---:|---:|")
        for name, all_ in seconds.items():
            print(f"| {name} | {statistics.median(all_):.2f} | {min(all_):.2f} |")
        print(f"\n| a result of {stored / 1e9:.2f} GB | GB/s |\n|---|---:|")
        rates = {
            "read, nothing checked, one thread": lambda: read_all(target),
            f"verify, {chosen.threads} threads": lambda: check(target, quick=False),
            "verify --quick": lambda: check(target, quick=True),
        }
        for name, call in rates.items():
            print(f"| {name} | {stored / min(timed(call) for _ in range(3)) / 1e9:.2f} |")
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    sys.exit(main())
