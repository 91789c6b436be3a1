"""Archives of NumPy files: members are known by their names; nothing is unpickled."""

from __future__ import annotations

import functools
import struct
import threading
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np

from tomoscale import store
from tomoscale.blocks import Window
from tomoscale.errors import TomoscaleError
from tomoscale.sources import roles
from tomoscale.sources.frames import Frames, Scan, numeric, opened, show, sized
from tomoscale.sources.numpy_files import Header, placed, read_header
from tomoscale.sources.views import joined


def open_npz(paths: Sequence[Path], dataset: str | None = None, role: roles.Role = "frames") -> Scan:
    """
    Return the members of .npz archives as frames, darks, flats and angles.

    Parameters
    ----------
    paths : sequence of Path
        In the order of the frames.
    dataset : str, optional
        Name of the member that holds the frames.
    role : {"frames", "dark", "flat"}
        Which images are meant where there is an image key.
    """
    scans = [_archive(path, dataset, role) for path in paths]
    frames = joined([s.frames for s in scans], [str(p) for p in paths])
    if len(scans) == 1:
        return scans[0]
    return Scan(frames, scans[0].dark, scans[0].flat, roles.in_a_row(s.omega for s in scans))


@dataclass(frozen=True, eq=False, repr=False)
class Compressed(Frames):
    """A compressed member of an archive: it has no places to read from, so each process holds it whole."""

    direct = True
    hint = "save the array with numpy.save, which can be read in parts, or give more --memory"

    path: str
    member: str
    header: Header

    @property
    def shape(self) -> tuple[int, ...]:  # type: ignore[override]
        return (1,) * (3 - len(self.header.shape)) + self.header.shape

    @property
    def dtype(self) -> np.dtype:  # type: ignore[override]
        return self.header.dtype.newbyteorder("=")

    @property
    def chunks(self) -> tuple[int, ...]:  # type: ignore[override]
        return (1, *self.shape[1:])

    @property
    def held(self) -> int:
        return self.header.nbytes

    @property
    def files(self) -> tuple[str, ...]:
        return (self.path,)

    def read(self, window: Window) -> np.ndarray:
        with _lock:
            array = _member(self.path, self.member, Path(self.path).stat().st_mtime_ns)
        return np.array(array.reshape(self.shape)[window], dtype=self.dtype, order="C")


_lock = threading.Lock()


@functools.lru_cache(maxsize=1)
def _member(path: str, member: str, modified: int) -> np.ndarray:
    """Decompress a member of an archive, no further than its header says."""
    with zipfile.ZipFile(path) as archive, archive.open(member) as file:
        header = read_header(file, path)
        out = np.empty(header.shape, header.dtype, order="F" if header.fortran else "C")
        rest = out.reshape(-1, order="A").view(np.uint8).data
        try:
            while rest:
                got = file.read(min(len(rest), 2**20))
                if not got:
                    raise TomoscaleError(
                        f"{path}: {member}: ends {len(rest)} bytes too early; it is truncated"
                    )
                rest[: len(got)] = got
                rest = rest[len(got) :]
        except (zipfile.BadZipFile, OSError, EOFError) as error:
            raise TomoscaleError(f"{path}: {member}: {error}; the file is damaged") from None
        except Exception as error:  # zlib.error has no base of its own
            raise TomoscaleError(f"{path}: {member}: cannot be decompressed: {error}") from None
    return out


