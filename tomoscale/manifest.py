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
from tomoscale.objects import PARTIAL, Stored, checksum, measure, sync_folder, write_object
from tomoscale.record import is_inside

FILE = ".manifest.jsonl"
NEXT = ".manifest-next.jsonl"
"""That of a group to which arrays are being added: it counts as soon as the group's metadata are those it lists."""


def write(node: Path, objects: Iterable[Stored], name: str = FILE) -> None:
    """
    Write length and checksum of every stored object, keyed, so that a swap of two is seen.

    The last line, with an empty key, is length and checksum of the lines before it.
    """
    path = node / name
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
    return _next(node) or _read(node / FILE)


def extend(group: Path, attributes: bytes, objects: Iterable[Stored]) -> None:
    """
    Replace metadata and manifest of a complete group together: whenever it is looked at, one fits the other.

    Parameters
    ----------
    group : Path
        The group.
    attributes : bytes
        Its new `zarr.json`.
    objects : iterable of Stored
        What the group consists of then, but for its `zarr.json`.
    """
    _settle(group)
    changed = Stored("zarr.json", len(attributes), checksum(attributes))
    write(group, [*objects, changed], NEXT)
    write_object(group / "zarr.json", [attributes])  # from here on the next manifest counts
    sync_folder(group)
    _settle(group)


def _settle(group: Path) -> None:
    """Give a next manifest that counts its name; a run may have been killed before it did."""
    if _next(group):
        os.replace(group / NEXT, group / FILE)
    else:
        (group / NEXT).unlink(missing_ok=True)
    sync_folder(group)


def _next(node: Path) -> dict[str, Stored] | None:
    """Return the next manifest if it is that of the group as it is; read once, since it may get its name meanwhile."""
    try:
        found = _read(node / NEXT)
        return found if found["zarr.json"] == measure(node / "zarr.json", "zarr.json") else None
    except (DamagedError, KeyError, OSError):
        return None


def _read(path: Path) -> dict[str, Stored]:
    try:
        is_file = stat.S_ISREG(path.lstat().st_mode)
        raw = path.read_bytes() if is_file else b""
    except FileNotFoundError:
        raise DamagedError(f"{path}: missing") from None
    except OSError as error:
        raise DamagedError(f"{path}: cannot be read: {error.strerror}") from None
    if not is_file:
        raise DamagedError(f"{path}: no regular file")
    try:
        lines = raw.splitlines(keepends=True)
        *objects, check = (Stored(*json.loads(line)) for line in lines)
        body = raw[: -len(lines[-1])]
        listed = all(is_inside(s.key) and type(s.length) is type(s.crc) is int for s in objects)
        if listed and check == Stored("", len(body), google_crc32c.value(body)):
            return {s.key: s for s in objects}
    except (IndexError, ValueError, TypeError, RecursionError):
        pass
    raise DamagedError(f"{path}: its bytes have changed")
