"""
Run many commands quickly, each in a process of its own that is limited and measured.

The server imports the package once; every command is a fork of it. What a command takes beyond the
server is its own, so memory can be limited to a few hundred MiB although the libraries take as much.

    $ echo '{"arguments": ["info", "absent.zarr"], "folder": "/tmp"}' | python tests/command_server.py
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import json
import os
import resource
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tomoscale

MIB = 2**20
LIBRARIES = (
    "dask.array", "distributed", "h5py", "hdf5plugin", "imagecodecs", "fabio.edfimage", "numba", "numcodecs",
    "pyarrow.parquet", "pydantic.dataclasses", "pydantic.json_schema", "pydantic.type_adapter", "scipy.ndimage",
    "tifffile", "zarr", "rich.progress", "tomoscale.cli", "tomoscale.kernels", "tomoscale.sources.edf",
    "tomoscale.sources.hdf5", "tomoscale.sources.npz_files", "tomoscale.sources.tiff",
    *(f"tomoscale.{topic}" for topic in tomoscale.TOPICS),
)  # fmt: skip


@dataclass(frozen=True)
class Done:
    """What became of a command."""

    status: int
    """Exit status; the negative number of a signal that killed it."""
    out: str
    err: str
    peak: int
    """Bytes of memory that it took, libraries included."""
    seconds: float
    """Of computing."""
    hung: bool


class CommandServer:
    """
    A server in a process of its own.

    Parameters
    ----------
    memory : int
        Bytes that a command may take beyond the libraries.
    patience : float
        Seconds after which a command counts as hanging, and is killed.
    target : str
        What is called with the arguments: a module and a function of it, which returns the exit status.
    """

    def __init__(
        self, memory: int = 512 * MIB, patience: float = 60.0, target: str = "tomoscale.cli:main"
    ) -> None:
        self.process = subprocess.Popen(
            [sys.executable, __file__, str(memory), str(patience), target],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "2"},
        )

    def run(self, arguments: Sequence[str], folder: Path) -> Done:
        """Run a command in a folder."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps({"arguments": list(arguments), "folder": str(folder)}) + "\n")
        self.process.stdin.flush()
        return Done(**json.loads(self.process.stdout.readline()))

    def close(self) -> None:
        """Stop the server."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait(30)

    def __enter__(self) -> CommandServer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def status_of(process: str, *names: str) -> list[int]:
    """Return figures of a process in bytes, as Linux gives them."""
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    figures = {line.split(":")[0]: line.split() for line in lines}
    return [int(figures[name][1]) * 1024 for name in names]


def answer(call: Any, request: dict[str, Any], memory: int, patience: float) -> dict[str, Any]:
    """Fork, run one command, and say what became of it."""
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        receiving, sending = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(receiving)
            become_command(call, request, memory, (out.fileno(), err.fileno(), sending))
        os.close(sending)
        ready, _, _ = select.select([receiving], [], [], patience)  # readable when it writes, or has died
        if not ready:
            os.kill(child, signal.SIGKILL)
        figures = json.loads(os.read(receiving, 4096) or "{}") if ready else {}
        os.close(receiving)
        _, status = os.waitpid(child, 0)
        out.seek(0)
        err.seek(0)
        return {
            "status": os.waitstatus_to_exitcode(status),
            "out": out.read().decode(errors="backslashreplace"),
            "err": err.read().decode(errors="backslashreplace"),
            "peak": figures.get("peak", 0),
            "seconds": figures.get("seconds", 0.0),
            "hung": not ready,
        }


def be_nobody_special() -> None:
    """Give up what lets root read any file, so that permissions count as they do for users."""
    version_3, all_but_files = (
        0x20080522,
        0xFFFFFFFF & ~(1 << 1 | 1 << 2),
    )  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH
    capget, capset = ctypes.CDLL(None).capget, ctypes.CDLL(None).capset
    header, sets = (ctypes.c_uint32 * 2)(version_3, 0), (ctypes.c_uint32 * 6)()
    capget(header, sets)  # effective, permitted and inheritable: the first 32 bits, then the others
    sets[:3] = [bits & all_but_files for bits in sets[:3]]
    capset(header, sets)


def become_command(call: Any, request: dict[str, Any], memory: int, files: tuple[int, int, int]) -> None:
    """Turn this process, a fork, into the command."""
    out, err, sending = files
    os.dup2(out, 1)
    os.dup2(err, 2)
    os.chdir(request["folder"])
    if os.geteuid() == 0:
        be_nobody_special()
    (size,) = status_of("self", "VmSize")
    resource.setrlimit(resource.RLIMIT_AS, (size + memory, size + memory))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    begin = time.process_time()
    status = 1
    try:
        status = call(request["arguments"])
    except SystemExit as leaving:
        status = leaving.code if isinstance(leaving.code, int) else 1
    except BaseException:
        import traceback

        traceback.print_exc()
    with contextlib.suppress(OSError, ValueError):
        sys.stdout.flush()
        sys.stderr.flush()
    (peak,) = status_of("self", "VmHWM")
    os.write(sending, json.dumps({"peak": peak, "seconds": time.process_time() - begin}).encode())
    os._exit(status)


def serve(memory: int, patience: float, target: str) -> None:
    """Answer requests, one line each, until there are no more."""
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a library prints is no reply
    for name in LIBRARIES:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    module, _, function = target.partition(":")
    call = getattr(importlib.import_module(module), function)
    for line in sys.stdin:
        replies.write(json.dumps(answer(call, json.loads(line), memory, patience)) + "\n")
        replies.flush()


if __name__ == "__main__":
    serve(int(sys.argv[1]), float(sys.argv[2]), sys.argv[3])
