"""
The command `tomoscale` as a program of many small blocks, that pause, fail or kill their worker as `DISTURB` says.

Worker processes import it as their main module, so all of this holds for them as well. `DISTURB` is JSON:

    pause     seconds that every block takes longer
    log       file for lines `begun LABEL PID` (a worker computes a block) and `got LABEL` (the client knows)
    kill      blocks with this in their name kill their worker
    fail      blocks with this in their name raise an error
    hoard     blocks with this in their name take memory until something stops them
    set       {"tomoscale.module.NAME": value}
    dask      settings of local workers
"""

from __future__ import annotations

import functools
import importlib
import json
import os
import signal
import sys
import time

ORDERS = json.loads(os.environ.get("DISTURB", "{}"))


def main() -> int:
    if sys.argv[1:2] == ["--as"]:  # another program with the same disturbances: dask worker
        module = sys.argv[2]
        sys.argv[:3] = [module]
        return importlib.import_module(module).main()
    from tomoscale import __main__ as command

    return command.main()


def log(*words: object) -> None:
    if "log" in ORDERS:
        descriptor = os.open(ORDERS["log"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        os.write(descriptor, (" ".join(map(str, words)) + "\n").encode())
        os.close(descriptor)


def hoard() -> None:
    taken = []
    while True:
        taken.append(b"x" * 20_000_000)
        time.sleep(0.02)


def disturb() -> None:
    from tomoscale import cluster, columns, convert, run, worker

    columns._multiples = lambda size, edge: [edge]  # many small blocks
    convert.BAND_BYTES = 1
    cluster.SETTINGS.update(ORDERS.get("dask", {}))
    for name, value in ORDERS.get("set", {}).items():
        module, _, attribute = name.rpartition(".")
        setattr(importlib.import_module(module), attribute, value)

    plain_write, plain_compute, plain_execute = worker.write_block, worker.compute, run.execute
    label = ""

    @functools.wraps(plain_write)
    def write_block(graph, keys, places, job, name, record):
        nonlocal label
        label = name  # one thread per worker
        return plain_write(graph, keys, places, job, name, record)

    def compute(graph, keys):
        if label:
            log("begun", label.replace(" ", ""), os.getpid())
            time.sleep(ORDERS.get("pause", 0))
        if label and ORDERS.get("kill", "\n") in label:
            os.kill(os.getpid(), signal.SIGKILL)
        if label and ORDERS.get("hoard", "\n") in label:
            hoard()
        if label and ORDERS.get("fail", "\n") in label:
            raise RuntimeError("the detector was on fire")
        return plain_compute(graph, keys)

    def execute(tasks, workers, done, **options):
        def got(task, result):
            log("got", task.label.replace(" ", ""))
            done(task, result)

        return plain_execute(tasks, workers, got, **options)

    worker.write_block, worker.compute, run.execute = write_block, compute, execute


if __name__ == "__main__":
    from tomoscale.__main__ import mind_signals

    mind_signals()
disturb()
if __name__ == "__main__":
    sys.exit(main())
