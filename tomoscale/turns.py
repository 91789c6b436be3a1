"""
Whose turn it is to compute: a worker reads its next block and writes its last one while it computes one.

A worker has more threads than may compute at a time. A thread takes a block from its reading to its writing, as
without this, and waits for its turn in between; so nothing is handed over, an error is that of its block, and no more
blocks are held than there are threads.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


class _Here(threading.local):
    """What this thread was told: how many may compute at a time, 0 for any number; and whether it is one of them."""

    most = 0
    computes = False


_here = _Here()
_free = threading.Condition()
_queue: deque[object] = deque()
_computing = 0


def run(most: int, overlaps: bool, function: Callable[..., Any], *arguments: Any) -> Any:
    """
    Call a function in which, or during which, at most so many threads of this process compute.

    Parameters
    ----------
    most : int
        Threads that may compute at a time.
    overlaps : bool
        Whether the function waits for its turn itself (`taken`), after it read and before it writes; else it has
        a turn from its beginning to its end.
    function : callable
        What is called.
    *arguments
        For it.

    Returns
    -------
    object
        What it returned.
    """
    before, _here.most = _here.most, most
    try:
        if overlaps:
            return function(*arguments)
        with taken():
            return function(*arguments)
    finally:
        _here.most = before


def side_by_side() -> int:
    """Return how many threads of this process may compute at a time, with this one: 1 if nothing was said of it."""
    return _here.most or 1


@contextmanager
def taken() -> Iterator[None]:
    """
    Wait until fewer threads compute than may, and those that waited before had their turn.

    A thread that has its turn already, or was told nothing, goes on.
    """
    global _computing
    if _here.computes or not _here.most:
        yield
        return
    ticket = object()
    with _free:
        _queue.append(ticket)
        _free.wait_for(lambda: _computing < _here.most and _queue[0] is ticket)
        _queue.popleft()
        _computing += 1
        _free.notify_all()  # the next in the queue may go on as well
    _here.computes = True
    try:
        yield
    finally:
        _here.computes = False
        with _free:
            _computing -= 1
            _free.notify_all()
