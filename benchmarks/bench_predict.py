"""
A network over a volume in tiles, held against the same network over the whole volume: error and time.

`python benchmarks/bench_predict.py` prints one table, with MONAI's sliding window (if it is installed) on the same
network; `asv run --bench Predict` follows ours over the commits. Errors are the largest of a logit, in standard
deviations of the logits; labels are those that change sides.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from numpy.typing import NDArray

from tomoscale import blocks, predict, store
from tomoscale.learn import forward, networks

SHAPE = (24, 192, 192)
TILE = (24, 96, 96)


def network_and_volume(norm: str = "batch") -> tuple[networks.UNet, NDArray]:
    """The small network with statistics as after a training, and smoothed noise."""
    network = networks.build(networks.Architecture(widths=(16, 32, 64), norm=norm), seed=0).eval()
    volume = np.random.default_rng(0).random(SHAPE, np.float32)
    network.train()
    with torch.no_grad():  # BatchNorm takes the statistics of the data
        for _ in range(20):
            network(torch.from_numpy(volume[None, None, :8, :64, :64]))
    return network.eval(), volume


def whole(network: networks.UNet, volume: NDArray) -> NDArray:
    """The reference: all at once."""
    with torch.inference_mode():
        return network(torch.from_numpy(volume)[None, None])[0, 0].numpy()


def ours(network: networks.UNet, volume: NDArray) -> NDArray:
    """As it is planned where memory suffices, as logits."""
    with (
        blocks.planned_for(10**10, 1),
        patch.object(forward, "_probabilities", lambda logits: logits),
        patch.object(torch.Tensor, "half", lambda tensor: tensor),
    ):
        lazy = predict.segment(store.as_volume(volume), network, probabilities=True)
        return lazy["probabilities"].compute(scheduler="sync")[0]


def ours_in_tiles(network: networks.UNet, volume: NDArray) -> NDArray:
    """The same in blocks of MONAI's tiles, which see their halo in addition."""
    from tomoscale import tiling

    candidates = tiling._candidates

    def few(*given: Any) -> list[tiling.Tiles]:
        return [t for t in candidates(*given) if t.block == TILE]

    with (
        patch.object(predict, "cut", lambda *a, **o: predict_cut(*a, **{**o, "chunks": TILE})),
        patch.object(tiling, "_candidates", few),
    ):
        return ours(network, volume)


predict_cut = predict.cut


def monai_of(overlap: float, mode: str = "gaussian") -> Callable[[networks.UNet, NDArray], NDArray]:
    """MONAI's sliding window."""

    def run(network: networks.UNet, volume: NDArray) -> NDArray:
        from monai.inferers import sliding_window_inference

        with torch.inference_mode():
            x = torch.from_numpy(volume)[None, None]
            return sliding_window_inference(x, TILE, 1, network, overlap=overlap, mode=mode)[0, 0].numpy()

    return run


METHODS: dict[str, Callable[[networks.UNet, NDArray], NDArray]] = {
    "the whole volume at once": whole,
    "tomoscale, one block": ours,
    "tomoscale, blocks of 24 x 96 x 96": ours_in_tiles,
    "MONAI, overlap 0.25, Gaussian": monai_of(0.25),
    "MONAI, overlap 0.5, Gaussian": monai_of(0.5),
}


class Predict:
    params = (["the whole volume at once", "tomoscale, blocks of 24 x 96 x 96"],)
    param_names = ("method",)
    number, repeat, warmup_time = 1, 1, 0.0

    def setup(self, method: str) -> None:
        torch.set_num_threads(1)
        self.network, volume = network_and_volume()
        self.volume = volume
        self.reference = whole(self.network, volume)

    def time_volume(self, method: str) -> None:
        METHODS[method](self.network, self.volume)

    def track_error(self, method: str) -> float:
        return float(np.abs(METHODS[method](self.network, self.volume) - self.reference).max())

    track_error.unit = "logit"  # type: ignore[attr-defined]


def main() -> None:
    torch.set_num_threads(1)
    print(f"torch {torch.__version__}, one core, volume {SHAPE}, tiles {TILE}")
    for norm in ("batch", "instance"):
        network, volume = network_and_volume(norm)
        reference = whole(network, volume)
        print(f"\n{f'3d-small, {norm} norm':40}{'seconds':>10}{'error / std':>14}{'labels':>10}")
        for name, method in METHODS.items():
            begin = time.perf_counter()
            try:
                found = method(network, volume)
            except ImportError:
                print(f"{name:40}{'not installed':>34}")
                continue
            seconds = time.perf_counter() - begin
            error = np.abs(found - reference).max() / reference.std()
            changed = ((found > 0) != (reference > 0)).mean()
            print(f"{name:40}{seconds:10.1f}{error:14.1e}{changed:10.3%}", flush=True)
    network, volume = network_and_volume()
    print(f"\nshare of the time that is the forward pass: {forward_share(network, volume):.0%}")


def forward_share(network: networks.UNet, volume: NDArray) -> float:
    """Return the share of the time of all blocks that is spent in the network."""
    spent = 0.0
    inner = networks.UNet.forward

    def timed(self: networks.UNet, x: torch.Tensor) -> torch.Tensor:
        nonlocal spent
        begin = time.perf_counter()
        out = inner(self, x)
        spent += time.perf_counter() - begin if x.device.type != "meta" else 0.0
        return out

    with blocks.planned_for(10**9, 1):
        labels = predict.segment(store.as_volume(volume), network)["labels"]
    with patch.object(networks.UNet, "forward", timed):
        begin = time.perf_counter()
        labels.compute(scheduler="sync")
        return spent / (time.perf_counter() - begin)


if __name__ == "__main__":
    main()
