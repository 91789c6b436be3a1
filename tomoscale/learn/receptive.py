"""Which voxels of the input a voxel of the output depends on: integers, read off the layers."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn

from tomoscale.errors import TomoscaleError

Span = tuple[int, int]
"""First and last voxel along one axis."""

POINTWISE = (
    nn.BatchNorm2d,
    nn.BatchNorm3d,
    nn.InstanceNorm2d,
    nn.InstanceNorm3d,
    nn.ReLU,
    nn.LeakyReLU,
    nn.GELU,
    nn.SiLU,
    nn.PReLU,
    nn.Sigmoid,
    nn.Identity,
    nn.Dropout,
    nn.Dropout2d,
    nn.Dropout3d,
)
"""Layers that look at one voxel at a time, once the statistics of a normalisation are fixed."""


def before(layer: nn.Module, span: Span, axis: int) -> Span:
    """
    Return the inputs that some outputs of a layer depend on.

    Parameters
    ----------
    layer : nn.Module
        A layer of PyTorch, a sequence of them, or a module with a method `before` of its own.
    span : (int, int)
        First and last output along the axis.
    axis : int
        0 is the first spatial axis.

    Returns
    -------
    (int, int)
        First and last input.

    Raises
    ------
    TomoscaleError
        A layer of unknown reach.

    Examples
    --------
    >>> before(nn.Sequential(nn.Conv2d(1, 1, 3, padding=1), nn.MaxPool2d(2)), (5, 5), 0)
    (9, 12)
    """
    low, high = span
    if isinstance(layer, POINTWISE):
        return span
    if isinstance(layer, nn.Sequential):
        for inner in reversed(layer):
            span = before(inner, span, axis)
        return span
    if isinstance(layer, nn.Conv2d | nn.Conv3d | nn.MaxPool2d | nn.MaxPool3d | nn.AvgPool2d | nn.AvgPool3d):
        kernel, stride, padding = (
            _along(getattr(layer, n), axis) for n in ("kernel_size", "stride", "padding")
        )
        reach = _along(getattr(layer, "dilation", 1), axis) * (kernel - 1)
        return low * stride - padding, high * stride - padding + reach
    if isinstance(layer, nn.ConvTranspose2d | nn.ConvTranspose3d):
        kernel, stride, padding = (
            _along(getattr(layer, n), axis) for n in ("kernel_size", "stride", "padding")
        )
        reach = _along(layer.dilation, axis) * (kernel - 1)
        return -(-(low + padding - reach) // stride), (high + padding) // stride
    if isinstance(layer, nn.Upsample) and layer.mode == "nearest" and layer.scale_factor:
        factor = int(_along(layer.scale_factor, axis))
        return low // factor, high // factor
    if hasattr(layer, "before"):
        return layer.before(span, axis)
    raise TomoscaleError(
        f"learn.receptive: the reach of a {type(layer).__name__} is not known; state halo and stride"
    )


def union(first: Span, second: Span) -> Span:
    """Return the span that holds two."""
    return min(first[0], second[0]), max(first[1], second[1])


def radius(network: nn.Module, axis: int, stride: int) -> int:
    """
    Return the radius of a network's receptive field along an axis: that of the voxel that looks farthest.

    Parameters
    ----------
    network : nn.Module
        As `before` takes them.
    axis : int
        0 is the first spatial axis.
    stride : int
        Shift after which the network does the same again.

    Returns
    -------
    int
        Voxels that matter on either side.
    """
    reached = [(p, before(network, (p, p), axis)) for p in range(stride)]
    return max(max(p - low, high - p) for p, (low, high) in reached)


def halo(network: nn.Module, axis: int, stride: int) -> int:
    """
    Return what a block needs around it along an axis if its faces lie on multiples of the stride.

    It is less than the radius: voxels that look far to the left do not lie at the left face.

    Parameters
    ----------
    network : nn.Module
        As `before` takes them.
    axis : int
        0 is the first spatial axis.
    stride : int
        Shift after which the network does the same again.

    Returns
    -------
    int
        Voxels on either side.
    """
    low, high = before(network, (0, stride - 1), axis)
    return max(-low, high - (stride - 1), 0)


def _along(value: Any, axis: int) -> int:
    if isinstance(value, str):
        raise TomoscaleError(f"learn.receptive: padding {value!r} is not a number; state halo and stride")
    return value[axis] if isinstance(value, tuple) else value


def weightless(network: nn.Module) -> nn.Module:
    """Return a copy of a network for arithmetic: it knows the shapes of its features and computes none."""
    memo = {id(t): torch.empty_like(t, device="meta") for t in (*network.parameters(), *network.buffers())}
    for tensor in network.parameters():
        memo[id(tensor)] = nn.Parameter(memo[id(tensor)], requires_grad=False)
    return copy.deepcopy(network, memo).eval()
