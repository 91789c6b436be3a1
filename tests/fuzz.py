"""
Change good files at random, and see that nothing worse comes of it than a named error.

    $ python -m tests.fuzz --minutes 3 --seed 1

Every changed file is opened, described and read in a process of its own with limited memory. What may
come of it: it is read, or a `TomoscaleError` says why not. What is found: tracebacks, crashes, processes
that hang or compute for long, and too much memory. Files that were found are kept, and named with the seed
and the number that make them again.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import os
import random
import shutil
import struct
import sys
import tempfile
import threading
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from command_server import MIB, CommandServer, Done

SMALL = 64 * MIB
"""Bytes of an array that are read at once; of a larger one its first voxels are."""
MEMORY = 384 * MIB
"""What a process may take beyond the libraries."""
SECONDS = 5.0
PATIENCE = 30.0

NUMBERS = [
    0, 1, 2, 3, 7, 8, 255, 256, 65535, 65536, 2**24, 2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**53, 2**63 - 1, 2**63,
    2**64 - 1, 10**30, -1, -2, -(2**31), -(2**63),
]  # fmt: skip
VALUES: list[Any] = [
    *NUMBERS, None, True, False, 0.5, 1e300, float("nan"), float("inf"), "", "x", "..", "../..", "/", "/etc/passwd",
    "/dev/zero", "c/0", "a\0b", "é\ud800", "\x1b[2J", "9" * 400, [], {}, [[]], [0], [1], [1, 1, 1], ["x"], [None],
    {"name": "x"}, {"id": "pickle"}, "|O", "<u2", ">f8", "V8", "uint8", "float64", "U99999", "gzip", "blosc", "zstd",
    "sharding_indexed", "transpose", "crc32c", "bytes",
]  # fmt: skip

Files = dict[str, bytes]
"""Contents by name, of a file or a folder of files."""


# ---------------------------------------------------------------- good files


def originals() -> dict[str, Files]:
    """Return good inputs of every kind."""
    import bad_files as make
    import h5py
    import numcodecs
    import numpy as np
    import tifffile
    from conftest import small_scan, write_scan

    from tomoscale import run, simulate

    frames = small_scan(9, 20, 23)
    made: dict[str, Files] = {}

    def keep(kind: str, maker: Callable[[Path], Any], name: str) -> None:
        with tempfile.TemporaryDirectory() as folder, contextlib.suppress(ImportError):
            maker(Path(folder))
            root = Path(folder) / name
            files = [p for p in root.rglob("*") if p.is_file()] if root.is_dir() else [root]
            made[kind] = {str(p.relative_to(folder)): p.read_bytes() for p in sorted(files)}

    omega = np.linspace(0, 8, 9)
    keep(
        "zarr",
        lambda d: write_scan(d / "a.zarr", frames, (5, 20, 23), dark=frames[:2], omega=omega),
        "a.zarr",
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        small = {"shape": (6, 32, 32), "blobs": 3, "truth": False, "dark_frames": 2}
        keep("zarr result", lambda d: run.write(simulate.dct(**small), d / "a.zarr", quiet=True), "a.zarr")
    for codec in ("gzip", "zstd"):
        encoder = {"gzip": numcodecs.GZip(), "zstd": numcodecs.Zstd()}[codec]
        chunk = bytes(encoder.encode(frames.tobytes()))
        keep(f"zarr {codec}", make.array(chunk=chunk, codecs=make.codecs(codec)), "a.zarr")
    inner = bytes(numcodecs.Zstd().encode(frames.tobytes()))
    shard = inner + struct.pack("<2Q", 0, len(inner))
    settings = {"chunk_shape": [9, 20, 23], "codecs": make.codecs("zstd"), "index_codecs": make.codecs()}
    chain = [{"name": "sharding_indexed", "configuration": settings}]
    keep("zarr shard", make.array(chunk=shard, codecs=chain), "a.zarr")
    delta, shuffle = numcodecs.Delta("<u2"), numcodecs.Shuffle(2)
    for encoder in (numcodecs.Blosc(), numcodecs.Zlib(), numcodecs.LZ4(), numcodecs.BZ2(), numcodecs.LZMA()):
        chunk = bytes(encoder.encode(shuffle.encode(delta.encode(frames.reshape(-1)))))
        filters = [delta.get_config(), shuffle.get_config()]
        keep(
            f"zarr 2 {encoder.codec_id}",
            make.version_2(chunk=chunk, filters=filters, compressor=encoder.get_config()), "a.zarr",
        )  # fmt: skip

    def tiff(**options: Any) -> Callable[[Path], Any]:
        return lambda d: tifffile.imwrite(d / "a.tif", frames, photometric="minisblack", **options)

    for name, options in {
        "plain": {}, "pages": {"metadata": None, "contiguous": False}, "big": {"bigtiff": True},
        "imagej": {"imagej": True}, "motorola": {"byteorder": ">", "metadata": None},
        "zlib": {"compression": "zlib", "predictor": True}, "zstd": {"compression": "zstd"},
        "lzw": {"compression": "lzw"}, "packbits": {"compression": "packbits"}, "lzma": {"compression": "lzma"},
        "tiles": {"tile": (16, 16), "compression": "zlib"}, "strips": {"rowsperstrip": 3, "compression": "zlib"},
    }.items():  # fmt: skip
        keep(f"tiff {name}", tiff(**options), "a.tif")

    def nexus(**options: Any) -> Callable[[Path], Any]:
        def fill(file: h5py.File) -> None:
            file.create_dataset("entry/data/data", data=frames, **options)
            file["entry/data/image_key"] = np.array([2, 1, 0, 0, 0, 0, 0, 0, 0], np.uint8)
            file["entry/sample/rotation_angle"] = omega
            file["entry/sample/rotation_angle"].attrs["units"] = "deg"
            file["entry/soft"] = h5py.SoftLink("/entry/data/data")

        version = "latest" if options.get("compression") == "gzip" and len(options) == 2 else "earliest"
        return make.hdf5(fill, libver=version)

    chunks = {"chunks": (3, 20, 23)}
    for name, options in {
        "plain": {}, "chunks": chunks, "gzip": {**chunks, "compression": "gzip", "shuffle": True, "fletcher32": True},
        "lzf": {**chunks, "compression": "lzf"}, "latest": {**chunks, "compression": "gzip"},
    }.items():  # fmt: skip
        keep(f"hdf5 {name}", nexus(**options), "a.h5")
    with contextlib.suppress(ImportError):
        import hdf5plugin

        plugins = {
            "bitshuffle": hdf5plugin.Bitshuffle(cname="lz4"), "lz4": hdf5plugin.LZ4(), "blosc": hdf5plugin.Blosc(),
            "zstd": hdf5plugin.Zstd(),
        }  # fmt: skip
        for name, plugin in plugins.items():
            keep(f"hdf5 {name}", nexus(**chunks, **plugin), "a.h5")
    keep("npy", lambda d: np.save(d / "a.npy", frames), "a.npy")
    keep("npy fortran", lambda d: np.save(d / "a.npy", np.asfortranarray(frames)), "a.npy")
    members = {"data": frames, "image_key": np.zeros(9, np.uint8), "omega": omega}
    keep("npz", lambda d: np.savez(d / "a.npz", **members), "a.npz")
    keep("npz compressed", lambda d: np.savez_compressed(d / "a.npz", **members), "a.npz")

    def edf(folder: Path) -> None:
        from fabio.edfimage import EdfImage

        image = EdfImage(data=frames[0])
        for frame in frames[1:3]:
            image.append_frame(data=frame)
        image.write(str(folder / "a.edf"))

    keep("edf", edf, "a.edf")
    return made


# ---------------------------------------------------------------- changes


def changed(files: Files, rng: random.Random) -> Files:
    """Return the files after some changes, most of them where numbers stand."""
    out = dict(files)
    names = sorted(out)
    told = [n for n in names if n.endswith(("zarr.json", ".zarray", ".zattrs", ".jsonl"))]
    for _ in range(rng.choice((1, 1, 1, 2, 3, 4))):
        name = rng.choice(told) if told and rng.random() < 0.7 else rng.choice(names)
        content = out[name]
        if name in told and rng.random() < 0.8:
            out[name] = changed_json(content, rng)
        elif name.endswith(".tif") and rng.random() < 0.6:
            out[name] = changed_tags(content, rng)
        elif name.endswith((".npy", ".edf")) and rng.random() < 0.6:
            out[name] = changed_header(content, rng)
        else:
            out[name] = changed_bytes(content, rng)
    return out


def changed_json(content: bytes, rng: random.Random) -> bytes:
    """Put another value anywhere in a JSON document, take one away, or double one."""
    try:
        document = json.loads(content)
    except ValueError:
        return changed_bytes(content, rng)
    places = list(_places(document))
    if not places:
        return json.dumps(rng.choice(VALUES)).encode()
    holder, key = rng.choice(places)
    how = rng.random()
    if how < 0.7:
        holder[key] = rng.choice(VALUES)
    elif how < 0.8:
        del holder[key]
    elif how < 0.9 and isinstance(holder, list):
        holder.insert(key, holder[key])
    else:
        other, where = rng.choice(places)
        holder[key] = json.loads(json.dumps(other[where])) if where in other or isinstance(other, list) else 0
    return json.dumps(document).encode()


def _places(node: Any) -> Iterator[tuple[Any, Any]]:
    """Return every place of a document: what holds it, and its key."""
    entries = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for key, value in list(entries):
        yield node, key
        yield from _places(value)


def changed_tags(content: bytes, rng: random.Random) -> bytes:
    """Change an entry of the first directory of a TIFF, or where the next directory is."""
    raw = bytearray(content)
    with contextlib.suppress(struct.error, IndexError):
        order = "<" if raw[:2] == b"II" else ">"
        big = struct.unpack_from(f"{order}H", raw, 2)[0] == 43
        (place,) = struct.unpack_from(f"{order}{'Q' if big else 'I'}", raw, 8 if big else 4)
        (count,) = struct.unpack_from(f"{order}{'Q' if big else 'H'}", raw, place)
        start, size = (place + 8, 20) if big else (place + 2, 12)
        number = rng.choice([n for n in NUMBERS if 0 <= n < 2**64])
        entry = start + size * rng.randrange(count + 1)
        part = rng.randrange(4)
        if entry == start + size * count:
            struct.pack_into(
                f"{order}{'Q' if big else 'I'}", raw, entry, number & (2 ** (64 if big else 32) - 1)
            )
        elif part < 2:
            struct.pack_into(
                f"{order}H", raw, entry + 2 * part, number & 0xFFFF if part == 0 else number % 20
            )
        else:
            code, width = ("Q", 64) if big else ("I", 32)
            offset = entry + 4 + (part - 2) * (8 if big else 4)
            struct.pack_into(f"{order}{code}", raw, offset, number & (2**width - 1))
    return bytes(raw)


def changed_header(content: bytes, rng: random.Random) -> bytes:
    """Put another number or word into a header that is text."""
    head, rest = content[:512], content[512:]
    words = [i for i in range(len(head)) if head[i : i + 1].isdigit() and not head[i - 1 : i].isdigit()]
    if not words:
        return changed_bytes(content, rng)
    start = rng.choice(words)
    stop = next((i for i in range(start, len(head)) if not head[i : i + 1].isdigit()), len(head))
    other = str(rng.choice(VALUES)).encode(errors="replace")
    if len(other) < stop - start:
        other = other.ljust(stop - start)
    return head[:start] + other + head[stop:] + rest


def changed_bytes(content: bytes, rng: random.Random) -> bytes:
    """Flip, overwrite, cut, double or move bytes."""
    raw = bytearray(content)
    if not raw:
        return rng.randbytes(16)
    near = min(len(raw), rng.choice((64, 512, 4096, len(raw))))
    place = rng.randrange(near)
    how = rng.randrange(7)
    if how == 0:
        raw[place] ^= 1 << rng.randrange(8)
    elif how == 1:
        raw[place] = rng.choice((0, 1, 127, 128, 255, rng.randrange(256)))
    elif how in (2, 3):
        width = rng.choice((2, 4, 8))
        number = rng.choice(NUMBERS) & (2 ** (8 * width) - 1)
        raw[place : place + width] = number.to_bytes(width, rng.choice(("little", "big")))
    elif how == 4:
        del raw[rng.randrange(len(raw)) :]
    elif how == 5:
        length = rng.randrange(1, 64)
        raw[place:place] = raw[rng.randrange(len(raw)) :][:length]
    else:
        del raw[place : place + rng.randrange(1, 64)]
    return bytes(raw)


# ---------------------------------------------------------------- attempts


def attempt(arguments: Sequence[str]) -> int:
    """
    Do with a file what commands do: describe it, plan with it, read it.

    Returns
    -------
    int
        0 if it is read, 2 if a named error says why not.
    """
    from tomoscale import TomoscaleError, background, blocks, convert, info, store

    warnings.simplefilter("ignore")
    (path,) = arguments
    with blocks.planned_for(SMALL, 2):
        acts: list[Callable[[], Any]] = []
        if path.endswith(".zarr"):
            acts += [
                lambda: info.show(Path(path)),
                lambda: _read(store.open_volume(path)),
                lambda: background.remove(path),
                lambda: _verified(Path(path)),
            ]
        for act in acts:
            with contextlib.suppress(TomoscaleError):
                act()
        try:
            _read_all(convert.scan(Path(path)))
        except TomoscaleError:
            return 2
    return 0


def _verified(path: Path) -> None:
    from tomoscale import verify

    with open(os.devnull, "w") as nowhere, contextlib.redirect_stderr(nowhere):
        verify.verify(path)


def _read_all(result: dict[str, Any]) -> None:
    """Compute the first block of every lazy array."""
    for array in result.values():
        if hasattr(array, "dask"):
            array.blocks[(0,) * array.ndim].compute(scheduler="synchronous")


def _read(volume: Any) -> None:
    whole = volume.nbytes <= SMALL
    volume.read(tuple(slice(0, n if whole else 1) for n in volume.shape))


# ---------------------------------------------------------------- the run


@dataclass
class Findings:
    """What came of it: how often each outcome, and what should not have happened."""

    counts: Counter[tuple[str, str]] = field(default_factory=Counter)
    found: list[str] = field(default_factory=list)
    peak: int = 0
    seconds: float = 0.0

    @property
    def total(self) -> int:
        """Files that were tried."""
        return self.counts.total()

    def __str__(self) -> str:
        kinds = sorted({kind for kind, _ in self.counts})
        lines = [
            f"{k:<16} {self.counts[k, 'read']:>6} read {self.counts[k, 'refused']:>6} refused" for k in kinds
        ]
        lines += [
            f"{self.total} files, {len(self.found)} findings, at most {self.peak // MIB} MiB and {self.seconds:.1f} s"
        ]
        return "\n".join([*lines, *self.found])


def outcome_of(done: Done) -> str | None:
    """Say what is wrong with an outcome; None if nothing is."""
    if done.hung:
        return f"hung for more than {PATIENCE:.0f} s"
    if done.status not in (0, 2):
        said = done.err.strip().splitlines() or ["without a word"]
        return f"status {done.status}: {said[-1][:200]}"
    if done.seconds > SECONDS:
        return f"computed for {done.seconds:.1f} s"
    return None


def run(
    *,
    seed: int = 0,
    count: int | None = None,
    minutes: float | None = None,
    processes: int = 2,
    only: str = "",
    keep: Path | None = None,
) -> Findings:
    """
    Try changed files.

    Parameters
    ----------
    seed : int
        Together with the number of a file it makes the file.
    count, minutes : number, optional
        When to stop.
    processes : int
        Files tried at the same time.
    only : str
        Kinds that begin so: `tiff`, say.
    keep : Path, optional
        Where files go that were found.
    """
    kinds = {k: f for k, f in originals().items() if k.startswith(only)}
    findings, lock = Findings(), threading.Lock()
    numbers = itertools.count() if count is None else iter(range(count))
    until = float("inf") if minutes is None else time.monotonic() + 60 * minutes

    def work() -> None:
        server = CommandServer(MEMORY, PATIENCE, "fuzz:attempt")
        with server, tempfile.TemporaryDirectory() as folder:
            while time.monotonic() < until:
                with lock:
                    number = next(numbers, None)
                if number is None:
                    return
                kind, files = made(kinds, seed, number)
                root = written(files, Path(folder))
                done = server.run([root.name], Path(folder))
                wrong = outcome_of(done)
                with lock:
                    findings.counts[kind, "refused" if done.status == 2 else "read"] += 1
                    findings.peak = max(findings.peak, done.peak)
                    findings.seconds = max(findings.seconds, done.seconds)
                    if wrong:
                        findings.found.append(f"seed {seed} number {number} ({kind}): {wrong}")
                        if keep is not None:
                            _kept(root, done, keep / f"{seed}-{number}")

    threads = [threading.Thread(target=work) for _ in range(processes)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return findings


def made(kinds: dict[str, Files], seed: int, number: int) -> tuple[str, Files]:
    """Return the file of a number."""
    rng = random.Random(f"{seed} {number}")
    kind = rng.choice(sorted(kinds))
    return kind, changed(kinds[kind], rng)


def written(files: Files, folder: Path) -> Path:
    """Write files, and return the root of them."""
    for old in folder.iterdir():
        shutil.rmtree(old) if old.is_dir() else old.unlink()
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder / Path(next(iter(files))).parts[0]


def _kept(root: Path, done: Done, place: Path) -> None:
    place.mkdir(parents=True, exist_ok=True)
    shutil.copytree(root, place / root.name, dirs_exist_ok=True) if root.is_dir() else shutil.copy(
        root, place
    )
    (place / "said.txt").write_text(done.err)


def main() -> int:
    """Run it as a command."""
    parser = argparse.ArgumentParser(description="Change good files at random and read them.")
    parser.add_argument("--minutes", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--only", default="", help="kinds that begin so: tiff, say")
    parser.add_argument("--keep", type=Path, help="where files go that were found")
    given = vars(parser.parse_args())
    try:
        findings = run(**given)
    except BaseException:
        traceback.print_exc()
        return 1
    print(findings)
    return 1 if findings.found else 0


if __name__ == "__main__":
    sys.exit(main())
