"""
A process that compiles kernels for this one, which then loads them.

What the compiler took is not given back: 90 MB after the kernels of a background, which no worker's plan counts.
"""

from __future__ import annotations

import atexit
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


_lock = threading.RLock()
_compiler: _Compiler | None = None
_leaving: threading.Timer | None = None


def compile_apart(folder: Path, function: Callable[..., Any], types: tuple[Any, ...]) -> None:
    """Compile a kernel into a folder of the cache; `ApartError` if that does not work."""
    with _lock:
        try:
            way = _started().way
            way.send((folder, function.__module__, function.__qualname__, types))
            error = way.recv()
        except EOFError:
            stop()
            raise ApartError("the process that compiles them ended") from None
        except OSError as cause:
            stop()
            raise ApartError(f"{type(cause).__name__}: {cause}") from None
        except BaseException:  # interrupted: the answer would be taken for that to the next question
            stop()
            raise
        _stop_when_idle()
    if error:
        raise ApartError(error)


def stop() -> None:
    """End the process, if there is one."""
    global _compiler
    with _lock:
        found, _compiler = _compiler, None
        if found is not None:
            found.way.close()
            found.process.kill()
            found.process.wait()


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


def _started() -> _Compiler:
    """Return the process; start it if it does not run."""
    global _compiler
    if _compiler is None or _compiler.process.poll() is not None:
        stop()
        way, theirs = Pipe()
        with theirs:
            process = subprocess.Popen(
                [sys.executable, "-P", "-c", _START, str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
            )
        _compiler = _Compiler(process, way)
        atexit.register(stop)
        way.send([*sys.path, str(Path(__file__).parents[2])])
    return _compiler


def _stop_when_idle() -> None:
    global _leaving
    if _leaving is not None:
        _leaving.cancel()
    _leaving = threading.Timer(IDLE_S, stop)
    _leaving.daemon = True
    _leaving.start()
