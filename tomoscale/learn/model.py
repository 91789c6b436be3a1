"""A network with what must be known to run it over a volume; it travels to workers, which load it once."""

from __future__ import annotations

import copy
import functools
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tomoscale.errors import TomoscaleError
from tomoscale.learn import checkpoint, memory
from tomoscale.learn.networks import UNet
from tomoscale.learn.receptive import weightless
from tomoscale.learn.scaling import Scaling
from tomoscale.learn.shapes import Shapes

GLOBAL = (
    nn.GroupNorm,
    nn.LayerNorm,
    nn.AdaptiveAvgPool2d,
    nn.AdaptiveAvgPool3d,
    nn.AdaptiveMaxPool2d,
    nn.AdaptiveMaxPool3d,
    nn.MultiheadAttention,
)
"""Layers that look at all they are given: of a tile they make something else than of the volume."""
INSTANCE = (nn.InstanceNorm2d, nn.InstanceNorm3d)


@dataclass(frozen=True)
class Model:
    """
    A network, and what running it takes.

    Parameters
    ----------
    path : Path or None
        Its checkpoint, from which every worker loads it once.
    module : nn.Module or None
        The network itself where there is no checkpoint; it travels with every task.
    sha256 : str
        Of its weights: what tells it from another.
    halo : tuple of int
        Voxels that matter on either side of a block on the grid of the stride; two for a network over slices.
    stride : tuple of int
        Shift after which it does the same again.
    outputs : int
        1, or one per class.
    classes : tuple of str
        What the labels mean.
    scaling : Scaling
        What is done to intensities first.
    norms : tuple of (str, int)
        Layers that normalise by what they are given, in the order in which they run, and their features.
    appetite : Appetite
        The memory that it takes.
    """

    path: Path | None
    module: nn.Module | None = field(repr=False)
    sha256: str
    halo: tuple[int, ...]
    stride: tuple[int, ...]
    outputs: int
    classes: tuple[str, ...]
    scaling: Scaling
    norms: tuple[tuple[str, int], ...]
    appetite: memory.Appetite

    @property
    def dimensions(self) -> int:
        """2 for a network over slices, 3 for one over volumes."""
        return len(self.halo)

    @property
    def cuts(self) -> bool:
        """Whether the network is asked for the inner part of a tile alone: an InstanceNorm must see all of it."""
        return len(self.appetite.stages) > 1

    def identity(self) -> dict[str, Any]:
        """Return what tells this model from another."""
        found = {"sha256": self.sha256, "halo": list(self.halo), "stride": list(self.stride)}
        return {"path": str(self.path), **found} if self.path else found

    def network(self, device: str) -> nn.Module:
        """
        Return the network on a device, ready to run.

        Raises
        ------
        TomoscaleError
            The checkpoint is another than the plan was made for.
        """
        if self.path is None:
            assert self.module is not None
            return self.module.to(device)
        return _loaded(self.path, self.sha256, device)


@functools.lru_cache(maxsize=2)
def _loaded(path: Path, sha256: str, device: str) -> nn.Module:
    found = checkpoint.read(path)
    if found.sha256 != sha256:
        raise TomoscaleError(
            f"{path}: the checkpoint was replaced during the run; start again with --overwrite"
        )
    return found.network.to(device)


def opened(model: Any) -> Model:
    """
    Return the model that users mean.

    Parameters
    ----------
    model : Model, networks.UNet, Checkpoint, str or Path
        A path is that of a checkpoint.

    Raises
    ------
    TomoscaleError
        No model, or one that cannot be run tile by tile.
    """
    if isinstance(model, Model):
        return model
    if isinstance(model, str | Path):
        found = checkpoint.read(model)
        return _of(found, Path(model).absolute())
    if isinstance(model, checkpoint.Checkpoint):
        return _of(model, None)
    if isinstance(model, UNet):
        count = max(2, model.architecture.outputs)
        return _of(checkpoint.Checkpoint(model, tuple(map(str, range(count)))), None)
    raise TomoscaleError(
        f"predict.segment: model is a {type(model).__name__}; expected the path of a checkpoint, a networks.UNet, or "
        "learn.model.stated(module, halo=..., stride=...)"
    )


