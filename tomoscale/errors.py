"""What can go wrong, in one tree; each error knows the command's exit status."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


class TomoscaleError(ValueError):
    """A mistake in the input or the parameters: where, what came, what was expected, what to do."""

    exit_status = 2


class BlocksFailedError(TomoscaleError):
    """Some blocks could not be computed or written; the others are kept."""

    exit_status = 3


class DamagedError(TomoscaleError):
    """Stored data do not match their checksum, length or manifest; `found` is the list that a command prints."""

    exit_status = 3
    found: object = None


@contextmanager
def bad_input() -> Iterator[None]:
    """Call damage bad input where nothing has been computed yet: no block has failed."""
    try:
        yield
    except DamagedError as error:
        raise TomoscaleError(str(error)) from None


class InterruptedRunError(BaseException):
    """
    A signal stopped the run; what is finished is kept and the same command goes on.

    Like `KeyboardInterrupt` it is no `Exception`: it may be raised anywhere, and no handler of ordinary errors
    may take it for one of them.
    """

    exit_status = 75
