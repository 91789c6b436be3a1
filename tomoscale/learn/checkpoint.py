"""
Trained networks as files: weights as safetensors, all else as JSON in the same file. Nothing is unpickled.

One file, so that weights and what is said of them can never be of two trainings:

    length of the header | header: {"__metadata__": {"tomoscale": RECORD}, NAME: {dtype, shape, place}} | weights

RECORD is JSON: architecture, normalisation, classes, history, metrics, and the sha256 of all that and the weights.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import nn

from tomoscale.errors import TomoscaleError
from tomoscale.learn import files, networks
from tomoscale.learn.networks import Architecture
from tomoscale.learn.scaling import Scaling
from tomoscale.objects import sync_folder

FORMAT = 1


@dataclass(frozen=True)
class Checkpoint:
    """
    A trained network and what must be known to use it.

    Parameters
    ----------
    network : nn.Module
        With its weights, on the CPU.
    classes : tuple of str
        What the labels 0, 1, ... mean.
    scaling : Scaling
        What is done to intensities first.
    history : list of dict
        How it was trained, one record per step.
    metrics : dict
        Figures of its validation.
    sha256 : str
        Of weights and record; empty until it was written.
    """

    network: nn.Module
    classes: tuple[str, ...] = ("background", "foreground")
    scaling: Scaling = field(default_factory=Scaling)
    history: list[dict[str, Any]] = field(default_factory=list)
    metrics: dict[str, Any] = field(default_factory=dict)
    sha256: str = ""


def write(checkpoint: Checkpoint, path: str | Path) -> Path:
    """
    Write a checkpoint, whole or not at all: until it is durable, an earlier one keeps its name.

    Parameters
    ----------
    checkpoint : Checkpoint
        Of a `networks.UNet`.
    path : str or Path
        The file, `model.safetensors` say.

    Returns
    -------
    Path
        The file.

    Raises
    ------
    TomoscaleError
        Weights that are not finite, classes that do not fit, or a folder that does not exist.
    """
    target = Path(path)
    if not isinstance(checkpoint.network, networks.UNet):
        raise TomoscaleError(
            f"{target}: a {type(checkpoint.network).__name__} has no architecture to keep; expected a networks.UNet"
        )
    if not target.absolute().parent.is_dir():
        raise TomoscaleError(f"{target}: the folder {target.parent} does not exist; create it first")
    _check_classes(target, checkpoint.classes, checkpoint.network.architecture.outputs)
    weights = {n: t.detach().cpu().contiguous() for n, t in checkpoint.network.state_dict().items()}
    _check_finite(target, weights)
    record = {
        "format": FORMAT,
        "architecture": checkpoint.network.architecture.record(),
        "classes": list(checkpoint.classes),
        "scaling": checkpoint.scaling.record(),
        "history": checkpoint.history,
        "metrics": checkpoint.metrics,
    }
    record["sha256"] = _digest(record, weights)
    content = safetensors.torch.save(weights, {"tomoscale": json.dumps(record)})
    temporary = target.with_name(f".{target.name}.{os.getpid()}.partial")
    try:
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)
    sync_folder(target.absolute().parent)
    return target


def read(path: str | Path) -> Checkpoint:
    """
    Read a checkpoint, and hold every byte of it against its sha256.

    Parameters
    ----------
    path : str or Path
        What `write` wrote.

    Returns
    -------
    Checkpoint
        Its network is in evaluation mode.

    Raises
    ------
    TomoscaleError
        Not a checkpoint, damaged, or weights that do not make its network.
    """
    target = Path(path)
    weights, record = _content(target)
    if not isinstance(record, dict) or record.get("format") != FORMAT:
        found = record.get("format") if isinstance(record, dict) else record
        raise TomoscaleError(
            f"{target}: checkpoint of format {str(found)[:40]!r}; this version reads {FORMAT}"
        )
    if record.get("sha256") != _digest(record, weights):
        raise TomoscaleError(f"{target}: damaged: its sha256 is not that of its content; take another copy")
    try:
        network = _with_weights(target, Architecture.of(record["architecture"]), weights)
        classes = tuple(map(str, record["classes"]))
        found = Checkpoint(
            network,
            classes,
            Scaling.of(record["scaling"]),
            list(record["history"]),
            dict(record["metrics"]),
            record["sha256"],
        )
    except (KeyError, TypeError, ValueError) as error:
        if isinstance(error, TomoscaleError):
            raise TomoscaleError(f"{target}: {str(error).removeprefix(f'{target}: ')}") from None
        raise TomoscaleError(f"{target}: its record is incomplete: {type(error).__name__}: {error}") from None
    _check_classes(target, classes, network.architecture.outputs)
    return found


def imported(
    path: str | Path,
    architecture: Architecture | str,
    *,
    classes: tuple[str, ...] = ("background", "foreground"),
    scaling: Scaling | None = None,
) -> Checkpoint:
    """
    Take the weights of a network from a file of PyTorch or safetensors.

    Parameters
    ----------
    path : str or Path
        A state dict, `torch.save(model.state_dict(), path)`, also of a model in DataParallel, or one among
        other things (`state_dict`, `model`, ...); only weights are read, code in the file is never run.
    architecture : Architecture or str
        The network that has weights of these names and shapes.
    classes : tuple of str
        What the labels mean.
    scaling : Scaling, optional
        What is done to intensities first; nothing by default.

    Returns
    -------
    Checkpoint
        To be used, or written by `write`.

    Raises
    ------
    TomoscaleError
        No weights, weights of another network, or a file that would run code.
    """
    target = Path(path)
    chosen = architecture if isinstance(architecture, Architecture) else Architecture.of(architecture)
    weights = files.stripped(files.state_dict(target))
    _check_classes(target, classes, chosen.outputs)
    history = [{"imported": str(target.absolute())}]
    return Checkpoint(_with_weights(target, chosen, weights), classes, scaling or Scaling(), history)


def _content(target: Path) -> tuple[dict[str, torch.Tensor], Any]:
    """Return the weights and the record of a checkpoint of ours."""
    if files.is_pickle(files.head_of(target)):
        raise TomoscaleError(
            f"{target}: a pickle, of PyTorch perhaps, which may run code and is not opened; "
            "take its weights with learn.checkpoint.imported and write them"
        )
    weights, metadata = files.safetensors_of(target)
    try:
        return weights, json.loads(metadata["tomoscale"])
    except (KeyError, ValueError, RecursionError):
        raise TomoscaleError(
            f"{target}: weights without architecture; take them with learn.checkpoint.imported and write them"
        ) from None


# ---------------------------------------------------------------- checks


def _with_weights(target: Path, architecture: Architecture, weights: dict[str, torch.Tensor]) -> nn.Module:
    """Make the network of some weights; no memory is taken before they are known to fit."""
    network = networks.empty(architecture)
    expected = network.state_dict()
    missing, more = sorted(expected.keys() - weights.keys()), sorted(weights.keys() - expected.keys())
    if missing or more:
        missed = f"{len(missing)} weights are missing, first {missing[0]}" if missing else ""
        unknown = f"{len(more)} are of no use to it, first {more[0][:60]}" if more else ""
        raise TomoscaleError(
            f"{target}: not the weights of this architecture: {', '.join(filter(None, (missed, unknown)))}"
        )
    for name, tensor in expected.items():
        if weights[name].shape != tensor.shape:
            raise TomoscaleError(
                f"{target}: {name} has shape {tuple(weights[name].shape)}, the architecture has {tuple(tensor.shape)}"
            )
    _check_finite(target, weights)
    typed = {n: weights[n].to(expected[n].dtype) for n in expected}
    network.load_state_dict(typed, assign=True)
    return network.eval().requires_grad_(False)


def _check_finite(target: Path, weights: Mapping[str, torch.Tensor]) -> None:
    for name, tensor in weights.items():
        if not torch.isfinite(tensor).all():
            raise TomoscaleError(
                f"{target}: {name} holds NaN or infinite weights; the training diverged, take an earlier one"
            )


def _check_classes(target: Path, classes: tuple[str, ...], outputs: int) -> None:
    if len(classes) != max(2, outputs):
        raise TomoscaleError(
            f"{target}: {len(classes)} classes ({', '.join(classes)[:60]}) for a network of {outputs} outputs; "
            f"expected {max(2, outputs)}"
        )


def _digest(record: Mapping[str, Any], weights: Mapping[str, torch.Tensor]) -> str:
    """Return the sha256 of a record (without its own) and of weights."""
    said = {n: v for n, v in record.items() if n != "sha256"}
    digest = hashlib.sha256(json.dumps(said, sort_keys=True).encode())
    for name, tensor in sorted(weights.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()
