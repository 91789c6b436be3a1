"""Where blocks run: local worker processes, threads of this process, or a Dask cluster that exists already."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any, NamedTuple

from tomoscale import buffers, jobfile, jobs, remote
from tomoscale.access import Access
from tomoscale.errors import BlocksFailedError, InterruptedRunError, TomoscaleError
from tomoscale.progress import human_bytes
from tomoscale.signals import interruptible, kept_from_children
from tomoscale.workers import SETTINGS, check_script

BASE_BYTES = 250_000_000
"""What a worker holds before its first block: interpreter, Dask, Numba and the compiled kernels (206 MB measured)."""
BLOCK_FACTOR = 1.15
USABLE = 0.7
LOCAL = Access()
START_ATTEMPTS = 5
"""Dask gives up when one worker dies while it starts."""
MOST_BLOCK_BYTES = 1_600_000_000


class Started(NamedTuple):
    """Workers that run: what takes calls, the dashboard's address, and what says that they are in trouble."""

    executor: Executor
    dashboard: str | None = None
    trouble: Callable[[], str | None] = lambda: None


@dataclass
class Connection:
    """
    Workers that a run may use; they are started when first needed.

    Parameters
    ----------
    start : callable
        Starts the workers with so many times their threads, and puts what will stop them on a stack.
    workers, threads : int
        Worker processes, and threads of each that compute at a time.
    memory : int
        Bytes that one worker may use.
    where : str
        For people: what it is.
    """

    start: Callable[[ExitStack, int], Started]
    workers: int
    threads: int
    memory: int
    where: str
    _stack: ExitStack = field(default_factory=ExitStack)
    _lanes: int = 1

    @cached_property
    def _started(self) -> Started:
        return self.start(self._stack, self._lanes)

    def overlap(self) -> None:
        """Give every thread a second one that reads and writes meanwhile, of workers that are still to be started."""
        self._lanes = 2

    @property
    def executor(self) -> Executor:
        """What takes calls; its futures may be waited for with `concurrent.futures.wait`."""
        return self._started.executor

    @property
    def dashboard(self) -> str | None:
        """Address of Dask's dashboard, if there is one."""
        return self._started.dashboard

    def trouble(self) -> str | None:
        """Say why no result will come any more; None while nothing is wrong."""
        return self._started.trouble()

    @property
    def slots(self) -> int:
        """Blocks that are computed at the same time."""
        return self.workers * self.threads

    @property
    def block_bytes(self) -> int:
        """What one block may cost so that all threads of a worker fit, and a worker stays small anyway."""
        return min(self.most_block_bytes, MOST_BLOCK_BYTES)

    @property
    def most_block_bytes(self) -> int:
        """What one block may cost so that all threads of a worker fit."""
        fits = (USABLE * self.memory - BASE_BYTES) / BLOCK_FACTOR / self.threads
        if fits <= 0:
            raise TomoscaleError(
                f"{human_bytes(self.memory)} per worker do not hold the libraries ({human_bytes(BASE_BYTES)}) and a "
                "block; give --memory 500MB at least, or fewer --workers"
            )
        return int(fits)

    def close(self) -> None:
        """Stop what was started."""
        self._stack.close()


def worker_bytes(block_bytes: int, threads: int) -> int:
    """Return the memory that a worker needs for blocks of this cost on all of its threads."""
    return int(threads * BLOCK_FACTOR * block_bytes) + BASE_BYTES


@contextmanager
def connect(
    scheduler: str = "local",
    *,
    workers: int | None = None,
    threads: int | None = None,
    memory: int | None = None,
    access: Access = LOCAL,
    quiet: bool = False,
) -> Iterator[Connection]:
    """
    Connect to workers, and leave them at the end.

    Parameters
    ----------
    scheduler : str
        `local`: processes on this machine, bound to the loopback interface; `threads`: threads of this
        process; the address of a running Dask scheduler (`tls://host:port`; plain `tcp://` only on the
        loopback interface); or a file that describes jobs of a batch system (`slurm.yaml`, see `jobfile.read`).
    workers : int, optional
        Local processes; as many as cores by default.
    threads : int, optional
        Threads of each; 1 by default, and as many as cores for `threads`.
    memory : int, optional
        Bytes that one worker may use; an equal share of the machine by default.
    access : Access
        Who may reach the workers.
    quiet : bool
        Do not say what jobs are waited for.

    Yields
    ------
    Connection
        The workers.
    """
    connection = _connection(scheduler, workers, threads, memory, access, quiet)
    interrupted = False
    try:
        yield connection
    except InterruptedRunError:
        interrupted = True
        raise
    finally:
        with interruptible() as signals, signals.noted():
            # A command that leaves now has no time for the farewell of busy workers; they see that it is gone.
            if not (interrupted and signals.leave):
                connection.close()


