"""One run at a time writes an output: a file says which process of which host."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import socket
import stat
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TextIO

from tomoscale.errors import TomoscaleError

STALE_AFTER_S = 120
"""Age of a lock of another host at which its run counts as gone."""
BEAT_S = 10.0
"""A run touches its lock this often."""

_held: set[Path] = set()
"""Locks of this process."""


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
        owner = _owner(file)
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
        _held.add(lock)


@contextlib.contextmanager
def _opened(lock: Path) -> Iterator[TextIO]:
    """Open a lock for reading and writing while no other process does."""
    while True:
        with _open(lock, os.O_RDWR | os.O_CREAT) as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            try:
                is_current = os.path.samestat(os.fstat(file.fileno()), lock.stat())
            except FileNotFoundError:
                is_current = False
            if is_current:  # else it was removed while we waited
                yield file
                return


def _open(lock: Path, flags: int) -> TextIO:
    """Open a lock; no pipe or folder, nor through a link, which may lead to a file that must not be overwritten."""
    try:
        descriptor = os.open(lock, flags | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666)
        if stat.S_ISREG(os.fstat(descriptor).st_mode):
            return open(descriptor, "r+" if flags & os.O_RDWR else "r", encoding="utf-8")
        os.close(descriptor)
    except OSError as error:
        if error.errno not in (errno.ELOOP, errno.EISDIR):
            raise
    raise TomoscaleError(f"{lock}: is no regular file; expected a lock of tomoscale; remove it")


@contextlib.contextmanager
def beating(lock: Path) -> Iterator[None]:
    """Show other hosts that this run is alive, whatever it does: compiling, computing or finishing."""
    over = threading.Event()

    def beat() -> None:
        while not over.wait(BEAT_S):
            with contextlib.suppress(OSError):
                os.utime(lock)

    thread = threading.Thread(target=beat, name="tomoscale-lock", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def check(lock: Path) -> None:
    """
    Make sure that the output is still ours.

    Raises
    ------
    TomoscaleError
        The lock is gone, or another run took it over while this one stood still.
    """
    try:
        with _open(lock, os.O_RDONLY) as file:
            owner = _owner(file)
    except FileNotFoundError:
        raise TomoscaleError(f"{lock}: was taken away while its output was being written") from None
    except OSError:
        return  # storage that fails for a moment
    if owner and not _is_ours(owner):  # else another run looks at the lock
        raise TomoscaleError(
            f"{lock}: process {owner.get('pid')} on {owner.get('host')} writes the output now; this one stood still "
            "for too long"
        )


def release(lock: Path) -> None:
    """Let another run take the output; a lock of another process stays."""
    _held.discard(lock)
    if not lock.exists():
        return
    with _opened(lock) as file:
        owner = _owner(file)
        if not owner or _is_ours(owner):
            lock.unlink(missing_ok=True)


def let_go() -> None:
    """Release all locks of this process at once, for one that leaves at a signal."""
    for lock in _held:
        with contextlib.suppress(OSError, ValueError):
            if _is_ours(json.loads(lock.read_text(encoding="utf-8"))):
                lock.unlink()


def _owner(file: TextIO) -> dict[str, Any]:
    """Return whom a lock names; nobody if its writer was killed while it wrote, or it was damaged."""
    try:
        found = json.loads(file.read() or "{}")
        return {**found, "pid": int(found["pid"]), "started": float(found["started"] or 0)} if found else {}
    except (ValueError, TypeError, KeyError, OverflowError, RecursionError):
        return {}


def _is_ours(owner: Mapping[str, Any]) -> bool:
    return (owner.get("host"), owner.get("pid")) == (socket.gethostname(), os.getpid())


def myself() -> dict[str, Any]:
    """Return what tells this process from all others."""
    return {
        "host": socket.gethostname(),
        "boot": _boot(),
        "pid": os.getpid(),
        "started": started(os.getpid()),
        "since": time.strftime("%Y-%m-%d %H:%M:%S"),
    }


def _boot() -> str:
    """Return what tells this start of the machine from another, where the system says so."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def started(pid: int) -> float | None:
    """
    Return when a process started, to tell it from a later one of the same number; None if it is no more.

    In seconds since the machine did, since a clock that is set must not make a run look like another.
    """
    import psutil

    try:
        process = psutil.Process(pid)
        is_gone = process.status() == psutil.STATUS_ZOMBIE
        return None if is_gone else round(process.create_time() - psutil.boot_time(), 1)
    except (psutil.Error, ValueError):  # of the second kind for a number that no process has
        return None


def is_alive(owner: Mapping[str, Any]) -> bool:
    """Tell whether the process that a lock names still runs on this machine."""
    since = started(int(owner.get("pid", 0)))
    return (
        since is not None
        and owner.get("boot") == _boot()
        and abs(since - float(owner.get("started") or 0)) < 2
    )
