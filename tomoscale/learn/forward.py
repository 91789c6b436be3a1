"""A network over one tile: on its device, in batches, mirrored on request, in parts when memory runs out."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

from tomoscale import turns
from tomoscale.errors import TomoscaleError
from tomoscale.grid import Window, lengths
from tomoscale.learn.model import Model
from tomoscale.learn.parts import in_parts
from tomoscale.learn.statistics import Fixed, Measured, Meter, together, with_layers
from tomoscale.tiling import Tiles, mirrored

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
FLIPS: dict[str, tuple[tuple[int, ...], ...]] = {
    "none": ((),),
    "yx": ((), (1,), (2,), (1, 2)),
    "zyx": ((), (0,), (1,), (2,), (0, 1), (0, 2), (1, 2), (0, 1, 2)),
}
"""Axes of (z, y, x) that are mirrored, for every pass whose probabilities are averaged."""

CORES = torch.get_num_threads()
"""Threads that PyTorch takes by itself: of a worker process as many as it was told."""

_turn = threading.Lock()


class How(NamedTuple):
    """How a network is run."""

    device: str
    precision: str
    flips: str
    batch: int
    probabilities: bool


def device_of(word: str) -> str:
    """
    Return the device that is meant by `auto`, `cpu` or `gpu`.

    Raises
    ------
    TomoscaleError
        A GPU is asked for and there is none.
    """
    if word == "gpu" and not torch.cuda.is_available():
        raise TomoscaleError(
            "predict.segment: there is no GPU to compute on: PyTorch finds none; or give --device cpu"
        )
    return "cuda" if word != "cpu" and torch.cuda.is_available() else "cpu"


def name_of(device: str) -> str:
    """Return a device for people."""
    return "CPU" if device == "cpu" else f"GPU 0, {torch.cuda.get_device_properties(0).name}"


def precision_of(word: str, device: str) -> str:
    """Return the numbers that are meant by `auto`: bfloat16 where a device has units for it."""
    if word != "auto":
        return word
    return "bfloat16" if device == "cuda" and torch.cuda.is_bf16_supported() else "float32"


def device_bytes(device: str) -> int | None:
    """Return the memory of a device, None for that of the worker itself."""
    return None if device == "cpu" else torch.cuda.get_device_properties(0).total_memory


def infer(
    block: np.ndarray, model: Model, tiles: Tiles, core: Window, how: How, statistics: np.ndarray | None
) -> np.ndarray:
    """
    Return labels or probabilities of a part of a volume.

    Parameters
    ----------
    block : numpy.ndarray
        What lies in `tiles.window(core)`, scaled, float32; behind the end of the volume mirrored.
    model : Model
        The network.
    tiles : Tiles
        How windows are made.
    core : tuple of slice
        The part.
    how : How
        Device, precision, flips, batch.
    statistics : numpy.ndarray or None
        (instance, flip, feature, 2) of every InstanceNorm, one behind the other; None where a tile is whole.

    Returns
    -------
    numpy.ndarray
        (z, y, x) uint8 labels, or (class, z, y, x) float16 probabilities.
    """
    window = tiles.window(core)

    def run(part: Window, seen: Window) -> np.ndarray:
        given, known = block[_within(seen, window)], _rows(statistics, model, part, core)
        if how.flips == "none":
            logits = _forward(given, model, part, seen, (), how, known)
            return _probabilities(logits).half().numpy() if how.probabilities else _labels(logits, 0.0)
        total: torch.Tensor | None = None
        for number, axes in enumerate(FLIPS[how.flips]):
            share = _probabilities(_forward(given, model, part, seen, axes, how, known, number))
            total = share if total is None else total.add_(share)
        assert total is not None
        total.div_(len(FLIPS[how.flips]))
        return total.half().numpy() if how.probabilities else _labels(total, 0.5)

    parts = list(
        in_parts(core, tiles, how.device, model, run, seams=statistics is None and bool(model.norms))
    )
    if len(parts) == 1:
        return parts[0][1]
    whole = np.empty((*parts[0][1].shape[:-3], *lengths(core)), parts[0][1].dtype)
    for part, result in parts:
        where: Any = (..., *_within(part, core))
        whole[where] = result
    return whole


def measure(
    block: np.ndarray,
    model: Model,
    tiles: Tiles,
    core: Window,
    how: How,
    layer: int,
    statistics: np.ndarray | None,
) -> np.ndarray:
    """
    Return what one InstanceNorm would see of a part of a volume.

    Parameters
    ----------
    block, model, tiles, core, how
        As for `infer`.
    layer : int
        Which InstanceNorm.
    statistics : numpy.ndarray or None
        Those of the layers before.

    Returns
    -------
    numpy.ndarray
        (instance, flip, feature, 3) float64: count, mean, sum of squared deviations; an instance is a slice for a
        network over slices, else the volume.
    """
    window = tiles.window(core)

    def run(part: Window, seen: Window) -> np.ndarray:
        given, known = block[_within(seen, window)], _rows(statistics, model, part, core)
        passes = enumerate(FLIPS[how.flips])
        return np.stack(
            [_forward(given, model, part, seen, axes, how, known, n, layer) for n, axes in passes], 1
        )

    groups: dict[tuple[int, int], list[np.ndarray]] = {}
    for part, found in in_parts(core, tiles, how.device, model, run, seams=False):
        slices = (part[0].start, part[0].stop) if model.dimensions == 2 else (0, 1)
        groups.setdefault(slices, []).append(found)
    return np.concatenate([together(np.stack(groups[s]), 0) for s in sorted(groups)])


# ---------------------------------------------------------------- one pass


def _within(part: Window, whole: Window) -> tuple[slice, ...]:
    """Return a part as counted from the corner of a whole."""
    return tuple(slice(p.start - w.start, p.stop - w.start) for p, w in zip(part, whole, strict=True))


def _rows(statistics: np.ndarray | None, model: Model, part: Window, core: Window) -> np.ndarray | None:
    """Return the statistics of the slices of a part."""
    return statistics if statistics is None or model.dimensions == 3 else statistics[_within(part, core)[0]]


def _forward(
    given: np.ndarray,
    model: Model,
    part: Window,
    seen: Window,
    axes: tuple[int, ...],
    how: How,
    statistics: np.ndarray | None,
    number: int = 0,
    layer: int | None = None,
) -> Any:
    """Run the network on a mirrored tile; return the logits of its inner part, or what a layer measured there."""
    inner = [slice(p.start - s.start, min(p.stop, s.stop) - s.start) for p, s in zip(part, seen, strict=True)]
    turned = [
        slice(n - c.stop, n - c.start) if a in axes else c
        for a, (c, n) in enumerate(zip(inner, given.shape, strict=True))
    ]
    spatial = turned[-model.dimensions :]
    known = None if statistics is None else statistics[:, number]
    network, fixed, meter = _prepared(model, how, known, layer, [
        (c.start / n, c.stop / n) for c, n in zip(spatial, given.shape[-model.dimensions :], strict=True)
    ])  # fmt: skip
    tile = torch.from_numpy(np.ascontiguousarray(np.flip(given, axes)))
    found = []
    with _running(how):
        if model.dimensions == 3:
            batches = [(slice(None), tile[None, None])]
        else:
            batches = [
                (slice(a, a + how.batch), tile[a : a + how.batch, None])
                for a in range(0, len(tile), how.batch)
            ]
        for rows, batch in batches:
            for one in fixed:
                one.rows = rows
            try:
                # A network of others may write on what it is given, which is read again, or may be the user's own.
                sent = batch.to(how.device, non_blocking=True, copy=not model.cuts)
                out = network(sent, spatial) if model.cuts else network(sent)[(..., *spatial)]
            except Measured:
                assert meter is not None
                found.append(meter.found)
                continue
            found.append(out.float().cpu())
    if layer is not None:
        return np.concatenate(found)
    logits = found[0][0] if model.dimensions == 3 else torch.cat(found).transpose(0, 1)[:, turned[0]]
    return logits.flip([a + 1 for a in axes]) if axes else logits


def _prepared(
    model: Model,
    how: How,
    statistics: np.ndarray | None,
    layer: int | None,
    inner: Sequence[tuple[float, float]],
) -> tuple[nn.Module, list[Fixed], Meter | None]:
    """Return the network with the statistics that are known put in, and a meter in the place that is measured."""
    network = model.network(how.device)
    layers: dict[str, nn.Module] = {}
    fixed: list[Fixed] = []
    if statistics is not None:
        first = 0
        for name, n_features in model.norms[: layer if layer is not None else None]:
            values = torch.from_numpy(statistics[:, first : first + n_features]).to(how.device)
            fixed.append(Fixed(network.get_submodule(name), values))
            layers[name] = fixed[-1]
            first += n_features
    meter = Meter(inner) if layer is not None else None
    if meter is not None:
        layers[model.norms[layer or 0][0]] = meter
    return (with_layers(network, layers) if layers else network), fixed, meter


@contextlib.contextmanager
def _running(how: How) -> Any:
    """Hold the device and its numbers; one thread computes on it while others read and write."""
    kind = torch.device(how.device).type
    half = how.precision != "float32"
    with contextlib.ExitStack() as stack:
        stack.enter_context(torch.inference_mode())
        stack.enter_context(torch.autocast(kind, DTYPES[how.precision], enabled=half))
        if kind == "cpu":
            stack.enter_context(_share_of_cores())
        if kind == "cuda":
            stack.enter_context(_turn)
            stack.enter_context(torch.backends.cudnn.flags(enabled=True, allow_tf32=half))
        yield


@contextlib.contextmanager
def _share_of_cores() -> Iterator[None]:
    """Let threads that compute side by side share the cores: PyTorch would start as many threads for each of them."""
    before = torch.get_num_threads()
    torch.set_num_threads(min(before, max(1, CORES // turns.side_by_side())))
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _probabilities(logits: torch.Tensor) -> torch.Tensor:
    return torch.sigmoid(logits) if len(logits) == 1 else torch.softmax(logits, 0)


def _labels(values: torch.Tensor, threshold: float) -> np.ndarray:
    labels = values[0] > threshold if len(values) == 1 else values.argmax(0)
    return labels.to(torch.uint8).numpy()


def padded(raw: np.ndarray, window: Window) -> np.ndarray:
    """Continue what was read to the shape of its window."""
    return mirrored(raw, lengths(window))