def _connection(
    scheduler: str, workers: int | None, threads: int | None, memory: int | None, access: Access, quiet: bool
) -> Connection:
    if scheduler == "threads":
        count = threads or workers or _cores()
        where = f"{count} thread{'s' * (count > 1)} of this process"
        return Connection(partial(_threads, count), 1, count, memory or machine_memory(), where)
    if scheduler == "local":
        workers, threads = workers or _cores(), threads or 1
        each = memory or machine_memory() // workers
        where = f"{workers} local worker{'s' * (workers > 1)} of {threads} thread{'s' * (threads > 1)}"
        return Connection(partial(_local, workers, threads, each, access), workers, threads, each, where)
    given = {"--workers": workers, "--threads": threads, "--memory": memory}
    names = ", ".join(name for name, value in given.items() if value)
    if scheduler.endswith((".yaml", ".yml")):
        if names:
            raise TomoscaleError(f"scheduler {scheduler}: the file says what its jobs are; leave out {names}")
        found = jobfile.read(scheduler)
        start = partial(_queued, found, access, quiet)
        return Connection(start, found.workers, found.threads, found.memory, found.where)
    if "://" in scheduler:
        if names:
            raise TomoscaleError(f"scheduler {scheduler}: its workers are there already; leave out {names}")
        client = remote.connected(scheduler, access)
        try:
            connection = of_client(client)
        except BaseException:
            client.close()
            raise
        connection._stack.enter_context(client)
        return connection
    raise TomoscaleError(
        f"scheduler {scheduler!r}; expected local, threads, an address such as tls://host:8786, or a file of jobs "
        "such as slurm.yaml"
    )


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def machine_memory() -> int:
    """Return the bytes that this machine, or the container we are in, may use."""
    from distributed.system import MEMORY_LIMIT

    return int(MEMORY_LIMIT)


def _threads(threads: int, stack: ExitStack, lanes: int) -> Started:
    executor = ThreadPoolExecutor(lanes * threads, thread_name_prefix="tomoscale-block")
    stack.callback(buffers.clear)
    stack.callback(executor.shutdown, wait=False, cancel_futures=True)
    return Started(executor)


def _local(workers: int, threads: int, memory: int, access: Access, stack: ExitStack, lanes: int) -> Started:
    import dask
    from distributed import Client

    check_script()
    stack.enter_context(dask.config.set(SETTINGS))
    with kept_from_children():
        cluster = stack.enter_context(_processes(workers, lanes * threads, memory, access.dashboard))
    client = stack.enter_context(Client(cluster, set_as_default=False))
    return _of(client, access.dashboard)


def _processes(workers: int, threads: int, memory: int, dashboard: bool) -> Any:
    from distributed import LocalCluster

    for attempt in range(START_ATTEMPTS):
        try:
            return LocalCluster(
                n_workers=workers,
                threads_per_worker=threads,
                memory_limit=memory,
                host="127.0.0.1",
                dashboard_address="127.0.0.1:0" if dashboard else None,
                silence_logs=logging.CRITICAL,  # a failed block is named by the run, in one line
            )
        except Exception as error:  # whatever became of a process that was starting
            if attempt == START_ATTEMPTS - 1:
                raise BlocksFailedError(
                    f"the local workers do not start: {_cause(error)}; run the same command again to go on"
                ) from None
    raise AssertionError("unreachable")


def _queued(found: jobfile.Jobs, access: Access, quiet: bool, stack: ExitStack, lanes: int) -> Started:
    import dask

    stack.enter_context(dask.config.set(SETTINGS))
    client = jobs.start(found, access, stack, lanes, quiet=quiet)
    return _of(client, access.dashboard, found.patience_s)


def of_client(client: Any) -> Connection:
    """
    Use the workers of a Dask client.

    Parameters
    ----------
    client : distributed.Client
        Connected to a scheduler that has workers.

    Returns
    -------
    Connection
        Its workers.

    Raises
    ------
    TomoscaleError
        There are none, or they have other versions than this process.
    """
    found = list(client.scheduler_info(n_workers=-1)["workers"].values())
    if not found:
        raise TomoscaleError("the Dask cluster has no workers; start some, or wait for them")
    remote.check_versions(client)
    threads = max(w["nthreads"] for w in found)
    memory = min((w["memory_limit"] or machine_memory()) for w in found)
    where = f"{len(found)} workers of {threads} threads at {client.scheduler.address}"
    return Connection(lambda stack, _: _of(client), len(found), threads, int(memory), where)


def _cause(error: BaseException) -> str:
    """Return what an error came from in the first place."""
    while error.__cause__ is not None:
        error = error.__cause__
    return f"{type(error).__name__}: {error}"


def _of(client: Any, dashboard: bool = True, alone_s: float | None = None) -> Started:
    executor = client.get_executor(pure=False, retries=0)
    pulse = remote.Pulse(client, alone_s)
    return Started(executor, client.dashboard_link if dashboard else None, pulse.trouble)


@contextmanager
def current(connection: Connection | None = None) -> Iterator[Connection]:
    """Yield the given connection, else the session's Dask client, else threads of this process."""
    if connection is not None:
        yield connection
        return
    try:
        from distributed import get_client

        client = get_client()
    except ValueError:
        with connect("threads") as threads:
            yield threads
        return
    yield of_client(client)
