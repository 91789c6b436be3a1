"""One run at a time writes an output: a file says which process of which host."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import socket
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TextIO

from tomoscale.errors import TomoscaleError

STALE_AFTER_S = 120
"""Age of a lock of another host at which its run counts as gone; a run touches it several times per second."""


def take(lock: Path, target: Path) -> None:
    """
    Take an output, also from a process that is gone.

    Parameters
    ----------
    lock : Path
        The lock's file.
    target : Path
        The output, for the words of the error.

    Raises
    ------
    TomoscaleError
        Another run has it.
    """
    with _opened(lock) as file:
        try:
            owner = json.loads(file.read() or "{}")
        except ValueError:
            owner = {}  # its writer was killed while it wrote
        age = time.time() - os.fstat(file.fileno()).st_mtime
        same_host = owner.get("host") == socket.gethostname()
        if owner and (is_alive(owner) if same_host else age < STALE_AFTER_S):
            raise TomoscaleError(
                f"{target}: another run is writing it: process {owner.get('pid')} on {owner.get('host')} "
                f"since {owner.get('since')}; wait for it or stop it"
            )
        file.seek(0)
        file.truncate()
        json.dump(myself(), file)


@contextlib.contextmanager
def _opened(lock: Path) -> Iterator[TextIO]:
    """Open a lock for reading and writing while no other process does."""
    while True:
        with open(os.open(lock, os.O_RDWR | os.O_CREAT, 0o666), "r+", encoding="utf-8") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            try:
                is_current = os.path.samestat(os.fstat(file.fileno()), lock.stat())
            except FileNotFoundError:
                is_current = False
            if is_current:  # else it was removed while we waited
                yield file
                return


def beat(lock: Path) -> None:
    """Show other hosts that this run is alive."""
    try:
        os.utime(lock)
    except FileNotFoundError:
        raise TomoscaleError(f"{lock}: was taken away while its output was being written") from None


def release(lock: Path) -> None:
    """Let another run take the output; a lock of another process stays."""
    if not lock.exists():
        return
    with _opened(lock) as file:
        try:
            owner = json.loads(file.read() or "{}")
        except ValueError:
            owner = {}
        if not owner or (owner.get("host"), owner.get("pid")) == (socket.gethostname(), os.getpid()):
            lock.unlink(missing_ok=True)


def myself() -> dict[str, Any]:
    """Return what tells this process from all others."""
    return {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "started": started(os.getpid()),
        "since": time.strftime("%Y-%m-%d %H:%M:%S"),
    }


def started(pid: int) -> float | None:
    """Return when a process started, to tell it from a later one of the same number; None if it is no more."""
    import psutil

    try:
        process = psutil.Process(pid)
        return None if process.status() == psutil.STATUS_ZOMBIE else round(process.create_time(), 1)
    except psutil.Error:
        return None


def is_alive(owner: Mapping[str, Any]) -> bool:
    """Tell whether the process that a lock names still runs on this machine."""
    since = started(int(owner.get("pid", 0)))
    return since is not None and abs(since - float(owner.get("started") or 0)) < 2
