"""U-Nets in two and three dimensions, made from a record of a few words and numbers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import nn

from tomoscale.learn import receptive
from tomoscale.learn.architecture import PRESETS, Architecture
from tomoscale.learn.receptive import Span

__all__ = ["PRESETS", "Architecture", "Level", "Residual", "UNet", "build", "empty", "flops"]


class Level(NamedTuple):
    """What a step of the decoder is given, along every axis, and what of its output is wanted."""

    given: tuple[Span, ...]
    wanted: tuple[Span, ...]


class UNet(nn.Module):
    """
    The U-Net of an architecture: an encoder, a bridge, a decoder that sees what the encoder saw.

    Parameters
    ----------
    architecture : Architecture
        What it is made from.
    """

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        a = self.architecture = architecture
        layers = _Layers(a)
        *levels, bridge = a.widths
        self.encoder = nn.ModuleList(
            layers.step(i, o, a.encoder) for i, o in zip((a.channels, *levels), levels, strict=False)
        )
        self.pool = layers.pool()
        self.bridge = layers.step(levels[-1], bridge, a.encoder)
        self.up, self.decoder = nn.ModuleList(), nn.ModuleList()
        below = bridge
        for width in reversed(levels):
            self.up.append(layers.up(below, width))
            coming = width if a.upsampling == "transposed" else below
            self.decoder.append(layers.step(coming + width, width, "plain"))
            below = width
        self.head = layers.convolution(below, a.outputs, kernel_size=1)

    def forward(self, x: torch.Tensor, inner: Sequence[slice] | None = None) -> torch.Tensor:
        """
        Return the logits of (batch, channel, z, y, x), or of (batch, channel, y, x) in two dimensions.

        Of an inner part they are the same as of the whole; what it does not depend on the decoder leaves out. That is
        most of the halo where most of the work is: at the finest level two voxels of it are left.
        """
        size = x.shape[2:]
        part = [(s.start, s.stop - 1) for s in inner] if inner else [(0, n - 1) for n in size]
        *levels, bottom = self.levels(part, size)
        seen = []
        for step, level in zip(self.encoder, levels, strict=True):
            x = step(x)
            seen.append(_cut(x, level.given))
            x = self.pool(x)
        x, first = _cut(self.bridge(x), bottom.wanted), _first(bottom.wanted)
        for up, step, level in zip(self.up, self.decoder, reversed(levels), strict=True):
            first = [f * p for f, p in zip(first, self.architecture.pooling, strict=True)]
            x = _cut(up(x), level.given, first)
            x = torch.cat((seen.pop(), x), 1)  # nobody holds the two any more while the convolutions run
            x, first = _cut(step(x), level.wanted, _first(level.given)), _first(level.wanted)
        return self.head(x)

    def levels(self, part: Sequence[Span], size: Sequence[int] | None = None) -> list[Level]:
        """
        Return what the decoder needs for a part of the output, from the finest level to the bridge.

        Parameters
        ----------
        part : sequence of (int, int)
            First and last voxel along every axis.
        size : sequence of int, optional
            Of the input, beyond which nothing is needed; without it, as in a volume without end.

        Returns
        -------
        list of Level
            In voxels of each level.
        """
        found, wanted = [], tuple(part)
        for level, (up, step) in enumerate(zip(reversed(self.up), reversed(self.decoder), strict=True)):
            given = tuple(receptive.before(step, span, axis) for axis, span in enumerate(wanted))
            if size is not None:
                ends = (n // p**level - 1 for n, p in zip(size, self.architecture.pooling, strict=True))
                given = tuple((max(0, a), min(b, end)) for (a, b), end in zip(given, ends, strict=True))
            found.append(Level(given, wanted))
            wanted = tuple(receptive.before(up, span, axis) for axis, span in enumerate(given))
        return [*found, Level(wanted, wanted)]

    def before(self, span: Span, axis: int) -> Span:
        """Return which voxels of the input some voxels of the output depend on, along one axis."""
        *seen, bottom = (level.given[axis] for level in self.levels([span] * self.architecture.dimensions))
        span = receptive.before(self.bridge, bottom, axis)
        for step in reversed(self.encoder):
            span = receptive.union(receptive.before(self.pool, span, axis), seen.pop())
            span = receptive.before(step, span, axis)
        return span

    @property
    def stride(self) -> tuple[int, ...]:
        """Voxels of the input for one of the coarsest level: shifts by these change nothing else."""
        return self.architecture.stride

    @property
    def halo(self) -> tuple[int, ...]:
        """Voxels that a block on the grid of the stride needs on either side."""
        return tuple(receptive.halo(self, axis, step) for axis, step in enumerate(self.stride))

    @property
    def reaches(self) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
        """What steps of the decoder need around a block, from the coarsest: voxels on either side, and their grid."""
        found = []
        for level, (given, _) in enumerate(self.levels([(0, n - 1) for n in self.stride])[:-1]):
            grid = tuple(p**level for p in self.architecture.pooling)
            ends = zip(given, grid, self.stride, strict=True)
            found.append((tuple(max(-a * g, (b + 1) * g - n, 0) for (a, b), g, n in ends), grid))
        return found[::-1]

    @property
    def radius(self) -> tuple[int, ...]:
        """Radius of the receptive field along every axis, of the voxel that looks farthest."""
        return tuple(receptive.radius(self, axis, step) for axis, step in enumerate(self.stride))


def _cut(x: torch.Tensor, part: Sequence[Span], first: Sequence[int] | None = None) -> torch.Tensor:
    """Return a part of features that begin at some voxel, and let go of the rest."""
    begin = first or [0] * len(part)
    within = [slice(a - f, b + 1 - f) for (a, b), f in zip(part, begin, strict=True)]
    cut = x[(..., *within)]
    return x if cut.shape == x.shape else cut.clone()


def _first(part: Sequence[Span]) -> list[int]:
    return [a for a, _ in part]


class Residual(nn.Module):
    """
    Convolutions with a shortcut around them.

    Parameters
    ----------
    body : nn.Module
        The convolutions, without the last activation.
    shortcut : nn.Module
        What brings the input to as many features.
    """

    def __init__(self, body: nn.Module, shortcut: nn.Module) -> None:
        super().__init__()
        self.body, self.shortcut, self.active = body, shortcut, nn.ReLU(inplace=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the activated sum."""
        return self.active(self.body(x) + self.shortcut(x))

    def before(self, span: Span, axis: int) -> Span:
        """Return which voxels of the input some voxels of the output depend on."""
        return receptive.union(
            receptive.before(self.body, span, axis), receptive.before(self.shortcut, span, axis)
        )


