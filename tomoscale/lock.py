"""One run at a time writes an output: a file says which process of which host."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tomoscale.errors import TomoscaleError

STALE_AFTER_S = 120
"""Age of a lock of another host at which its run counts as gone; a run touches it several times per second."""
WRITING_S = 5
"""Age up to which a lock that cannot be read is one being written."""


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
    for _ in range(3):
        try:
            descriptor = os.open(lock, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        except FileExistsError:
            _remove_stale(lock, target)
            continue
        with open(descriptor, "w", encoding="utf-8") as file:
            json.dump(myself(), file)
        return
    raise TomoscaleError(f"{target}: another run took it in this moment")


def _remove_stale(lock: Path, target: Path) -> None:
    try:
        seen = lock.read_bytes()
        age = time.time() - lock.stat().st_mtime
    except FileNotFoundError:
        return
    try:
        owner = json.loads(seen)
    except ValueError:
        owner = {}
    same_host = owner.get("host") == socket.gethostname()
    if is_alive(owner) if same_host else age < (STALE_AFTER_S if owner else WRITING_S):
        raise TomoscaleError(
            f"{target}: another run is writing it: process {owner.get('pid')} on {owner.get('host')} "
            f"since {owner.get('since')}; wait for it or stop it"
        )
    aside = lock.with_name(f"{lock.name}.{os.getpid()}.{time.time_ns()}")
    try:
        os.rename(lock, aside)
    except FileNotFoundError:
        return
    if aside.read_bytes() != seen:  # another process was faster, and this is its lock
        with contextlib.suppress(FileExistsError):
            os.link(aside, lock)
    aside.unlink()


def beat(lock: Path) -> None:
    """Show other hosts that this run is alive."""
    try:
        os.utime(lock)
    except FileNotFoundError:
        raise TomoscaleError(f"{lock}: was taken away while its output was being written") from None


def release(lock: Path) -> None:
    """Let another run take the output; a lock of another process stays."""
    try:
        owner = json.loads(lock.read_bytes())
    except (FileNotFoundError, ValueError):
        return
    if (owner.get("host"), owner.get("pid")) == (socket.gethostname(), os.getpid()):
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
