"""What a plan may use, known where operations are called."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import NamedTuple


class Resources(NamedTuple):
    """
    What a plan may use.

    Parameters
    ----------
    block_bytes : int
        Bytes that one block may cost.
    threads : int
        Threads that share the blocks.
    most_bytes : int
        Bytes that one block may cost where larger blocks spare work, instead of only keeping workers busy for longer.
    """

    block_bytes: int
    threads: int
    most_bytes: int


_DEFAULT = Resources(block_bytes=1_600_000_000, threads=os.cpu_count() or 1, most_bytes=1_600_000_000)
_resources: ContextVar[Resources] = ContextVar("resources", default=_DEFAULT)


def resources() -> Resources:
    """Return what a plan made now may use."""
    return _resources.get()


@contextmanager
def planned_for(block_bytes: int, threads: int, most_bytes: int = 0) -> Iterator[None]:
    """
    Let operations called inside plan for other resources.

    Parameters
    ----------
    block_bytes : int
        Bytes that one block may cost.
    threads : int
        Threads that share the blocks.
    most_bytes : int
        Bytes that one block may cost where larger blocks spare work; as others by default.
    """
    token = _resources.set(Resources(block_bytes, threads, max(block_bytes, most_bytes)))
    try:
        yield
    finally:
        _resources.reset(token)