def _archive(path: Path, dataset: str | None, role: roles.Role) -> Scan:
    """Sort the members of an archive by their names."""
    try:
        with opened(path) as file, zipfile.ZipFile(file) as archive:
            members = {
                i.filename.removesuffix(".npy"): i for i in archive.infolist() if i.filename.endswith(".npy")
            }
            headers = {}
            for name, info in members.items():
                with archive.open(info) as member:
                    headers[name] = _readable(member, path, name)
    except (zipfile.BadZipFile, zlib.error, OSError, EOFError, RuntimeError) as error:
        text = "empty file" if not path.stat().st_size else f"not a readable .npz archive ({error})"
        raise TomoscaleError(f"{path}: {text}; expected what numpy.savez writes") from None
    stacks = {
        n: h for n, h in headers.items() if h is not None and len(h.shape) in (2, 3) and h.dtype.kind in "iuf"
    }
    name = dataset or _frames_of(stacks, path, len(members))
    if name not in members:
        raise TomoscaleError(f"{path}: no member {name!r}; it holds {roles.listed(members)}")

    def place(member: str) -> store.Volume:
        header = headers[member]
        if header is None:
            raise TomoscaleError(
                f"{path}: {member}: holds Python objects, which are never unpickled; expected numbers"
            )
        return _in_archive(path, members[member], header, f"{path}: {member}")

    def numbers(names: Sequence[str], lengths: Sequence[int]) -> np.ndarray | None:
        for n in names:
            header = headers.get(n)
            if header is not None and header.shape in [(k,) for k in lengths] and header.dtype.kind in "iuf":
                return _member(str(path), members[n].filename, path.stat().st_mtime_ns)
        return None

    def stack(names: Sequence[str]) -> store.Volume | None:
        found = next(
            (n for n in names if n in stacks and n != name and stacks[n].shape[-2:] == frames.shape[1:]), None
        )
        return None if found is None else place(found)

    frames = place(name)
    key = numbers(roles.KEY, [frames.shape[0]])
    count = frames.shape[0] if key is None else int((key == roles.PROJECTION).sum())
    angles = numbers(roles.ANGLES, [frames.shape[0], count])
    omega = None if angles is None else roles.degrees(angles, "", str(path))
    if key is not None:
        return roles.by_key(frames, key, omega, str(path), role)
    return Scan(frames, stack(roles.DARK), stack(roles.FLAT), omega)


def _readable(member: IO[bytes], path: Path, name: str) -> Header | None:
    """Return the header of a member, or None where it holds objects."""
    try:
        return read_header(member, f"{path}: {name}")
    except TomoscaleError as error:
        if "objects" in str(error) or "format" in str(error):
            return None
        raise


def _frames_of(stacks: dict[str, Header], path: Path, count: int) -> str:
    """Return the member that holds the frames: by name, or the only stack."""
    named = [n for n in roles.FRAMES if n in stacks]
    deep = [n for n in stacks if len(stacks[n].shape) == 3 and n not in (*roles.DARK, *roles.FLAT)]
    if len(named) == 1 or (
        named and len(stacks[named[0]].shape) == 3 and [n for n in named if n in deep] == named[:1]
    ):
        return named[0]
    thick = [n for n in stacks if len(stacks[n].shape) == 3]
    found = deep or thick or (list(stacks) if count == 1 else [])
    if len(found) == 1:
        return found[0]
    shown = roles.listed(f"{n} ({show(stacks[n].shape)} {stacks[n].dtype})" for n in found)
    if not found:
        names = roles.listed(f"{n} ({show(h.shape)} {h.dtype})" for n, h in stacks.items()) or "no numbers"
        raise TomoscaleError(f"{path}: no array with three axes (frame, row, column); it holds {names}")
    raise TomoscaleError(
        f"{path}: several arrays could be the frames: {shown}; choose one with --dataset or FILE::NAME"
    )


def _in_archive(path: Path, info: zipfile.ZipInfo, header: Header, where: str) -> Frames:
    """Return the source for a member: read in place where it is stored without compression."""
    if header.length + header.nbytes != info.file_size:
        raise TomoscaleError(
            f"{where}: declares {header.length + header.nbytes} bytes and the archive "
            f"{info.file_size}; it is damaged"
        )
    if info.compress_type != zipfile.ZIP_STORED:
        numeric(header.dtype, where)
        if len(header.shape) not in (2, 3):
            raise TomoscaleError(f"{where}: has shape {header.shape}; expected (frame, row, column)")
        sized(header.shape, where)
        return Compressed(str(path), info.filename, header)
    with opened(path) as file:
        file.seek(info.header_offset)
        local = file.read(30)
        if len(local) < 30 or local[:4] != b"PK\x03\x04":
            raise TomoscaleError(f"{where}: damaged archive; copy it again")
        name, extra = struct.unpack("<HH", local[26:30])
        start = info.header_offset + 30 + name + extra + header.length
        size = file.seek(0, 2)
    if start + header.nbytes > size:
        raise TomoscaleError(
            f"{where}: truncated: pixels up to byte {start + header.nbytes}, and the file has {size}"
        )
    return placed(path, header, start)
