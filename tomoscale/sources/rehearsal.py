"""
Open HDF5 files in another process first: the library may loop for ever, or crash, over a damaged one.

Neither can be caught where it happens. So a process that has little time and memory describes the files in
the same way as this one will; only if it comes back is it done here.
"""

from __future__ import annotations

import contextlib
import functools
import json
import resource
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from tomoscale.errors import TomoscaleError

CPU_S, CPU_S_EACH = 2, 0.2
"""Seconds of computing for opening files, and for each of them: waiting for a slow disk does not count."""
MEMORY = 2**30
"""Bytes beyond the libraries."""
TOO_LARGE = 3


def rehearse(paths: Sequence[Path], dataset: str | None) -> None:
    """
    Make sure that the HDF5 library survives some files.

    Parameters
    ----------
    paths : sequence of Path
        The files.
    dataset : str, optional
        What is looked for in them.

    Raises
    ------
    TomoscaleError
        It would not come to an end, crash, or take too much memory.
    """
    _rehearsed(tuple((str(p), p.stat().st_mtime_ns, p.stat().st_size) for p in paths if p.is_file()), dataset)


@functools.lru_cache(maxsize=64)
def _rehearsed(files: tuple[tuple[str, int, int], ...], dataset: str | None) -> None:
    paths = [path for path, _, _ in files]
    done = subprocess.run(
        [sys.executable, "-m", __name__],
        input=json.dumps({"paths": paths, "dataset": dataset}),
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    if done.returncode == 0:
        return
    reached = done.stdout.count("\n")
    where = paths[min(reached, len(paths) - 1)]
    if done.returncode == -signal.SIGXCPU:
        what = "the HDF5 library comes to no end with it"
    elif done.returncode == TOO_LARGE:
        what = f"the HDF5 library takes more than {MEMORY / 2**30:.0f} GiB to open it"
    else:
        what = f"the HDF5 library crashes over it (status {done.returncode})"
    raise TomoscaleError(f"{where}: {what}; the file is damaged")


def main() -> None:
    """Describe the files that standard input names; print a line for each."""
    from tomoscale.sources.hdf5 import describe

    asked = json.load(sys.stdin)
    used = resource.getrusage(resource.RUSAGE_SELF)
    seconds = int(used.ru_utime + used.ru_stime + CPU_S + CPU_S_EACH * len(asked["paths"])) + 1
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 1))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with contextlib.suppress(OSError):
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        limit = pages * resource.getpagesize() + MEMORY
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    for path in asked["paths"]:
        try:
            describe(Path(path), asked["dataset"])
        except MemoryError:
            sys.exit(TOO_LARGE)
        except Exception:  # will be said where it is met in earnest
            break
        print(flush=True)


if __name__ == "__main__":
    main()
