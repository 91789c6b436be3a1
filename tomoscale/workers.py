"""What workers are started with, wherever they run."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from tomoscale.errors import TomoscaleError

WORKER_ENVIRONMENT = {
    # Dask's own value for the first freezes glibc's mmap threshold: up to three times the CPU per byte.
    "MALLOC_TRIM_THRESHOLD_": "268435456",
    "MALLOC_MMAP_THRESHOLD_": "33554432",
    # Every arena keeps what was given back to it: with one for all threads a worker of `predict` took 792 MB, not 927.
    "MALLOC_ARENA_MAX": "1",
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "NUMBA_NUM_THREADS": "1",
    "BLOSC_NTHREADS": "1",
}
SETTINGS: dict[str, Any] = {
    "distributed.nanny.pre-spawn-environ": WORKER_ENVIRONMENT,
    # Blocks are bounded by the plan: there is nothing to spill.
    "distributed.worker.memory.target": False,
    "distributed.worker.memory.spill": False,
    "distributed.worker.memory.pause": 0.95,
    "distributed.scheduler.worker-saturation": 1.0,
    # A hundred looks per second at the stack of every worker and of the client take 3 % of a run, for a page of the
    # dashboard that shows one function.
    "distributed.worker.profile.enabled": False,
    # As many callbacks of every process only to measure how late they are: 3 % of two cores.
    "distributed.admin.tick.interval": "500 ms",
    # A block that kills its worker is tried three times; a worker that hangs is replaced within two minutes.
    "distributed.scheduler.allowed-failures": 2,
    "distributed.scheduler.worker-ttl": "60 s",
}


def check_script() -> None:
    """
    Refuse to start local workers from a script that they cannot import, as new processes do.

    Raises
    ------
    TomoscaleError
        It was read from standard input, or starts workers whenever it is imported: those would start workers in turn.
    """
    main = sys.modules["__main__"]
    path = getattr(main, "__file__", None)
    if path is None or getattr(main, "__spec__", None) is not None or hasattr(sys, "frozen"):
        return  # typed in, or a module (`python -m`), or a program of its own: nothing is imported again
    try:
        text = Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError:
        raise TomoscaleError(
            f"{path}: local workers are new processes, which read the script as well; keep it in a file, or connect to "
            "'threads'"
        ) from None
    if not any(way in text for way in ("__main__", "MainProcess", "parent_process")):
        raise TomoscaleError(
            f"{path}: local workers are new processes, which run the script as well; write what starts them under "
            "`if __name__ == '__main__':`, or connect to 'threads'"
        )
