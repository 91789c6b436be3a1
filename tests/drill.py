"""Runs of the command in folders of their own, watched and disturbed from outside."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from tomoscale import store

DISTURBED = Path(__file__).with_name("disturbed.py")
COMMANDS = {
    "background": "background scan.zarr -o {out} --half-window 12 --step 6",
    "convert": "convert scan.zarr {out} --chunks 8,48,64",
}
HERE = {
    "local": "--workers 2 --threads 1 --memory 400MB --no-dashboard",
    "threads": "--threads 1 --memory 400MB",
}
FIELDS = {"background": ("frames", "background"), "convert": ("frames",)}


class Drill:
    """
    A run of `tomoscale OPERATION` in a folder that holds `scan.zarr`.

    Parameters
    ----------
    folder : Path
        Where.
    operation : str
        One of `COMMANDS`.
    target : Path, optional
        The result, `out.zarr` in the folder by default.
    **orders
        What is to be disturbed (`disturbed.py`).
    """

    def __init__(self, folder: Path, operation: str, target: Path | None = None, **orders: Any) -> None:
        self.folder, self.operation = folder, operation
        self.target = target or folder / "out.zarr"
        self.root = self.target.with_name(f"{self.target.name}.incomplete")
        self.log = folder / "log.txt"
        self.orders = {"pause": 0.15, "log": str(self.log), **orders}
        self.process: subprocess.Popen[str] | None = None

    def start(
        self, *more: str, scheduler: str = "local", prefix: Sequence[str] = (), **environment: str
    ) -> subprocess.Popen[str]:
        """Start the command, disturbed."""
        words = COMMANDS[self.operation].format(out=self.target).split()
        where = ["--scheduler", scheduler, *HERE.get(scheduler, "").split()]
        self.process = subprocess.Popen(
            [*prefix, sys.executable, str(DISTURBED), *words, *where, *more],
            cwd=self.folder, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            env=self.environment(**environment),
        )  # fmt: skip
        return self.process

    def environment(self, **more: str) -> dict[str, str]:
        """Return the environment of processes that are to be disturbed."""
        return {**os.environ, "DISTURB": json.dumps(self.orders), **more}

    def run(self, *more: str, timeout: float = 240, **how: Any) -> subprocess.CompletedProcess[str]:
        """Run the command to its end."""
        return self.end(self.start(*more, **how), timeout)

    def end(self, process: subprocess.Popen[str], timeout: float = 240) -> subprocess.CompletedProcess[str]:
        """Wait for the end of a command."""
        try:
            out, err = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            end_all(process.pid)
            raise AssertionError(f"no end after {timeout} s: {process.communicate()[1]}") from None
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)

    def n_recorded(self) -> int:
        """Count the blocks that are recorded."""
        return sum(f.read_bytes().count(b"\n") for f in self.root.glob(".tomoscale/blocks-*.jsonl"))

    def logged(self, what: str) -> list[list[str]]:
        """Return what workers and client logged."""
        if not self.log.exists():
            return []
        lines = [line.split() for line in self.log.read_text().splitlines()]
        return [line[1:] for line in lines if line[0] == what]

    def content(self) -> dict[str, np.ndarray]:
        """Return the decoded result."""
        return {name: store.open_volume(self.target / name).whole() for name in FIELDS[self.operation]}

    def wait(self, ready: Callable[[], Any], timeout: float = 120) -> None:
        """Wait until something is so, or the command ends."""
        deadline = time.monotonic() + timeout
        while not ready():
            if self.process is not None and self.process.poll() is not None:
                raise AssertionError(f"the command ended early: {self.process.communicate()}")
            assert time.monotonic() < deadline, f"not within {timeout} s"
            time.sleep(0.02)


def workers_of(pid: int) -> list[psutil.Process]:
    """Return the worker processes of a command."""
    found = []
    for child in family(pid)[1:]:
        try:
            if any("spawn_main" in word for word in child.cmdline()):
                found.append(child)
        except psutil.Error:
            continue
    return found


def family(pid: int) -> list[psutil.Process]:
    """Return a process and all that it started."""
    try:
        process = psutil.Process(pid)
        return [process, *process.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def end_all(pid: int) -> None:
    """Kill a process and all that it started."""
    for process in family(pid):
        try:
            process.send_signal(signal.SIGKILL)
        except psutil.NoSuchProcess:
            continue


def gone(processes: list[psutil.Process], timeout: float = 30) -> list[psutil.Process]:
    """Wait for processes to end; return those that did not."""
    return [p for p in psutil.wait_procs(processes, timeout)[1] if p.status() != psutil.STATUS_ZOMBIE]


def catches(pid: int, number: int) -> bool:
    """Tell whether a process has a handler for a signal."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        caught = next(int(line.split()[1], 16) for line in lines if line.startswith("SigCgt"))
    except (FileNotFoundError, ProcessLookupError):
        return False
    return bool(caught & 1 << number - 1)