def _of(found: checkpoint.Checkpoint, path: Path | None) -> Model:
    network = found.network
    assert isinstance(network, UNet)
    channels = network.architecture.channels
    if channels != 1:
        raise TomoscaleError(
            f"{path or 'learn.model'}: the network takes {channels} channels; a volume has one"
        )
    return stated(
        network,
        halo=network.halo,
        stride=network.stride,
        classes=found.classes,
        scaling=found.scaling,
        path=path,
        sha256=found.sha256,
    )


def stated(
    module: nn.Module,
    *,
    halo: Sequence[int],
    stride: Sequence[int],
    classes: Sequence[str] | None = None,
    scaling: Scaling | None = None,
    path: Path | None = None,
    sha256: str = "",
) -> Model:
    """
    Make any network of PyTorch one that runs over volumes.

    Parameters
    ----------
    module : nn.Module
        From (batch, 1, [z,] y, x) to logits (batch, output, [z,] y, x) of the same size.
    halo : sequence of int
        Voxels that matter on either side, two numbers (y, x) or three; the radius of the receptive field is enough.
    stride : sequence of int
        Product of its pooling factors, along every axis.
    classes : sequence of str, optional
        What the labels mean.
    scaling : Scaling, optional
        What is done to intensities first.
    path : Path, optional
        Its checkpoint, if workers are to load it.
    sha256 : str, optional
        Of its weights; computed by default.

    Returns
    -------
    Model
        For `predict.segment`.

    Raises
    ------
    TomoscaleError
        A network that looks at all of a tile, takes other channels, or gives another shape.
    """
    if len(halo) not in (2, 3) or len(stride) != len(halo) or min(halo) < 0 or min(stride) < 1:
        raise TomoscaleError(
            f"learn.model: halo {tuple(halo)}, stride {tuple(stride)}; expected two or three numbers each, "
            "strides from 1"
        )
    for name, layer in module.named_modules():
        if isinstance(layer, GLOBAL):
            raise TomoscaleError(
                f"learn.model: {name} is a {type(layer).__name__}, which looks at all of a tile, so that no tile gives "
                "what the volume would; use BatchNorm or InstanceNorm"
            )
    module = module if path else copy.deepcopy(module).eval().requires_grad_(False)
    outputs, norms = _tried(module, tuple(stride))
    names = tuple(classes or map(str, range(max(2, outputs))))
    if len(names) != max(2, outputs) or outputs > 256:
        raise TomoscaleError(
            f"learn.model: {len(names)} classes for {outputs} outputs; expected {max(2, outputs)}, at most 256"
        )
    return Model(
        path,
        None if path else module,
        sha256 or _sha256(module),
        tuple(map(int, halo)),
        tuple(map(int, stride)),
        outputs,
        names,
        scaling or Scaling(),
        norms,
        memory.appetite(module, 1, halo, stride, cuts=type(module) is UNet and not norms),
    )


def _tried(module: nn.Module, stride: tuple[int, ...]) -> tuple[int, tuple[tuple[str, int], ...]]:
    """Return how many outputs a network has, and its layers that normalise by what they are given."""
    idle, norms = weightless(module), []
    for name, layer in idle.named_modules():
        if isinstance(layer, INSTANCE) and not layer.track_running_stats:
            layer.register_forward_hook(
                lambda _layer, given, _out, n=name: norms.append((n, given[0].shape[1]))
            )
    shape = (1, 1, *(4 * s for s in stride))
    try:
        with torch.no_grad(), Shapes():
            out = idle(torch.zeros(shape, device="meta"))
    except (RuntimeError, TypeError, ValueError) as error:
        text = " ".join(str(error).split())[:160]
        raise TomoscaleError(
            f"learn.model: the network does not run on one channel of {' x '.join(map(str, shape[2:]))} voxels: {text}"
        ) from None
    if not isinstance(out, torch.Tensor) or out.shape[2:] != shape[2:]:
        shown = tuple(out.shape) if isinstance(out, torch.Tensor) else type(out).__name__
        raise TomoscaleError(f"learn.model: of {shape} the network makes {shown}; expected as many voxels")
    if len(set(norms)) != len(norms):
        raise TomoscaleError("learn.model: one InstanceNorm runs twice; give every place its own")
    return int(out.shape[1]), tuple(norms)


def _sha256(module: nn.Module) -> str:
    digest = hashlib.sha256(type(module).__qualname__.encode())
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()
