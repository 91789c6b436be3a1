"""
A stand-in for CuPy where there is no GPU: arrays of its own kind, kept strictly apart from NumPy's.

As with CuPy an array must be copied explicitly, here (`get`) or there (`asarray`): NumPy refuses the stand-in's arrays,
its functions refuse NumPy's, and what has no axes stays an array. It shows that a block that is on a GPU stays there
and comes back; it cannot show what a GPU computes.
"""

from __future__ import annotations

import operator
import sys
from collections.abc import Callable
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from scipy import ndimage

FUNCTIONS = (
    "arange", "ascontiguousarray", "bincount", "clip", "empty", "minimum", "multiply", "ones", "rint", "searchsorted",
    "where", "zeros",
)  # fmt: skip
OPERATORS = (
    "add", "and", "ge", "gt", "iadd", "iand", "isub", "itruediv", "lt", "eq", "mul", "ne", "or", "rshift", "sub", "xor",
)  # fmt: skip
METHODS = ("astype", "copy", "max", "min", "reshape", "sum", "view")
counted = SimpleNamespace(there=0, back=0)
"""Bytes that were copied to the device, and back."""


class ndarray:
    """An array on a device that is not there."""

    __cuda_array_interface__ = "what tells an array of a device"
    __array_ufunc__ = None  # NumPy's functions and operators refuse it

    def __init__(self, values: Any) -> None:
        self._values = np.asarray(values)

    shape = property(lambda self: self._values.shape)
    dtype = property(lambda self: self._values.dtype)
    size = property(lambda self: self._values.size)
    ndim = property(lambda self: self._values.ndim)
    itemsize = property(lambda self: self._values.itemsize)

    def get(self) -> np.ndarray:
        """Copy it to the memory of the process."""
        counted.back += self._values.nbytes
        return self._values.copy()

    def __array__(self, *_: Any, **__: Any) -> np.ndarray:
        raise TypeError("Implicit conversion to a NumPy array is not allowed. Please use `.get()`")

    def __array_function__(self, function: Callable[..., Any], *_: Any) -> Any:
        raise TypeError(f"numpy.{function.__name__} of an array on a device")

    def __getitem__(self, key: Any) -> ndarray:
        return ndarray(self._values[_key(key)])

    def __setitem__(self, key: Any, value: Any) -> None:
        self._values[_key(key)] = _inside(value)

    def __iter__(self) -> Any:
        return map(ndarray, self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __int__(self) -> int:
        return int(self._values)

    def __float__(self) -> float:
        return float(self._values)

    def __bool__(self) -> bool:
        return bool(self._values)

    def __abs__(self) -> ndarray:
        return ndarray(abs(self._values))


def _inside(value: Any) -> Any:
    """Return what an array of the device holds; numbers as they are, nothing else."""
    if isinstance(value, ndarray):
        return value._values
    if isinstance(value, np.ndarray | list):
        raise TypeError(f"Unsupported type {type(value)}")
    return value


def _key(key: Any) -> Any:
    return tuple(map(_inside, key)) if isinstance(key, tuple) else _inside(key)


def _on_device(function: Callable[..., Any]) -> Callable[..., Any]:
    """Let a function take and return arrays of the device, and refuse those of NumPy."""

    def call(*arguments: Any, **options: Any) -> Any:
        out = options.pop("out", None)
        made = function(*map(_inside, arguments), **{n: _inside(o) for n, o in options.items()})
        if out is not None:
            out._values[...] = made
            return out
        return ndarray(made)

    return call


def _operator(name: str) -> Callable[..., Any]:
    function = getattr(operator, {"and": "and_", "or": "or_"}.get(name, name))
    if not name.startswith("i"):
        return _on_device(function)

    def in_place(self: ndarray, other: Any) -> ndarray:
        self._values = function(self._values, _inside(other))
        return self

    return in_place


def _method(name: str) -> Callable[..., Any]:
    return _on_device(lambda values, *rest, **options: getattr(values, name)(*rest, **options))


for _name in OPERATORS:
    setattr(ndarray, f"__{_name}__", _operator(_name))
for _name in METHODS:
    setattr(ndarray, _name, _method(_name))


def asarray(values: Any) -> ndarray:
    """Copy an array to the device."""
    if isinstance(values, ndarray):
        return values
    assert values.dtype.isnative, "CuPy has no other byte order"
    counted.there += values.nbytes
    return ndarray(np.array(values))


def installed(patch: pytest.MonkeyPatch, *, memory: int = 10**10, n_devices: int = 1) -> ModuleType:
    """Put the stand-in in the place of CuPy for a test."""
    cupy: Any = ModuleType("cupy")
    cupy.ndarray, cupy.asarray = ndarray, asarray
    for name in FUNCTIONS:
        setattr(cupy, name, _on_device(getattr(np, name)))
    properties = {"name": b"Stand-in", "totalGlobalMem": memory}
    cupy.cuda = SimpleNamespace(
        Device=lambda: SimpleNamespace(synchronize=lambda: None),
        runtime=SimpleNamespace(getDeviceCount=lambda: n_devices, getDeviceProperties=lambda _: properties),
    )
    cupy.__version__ = "0"
    filters: Any = ModuleType("cupyx.scipy.ndimage")
    filters.gaussian_filter = _on_device(ndimage.gaussian_filter)
    patch.setitem(sys.modules, "cupy", cupy)
    patch.setitem(sys.modules, "cupyx", ModuleType("cupyx"))
    patch.setitem(sys.modules, "cupyx.scipy", ModuleType("cupyx.scipy"))
    patch.setitem(sys.modules, "cupyx.scipy.ndimage", filters)
    counted.there = counted.back = 0
    return cupy
