"""What a forward pass holds at once, found by going through it with tensors that take no memory."""

from __future__ import annotations

import math
import weakref
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from tomoscale.learn.receptive import weightless


class Appetite(NamedTuple):
    """What a network takes for each voxel of its input, and for its weights."""

    bytes_per_voxel: float
    elements_per_voxel: float
    weights: int


class _Live(TorchDispatchMode):
    """Adds up the tensors that are alive."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = self.largest = 0
        self.seen: set[int] = set()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = function(*args, **(kwargs or {}))
        tensors = [
            t for t in (out if isinstance(out, tuple | list) else (out,)) if isinstance(t, torch.Tensor)
        ]
        for tensor in tensors:
            self._hold(tensor)
        scratch = 0
        if "convolution" in str(function):
            # Libraries bring input and output into an order of their own.
            scratch = sum(t.numel() * t.element_size() for t in (args[0], *tensors))
        self.peak = max(self.peak, self.now + scratch)
        return out

    def _hold(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        key, n_bytes = storage._cdata, storage.nbytes()
        if key in self.seen:
            return
        self.seen.add(key)
        self.now += n_bytes
        self.largest = max(self.largest, tensor.numel())
        weakref.finalize(tensor, self._release, key, n_bytes)

    def _release(self, key: int, n_bytes: int) -> None:
        self.seen.discard(key)
        self.now -= n_bytes


def appetite(network: nn.Module, channels: int, stride: Sequence[int]) -> Appetite:
    """
    Return what a forward pass holds at its worst, in float32.

    Parameters
    ----------
    network : nn.Module
        Any; it is not run.
    channels : int
        Channels of its input.
    stride : sequence of int
        Of the network; its length is the number of spatial axes.

    Returns
    -------
    Appetite
        Bytes and elements for each voxel of the input, its own four bytes included.
    """
    shape = tuple(8 * s for s in stride)
    idle = weightless(network)
    with torch.no_grad(), _Live() as live:
        idle(torch.zeros((1, channels, *shape), device="meta"))
    voxels = math.prod(shape)
    weights = sum(t.numel() * t.element_size() for t in (*idle.parameters(), *idle.buffers()))
    return Appetite(live.peak / voxels, live.largest / voxels, 2 * weights)