class _Layers:
    """The layers of an architecture."""

    def __init__(self, architecture: Architecture) -> None:
        self.a = architecture
        self.kind = f"{architecture.dimensions}d"

    def _class(self, name: str) -> Any:
        return getattr(nn, name + self.kind)

    def convolution(self, before: int, after: int, **options: Any) -> nn.Module:
        return self._class("Conv")(before, after, **options)

    def normalised(self, before: int, after: int, kernel_size: int) -> list[nn.Module]:
        bias = self.a.norm == "none"  # a normalisation takes a constant away
        layer = self.convolution(before, after, kernel_size=kernel_size, padding=kernel_size // 2, bias=bias)
        if self.a.norm == "none":
            return [layer]
        name = {"batch": "BatchNorm", "instance": "InstanceNorm"}[self.a.norm]
        return [layer, self._class(name)(after, affine=True)]

    def step(self, before: int, after: int, kind: str) -> nn.Module:
        """Return the two convolutions of a level."""
        first = [*self.normalised(before, after, 3), nn.ReLU(inplace=True)]
        second = self.normalised(after, after, 3)
        if kind == "plain":
            return nn.Sequential(*first, *second, nn.ReLU(inplace=True))
        return Residual(nn.Sequential(*first, *second), nn.Sequential(*self.normalised(before, after, 1)))

    def pool(self) -> nn.Module:
        return self._class("MaxPool")(self.a.pooling)

    def up(self, before: int, after: int) -> nn.Module:
        if self.a.upsampling == "nearest":
            return nn.Upsample(scale_factor=tuple(map(float, self.a.pooling)), mode="nearest")
        return self._class("ConvTranspose")(before, after, self.a.pooling, stride=self.a.pooling)


def build(architecture: Architecture | str, *, seed: int | None = None) -> UNet:
    """
    Make a network.

    Parameters
    ----------
    architecture : Architecture or str
        What it is to be, or the name of a preset (`PRESETS`).
    seed : int, optional
        Of the random weights; without it PyTorch's own generator goes on.

    Returns
    -------
    UNet
        On the CPU, in float32, ready for training or for weights.

    Examples
    --------
    >>> network = build("3d", seed=0)
    >>> network.halo, network.stride
    ((18, 94, 94), (1, 16, 16))
    """
    if not isinstance(architecture, Architecture):
        architecture = Architecture.of(architecture)
    if seed is None:
        return UNet(architecture)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return UNet(architecture)


def empty(architecture: Architecture) -> UNet:
    """Make a network whose weights take no memory, to be given some."""
    with torch.device("meta"):
        return UNet(architecture)


def flops(network: nn.Module, shape: Sequence[int]) -> int:
    """
    Count the multiplications and additions of a forward pass.

    Parameters
    ----------
    network : nn.Module
        Any; it is not run.
    shape : sequence of int
        Of the input: (batch, channel, [z,] y, x).

    Returns
    -------
    int
        Two for every product that a convolution sums.
    """
    from torch.utils.flop_counter import FlopCounterMode

    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        receptive.weightless(network)(torch.empty(tuple(shape), device="meta"))
    return counter.get_total_flops()
