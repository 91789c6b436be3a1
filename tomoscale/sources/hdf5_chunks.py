"""
Compressed chunks of HDF5, decoded no further than the dataset declares.

HDF5 hands a chunk to its filter, and most filters let a few kilobytes become gigabytes. So the usual
ones are decoded here, into no more bytes than a chunk has; of the others the size that they declare is
checked before HDF5 reads; filters that are in neither list are refused.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import numpy as np

from tomoscale.blocks import MIB, Window
from tomoscale.errors import TomoscaleError
from tomoscale.grid import overlaps, shifted
from tomoscale.inflate import BLOSC_HEADER, Undecodable, inflate

DEFLATE, SHUFFLE, FLETCHER32, SZIP, LZF, BLOSC, LZ4, BITSHUFFLE, ZSTD = (
    1, 2, 3, 4, 32000, 32001, 32004, 32008, 32015,
)  # fmt: skip
INFLATED = {DEFLATE: "zlib", LZF: "lzf", ZSTD: "zstd"}
KEEPING = frozenset({SHUFFLE, FLETCHER32})
"""Filters that leave the size as it is."""
Opener = Callable[[Any, Any], AbstractContextManager[Any]]
NAMES = {
    DEFLATE: "gzip", SHUFFLE: "shuffle", FLETCHER32: "fletcher32", SZIP: "szip", LZF: "lzf", BLOSC: "blosc",
    LZ4: "lz4", BITSHUFFLE: "bitshuffle", ZSTD: "zstd",
}  # fmt: skip


class Filter(NamedTuple):
    """A filter of a dataset: its number at the HDF Group, and its settings."""

    code: int
    values: tuple[int, ...]


def load_plugins() -> bool:
    """Load the compression filters of hdf5plugin, if it is installed."""
    try:
        import hdf5plugin  # noqa: F401
    except ImportError:
        return False
    return True


def filters_of(dataset: Any) -> tuple[Filter, ...]:
    """Return the filters of a dataset, in the order of encoding."""
    properties = dataset.id.get_create_plist()
    found = (properties.get_filter(i) for i in range(properties.get_nfilters()))
    return tuple(Filter(code, tuple(values)) for code, _, values, _ in found)


def check_filters(where: str, dataset: Any) -> bool:
    """
    Tell whether a dataset is compressed, with filters that are read and are installed.

    Raises
    ------
    TomoscaleError
        Otherwise.
    """
    import h5py

    filters = filters_of(dataset)
    properties = dataset.id.get_create_plist()
    for number, (code, _) in enumerate(filters):
        label = properties.get_filter(number)[3].decode(errors="replace").split(";")[0] or "unnamed"
        if code not in NAMES:
            raise TomoscaleError(
                f"{where}: compressed with filter {code} ({label}), which is not read; known are "
                f"{', '.join(NAMES.values())}"
            )
        if code in INFLATED or code in KEEPING:
            continue
        if not h5py.h5z.filter_avail(code) and not (load_plugins() and h5py.h5z.filter_avail(code)):
            raise TomoscaleError(
                f"{where}: compressed with filter {code} ({label}), which is not installed; "
                "pip install 'tomoscale[formats]'"
            )
        if any(f.code not in KEEPING for f in filters[:number]):
            raise TomoscaleError(f"{where}: compressed again by {NAMES[code]}, which is not read")
    return bool(filters)


def read(dataset: Any, window: Window, out: np.ndarray, open_part: Opener) -> None:
    """
    Read a window of a dataset whose filters `check_filters` has let pass.

    Parameters
    ----------
    dataset : h5py.Dataset
        Open.
    window : tuple of slice
        With as many axes as the dataset.
    out : numpy.ndarray
        Contiguous, of the shape of the window.
    open_part : callable
        Opens a dataset that a virtual one reads.

    Raises
    ------
    Undecodable
        A chunk that is damaged, or would become larger than it may be.
    """
    ours = not dataset.is_virtual and dataset.chunks and filters_of(dataset) and _is_plain(dataset)
    if ours and all(f.code in INFLATED or f.code in KEEPING for f in filters_of(dataset)):
        _decode(dataset, window, out)
        return
    _check(dataset, window, open_part)
    dataset.read_direct(out, window)


def _is_plain(dataset: Any) -> bool:
    """Tell whether the stored numbers are those of NumPy, without spare bits."""
    import h5py

    return bool(dataset.id.get_type().equal(h5py.h5t.py_create(dataset.dtype)))


def _decode(dataset: Any, window: Window, out: np.ndarray) -> None:
    """Read the chunks that a window touches, and put their voxels in place."""
    starts = [s.start for s in window]
    for origin, part, raw, filters in _stored(dataset, window):
        data = _undone(raw, filters, _bytes_of(dataset))
        if len(data) != _bytes_of(dataset):
            raise Undecodable(f"the chunk at {origin} has {len(data)} bytes; expected {_bytes_of(dataset)}")
        chunk = np.frombuffer(data, dataset.dtype).reshape(dataset.chunks)
        out[shifted(part, starts)] = chunk[shifted(part, origin)]


def _check(dataset: Any, window: Window, open_part: Opener) -> None:
    """Make sure that no chunk that a window touches becomes larger than it may."""
    if dataset.is_virtual:
        for part in dataset.virtual_sources():
            if touched := _touched(part, window):
                with open_part(dataset, part) as source:
                    _check(source, _inside(part, touched, source.shape), open_part)
    elif dataset.chunks:
        for _, _, raw, filters in _stored(dataset, window):
            _undone(raw, filters, _bytes_of(dataset))


def _touched(part: Any, window: Window) -> Window | None:
    """Return what a part of a virtual dataset gives to a window of it; None for nothing."""
    low, high = part.vspace.get_select_bounds()
    seen = [slice(max(w.start, a), min(w.stop, b + 1)) for w, a, b in zip(window, low, high, strict=True)]
    return tuple(seen) if all(s.start < s.stop for s in seen) else None


def _inside(part: Any, touched: Window, shape: tuple[int, ...]) -> Window:
    """Return where that lies in the source; all that the part uses of it where the shapes differ."""
    import h5py

    low, high = part.vspace.get_select_bounds()
    first, last = (0,) * len(shape), tuple(n - 1 for n in shape)
    if part.src_space.get_select_type() != h5py.h5s.SEL_ALL:
        first, last = part.src_space.get_select_bounds()
    if [b - a for a, b in zip(low, high, strict=True)] != [b - a for a, b in zip(first, last, strict=True)]:
        return tuple(slice(a, b + 1) for a, b in zip(first, last, strict=True))
    return tuple(slice(s.start - a + f, s.stop - a + f) for s, a, f in zip(touched, low, first, strict=True))


def _bytes_of(dataset: Any) -> int:
    return int(np.prod(dataset.chunks, dtype=np.int64)) * dataset.dtype.itemsize


def _stored(dataset: Any, window: Window) -> Any:
    """Yield origin, touched part, stored bytes and active filters of every chunk that a window touches."""
    filters = filters_of(dataset)
    if not filters:
        return
    buffer = np.empty(2 * _bytes_of(dataset) + MIB, np.uint8)
    for index, part in overlaps(window, dataset.chunks):
        origin = tuple(i * c for i, c in zip(index, dataset.chunks, strict=True))
        try:
            mask, raw = dataset.id.read_direct_chunk(origin, out=buffer)
        except ValueError:  # the buffer is too small
            raise Undecodable(f"the chunk at {origin} takes more than {buffer.size} bytes") from None
        yield origin, part, bytes(raw), [f for i, f in enumerate(filters) if not mask >> i & 1]


def _undone(raw: bytes, filters: Sequence[Filter], n_bytes: int) -> bytes:
    """Undo filters from the last to the first; stop at one that HDF5 will undo, once its size is checked."""
    for position in reversed(range(len(filters))):
        code, values = filters[position]
        before = filters[:position]
        if code in INFLATED:
            spare = n_bytes // 64 + 4096 if {f.code for f in before} - KEEPING else 0
            raw = inflate(INFLATED[code], raw, n_bytes + spare + 4 * len(before))
        elif code == SHUFFLE:
            raw = _unshuffled(raw, values[0] if values else 1)
        elif code == FLETCHER32:
            raw = _without_sum(raw)
        else:
            declared = DECLARED[code](raw, values)
            if declared > n_bytes + 4 * len(before):
                raise Undecodable(f"a chunk declares {declared} bytes; expected at most {n_bytes}")
            return raw
    return raw


def _unshuffled(raw: bytes, size: int) -> bytes:
    """Put the bytes of every number side by side again."""
    if size < 2 or size > len(raw):
        return raw
    whole = len(raw) // size * size
    return np.frombuffer(raw[:whole], np.uint8).reshape(size, -1).T.tobytes() + raw[whole:]


def _without_sum(raw: bytes) -> bytes:
    from numcodecs import Fletcher32

    try:
        return bytes(Fletcher32().decode(raw))
    except (RuntimeError, ValueError):
        raise Undecodable("its checksum does not match") from None


def _of_blosc(raw: bytes, values: Sequence[int]) -> int:
    return int(BLOSC_HEADER.unpack_from(raw)[4])


def _of_bitshuffle(raw: bytes, values: Sequence[int]) -> int:
    if len(values) < 5 or not values[4]:  # shuffled, and not compressed
        return len(raw)
    size, block = struct.unpack_from(">QI", raw)
    return max(size, block if block > 8 * MIB else 0)


DECLARED: Mapping[int, Callable[[bytes, Sequence[int]], int]] = {
    BITSHUFFLE: _of_bitshuffle,
    BLOSC: _of_blosc,
    LZ4: lambda raw, values: int(struct.unpack_from(">Q", raw)[0]),
    SZIP: lambda raw, values: int(struct.unpack_from("<I", raw)[0]),
}
"""Bytes that a chunk says it will have, for filters that HDF5 undoes into so many and no more."""
