"""
A process that compiles kernels for this one, which then loads them.

What the compiler took is not given back: 90 MB after the kernels of a background, which no worker's plan counts.
"""

from __future__ import annotations

import atexit
import contextlib
import importlib
import json
import os
import pickle
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

IDLE_S = 3.0
"""Seconds after which the process is not expected to be needed again."""
_START = (
    "import pickle, sys; sys.path[:] = pickle.load(sys.stdin.buffer); "
    "from tomoscale.kernels import _apart; _apart.serve()"
)
_lock = threading.RLock()
_process: subprocess.Popen[bytes] | None = None
_leaving: threading.Timer | None = None


class ApartError(Exception):
    """The kernel was not compiled, and why."""


def compile_apart(folder: Path, function: Callable[..., Any], types: tuple[Any, ...]) -> None:
    """Compile a kernel into a folder of the cache; `ApartError` if that does not work."""
    with _lock:
        try:
            error = _asked(pickle.dumps((str(folder), function.__module__, function.__qualname__, types)))
        except (OSError, EOFError, pickle.PickleError) as cause:
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
    global _process
    with _lock:
        process, _process = _process, None
        if process is not None:
            process.kill()
            with contextlib.suppress(OSError):  # what it was not told any more
                process.communicate()


def serve() -> None:
    """Compile what is asked for, until nobody can ask any more."""
    from tomoscale.kernels import _compile

    for name in ("SIGINT", "SIGHUP", "SIGUSR1"):  # a terminal or a batch system means the command
        if hasattr(signal, name):
            signal.signal(signal.Signals[name], signal.SIG_IGN)
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    while True:
        try:
            folder, module, name, types = pickle.load(sys.stdin.buffer)  # noqa: S301 (of our own process)
        except EOFError:
            return
        error = None
        try:
            kernel = getattr(importlib.import_module(module), name).__wrapped__
            _compile.compile_below(Path(folder), kernel, types)
        except Exception as cause:  # of whatever kind: it is told, and found again by who asked
            error = f"{type(cause).__name__}: {cause}"
        print(json.dumps(error), file=answers, flush=True)


def _asked(question: bytes) -> str | None:
    """Return the answer to a question: what went wrong."""
    global _process
    if _process is None or _process.poll() is not None:
        _process = subprocess.Popen(
            [sys.executable, "-P", "-c", _START], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        atexit.register(stop)
        question = pickle.dumps([*sys.path, str(Path(__file__).parents[2])]) + question
    assert _process.stdin is not None
    assert _process.stdout is not None
    _process.stdin.write(question)
    _process.stdin.flush()
    answer = _process.stdout.readline()
    if not answer:
        raise EOFError("the process that compiles them ended")
    return json.loads(answer)


def _stop_when_idle() -> None:
    global _leaving
    if _leaving is not None:
        _leaving.cancel()
    _leaving = threading.Timer(IDLE_S, stop)
    _leaving.daemon = True
    _leaving.start()
