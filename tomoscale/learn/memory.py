"""What a forward pass holds at once, found by going through it with tensors that take no memory."""

from __future__ import annotations

import math
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.utils.flop_counter import flop_registry

from tomoscale.learn.networks import UNet
from tomoscale.learn.receptive import weightless
from tomoscale.learn.shapes import Shapes
from tomoscale.tiling import Stage


class Appetite(NamedTuple):
    """What a network takes at every stage of a forward pass, and for its weights in bytes."""

    stages: tuple[Stage, ...]
    weights: int


@dataclass
class _Most:
    """Of a stage: what it holds at its worst, its largest tensor, its multiplications and additions."""

    bytes: int = 0
    elements: int = 0
    work: int = 0


class _Live(Shapes):
    """Adds up the tensors that are alive, and the work, stage by stage."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0
        self.stages = [_Most()]
        self.seen: set[int] = set()

    def begin(self, *_: Any) -> None:
        """Begin a stage."""
        self.stages.append(_Most())

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = super().__torch_dispatch__(function, types, args, kwargs)
        tensors = [
            t for t in (out if isinstance(out, tuple | list) else (out,)) if isinstance(t, torch.Tensor)
        ]
        for tensor in tensors:
            self._hold(tensor)
        scratch = 0
        if "convolution" in str(function):
            # Libraries bring input and output into an order of their own.
            scratch = sum(t.numel() * t.element_size() for t in (args[0], *tensors))
            count = flop_registry[function._overloadpacket]
            self.stages[-1].work += count(*args, **(kwargs or {}), out_val=out)
        self.stages[-1].bytes = max(self.stages[-1].bytes, self.now + scratch)
        return out

    def _hold(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        key, n_bytes = storage._cdata, storage.nbytes()
        if key in self.seen:
            return
        self.seen.add(key)
        self.now += n_bytes
        self.stages[-1].elements = max(self.stages[-1].elements, tensor.numel())
        weakref.finalize(tensor, self._release, key, n_bytes)

    def _release(self, key: int, n_bytes: int) -> None:
        self.seen.discard(key)
        self.now -= n_bytes


def appetite(
    network: nn.Module, channels: int, halo: Sequence[int], stride: Sequence[int], *, cuts: bool
) -> Appetite:
    """
    Return what a forward pass holds at its worst, in float32.

    Parameters
    ----------
    network : nn.Module
        Any; it is not run.
    channels : int
        Channels of its input.
    halo, stride : sequence of int
        Of the network; their length is the number of spatial axes.
    cuts : bool
        Whether it is a `networks.UNet` that is asked for inner parts, so that its decoder leaves halo out.

    Returns
    -------
    Appetite
        Each stage for each voxel that it sees, the four bytes of the input included.
    """
    shape = tuple(8 * s for s in stride)
    idle, reaches = weightless(network), [(tuple(halo), tuple(stride))]
    with torch.no_grad(), _Live() as live:
        if cuts:
            assert isinstance(idle, UNet)
            reaches += idle.reaches
            for up in idle.up:
                up.register_forward_pre_hook(live.begin)
        idle(torch.zeros((1, channels, *shape), device="meta"))
    voxels, total = math.prod(shape), sum(s.work for s in live.stages)
    stages = tuple(
        Stage(*reach, s.work / total if cuts else 1.0, s.bytes / voxels, s.elements / voxels)
        for reach, s in zip(reaches, live.stages, strict=True)
    )
    weights = sum(t.numel() * t.element_size() for t in (*idle.parameters(), *idle.buffers()))
    return Appetite(stages, 2 * weights)
