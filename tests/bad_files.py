"""Files that are wrong, damaged or malicious: what `test_bad_input` gives to the command."""

from __future__ import annotations

import functools
import json
import os
import pickle
import socket
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numcodecs
import numpy as np
import tifffile
from conftest import small_scan, write_array, write_scan

from tomoscale import store

Maker = Callable[[Path], Any]
GIGABYTE = 2**30


class Executed:
    """What a pickle makes when it is loaded: a file called `executed`."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch executed",)


PICKLE = pickle.dumps(Executed())


Content = bytes | Callable[[], bytes] | None


def _made(content: Content) -> bytes | None:
    return content() if callable(content) else content


@functools.cache
def deflated() -> tuple[bytes, int, int]:
    """Return a megabyte that inflates to a gigabyte of zeros, and its two checksums."""
    stream, part, n_parts = zlib.compressobj(9, zlib.DEFLATED, -15), bytes(2**24), GIGABYTE // 2**24
    # After a full flush nothing refers to what came before: the same bytes again are the same zeros again.
    content = (stream.compress(part) + stream.flush(zlib.Z_FULL_FLUSH)) * n_parts + stream.flush()
    adler, crc = zlib.adler32(b""), zlib.crc32(b"")
    for _ in range(n_parts):
        adler, crc = zlib.adler32(part, adler), zlib.crc32(part, crc)
    return content, adler, crc


def zeros() -> bytes:
    """Return a gigabyte of zeros as zlib writes it."""
    content, adler, _ = deflated()
    return b"\x78\xda" + content + struct.pack(">I", adler)


def gzipped() -> bytes:
    """Return the same as a gzip file."""
    content, _, crc = deflated()
    return b"\x1f\x8b\x08" + bytes(7) + content + struct.pack("<2I", crc, GIGABYTE)


@functools.cache
def packed(codec: str, n_bytes: int = GIGABYTE) -> Callable[[], bytes]:
    """Return what makes zeros in the format of a codec of numcodecs."""
    encoder = {"zstd": numcodecs.Zstd(), "blosc": numcodecs.Blosc("zstd"), "bz2": numcodecs.BZ2()}[codec]
    return functools.cache(lambda: bytes(encoder.encode(bytes(n_bytes))))


def sharded(content: Callable[[], bytes]) -> Callable[[], bytes]:
    """Return what makes a shard of one chunk of this content."""
    return lambda: content() + struct.pack("<2Q", 0, len(content()))


def scan(folder: Path, n_frames: int = 9, **beside: Any) -> Path:
    """Write a good scan."""
    frames = small_scan(n_frames, 20, 23)
    return write_scan(folder / "scan.zarr", frames, (5, 20, 23), **beside)


def nothing(folder: Path) -> None:
    """Make no file at all."""


def several(*makers: Maker) -> Maker:
    """Make several."""
    return lambda folder: [make(folder) for make in makers]


def file(name: str, content: bytes = b"hello") -> Maker:
    """Write a file."""

    def make(folder: Path) -> None:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)

    return make


def pipe(name: str) -> Maker:
    """Make a pipe that nobody writes to."""

    def make(folder: Path) -> None:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        os.mkfifo(folder / name)

    return make


def link(name: str, target: str) -> Maker:
    """Make a symbolic link."""

    def make(folder: Path) -> None:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).unlink(missing_ok=True)
        (folder / name).symlink_to(target)

    return make


def unreadable(name: str) -> Maker:
    """Take all permissions from a file or folder."""
    return lambda folder: (folder / name).chmod(0)


def listening(name: str) -> Maker:
    """Make a socket."""

    def make(folder: Path) -> None:
        before = Path.cwd()
        os.chdir(folder)  # the name of a socket must be short
        with socket.socket(socket.AF_UNIX) as s:
            s.bind(name)
        os.chdir(before)

    return make


# ---------------------------------------------------------------- Zarr


def document(**changes: Any) -> dict[str, Any]:
    """Return the metadata of an array of 9 frames, changed."""
    plain = {
        "zarr_format": 3, "node_type": "array", "shape": [9, 20, 23], "data_type": "uint16", "fill_value": 0,
        "chunk_grid": chunked(9, 20, 23), "codecs": codecs(),
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}}, "attributes": {},
    }  # fmt: skip
    return {**plain, **changes}


def chunked(*chunks: int) -> dict[str, Any]:
    return {"name": "regular", "configuration": {"chunk_shape": list(chunks)}}


def codecs(*names: str, **settings: Any) -> list[dict[str, Any]]:
    """Return a chain of codecs after `bytes`."""
    first = {"name": "bytes", "configuration": {"endian": "little"}}
    return [first, *({"name": n, "configuration": settings} for n in names)]


PIXELS = small_scan(9, 20, 23).tobytes()


def array(name: str = "a.zarr", chunk: Content = PIXELS, **changes: Any) -> Maker:
    """Write an array of one chunk of plain pixels, with changed metadata."""

    def make(folder: Path) -> None:
        (folder / name / "c/0/0").mkdir(parents=True)
        (folder / name / "zarr.json").write_text(json.dumps(document(**changes)))
        if chunk is not None:
            (folder / name / "c/0/0/0").write_bytes(_made(chunk))

    return make


def text(content: str | bytes, name: str = "a.zarr/zarr.json") -> Maker:
    """Write metadata as text."""
    return file(name, content.encode() if isinstance(content, str) else content)


def version_2(name: str = "a.zarr", chunk: Content = PIXELS, **changes: Any) -> Maker:
    """Write an array of Zarr v2."""

    def make(folder: Path) -> None:
        plain = {
            "zarr_format": 2, "shape": [9, 20, 23], "chunks": [9, 20, 23], "dtype": "<u2", "fill_value": 0,
            "order": "C", "filters": None, "compressor": None,
        }  # fmt: skip
        (folder / name).mkdir()
        (folder / name / ".zarray").write_text(json.dumps({**plain, **changes}))
        if chunk is not None:
            (folder / name / "0.0.0").write_bytes(_made(chunk))

    return make


def group(attributes: Any, name: str = "scan.zarr") -> Maker:
    """Write a good scan whose group has these attributes."""

    def make(folder: Path) -> None:
        scan(folder)
        (folder / "scan.zarr").rename(folder / name) if name != "scan.zarr" else None
        store.write_json(
            folder / name / "zarr.json", {"zarr_format": 3, "node_type": "group", "attributes": attributes}
        )

    return make


def beside(**arrays: Any) -> Maker:
    """Write a good scan with arrays beside its frames."""
    return lambda folder: scan(folder, **{n: np.asarray(a) for n, a in arrays.items()})


def result(**record: Any) -> Maker:
    """Write what claims to be a result of tomoscale."""
    step = {"operation": "background.remove", "parameters": {"step": 50}, "inputs": {}, "versions": {}}
    return group({"tomoscale": {"complete": True, "arrays": ["frames"], "history": [step], **record}})


def manifest(*lines: Any) -> Maker:
    """Write a result with this manifest."""

    def make(folder: Path) -> None:
        result()(folder)
        (folder / "scan.zarr/frames/.manifest.jsonl").write_text("\n".join(json.dumps(x) for x in lines))

    return make


# ---------------------------------------------------------------- TIFF


def tiffs(n: int = 5, name: str = "t/f_{}.tif", start: int = 0, frames: Any = None, **options: Any) -> Maker:
    """Write frames as files."""

    def make(folder: Path) -> None:
        images = small_scan(n, 20, 23) if frames is None else frames
        for k, image in enumerate(images):
            path = folder / name.format(k + start)
            path.parent.mkdir(exist_ok=True)
            tifffile.imwrite(path, image, photometric="minisblack", metadata=None, **options)

    return make


def without(*names: str) -> Maker:
    """Take files away."""
    return lambda folder: [(folder / n).unlink() for n in names]


def cut(name: str, n_bytes: int) -> Maker:
    """Shorten a file."""
    return lambda folder: os.truncate(folder / name, (folder / name).stat().st_size - n_bytes)


def tags(name: str = "a.tif", pixels: Content = bytes(920), **values: int) -> Maker:
    """Write a TIFF of 20 x 23 pixels, 16 bits, in one strip; tags by name may have other values."""

    def make(folder: Path) -> None:
        content = _made(pixels) or b""
        known = {
            "width": (256, 23), "length": (257, 20), "bits": (258, 16), "compression": (259, 1),
            "photometric": (262, 1), "offsets": (273, 8), "samples": (277, 1), "rows": (278, 20),
            "counts": (279, len(content)), "format": (339, 1),
        }  # fmt: skip
        entries = [(code, values.get(n, value)) for n, (code, value) in known.items()]
        directory = struct.pack("<H", len(entries))
        directory += b"".join(struct.pack("<HHII", code, 4, 1, v) for code, v in entries)
        directory += struct.pack("<I", values.get("next", 0))
        head = b"II*\0" + struct.pack("<I", 8 + len(content))
        (folder / name).write_bytes(head + content + directory)

    return make


def big_tiff(offset: int) -> Maker:
    """Write a BigTIFF whose first directory is anywhere."""
    return file("a.tif", b"II+\0\x08\0\0\0" + struct.pack("<Q", offset) + bytes(64))


def chained_directories(n: int) -> Maker:
    """Write many pages that share one long table of strips."""

    def make(folder: Path) -> None:
        strips = 2**17
        table = b"".join(struct.pack("<I", 8 + i % 5) for i in range(strips))
        lengths = struct.pack("<I", 1) * strips
        body = b"II*\0" + struct.pack("<I", 16 + len(table) + len(lengths)) + bytes(8) + table + lengths
        place = len(body)
        for _ in range(n):
            entries = [
                (256, 3, 1, 23), (257, 4, 1, strips), (258, 3, 1, 16), (259, 3, 1, 8), (262, 3, 1, 1),
                (273, 4, strips, 16), (277, 3, 1, 1), (278, 4, 1, 1), (279, 4, strips, 16 + len(table)),
            ]  # fmt: skip
            directory = struct.pack("<H", len(entries))
            directory += b"".join(struct.pack("<HHII", *e) for e in entries)
            place += len(directory) + 4
            body += directory + struct.pack("<I", place)
        (folder / "a.tif").write_bytes(body[:-4] + bytes(4))

    return make


def loop_of_directories(folder: Path) -> None:
    """Write a TIFF whose directory follows itself."""
    tags(next=8 + 920)(folder)


# ---------------------------------------------------------------- HDF5


def hdf5(fill: Callable[[h5py.File], Any], name: str = "a.h5", libver: str = "earliest") -> Maker:
    """Write an HDF5 file."""

    def make(folder: Path) -> None:
        (folder / name).parent.mkdir(exist_ok=True)
        with h5py.File(folder / name, "w", libver=libver) as opened:
            fill(opened)

    return make


def dataset(data: Any, name: str = "data", **options: Any) -> Callable[[h5py.File], Any]:
    return lambda opened: opened.create_dataset(name, data=data, **options)


def inflating(filters: list[tuple[int, tuple[int, ...]]], chunk: Content, shape: Any = (2, 32, 32)) -> Maker:
    """Write a dataset with a chunk of these stored bytes behind these filters."""

    def make(folder: Path) -> None:
        with h5py.File(folder / "a.h5", "w") as opened:
            properties = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
            properties.set_chunk(shape)
            for code, values in filters:
                properties.set_filter(code, h5py.h5z.FLAG_OPTIONAL, values)
            space = h5py.h5s.create_simple(shape)
            made = h5py.h5d.create(opened.id, b"data", h5py.h5t.NATIVE_UINT16, space, properties)
            made.write_direct_chunk((0,) * len(shape), _made(chunk))

    return make


def virtual(source: str, *, holes: bool = False) -> Maker:
    """Write a virtual dataset of another file."""

    def fill(opened: h5py.File) -> None:
        layout = h5py.VirtualLayout((4, 20, 23), "uint16")
        n = 2 if holes else 4
        layout[:n] = h5py.VirtualSource(source, "data", (n, 20, 23))
        opened.create_virtual_dataset("v", layout)

    return hdf5(fill, "in/v.h5")


def angles(values: Any, **attributes: Any) -> Maker:
    """Write a scan of 9 frames with these angles."""

    def fill(opened: h5py.File) -> None:
        opened["entry/data"] = small_scan(9, 20, 23)
        opened["entry/omega"] = np.asarray(values)
        opened["entry/omega"].attrs.update(attributes)

    return hdf5(fill)


def endless(folder: Path) -> None:
    """Write angles whose unit lies in a heap that the HDF5 library never finishes to read (found by `fuzz`)."""
    angles(range(9), units="deg")(folder)
    content = (folder / "a.h5").read_bytes()
    place = content.index(b"GCOL") + 32
    assert content[place : place + 3] == b"deg"
    (folder / "a.h5").write_bytes(content[:place] + bytes(25) + content[place:])


def deep_links(opened: h5py.File) -> None:
    opened["a"], opened["b"] = h5py.SoftLink("/b"), h5py.SoftLink("/a")


# ---------------------------------------------------------------- NumPy and EDF


def npy(data: Any = None, header: bytes | None = None, name: str = "a.npy") -> Maker:
    """Write an array, or a header that stands before nothing."""

    def make(folder: Path) -> None:
        if header is None:
            np.save(folder / name, data, allow_pickle=True)
        else:
            (folder / name).write_bytes(header)

    return make


def header_of(shape: str, descr: str = "'<u2'", version: int = 1) -> bytes:
    """Return the header of a NumPy file."""
    words = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}\n".encode()
    size = struct.pack("<H" if version == 1 else "<I", len(words))
    return b"\x93NUMPY" + bytes([version, 0]) + size + words


def archive(**members: bytes) -> Maker:
    """Write an .npz of members with any content."""

    def make(folder: Path) -> None:
        with zipfile.ZipFile(folder / "a.npz", "w", zipfile.ZIP_DEFLATED) as opened:
            for name, content in members.items():
                opened.writestr(f"{name}.npy", content)

    return make


def edf(header: str, pixels: bytes = b"") -> Maker:
    return file("a.edf", f"{{ {header} }}\n".encode() + pixels)


def masked(folder: Path) -> None:
    """Write a scan and masks that do not fit."""
    scan(folder)
    write_array(folder / "empty.zarr", np.zeros((20, 23), np.uint8))
    write_array(folder / "small.zarr", np.ones((5, 5), np.uint8))
