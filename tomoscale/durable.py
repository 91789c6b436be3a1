"""Files that are whole or absent, and on the disk before anything says so: write, fsync, rename, read back."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Sequence
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


def write_object(path: Path, pieces: Sequence[bytes], key: str = "") -> Stored:
    """Write a file so that it is whole or absent: temporary name, fsync, rename; then read it back."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}{PARTIAL}")
    try:
        with open(temporary, "wb", buffering=0) as file:
            for piece in pieces:
                written = 0
                while written < len(piece):
                    written += file.write(memoryview(piece)[written:])
            os.fsync(file.fileno())
    except OSError:
        temporary.unlink(missing_ok=True)  # a full disk needs the room
        raise
    os.replace(temporary, path)
    stored = measure(path, key)
    if stored != Stored(key, sum(map(len, pieces)), checksum(*pieces)):
        raise DamagedError(f"{path}: reads back other bytes than were written; is the disk failing?")
    return stored


def measure(path: Path, key: str = "") -> Stored:
    """Return the length and checksum of a stored object."""
    raw = path.read_bytes()
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
    Make a folder durably, inside another that must be there.

    A worker that wakes up after its run is over must not bring back the folder of an unfinished result.
    """
    if folder == inside or folder.is_dir():
        return
    make_folder(folder.parent, inside)
    with contextlib.suppress(FileExistsError):
        folder.mkdir()
    sync_folder(folder.parent)


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
