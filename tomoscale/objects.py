"""Stored objects as files: opened without following anything elsewhere, written whole and durably."""

from __future__ import annotations

import contextlib
import functools
import os
import stat
import threading
from collections.abc import Iterator, Sequence
from io import FileIO
from pathlib import Path
from typing import NamedTuple

import google_crc32c
import numpy as np

from tomoscale.errors import DamagedError

PARTIAL = ".partial"


class Stored(NamedTuple):
    """One stored object: its key within the array, bytes, and `checksum` of all of them."""

    key: str
    length: int
    crc: int


def write_object(path: str | Path, pieces: Sequence[bytes], key: str = "", crc: int | None = None) -> Stored:
    """
    Write a file so that it is whole or absent: temporary name, fsync, rename; then read it back.

    `crc` is the checksum of the pieces if it is known already.
    """
    folder, name = os.path.split(path)
    temporary = os.path.join(folder, f".{name}.{os.getpid()}.{threading.get_ident()}{PARTIAL}")
    wanted = Stored(key, sum(map(len, pieces)), checksum(*pieces) if crc is None else crc)
    try:
        with open(temporary, "wb", buffering=0) as file:
            for piece in pieces:
                written = 0
                while written < len(piece):
                    written += file.write(memoryview(piece)[written:])
            os.fsync(file.fileno())
    except OSError:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)  # a full disk needs the room
        raise
    os.replace(temporary, path)
    stored = measure(path, key)
    if stored != wanted:
        raise DamagedError(f"{path}: reads back other bytes than were written; is the disk failing?")
    return stored


@contextlib.contextmanager
def open_object(path: str, root: str) -> Iterator[FileIO]:
    """
    Open a stored object for reading.

    Parameters
    ----------
    path : str
        Its file.
    root : str
        Folder of its array, with all links followed.

    Raises
    ------
    DamagedError
        A device, a pipe, a folder, or a link that leads out of the array: a foreign file must not become voxels.
    FileNotFoundError
        There is none.
    """
    folder, name = os.path.split(path)
    real = os.path.realpath(path) if os.path.islink(path) else os.path.join(_real(folder), name)
    if not real.startswith(root + os.sep):
        raise DamagedError(
            f"{path}: a link that leads out of its array, which is not followed; copy the file there"
        )
    with open(os.open(real, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb", buffering=0) as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise DamagedError(f"{path}: is no regular file; expected a chunk")
        yield file


@functools.lru_cache(maxsize=4096)
def _real(folder: str) -> str:
    return os.path.realpath(folder)


def read_object(path: str, root: str, room: np.ndarray) -> np.ndarray:
    """Read a stored object into an array of bytes, and return the part that it takes."""
    with open_object(path, root) as file:
        size = os.fstat(file.fileno()).st_size
        if size > len(room):
            raise DamagedError(f"{path}: {size} bytes; a chunk of it takes at most {len(room)}")
        end = 0
        while end < size and (n := file.readinto(room[end:size])):  # at most 2 GiB come at a time
            end += n
        return room[:end]


def measure(path: str | Path, key: str = "") -> Stored:
    """Return the length and checksum of a stored object."""
    with open(path, "rb", buffering=0) as file:
        raw = file.readall()
    return Stored(key, len(raw), checksum(raw))


def checksum(*pieces: bytes) -> int:
    """
    Return the crc32c of a stored object with its last four bytes in reverse.

    In order they would not do: a chunk ends with its own crc32c, and the crc32c of everything that does is one and the
    same number, so that two chunks of one length could be exchanged unseen.

    >>> from struct import pack
    >>> crc32c = google_crc32c.value
    >>> whole = [body + pack("<I", crc32c(body)) for body in (b"one", b"two")]
    >>> crc32c(whole[0]) == crc32c(whole[1]), checksum(whole[0]) == checksum(whole[1])
    (True, False)
    """
    *first, last = pieces if len(pieces[-1]) >= 4 else [b"".join(pieces)]
    whole = np.frombuffer(last, np.uint8) if last else np.empty(0, np.uint8)
    crc = 0
    for piece in (*first, whole[:-4], whole[-4:][::-1].copy()):
        crc = google_crc32c.extend(crc, piece)
    return crc


def make_folder(folder: Path, inside: Path) -> None:
    """
    Make a folder inside another that must be there; who fills it makes the names above it durable.

    A worker that wakes up after its run is over must not bring back the folder of an unfinished result.
    """
    if folder == inside or folder.is_dir():
        return
    make_folder(folder.parent, inside)
    with contextlib.suppress(FileExistsError):
        folder.mkdir()


def sync_folder(folder: str | Path) -> None:
    """Make the names in a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
