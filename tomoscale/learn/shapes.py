"""Shapes of what a network computes, without its numbers and without loading PyTorch's compiler."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

aten = torch.ops.aten


class Shapes(TorchDispatchMode):
    """
    Run operations on tensors that take no memory, the usual ones by arithmetic of our own.

    PyTorch knows these shapes too, in Python, and loads its compiler and SymPy first: five seconds of every
    `predict`, also of one that only plans (`opened` of `3d-small`: 4.9 s, then 0.1).
    """

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # skipping it takes loading it; nothing is compiled here

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        known = None if kwargs else _KNOWN.get(function)
        found = known(*args) if known else None
        return function(*args, **(kwargs or {})) if found is None else found


# Each returns None for what it does not know or PyTorch would refuse.


def _convolution(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    transposed: bool,
    more: Sequence[int],
    groups: int,
) -> torch.Tensor | None:
    coming, going = weight.shape[0], weight.shape[1]
    if transposed:
        going *= groups
    else:
        coming, going = going * groups, coming
    numbers = (x.shape[2:], weight.shape[2:], stride, padding, dilation, more)
    if not _alike(x, weight, bias) or x.shape[1:2] != (coming,) or len({len(n) for n in numbers}) > 1:
        return None
    size = []
    for n, k, s, p, d, m in zip(*numbers, strict=True):
        reach = d * (k - 1)
        size.append((n - 1) * s - 2 * p + reach + m + 1 if transposed else (n + 2 * p - reach - 1) // s + 1)
    return x.new_empty((len(x), going, *size)) if min(size) > 0 else None


def _cat(tensors: Sequence[torch.Tensor], axis: int = 0) -> torch.Tensor | None:
    first, *others = (list(t.shape) for t in tensors)
    if not _alike(*tensors) or not 0 <= axis < len(first):
        return None
    length = sum(shape.pop(axis) for shape in (first, *others) if axis < len(shape))
    if any(shape != first for shape in others):
        return None
    return tensors[0].new_empty((*first[:axis], length, *first[axis:]))


def _batch_norm(
    x: torch.Tensor, *of_features: torch.Tensor | bool | float | None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor] | None:
    vectors = [v for v in of_features if isinstance(v, torch.Tensor)]
    if not _alike(x, *vectors) or any(v.shape != x.shape[1:2] for v in vectors):
        return None
    return x.new_empty(x.shape), x.new_empty(x.shape[1]), x.new_empty(x.shape[1])


def _pool(
    x: torch.Tensor, kernel: Sequence[int], stride: Sequence[int], *more: Any
) -> tuple[torch.Tensor, torch.Tensor] | None:
    if more or not _alike(x) or not len(kernel) == len(stride) == x.ndim - 2:
        return None
    size = [(n - k) // s + 1 for n, k, s in zip(x.shape[2:], kernel, stride, strict=True)]
    shape = (*x.shape[:2], *size)
    return (x.new_empty(shape), x.new_empty(shape, dtype=torch.int64)) if min(size) > 0 else None


def _upsample(x: torch.Tensor, size: Sequence[int], *_scales: float | None) -> torch.Tensor | None:
    fits = _alike(x) and len(size) == x.ndim - 2 and min(size) > 0
    return x.new_empty((*x.shape[:2], *size)) if fits else None


def _repeat(x: torch.Tensor, times: Sequence[int]) -> torch.Tensor | None:
    shape = [n * k for n, k in zip(x.shape, times, strict=True)] if len(times) == x.ndim else None
    return x.new_empty(shape) if shape and _alike(x) else None


def _alike(*tensors: torch.Tensor | None) -> bool:
    """Tell whether all hold floats of one kind, and no memory."""
    kinds = {(t.device.type, t.dtype) for t in tensors if t is not None}
    return len(kinds) == 1 and kinds <= {("meta", torch.float32)}


_KNOWN: dict[Any, Callable[..., Any]] = {
    aten.convolution.default: _convolution,
    aten.cat.default: _cat,
    aten.native_batch_norm.default: _batch_norm,
    aten.max_pool2d_with_indices.default: _pool,
    aten.max_pool3d_with_indices.default: _pool,
    aten.upsample_nearest2d.default: _upsample,
    aten.upsample_nearest3d.default: _upsample,
    aten.repeat.default: _repeat,
}
