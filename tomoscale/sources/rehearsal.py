"""
Open files in another process first where a library may loop for ever, or crash, over a damaged one.

Neither can be caught where it happens. So a process that has little time and memory describes the files in
the same way as this one will; only if it comes back is it done here.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import json
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from tomoscale.errors import TomoscaleError

LIBRARIES = {"hdf5": "HDF5", "edf": "fabio"}
"""By the module that has `describe`."""
CPU_S = 3
"""Seconds of computing that one call of a library may take: waiting for a slow disk does not count."""
MOST_CPU_S = {"hdf5": 30, "edf": 3}
"""And all calls for one file: HDF5 may hold a hundred thousand links, EDF holds some lines of text."""
MEMORY = 2**30
"""Bytes beyond the libraries."""
TOO_LARGE = 3


def rehearse(kind: str, paths: Sequence[Path], dataset: str | None = None) -> None:
    """
    Make sure that a library survives some files.

    Parameters
    ----------
    kind : {"hdf5", "edf"}
        What they are.
    paths : sequence of Path
        The files.
    dataset : str, optional
        What is looked for in them.

    Raises
    ------
    TomoscaleError
        It would not come to an end, crash, or take too much memory.
    """
    _rehearsed(
        kind, tuple((str(p), p.stat().st_mtime_ns, p.stat().st_size) for p in paths if p.is_file()), dataset
    )


@functools.lru_cache(maxsize=64)
def _rehearsed(kind: str, files: tuple[tuple[str, int, int], ...], dataset: str | None) -> None:
    paths = [path for path, _, _ in files]
    done = subprocess.run(
        [sys.executable, "-m", __name__],
        input=json.dumps({"kind": kind, "paths": paths, "dataset": dataset}),
        text=True,
        capture_output=True,
    )
    if done.returncode == 0:
        return
    library = f"the {LIBRARIES[kind]} library"
    reached = done.stdout.count("\n")
    where = paths[min(reached, len(paths) - 1)]
    if done.returncode == -signal.SIGXCPU:
        what = f"{library} comes to no end with it"
    elif done.returncode == TOO_LARGE:
        what = f"{library} takes more than {MEMORY / 2**30:.0f} GiB to open it"
    elif done.returncode < 0:
        what = f"{library} crashes over it ({signal.Signals(-done.returncode).name})"
    else:
        said = (done.stderr.splitlines() or ["without a word"])[-1]
        raise TomoscaleError(f"{where}: the process that was to open it first has failed: {said}")
    raise TomoscaleError(f"{where}: {what}; the file is damaged")


def main() -> None:
    """Describe the files that standard input names; print a line for each."""
    asked = json.load(sys.stdin)
    describe = importlib.import_module(f"tomoscale.sources.{asked['kind']}").describe
    _limit(resource.RLIMIT_CORE, 0)
    with contextlib.suppress(OSError):  # where there is no /proc, memory is not limited
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        _limit(resource.RLIMIT_AS, pages * resource.getpagesize() + MEMORY)
    last = [0.0]
    threading.Thread(target=_allow_more, args=[last], daemon=True).start()
    for path in asked["paths"]:
        last[0] = time.process_time() + MOST_CPU_S[asked["kind"]]
        _limit(resource.RLIMIT_CPU, int(time.process_time()) + CPU_S)
        try:
            describe(Path(path), asked["dataset"])
        except MemoryError:
            sys.exit(TOO_LARGE)
        except Exception:  # will be said where it is met in earnest
            break
        print(flush=True)
    os._exit(0)  # without waiting for the thread


def _allow_more(last: list[float]) -> None:
    """Allow more computing time as long as this thread gets its turn: in a call that never ends it does not."""
    while True:
        time.sleep(0.2)
        _limit(resource.RLIMIT_CPU, int(min(time.process_time() + CPU_S, last[0])))


def _limit(what: int, value: int) -> None:
    """Set a limit, below the one that this process was started with."""
    _, most = resource.getrlimit(what)
    resource.setrlimit(what, (value if most == resource.RLIM_INFINITY else min(value, most), most))


if __name__ == "__main__":
    main()
