"""What a plan may use, known where operations are called."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import NamedTuple


class Resources(NamedTuple):
    """What a plan may use: bytes that one block may cost, and the threads that share the blocks."""

    block_bytes: int
    threads: int


_DEFAULT = Resources(block_bytes=1_600_000_000, threads=os.cpu_count() or 1)
_resources: ContextVar[Resources] = ContextVar("resources", default=_DEFAULT)


def resources() -> Resources:
    """Return what a plan made now may use."""
    return _resources.get()


@contextmanager
def planned_for(block_bytes: int, threads: int) -> Iterator[None]:
    """
    Let operations called inside plan for other resources.

    Parameters
    ----------
    block_bytes : int
        Bytes that one block may cost.
    threads : int
        Threads that share the blocks.
    """
    token = _resources.set(Resources(block_bytes, threads))
    try:
        yield
    finally:
        _resources.reset(token)
