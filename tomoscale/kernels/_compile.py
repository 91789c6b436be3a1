"""The one place for compiler options."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numba


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile a kernel: no fast-math (results are bit for bit), no GIL, no threads of its own."""
    return numba.njit(nogil=True, cache=True)(function)
