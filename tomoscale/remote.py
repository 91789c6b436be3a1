"""A Dask scheduler and its workers, from afar: reached, of the same versions, alive."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import platform
import time
from collections.abc import Coroutine
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
UNHEARD_S = 150.0
"""After this long without a heartbeat a worker's blocks go elsewhere; local ones are replaced sooner."""


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
    Asks a scheduler now and then who works for it, and has workers removed that are not heard of any more.

    A scheduler that somebody else started may wait ten minutes for a frozen worker, or for ever; its blocks
    would be missing that long.

    Parameters
    ----------
    client : distributed.Client
        Connected.
    alone_s : float, optional
        Seconds without any worker after which a run gives up; `ALONE_S` by default.
    """

    def __init__(self, client: Any, alone_s: float | None = None) -> None:
        self.client, self.alone_s = client, ALONE_S if alone_s is None else alone_s
        self._answer: Future[dict[str, float] | None] | None = None
        self._last = self._asked = time.monotonic()
        self._waited_s = self._silent_s = self._alone_s = 0.0
        self._heard: dict[str, tuple[float, float]] = {}

    def trouble(self) -> str | None:
        """Say what is wrong, None if nothing is; called several times per second."""
        if self.client.status != "running":
            return "the connection to the scheduler was lost"
        now = time.monotonic()
        # A program that was stopped itself (Ctrl-Z) has not waited for anybody.
        passed, self._last = min(now - self._last, 1.0), now
        self._waited_s += passed
        if self._answer is None and now - self._asked > ASK_EVERY_S:
            self._asked = now
            self._answer = self._start(self._workers())
        if self._answer is not None:
            self._silent_s += passed
            if self._answer.done():
                workers = self._answer.result()
                self._answer = None
                if workers is not None:
                    self._silent_s = 0.0
                    self._listen(workers)
        if self._silent_s > SILENT_S:
            return f"the scheduler has not answered for {SILENT_S:.0f} s"
        if self._alone_s > self.alone_s:
            return f"no workers were left for {self.alone_s:.0f} s"
        return None

    def _listen(self, workers: dict[str, float]) -> None:
        """Note who was heard of since the last time; clocks of other hosts are not compared with ours."""
        self._alone_s = 0.0 if workers else self._alone_s + ASK_EVERY_S
        before, self._heard = self._heard, {}
        for address, seen in workers.items():
            last, when = before.get(address, (seen, self._waited_s))
            self._heard[address] = (seen, when if seen == last else self._waited_s)
            if self._waited_s - self._heard[address][1] > UNHEARD_S:
                del self._heard[address]
                self._start(self._remove(address))

    def _start(self, call: Coroutine[Any, Any, Any]) -> Future[Any]:
        return asyncio.run_coroutine_threadsafe(call, self.client.loop.asyncio_loop)

    async def _workers(self) -> dict[str, float] | None:
        """Return when the scheduler heard of every worker, by its clock."""
        try:
            found = (await self.client.scheduler.identity(n_workers=-1))["workers"]
            return {address: worker["last_seen"] for address, worker in found.items()}
        except Exception:  # whatever it is, it is no answer
            return None

    async def _remove(self, address: str) -> None:
        with contextlib.suppress(Exception):  # asked again as long as it is there
            await self.client.scheduler.unregister(
                address=address, stimulus_id=f"tomoscale-unheard-{time.time()}"
            )
