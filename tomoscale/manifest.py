"""
What a complete array or group consists of, in a file beside its objects: key, length and checksum of each.

It tells a lost, changed or exchanged object long after the run that wrote it.
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterable
from pathlib import Path

import google_crc32c

from tomoscale.errors import DamagedError
from tomoscale.objects import PARTIAL, Stored, sync_folder
from tomoscale.record import is_inside

FILE = ".manifest.jsonl"


def write(node: Path, objects: Iterable[Stored]) -> None:
    """
    Write length and checksum of every stored object, keyed, so that a swap of two is seen.

    The last line, with an empty key, is length and checksum of the lines before it.
    """
    path = node / FILE
    temporary = path.with_name(path.name + PARTIAL)
    lines = b"".join(json.dumps(stored).encode() + b"\n" for stored in sorted(objects))
    with open(temporary, "wb") as file:
        file.write(lines + json.dumps(Stored("", len(lines), google_crc32c.value(lines))).encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
    sync_folder(node)


def read(node: Path) -> dict[str, Stored]:
    """
    Return the manifest of an array or a group by key.

    Raises
    ------
    DamagedError
        It is missing, or is not what was written.
    """
    try:
        is_file = stat.S_ISREG((node / FILE).lstat().st_mode)
        raw = (node / FILE).read_bytes() if is_file else b""
    except FileNotFoundError:
        raise DamagedError(f"{node / FILE}: missing") from None
    except OSError as error:
        raise DamagedError(f"{node / FILE}: cannot be read: {error.strerror}") from None
    if not is_file:
        raise DamagedError(f"{node / FILE}: no regular file")
    try:
        lines = raw.splitlines(keepends=True)
        *objects, check = (Stored(*json.loads(line)) for line in lines)
        body = raw[: -len(lines[-1])]
        listed = all(is_inside(s.key) and type(s.length) is type(s.crc) is int for s in objects)
        if listed and check == Stored("", len(body), google_crc32c.value(body)):
            return {s.key: s for s in objects}
    except (IndexError, ValueError, TypeError, RecursionError):
        pass
    raise DamagedError(f"{node / FILE}: its bytes have changed")
