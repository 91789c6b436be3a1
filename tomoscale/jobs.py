"""Workers that a batch system starts (Slurm, PBS, LSF ...): dask-jobqueue submits the jobs that a file describes."""

from __future__ import annotations

import contextlib
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
import warnings
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from tomoscale import remote
from tomoscale.access import FILES, Access
from tomoscale.errors import BlocksFailedError, InterruptedRunError, TomoscaleError
from tomoscale.jobfile import Jobs
from tomoscale.progress import LOG_EVERY_S, human_time
from tomoscale.signals import interruptible
from tomoscale.workers import WORKER_ENVIRONMENT

ROLES = ("client", "scheduler", "worker")

_running: list[Any] = []
"""Clusters whose jobs must be cancelled when the command leaves."""


def start(found: Jobs, access: Access, stack: ExitStack, lanes: int = 1, *, quiet: bool = False) -> Any:
    """
    Submit jobs, and wait for their first worker.

    Parameters
    ----------
    found : Jobs
        What to start.
    access : Access
        Who may reach the workers.
    stack : ExitStack
        Gets what cancels the jobs.
    lanes : int
        Times that every worker has its threads.
    quiet : bool
        Do not say what is waited for.

    Returns
    -------
    distributed.Client
        Connected to the scheduler of the jobs, which runs in this process.

    Raises
    ------
    TomoscaleError
        The batch system does not take the jobs, or there is no key for their connections.
    BlocksFailedError
        No worker came within the patience.
    """
    from distributed import Client

    failed: list[str] = []
    with interruptible() as signals, signals.noted():
        cluster = _submitted(found, access, stack, lanes, failed)
        client = stack.enter_context(Client(cluster, set_as_default=False))
        begin = said = time.monotonic()
        while not client.scheduler_info(n_workers=-1)["workers"]:
            now = time.monotonic()
            waited = human_time(now - begin)
            waiting = f"no worker of {found.n_jobs} jobs of {found.system} has come for {waited}"
            if signals.received:
                raise InterruptedRunError(f"{signals.received}: stopped; run the same command again to go on")
            if failed:
                raise TomoscaleError(f"{found.path}: {found.system} does not take the jobs: {failed[0]}")
            if now - begin > found.patience_s:
                raise BlocksFailedError(f"{waiting}; run the same command again to go on")
            if now - said > LOG_EVERY_S and not quiet:
                said = now
                print(f"{waiting} (Ctrl-C cancels them)", file=sys.stderr, flush=True)
            time.sleep(0.2)
    remote.check_versions(client)
    return client


def _submitted(found: Jobs, access: Access, stack: ExitStack, lanes: int, failed: list[str]) -> Any:
    """Start a scheduler in this process, and submit jobs whose workers find it."""
    options = dict(found.options)
    base: Any = found.cluster_class.job_cls

    class Job(base):
        """A job that says why it could not be submitted: otherwise only a log of Dask would."""

        async def start(self) -> None:
            try:
                await super().start()
            except Exception as error:
                failed.append(_last_line(error))
                raise

    if not found.are_here:
        options["security"] = _security(found, access, stack)
    arguments = list(options.pop("worker_extra_args", ()))
    if lanes > 1:
        arguments += ["--nthreads", str(lanes * found.threads)]
    # Workers get what our local ones do, through the environment: their own configuration may be any.
    settings = {
        **WORKER_ENVIRONMENT,
        "DASK_DISTRIBUTED__WORKER__MEMORY__TARGET": "False",
        "DASK_DISTRIBUTED__WORKER__MEMORY__SPILL": "False",
        "DASK_DISTRIBUTED__WORKER__MEMORY__PAUSE": "0.95",
    }
    python = options.pop("python", None) or sys.executable
    dashboard = {"dashboard_address": "127.0.0.1:0" if access.dashboard else None}
    try:
        cluster = found.cluster_class(
            job_cls=Job,
            python=" ".join(["env", *(f"{name}={value}" for name, value in settings.items()), python]),
            worker_extra_args=[*arguments, "--no-dashboard", "--dashboard-address", "127.0.0.1:0"],
            scheduler_options={**dashboard, **options.pop("scheduler_options", {})},
            silence_logs="critical",
            **options,
        )
    except (ValueError, TypeError, AttributeError, RuntimeError, OSError) as error:
        raise TomoscaleError(f"{found.path}: dask-jobqueue: {_last_line(error)}") from None
    stack.callback(_close, cluster)
    _running.append(cluster)
    stack.callback(_running.remove, cluster)
    # Not `scale`, which does not replace those that are lost.
    cluster.adapt(minimum_jobs=found.n_jobs, maximum_jobs=found.n_jobs)
    return cluster


def _last_line(error: BaseException) -> str:
    """Return what a command said last, in one line."""
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__


def _security(found: Jobs, access: Access, stack: ExitStack) -> Any:
    """Return keys for connections between machines: those given, else of an authority for this run alone."""
    from distributed import Security

    folder = access.certificates
    if access.insecure:
        warnings.warn(f"{found.path}: workers are not encrypted: whoever reaches them can run code as you")
        return None
    if folder is None:
        shared = found.options.get("shared_temp_directory")
        try:
            made = Security.temporary()
        except ImportError:
            raise TomoscaleError(
                f"{found.path}: keys for workers on other machines need cryptography, which is not installed; "
                "pip install 'tomoscale[jobqueue]', or give --certificates FOLDER"
            ) from None
        folder = Path(
            tempfile.mkdtemp(prefix=".tomoscale-", dir=Path(shared).expanduser() if shared else Path.home())
        )
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        texts = (made.tls_ca_file, made.tls_client_cert, made.tls_client_key)
        for name, text in zip(FILES.values(), texts, strict=True):
            (folder / name).write_text(text)
    access = Access(folder)
    access.security(f"tls://{found.system}")  # nobody else may read them
    authority, certificate, key = (str(folder / file) for file in FILES.values())
    roles = {f"tls_{r}_{n}": p for r in ROLES for n, p in (("cert", certificate), ("key", key))}
    return Security(tls_ca_file=authority, require_encryption=True, **roles)


def _close(cluster: Any) -> None:
    """Cancel all jobs and stop the scheduler."""
    try:
        cluster.close()
    except Exception:  # of Dask, where a job was never taken
        _cancel(cluster)


def cancel() -> None:
    """Cancel all jobs at once, for a command that leaves at a signal: those that wait would start for nobody."""
    for cluster in _running:
        _cancel(cluster)


def _cancel(cluster: Any) -> None:
    names = [str(job.job_id) for job in list(cluster.workers.values()) if getattr(job, "job_id", None)]
    command = shlex.split(cluster.job_cls.cancel_command or "kill")
    if names:
        with contextlib.suppress(OSError, subprocess.TimeoutExpired):
            subprocess.run([*command, *names], capture_output=True, timeout=5, check=False)
