"""
Memory asked for before it is needed.

From one frame to the next a tile of pixels jumps by a whole image, further than any processor looks ahead by itself;
and a long array is read faster where the next page is asked for before this one ends.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir  # type: ignore[import-untyped]
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from tomoscale.kernels._compile import inlined

AHEAD = 8
"""Frames; 4 to 32 differ little."""
LINE = 64
"""Bytes of a cache line, or half of one."""
PAGE = 4096
"""Bytes; no processor looks beyond the end of one by itself."""


@inlined
def prefetch_tile(raw, frame, first, width):  # type: ignore[no-untyped-def]
    """Ask for a tile of the frame that follows `AHEAD` frames later, if there is one; the frames are contiguous."""
    if frame + AHEAD < raw.shape[0]:
        line = LINE // raw.itemsize
        j = (frame + AHEAD) * raw.shape[1] + first
        end = j + width
        while j < end:
            _prefetch(raw, j)
            j += line


@inlined
def prefetch_beyond(array, first, count):  # type: ignore[no-untyped-def]
    """Ask for what lies a page behind some items of an array that is read from its beginning to its end."""
    for k in range(0, count, LINE // array.itemsize):
        _prefetch(array, first + np.uint64(PAGE // array.itemsize + k))


@intrinsic
def _prefetch(context: Any, array: Any, index: Any) -> Any:
    """Ask for the cache line of one item of a contiguous array; whatever the address, this never fails."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        items = context.make_array(array)(context, builder, arguments[0])
        address = builder.bitcast(builder.gep(items.data, [arguments[1]]), cgutils.voidptr_t)
        number = ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [cgutils.voidptr_t, number, number, number])
        function = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
        builder.call(function, [address, number(0), number(3), number(1)])  # to read, often, data
        return context.get_dummy_value()

    return types.void(array, index), generate
