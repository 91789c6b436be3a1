"""
InstanceNorm over a volume that is never whole: its statistics are measured layer by layer, then fixed.

A layer's statistics depend on those of the layers before it, so there is one sweep over the volume for each; in a sweep
the layers before are fixed, and the forward pass ends at the layer that is measured.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import numpy as np
import torch
from torch import nn

from tomoscale.learn.receptive import Span


class Measured(Exception):
    """Ends a forward pass: nothing behind the measured layer is wanted."""


class Fixed(nn.Module):
    """
    An InstanceNorm with given statistics.

    Parameters
    ----------
    layer : nn.Module
        The InstanceNorm.
    statistics : torch.Tensor
        (instance, feature, 2): mean and variance, for each of a batch or one for all.
    """

    def __init__(self, layer: nn.Module, statistics: torch.Tensor) -> None:
        super().__init__()
        mean, variance = statistics[..., 0], statistics[..., 1]
        factor = torch.rsqrt(variance + layer.eps)
        if layer.affine:
            factor = factor * layer.weight.double()
        offset = -mean * factor
        if layer.affine:
            offset = offset + layer.bias.double()
        self.factor, self.offset = factor.float(), offset.float()
        self.rows = slice(None)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Normalise in place: what the convolution made is nobody else's."""
        axes = (...,) + (None,) * (x.ndim - 2)
        factor, offset = self.factor[self.rows][axes].to(x), self.offset[self.rows][axes].to(x)
        return x.mul_(factor).add_(offset)

    def before(self, span: Span, axis: int) -> Span:
        """Return what an output depends on: itself."""
        return span


class Meter(nn.Module):
    """
    Stands where an InstanceNorm is and measures what comes.

    Parameters
    ----------
    inner : tuple of (float, float)
        Part of the tile that counts, as shares of its edges.
    """

    def __init__(self, inner: Sequence[tuple[float, float]]) -> None:
        super().__init__()
        self.inner = inner
        self.found = np.empty(0)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Keep (batch, feature, 3): count, mean, sum of squared deviations; go no further."""
        cut = tuple(
            slice(round(a * n), round(b * n)) for (a, b), n in zip(self.inner, x.shape[2:], strict=True)
        )
        own = x[(slice(None), slice(None), *cut)].float()
        variance, mean = torch.var_mean(own, dim=tuple(range(2, own.ndim)), correction=0)
        count = own[0, 0].numel()
        values = (torch.full_like(mean, count), mean, variance * count)
        self.found = torch.stack([v.double() for v in values], -1).cpu().numpy()
        raise Measured

    def before(self, span: Span, axis: int) -> Span:
        """Return what it was given for an output of the layer in whose place it stands."""
        return span


def with_layers(network: nn.Module, layers: dict[str, nn.Module]) -> nn.Module:
    """
    Return a network with other layers in some places; all others are shared.

    Parameters
    ----------
    network : nn.Module
        It is left as it is.
    layers : dict
        From the names of places to layers.

    Returns
    -------
    nn.Module
        In evaluation mode.
    """
    return _with(network, layers, ()).eval()


def _with(module: nn.Module, layers: dict[str, nn.Module], name: tuple[str, ...]) -> nn.Module:
    """Copy what holds a layer that is another; copying all of it took half of the time of small tiles."""
    if ".".join(name) in layers:
        return layers[".".join(name)]
    inner = {n: m and _with(m, layers, (*name, n)) for n, m in module._modules.items()}
    if all(inner[n] is m for n, m in module._modules.items()):
        return module
    changed = copy.copy(module)
    changed._modules = inner  # a copy shares this table with what it was copied from
    return changed


def together(parts: np.ndarray, axis: int) -> np.ndarray:
    """
    Add up what was measured in parts, in their order.

    Parameters
    ----------
    parts : numpy.ndarray
        (..., 3): count, mean, sum of squared deviations.
    axis : int
        Of the parts; it vanishes.

    Returns
    -------
    numpy.ndarray
        (..., 3): of all.
    """
    count, mean, squares = np.moveaxis(parts, -1, 0)
    total = count.sum(axis, keepdims=True)
    middle = (count * mean).sum(axis, keepdims=True) / total
    spread = (squares + count * (mean - middle) ** 2).sum(axis, keepdims=True)
    return np.stack([total, middle, spread], -1).squeeze(axis)
