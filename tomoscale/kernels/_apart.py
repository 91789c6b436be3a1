"""
Processes that compile kernels for this one, which then loads them.

What the compiler took is not given back: some 90 MB after the kernels of a background, which no worker's plan counts.
"""

from __future__ import annotations

import _thread
import atexit
import importlib
import math
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

MOST_PROCESSES = 2
"""Each takes some 220 MB while it runs."""
IDLE_S = 3.0
"""Seconds after which a process that has nothing to do ends."""
START_S = 120.0
"""Seconds that one may take to start: a program that is no Python interpreter would not answer at all."""
_START = """
import sys
from multiprocessing.connection import Connection
connection = Connection(int(sys.argv[1]))
sys.path[:] = connection.recv()
try:
    from tomoscale.kernels import _apart
    connection.send("")
except BaseException as error:
    connection.send(f"{type(error).__name__}: {error}")
    raise
_apart.serve(connection, int(sys.argv[2]), float(sys.argv[3]))
"""


class ApartError(Exception):
    """A kernel was not compiled, and why."""


def compile_apart(folder: Path, function: Callable[..., Any], types: tuple[Any, ...]) -> None:
    """Compile a kernel into a folder of the cache; `ApartError` if that does not work, `OSError` if it is not kept."""
    question = (folder, function.__module__, function.__qualname__, types)
    answers: list[tuple[str, str]] = []
    here = _here()
    if here.is_over:
        raise ApartError("this process ends")

    def ask() -> None:
        try:
            answer = here.ask(question)
        except Exception as error:
            answer = "failed", f"{type(error).__name__}: {error}"
        if not here.is_over:  # else who asked is not to compile it now, and ends while it waits
            answers.append(answer)
            answered.release()

    # A signal may raise an error in the main thread between any two lines, also within those of `threading`: so it is
    # another thread that asks, and this one only waits.
    answered = threading.Lock()
    answered.acquire()
    try:
        _thread.start_new_thread(ask, ())
    except RuntimeError as error:  # no more threads, or the end of the interpreter
        raise ApartError(str(error)) from None
    answered.acquire()
    ((kind, text),) = answers
    if kind in ("storage", "gone"):
        raise OSError(text) if kind == "storage" else FileNotFoundError(text)
    if kind == "failed":
        raise ApartError(text.splitlines()[0])


def together(*calls: Callable[[], object]) -> None:
    """Make calls side by side, so that the kernels which they need are compiled at the same time."""
    errors: dict[int, BaseException] = {}

    def make(number: int, call: Callable[[], object]) -> None:
        try:
            call()
        except BaseException as error:
            errors[number] = error

    threads = [threading.Thread(target=make, args=item, daemon=True) for item in enumerate(calls)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[min(errors)]


# ---------------------------------------------------------------- here


class _Compiler(NamedTuple):
    process: subprocess.Popen[bytes]
    connection: Connection

    def received(self, within_s: float = math.inf) -> Any:
        """Return what it sends; an error if it ends, which the connection need not tell: a fork may hold it open."""
        end = time.monotonic() + within_s
        while not self.connection.poll(0.5):
            if self.process.returncode is not None and not self.connection.poll():
                raise EOFError("it ended")
            if time.monotonic() > end:
                raise TimeoutError("it does not answer")
        return self.connection.recv()

    def end(self) -> int:
        """Return its exit status, after a moment to end by itself."""
        self.connection.close()
        try:
            return self.process.wait(1.0)
        except subprocess.TimeoutExpired:
            self.process.kill()
            return self.process.wait()


class _Compilers:
    """All of one process."""

    def __init__(self) -> None:
        self.turns = threading.BoundedSemaphore(MOST_PROCESSES)
        self.idle: list[_Compiler] = []
        self.processes: list[subprocess.Popen[bytes]] = []
        self.is_over = False
        self.problem = ""

    def ask(self, question: Any) -> tuple[str, str]:
        """Return the answer of one that is idle, or of a new one."""
        if self.problem:
            return "failed", self.problem
        with self.turns:
            while not self.is_over:
                try:
                    compiler, was_idle = self.idle.pop(), True
                except IndexError:
                    compiler, was_idle = self.start(), False
                try:
                    compiler.connection.send(question)
                    answer: tuple[str, str] = compiler.received()
                except (EOFError, OSError):
                    status = compiler.end()
                    if was_idle:
                        continue  # it had just ended, as there was nothing to do
                    return "failed", f"the process that compiles them ended with status {status}"
                self.idle.append(compiler)
                return answer
        return "failed", "this process ends"

    def start(self) -> _Compiler:
        connection, theirs = Pipe()
        # -P: no modules of the folder we are in.
        command = [sys.executable, "-P", *["-O"] * sys.flags.optimize, "-c", _START]
        with theirs:
            process = subprocess.Popen(
                [*command, str(theirs.fileno()), str(os.getpid()), str(IDLE_S)],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,  # whoever reads ours must not wait for this process when we are gone
                process_group=0,  # a terminal or a batch system that signals means us
            )
        self.processes.append(process)
        threading.Thread(target=self.reap, args=(process,), daemon=True).start()
        compiler = _Compiler(process, connection)
        try:
            connection.send(_PATH)
            error = compiler.received(START_S)
        except (EOFError, OSError) as cause:
            error = str(cause)
            if isinstance(cause, TimeoutError):
                self.problem = f"{sys.executable}: {error}"  # nobody is to wait for it once more
        if not error:
            return compiler
        process.kill()
        raise ApartError(f"{sys.executable}: {error}; status {compiler.end()}")

    def reap(self, process: subprocess.Popen[bytes]) -> None:
        """Wait for the end of a process, or it would stay as a zombie."""
        process.wait()
        self.processes.remove(process)


_of_process: dict[int, _Compilers] = {}


def _here() -> _Compilers:
    """Return those of this process: a fork must neither ask those of its parent nor wait for them."""
    return _of_process.setdefault(os.getpid(), _Compilers())


@atexit.register
def _end_all() -> None:
    here = _here()
    here.is_over = True
    for process in list(here.processes):
        process.kill()


def _absolute(path: str) -> str:
    """Return an entry of `sys.path` that means the same from another folder."""
    return str(Path(path).absolute()) if Path(path).is_dir() else path


_PATH = [*map(_absolute, sys.path), str(Path(__file__).absolute().parents[2])]


# ---------------------------------------------------------------- there


def serve(connection: Connection, parent: int, idle_s: float) -> None:
    """Compile what is asked for, until there is nothing to do."""
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    importlib.import_module("tomoscale.kernels._compile")
    while connection.poll(idle_s):
        try:
            question = connection.recv()
        except EOFError:
            return
        connection.send(_answer(*question))


def _answer(folder: Path, module: str, name: str, types: tuple[Any, ...]) -> tuple[str, str]:
    from tomoscale.kernels import _compile

    try:
        kernel = getattr(importlib.import_module(module), name).__wrapped__
        if (ours := _compile.name_of(kernel, types)) != folder.name:
            return "failed", f"{folder.name} is wanted, it would compile {ours}"
        _compile.compile_below(folder, kernel, types)
    except OSError as error:
        return "gone" if isinstance(error, FileNotFoundError) else "storage", str(error)
    except Exception as error:  # of whatever kind: it is found again by who asked
        return "failed", f"{type(error).__name__}: {error}"
    return "done", ""


def _end_with(parent: int) -> None:
    """End when the process is gone that asks, also in the midst of a kernel."""
    while os.getppid() == parent:
        time.sleep(0.3)
    os._exit(1)
