"""Chunks compressed by Blosc: held against what their array says of them, decoded straight to where they belong."""

from __future__ import annotations

import functools
import math
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np

from tomoscale import kernels
from tomoscale.grid import Window
from tomoscale.inflate import BLOSC_HEADER, Undecodable

SHUFFLES = {"noshuffle": 0, "shuffle": 1, "bitshuffle": 2}
SLACK = 32
"""Bytes that the room for a decoded chunk has behind it: planes are read a vector at a time."""
_VERSION, _FLAGS, _ITEMSIZE = 0, 2, 3
"""Bytes of the header."""
_FORMAT = 2
"""The version whose layout is known."""
_HOW, _BITWISE = 0b1111, 0b0100
"""Flags that say how the samples of a chunk lie; as bit planes, and compressed."""
_WORTH = 2**28
"""Decoded bytes from which on it pays to load the kernel, or to compile it."""
_met = 0
"""Bytes that this process has decoded so far, of those that a kernel could."""


@functools.cache
def codec() -> Any:
    """Return the codec, told to stay in the calling thread."""
    from numcodecs import blosc

    blosc.use_threads = False
    return blosc


def decode(
    body: np.ndarray,
    shape: Sequence[int],
    inside: Window,
    out: np.ndarray,
    corner: Sequence[int],
    room: np.ndarray,
) -> None:
    """
    Decode a chunk and write a window of it into an array.

    The library puts bit planes together at a third of the speed at which it decompresses them. Where it may, it is told
    not to, and a kernel does so on their way to the array (`bench_store`).

    Parameters
    ----------
    body : (n,) array of uint8
        The stored bytes; they may be changed.
    shape : sequence of int
        Of the chunk, in C order.
    inside : tuple of slice
        Half-open ranges within the chunk.
    out : array
        C-contiguous, of the type that is stored.
    corner : sequence of int
        Where in it the first sample of the window belongs.
    room : (bytes of the chunk + SLACK,) array of uint8
        For what is decoded on the way.

    Raises
    ------
    Undecodable
        The bytes are damaged, or declare another size than their own and that of the chunk.
    """
    n_bytes = math.prod(shape) * out.itemsize
    together = _checked(body, n_bytes)
    if _as_planes(body, n_bytes, together, out):
        body[_FLAGS] &= ~_BITWISE & 0xFF
        _decompress(body, room[:n_bytes])
        kernels.from_bit_planes(room, shape, together // out.itemsize, inside, out, corner)
        return
    target = out[tuple(slice(c, c + w.stop - w.start) for c, w in zip(corner, inside, strict=True))]
    if target.shape == tuple(shape) and target.flags.c_contiguous:
        _decompress(body, target)
        return
    chunk = room[:n_bytes].view(out.dtype).reshape(shape)
    _decompress(body, chunk)
    target[...] = chunk[inside]


def encode(samples: np.ndarray, how: tuple[str, int, int, int]) -> bytes:
    """Encode contiguous samples by compressor, level, way of shuffling and bytes of a block."""
    name, level, shuffle, per_block = how
    return codec().compress(samples, name.encode(), level, shuffle, per_block)


def _checked(body: np.ndarray, n_bytes: int) -> int:
    """Hold the header against what is expected; return the bytes that were compressed together."""
    declared = BLOSC_HEADER.unpack_from(body) if len(body) >= BLOSC_HEADER.size else (0,) * 7
    if declared[4] != n_bytes or declared[6] != len(body):
        raise Undecodable(
            f"declares {declared[4]} bytes from {declared[6]}; expected {n_bytes} from {len(body)}"
        )
    return int(declared[5])


def _as_planes(body: np.ndarray, n_bytes: int, together: int, out: np.ndarray) -> bool:
    """Tell whether the samples are stored as bit planes, and whether a kernel is to put them together."""
    return (
        body[_FLAGS] & _HOW == _BITWISE
        and body[_VERSION] == _FORMAT
        and body[_ITEMSIZE] == out.itemsize
        and out.itemsize in (1, 2, 4)
        and together > 0
        and together % (8 * out.itemsize) == 0
        and n_bytes % (8 * out.itemsize) == 0  # others Blosc does not shuffle
        and sys.byteorder == "little"
        and _kernel_pays(n_bytes)
    )


def _kernel_pays(n_bytes: int) -> bool:
    """
    Tell whether this process, which decodes so many bytes more, should do so by a kernel.

    Only where others are at work already: to load a first one takes 50 to 80 MB, which no plan of a run without kernels
    counts. And a demo of a few megabytes should not wait for a compiler.
    """
    global _met
    _met += n_bytes
    return _met > _WORTH and "tomoscale.kernels._compile" in sys.modules


def _decompress(body: np.ndarray, target: np.ndarray) -> None:
    try:
        codec().decompress(body, target)
    except (RuntimeError, ValueError) as error:
        raise Undecodable(f"does not decompress: {error}") from None
