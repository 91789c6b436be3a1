"""
Reading and writing the chunks of a scan, in GB of raw pixels per second and core.

Rows: zarr-python as it comes (the reference), its `zarrs` pipeline where that is installed, and the chunk
files of tomoscale, written with and without waiting for the disk. All store the same codecs, and all have
one core, as a worker has.
`python benchmarks/bench_store.py` prints the table, asv runs the classes.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import platform
import shutil
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import numpy as np

from tomoscale import blocks, kernels, store

CODECS = (
    {
        "name": "blosc",
        "configuration": {
            "cname": "lz4",
            "clevel": 5,
            "shuffle": "bitshuffle",
            "typesize": 2,
            "blocksize": 0,
        },
    },
    {"name": "crc32c"},
)


def scan_like(shape: tuple[int, int, int], seed: int = 0) -> np.ndarray:
    """Return frames of a glow and shot noise: they compress like those of a detector."""
    rng = np.random.default_rng(seed)
    _, rows, columns = shape
    r, c = np.mgrid[:rows, :columns]
    glow = 100 + 500 * np.exp(-((r - rows / 2) ** 2 + (c - columns / 2) ** 2) / (rows * columns / 8))
    frames = np.empty(shape, np.uint16)
    for frame in frames:
        frame[...] = glow + rng.standard_normal((rows, columns), np.float32) * np.sqrt(glow)
    return frames


class Zarr:
    """zarr-python, with one of its codec pipelines."""

    pipeline: str | None = None

    def __init__(self, folder: Path, frames: np.ndarray, chunks: tuple[int, ...]) -> None:
        import zarr

        self.settings = {"codec_pipeline.path": self.pipeline} if self.pipeline else {}
        with zarr.config.set(self.settings):
            self.array = zarr.create_array(
                folder, shape=frames.shape, chunks=chunks, dtype=frames.dtype, compressors=CODECS,
                config={"write_empty_chunks": True},
            )  # fmt: skip
        self.frames = frames

    def write(self) -> None:
        self.array[...] = self.frames

    def read(self) -> np.ndarray:
        return self.array[...]


class Zarrs(Zarr):
    """Its pipeline in Rust."""

    pipeline = "zarrs.ZarrsCodecPipeline"


class ChunkFiles:
    """tomoscale: every chunk is written to a temporary file, flushed, renamed and read back."""

    def __init__(self, folder: Path, frames: np.ndarray, chunks: tuple[int, ...]) -> None:
        self.files = store.create_array(folder, frames.shape, frames.dtype, chunks)
        self.frames = frames

    def write(self) -> None:
        self.files.write((0, 0, 0), self.frames)

    def read(self) -> np.ndarray:
        return self.files.read(tuple(slice(0, n) for n in self.frames.shape))


class ChunkFilesUnflushed(ChunkFiles):
    """The same without waiting for the disk: what durability costs. tomoscale itself always waits."""

    def write(self) -> None:
        flush, os.fsync = os.fsync, lambda descriptor: None
        try:
            super().write()
        finally:
            os.fsync = flush


WAYS: dict[str, type] = {
    "zarr-python, as it comes (reference)": Zarr,
    "zarr-python, zarrs pipeline": Zarrs,
    "tomoscale.chunks": ChunkFiles,
    "tomoscale.chunks, not flushed": ChunkFilesUnflushed,
}


def available() -> dict[str, type]:
    """Return the ways that can be used here."""
    return {n: w for n, w in WAYS.items() if w is not Zarrs or importlib.util.find_spec("zarrs")}


# ---------------------------------------------------------------- asv


class Chunks:
    """Write and read 33 MB in eight chunks."""

    params = (list(available()),)
    param_names = ("way",)
    number = 1

    def setup(self, way: str) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="bench-store-"))
        frames = scan_like((64, 128, 2048))
        self.way = WAYS[way](self.folder / "scan.zarr", frames, (64, 16, 2048))
        self.way.write()
        np.testing.assert_array_equal(self.way.read(), frames)

    def teardown(self, way: str) -> None:
        shutil.rmtree(self.folder)

    def time_write(self, way: str) -> None:
        self.way.write()

    def time_read(self, way: str) -> None:
        self.way.read()


# ---------------------------------------------------------------- table


def best_of(function: Callable[[], object], repeats: int) -> float:
    """Return the shortest of some times."""
    times = []
    for _ in range(repeats):
        begin = time.perf_counter()
        function()
        times.append(time.perf_counter() - begin)
    return min(times)


def main() -> None:
    """Measure all ways one after the other, several rounds, and print a table."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--frames", type=int, default=256)
    parser.add_argument("--rows", type=int, default=256)
    parser.add_argument("--columns", type=int, default=2048)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--cores", type=int, default=1)
    parser.add_argument("--folder", type=Path, help="on the disk to be measured")
    given = parser.parse_args()
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: given.cores])
    shape = (given.frames, given.rows, given.columns)
    chunks = blocks.scan_chunks((given.frames, 2048, given.columns), 2)
    kernels.frame_median(
        np.zeros((1, 3, 3), np.uint16), 3
    )  # as a worker that computes has: one to decode is used then
    frames = scan_like(shape)
    lines = []
    with tempfile.TemporaryDirectory(prefix="bench-store-", dir=given.folder) as folder:
        for number, (name, make) in enumerate(available().items()):
            way = make(Path(folder) / f"{number}.zarr", frames, chunks)
            way.write()
            np.testing.assert_array_equal(way.read(), frames)
            write, read = best_of(way.write, given.repeats), best_of(way.read, given.repeats)
            stored = sum(f.stat().st_size for f in Path(folder, f"{number}.zarr").rglob("*") if f.is_file())
            lines.append(
                (name, frames.nbytes / write / 1e9, frames.nbytes / read / 1e9, frames.nbytes / stored)
            )
    print(
        f"uint16 {' x '.join(map(str, shape))}, chunks {chunks}, lz4 + bitshuffle + crc32c; best of {given.repeats}"
    )
    print(f"{cpu()}, {given.cores} of {os.cpu_count()} cores; {versions('numpy', 'zarr', 'numcodecs')}\n")
    print("| | write, GB/s | read, GB/s | compressed by |")
    print("| --- | ---: | ---: | ---: |")
    for name, write, read, ratio in lines:
        print(f"| {name} | {write:.2f} | {read:.2f} | {ratio:.2f} |")


def cpu() -> str:
    """Return the processor's name."""
    try:
        words = Path("/proc/cpuinfo").read_text().splitlines()
        return next(w.partition(":")[2].strip() for w in words if w.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def versions(*names: str) -> str:
    """Return versions for people."""
    return ", ".join([f"Python {platform.python_version()}", *(f"{n} {version(n)}" for n in names)])


if __name__ == "__main__":
    main()
