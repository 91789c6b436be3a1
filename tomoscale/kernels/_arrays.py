"""Arrays as the kernels take them."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray


def plain(array: ArrayLike, dtype: DTypeLike | None = None) -> NDArray:
    """
    Return a contiguous, aligned, read-only array in native byte order, copied only if it is not.

    Layout and writability are part of a compiled version's type: this way every input meets the same version. Half
    floats, which no kernel knows, are widened.
    """
    given = np.asarray(array)
    if dtype is None and given.dtype == np.float16:
        dtype = np.float32
    wanted = (given.dtype if dtype is None else np.dtype(dtype)).newbyteorder("=")
    view = np.require(given, wanted, ["C", "A"]).view()
    view.flags.writeable = False
    return view
