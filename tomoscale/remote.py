"""A Dask scheduler and its workers, from afar: reached, of the same versions, alive."""

from __future__ import annotations

import asyncio
import logging
import platform
import time
from concurrent.futures import Future
from importlib.metadata import version
from typing import Any

from tomoscale.access import Access
from tomoscale.errors import TomoscaleError

SAME = ("tomoscale", "dask", "distributed", "zarr", "numcodecs", "numpy", "numba")
"""What client and workers must have in the same version; of Python the minor one counts."""
ASK_EVERY_S = 2.0
SILENT_S = 20.0
"""After this long without an answer a scheduler counts as gone."""
ALONE_S = 120.0
"""After this long without any worker a run gives up; a nanny starts a new one within seconds."""


def connected(address: str, access: Access) -> Any:
    """
    Connect to a scheduler.

    Parameters
    ----------
    address : str
        `tls://host:port`; plain `tcp://` on the loopback interface only.
    access : Access
        Certificates, or the permission to do without.

    Returns
    -------
    distributed.Client
        Connected.

    Raises
    ------
    TomoscaleError
        The connection would not be encrypted, or nobody answers.
    """
    from distributed import Client

    security = access.security(address)
    # What is wrong is said by the run, in one line.
    for handler in logging.getLogger("distributed").handlers:
        handler.setLevel(logging.CRITICAL)
    try:
        return Client(address, timeout=SILENT_S, set_as_default=False, security=security)
    except (
        OSError,
        TimeoutError,
        ValueError,
    ) as error:  # certificates that cannot be read are of the last kind
        raise TomoscaleError(f"scheduler {address}: no answer ({error})") from None


def check_versions(client: Any) -> None:
    """
    Refuse workers of other versions: their blocks could differ from ours, or fail to arrive.

    Parameters
    ----------
    client : distributed.Client
        Connected.

    Raises
    ------
    TomoscaleError
        Worker, package and both versions.
    """
    ours = {"python": ".".join(platform.python_version_tuple()[:2]), **{n: version(n) for n in SAME}}
    asked = {n: (platform.python_version if n == "python" else version, n) for n in ours}
    for name, (function, argument) in asked.items():
        # Functions of Python itself: they arrive where tomoscale is not installed.
        arguments = () if name == "python" else (argument,)
        for worker, theirs in client.run(function, *arguments, on_error="return").items():
            if isinstance(theirs, BaseException):
                theirs = f"missing ({type(theirs).__name__})"
            if name == "python":
                theirs = ".".join(str(theirs).split(".")[:2])
            if theirs != ours[name]:
                raise TomoscaleError(
                    f"worker {worker} has {name} {theirs} and this process has {ours[name]}; install the same versions "
                    "on both"
                )


class Pulse:
    """
    Asks a scheduler now and then how many workers it has.

    Parameters
    ----------
    client : distributed.Client
        Connected.
    """

    def __init__(self, client: Any) -> None:
        self.client = client
        self._answer: Future[int] | None = None
        self._last = self._asked = time.monotonic()
        self._silent_s = self._alone_s = 0.0

    def trouble(self) -> str | None:
        """Say what is wrong, None if nothing is; called several times per second."""
        if self.client.status != "running":
            return "the connection to the scheduler was lost"
        now = time.monotonic()
        # A program that was stopped itself (Ctrl-Z) has not waited for anybody.
        passed, self._last = min(now - self._last, 1.0), now
        if self._answer is None and now - self._asked > ASK_EVERY_S:
            self._asked = now
            self._answer = asyncio.run_coroutine_threadsafe(self._n_workers(), self.client.loop.asyncio_loop)
        if self._answer is not None:
            self._silent_s += passed
            if self._answer.done():
                n_workers = self._answer.result()
                self._answer, self._silent_s = None, self._silent_s if n_workers < 0 else 0.0
                self._alone_s = 0.0 if n_workers else self._alone_s + ASK_EVERY_S
        if self._silent_s > SILENT_S:
            return f"the scheduler has not answered for {SILENT_S:.0f} s"
        if self._alone_s > ALONE_S:
            return f"no workers were left for {ALONE_S:.0f} s"
        return None

    async def _n_workers(self) -> int:
        try:
            return (await self.client.scheduler.identity(n_workers=0))["n_workers"]
        except Exception:  # whatever it is, it is no answer
            return -1
