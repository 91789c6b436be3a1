"""
Processes that compile kernels for this one, which then loads them.

What the compiler took is not given back: 90 MB after the kernels of a background, which no worker's plan counts.
"""

from __future__ import annotations

import atexit
import contextlib
import importlib
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

IDLE_S = 3.0
"""Seconds after which the process is not expected to be needed again."""
MOST = 2
"""Processes at a time; each takes some 250 MB."""
_START = """
import sys
from multiprocessing.connection import Connection
asking = Connection(int(sys.argv[1]))
sys.path[:] = asking.recv()
from tomoscale.kernels import _apart
_apart.serve(asking)
"""


class ApartError(Exception):
    """The kernel was not compiled, and why."""


class _Compiler(NamedTuple):
    """A process that compiles, and the way to it."""

    process: subprocess.Popen[bytes]
    way: Connection

    def end(self, patience_s: float = 0.0) -> int:
        """End it, if it does not by itself; return its exit status."""
        self.way.close()
        try:
            return self.process.wait(patience_s)
        except subprocess.TimeoutExpired:
            self.process.kill()
            return self.process.wait()


_lock = threading.Lock()
_turns = threading.BoundedSemaphore(MOST)
_idle: list[_Compiler] = []
_leaving: threading.Timer | None = None


def compile_apart(folder: Path, function: Callable[..., Any], types: tuple[Any, ...]) -> None:
    """Compile a kernel into a folder of the cache; `ApartError` if that does not work."""
    with _turns:
        try:
            compiler = _taken()
        except OSError as cause:
            raise ApartError(f"{type(cause).__name__}: {cause}") from None
        try:
            compiler.way.send((folder, function.__module__, function.__qualname__, types))
            error = compiler.way.recv()
        except (EOFError, OSError):
            status = compiler.end(patience_s=1.0)
            raise ApartError(f"the process that compiles them ended with status {status}") from None
        except BaseException:  # interrupted: the answer would be taken for that to the next question
            compiler.end()
            raise
        _give_back(compiler)
    if error:
        raise ApartError(error)


def _taken() -> _Compiler:
    """Return a process that waits, or start one."""
    with _lock:
        while _idle:
            if (compiler := _idle.pop()).process.poll() is None:
                return compiler
    way, theirs = Pipe()
    with theirs:
        process = subprocess.Popen(
            [sys.executable, "-P", "-c", _START, str(theirs.fileno())],
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,  # whoever reads ours must not wait for this process when we are gone
        )
    compiler = _Compiler(process, way)
    with contextlib.suppress(OSError):  # it ended: found when it is asked
        way.send([*sys.path, str(Path(__file__).parents[2])])
    return compiler


def _give_back(compiler: _Compiler) -> None:
    """Let a process wait for more to do, but not for long."""
    global _leaving
    with _lock:
        _idle.append(compiler)
        if _leaving is not None:
            _leaving.cancel()
        _leaving = threading.Timer(IDLE_S, stop)
        _leaving.daemon = True
        _leaving.start()


def together(*calls: Callable[[], object]) -> None:
    """Make calls side by side, so that the kernels which they need are compiled at the same time."""
    errors: list[BaseException] = []

    def make(call: Callable[[], object]) -> None:
        try:
            call()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=make, args=(call,), daemon=True) for call in calls]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]


@atexit.register
def stop() -> None:
    """End the processes that wait."""
    with _lock:
        while _idle:
            _idle.pop().end()


def serve(asking: Connection) -> None:
    """Compile what is asked for, until nobody can ask any more."""
    from tomoscale.kernels import _compile

    for name in ("SIGINT", "SIGHUP", "SIGUSR1"):  # a terminal or a batch system means the command
        if hasattr(signal, name):
            signal.signal(signal.Signals[name], signal.SIG_IGN)
    while True:
        try:
            folder, module, name, types = asking.recv()
        except EOFError:
            return
        error = None
        try:
            _compile.compile_below(folder, getattr(importlib.import_module(module), name).__wrapped__, types)
        except Exception as cause:  # of whatever kind: it is told, and found again by who asked
            error = f"{type(cause).__name__}: {cause}"
        asking.send(error)
