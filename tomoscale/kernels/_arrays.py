"""Arrays as the kernels take them, and where they lie: in this process (NumPy) or on a GPU (CuPy)."""

from __future__ import annotations

import functools
import importlib
import sys
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

Kernel = TypeVar("Kernel", bound=Callable[..., Any])


def plain(array: ArrayLike, dtype: DTypeLike | None = None) -> NDArray:
    """
    Return a contiguous, aligned, read-only array in native byte order, copied only if it is not.

    Layout and writability are part of a compiled version's type: this way every input meets the same version. Half
    floats, which no kernel knows, are widened.
    """
    given = np.asarray(array)
    if dtype is None and given.dtype == np.float16:
        dtype = np.float32
    wanted = given.dtype if dtype is None else np.dtype(dtype)
    if not wanted.isnative:
        wanted = wanted.newbyteorder("=")
    layout = given.flags
    fits = given.dtype == wanted and layout.c_contiguous and layout.aligned
    view = (given if fits else np.require(given, wanted, ["C", "A"])).view()
    view.flags.writeable = False
    return view


@functools.cache
def name_of(dtype: np.dtype) -> str:
    """Return the name of a type, which NumPy puts together anew every time."""
    return dtype.name


def namespace(array: Any) -> Any:
    """Return the library of an array: CuPy for its own, which can only be there if CuPy is; else NumPy."""
    cupy = sys.modules.get("cupy")
    return cupy if cupy is not None and isinstance(array, cupy.ndarray) else np


def ndimage(array: Any) -> Any:
    """Return the filters for an array: `scipy.ndimage`, or CuPy's functions of the same names."""
    return importlib.import_module("scipy.ndimage" if namespace(array) is np else "cupyx.scipy.ndimage")


def host(array: Any) -> NDArray:
    """Return an array in the memory of this process, copied if it lies on a GPU."""
    return array if namespace(array) is np else array.get()


def on_both(kernel: Kernel) -> Kernel:
    """Let a kernel take blocks on a GPU as well: there the function of its name in `_on_arrays` is called."""

    @functools.wraps(kernel)
    def call(block: Any, *rest: Any) -> Any:
        if namespace(block) is np:
            return kernel(block, *rest)
        return getattr(importlib.import_module("tomoscale.kernels._on_arrays"), kernel.__name__)(block, *rest)

    return call  # type: ignore[return-value]
