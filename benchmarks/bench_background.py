"""
The background of a whole scan, from Zarr to Zarr, against its three parts alone and against plain NumPy.

Rows: the definition in NumPy and SciPy (the reference, on some rows of the scan), reading and decoding
alone, computing alone, encoding and writing alone, each on all blocks by the same workers; then the whole
run, and its wall time over that of the slowest part. The journal and fsync are in.
`python benchmarks/bench_background.py` prints the table, asv runs the class on a small scan.
"""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import wait
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

import distributed
import numpy as np
from scipy.ndimage import median_filter

from tomoscale import background, blocks, buffers, cluster, run, simulate, store, stream, worker
from tomoscale.cluster import Connection
from tomoscale.result import Result, stored_chunks

REFERENCE_ROWS = 4
ROUNDS = 5
STEPS = ("read and decode", "compute", "encode and write", "the whole run")


def by_definition(frames: np.ndarray, half_window: int = 250, step: int = 50) -> np.ndarray:
    """Median of every window, subtraction, 3 x 3 median of every frame."""
    starts, stops = background.windows(len(frames), half_window, step)
    medians = np.stack([np.median(frames[a:b], axis=0) for a, b in zip(starts, stops, strict=True)])
    cleaned = frames - medians[np.arange(len(frames)) // step].astype(np.float32)
    return np.stack([median_filter(frame, 3, mode="nearest") for frame in cleaned])


# ---------------------------------------------------------------- on a worker


def read_only(call: Any) -> int:
    """Read and decode the input of a block."""
    with buffers.reused():
        return sum(a.load().nbytes for a in call.arguments if isinstance(a, blocks.Piece))


def compute_only(call: Any, places: list[worker.Place]) -> float:
    """Compute a block whose input is there already, chunk by chunk as a run does; return the seconds."""
    this = distributed.get_worker()
    this.fields = None
    with buffers.reused(), stream.allowed():
        loaded = [a.load() if isinstance(a, blocks.Piece) else a for a in call.arguments]
        begin = time.perf_counter()
        fields = call.function(*loaded)
        for place, field in zip(places, fields, strict=True):
            for _ in place.files.parts(place.start, field):
                pass
        seconds = time.perf_counter() - begin
        this.fields = [np.asarray(f) for f in fields]
        return seconds


def write_only(places: list[worker.Place]) -> int:
    """Encode and write the block that this process computed last, wherever a block belongs."""
    fields = distributed.get_worker().fields
    return sum(
        len(p.files.write(p.start, f[tuple(map(slice, p.shape))]))
        for p, f in zip(places, fields, strict=True)
    )


def let_go(place: Any) -> None:
    """Forget the block that this process computed last: the run is to find memory that was used before, as usual."""
    distributed.get_worker().fields = None


def on_all(
    workers: Connection, function: Callable[..., Any], *arguments: list[Any]
) -> tuple[float, list[Any]]:
    """Return the wall time of a call for every block, and the results."""
    begin = time.perf_counter()
    futures = [workers.executor.submit(function, *a) for a in zip(*arguments, strict=True)]
    wait(futures)
    return time.perf_counter() - begin, [f.result() for f in futures]


def parts_and_whole(source: Path, folder: Path, workers: Connection) -> dict[str, float]:
    """
    Return the seconds of the three parts alone, and of the run; the workers are warm for all of them.

    Medians of some rounds in turns: how long a disk takes to flush varies more than anything else. What was written
    stays until the end, 11 GB of the usual scan: memory that is freed with a file is quicker to be had for the next
    step than for the one after.
    """
    with blocks.planned_for(workers.block_bytes, workers.slots):
        result = background.remove(source, dark="none")
        run.write(result, folder / "warm.zarr", connection=workers, quiet=True)
    sorted_ = Result.of(result)
    (one,) = [p for p in sorted_.passes if "frames" in p.arrays]
    calls = [t for layer in one.arrays["frames"].dask.layers.values() for t in layer.values()]
    calls = [c for c in (t[0] for t in calls) if isinstance(c, blocks.Call) and len(c.arguments) == 4]
    seconds: dict[str, list[float]] = {n: [] for n in STEPS}
    for number in range(ROUNDS):
        reading = on_all(workers, read_only, calls)[0]
        files = {
            name: store.create_array(folder / f"{number}.zarr" / name, a.shape, a.dtype, stored_chunks(a))
            for name, a in one.arrays.items()
        }
        places = [worker.places_of(one, files, index) for index in np.ndindex(*one.grid)]
        computing = sum(on_all(workers, compute_only, calls, places)[1]) / workers.slots
        os.sync()
        writing = on_all(workers, write_only, places)[0]
        on_all(workers, let_go, places)
        os.sync()
        begin = time.perf_counter()
        run.write(result, folder / f"whole-{number}.zarr", connection=workers, quiet=True)
        whole = time.perf_counter() - begin
        for name, taken in zip(STEPS, (reading, computing, writing, whole), strict=True):
            seconds[name].append(taken)
    return {name: median(taken) for name, taken in seconds.items()}


def small_scan(folder: Path, shape: tuple[int, int, int]) -> Path:
    """Simulate a scan."""
    path = folder / "scan.zarr"
    run.write(simulate.dct(shape=shape, truth=False), path, quiet=True)
    return path


class Background:
    """A run on a small scan, on threads of this process, for asv."""

    timeout = 120

    def setup(self) -> None:
        self.folder = Path(tempfile.mkdtemp())
        self.path = small_scan(self.folder, (200, 64, 64))
        self.frames = store.open_volume(self.path).whole()

    def teardown(self) -> None:
        shutil.rmtree(self.folder)

    def time_reference_by_definition(self) -> None:
        by_definition(self.frames[:, :REFERENCE_ROWS])

    def time_run(self) -> None:
        run.write(background.remove(self.path), self.folder / "out.zarr", overwrite=True, quiet=True)

    def track_tasks_per_block(self) -> float:
        plan = run.plan(background.remove(self.path, dark="none"))
        return plan.n_graph_tasks / plan.n_blocks


def main() -> None:
    """Print the table."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--shape", type=int, nargs=3, default=(2000, 512, 1024))
    arguments.add_argument(
        "--folder", type=Path, default=None, help="where to write; default: the temporary folder"
    )
    arguments.add_argument("--workers", type=int, default=None)
    chosen = arguments.parse_args()
    folder = Path(tempfile.mkdtemp(dir=chosen.folder))
    try:
        path = small_scan(folder, tuple(chosen.shape))
        frames = store.open_volume(path)
        some = frames.read((slice(0, frames.shape[0]), slice(0, REFERENCE_ROWS), slice(0, frames.shape[2])))
        begin = time.perf_counter()
        by_definition(some)
        per_voxel = (time.perf_counter() - begin) / some.size
        with cluster.connect("local", workers=chosen.workers) as workers:
            seconds = parts_and_whole(path, folder, workers)
            where = workers.where
        voxels = np.prod(frames.shape)
        print(
            f"{' x '.join(map(str, frames.shape))} uint16, half_window 250, step 50; {where}, {platform.processor()}"
        )
        names = ("numpy", "numba", "numcodecs", "dask")
        print("; ".join(f"{n} {version(n)}" for n in names) + f"; Python {platform.python_version()}\n")
        print("| step | seconds | Mvoxel/s |\n|---|---|---|")
        print(
            f"| NumPy and SciPy by definition, one core | {per_voxel * voxels:.0f} | {1e-6 / per_voxel:.2f} |"
        )
        for name, s in seconds.items():
            print(f"| {name} | {s:.1f} | {voxels / s / 1e6:.0f} |")
        slowest = max(s for n, s in seconds.items() if n != "the whole run")
        print(f"\nmedians of {ROUNDS} rounds; the whole run")
        print(f"takes {seconds['the whole run'] / slowest:.2f} x its slowest part alone,")
        print(
            f"and is {per_voxel * voxels / seconds['the whole run']:.0f} x as fast as NumPy and SciPy on one core"
        )
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    sys.exit(main())
