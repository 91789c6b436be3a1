"""
A network over a volume in tiles, held against the same network over the whole volume: error and time.

`python benchmarks/bench_predict.py` prints the tables, with MONAI's sliding window (extra `bench`) on the same network,
and a whole run beside the network alone; `asv run --bench Predict` follows ours over the commits. Errors are the
largest of a logit, in standard deviations of the logits; labels are those that change sides.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from numpy.typing import NDArray

from tomoscale import blocks, cluster, predict, run, store
from tomoscale.learn import forward, networks

SHAPE = (24, 192, 192)
TILE = (24, 96, 96)


def network_and_volume(
    norm: str = "batch", shape: tuple[int, int, int] = SHAPE
) -> tuple[networks.UNet, NDArray]:
    """The small network with statistics as after a training, and smoothed noise."""
    network = networks.build(networks.Architecture(widths=(16, 32, 64), norm=norm), seed=0).eval()
    volume = np.random.default_rng(0).random(shape, np.float32)
    network.train()
    with torch.no_grad():  # BatchNorm takes the statistics of the data
        for _ in range(20):
            network(torch.from_numpy(volume[None, None, :8, : shape[1] // 3, : shape[2] // 3]))
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


def ours_in_tiles(network: networks.UNet, volume: NDArray, tile: tuple[int, int, int] = TILE) -> NDArray:
    """The same in blocks of MONAI's tiles, which see their halo in addition."""
    from tomoscale import tiling

    candidates = tiling._candidates

    def few(*given: Any) -> list[tiling.Tiles]:
        return [t for t in candidates(*given) if t.block == tile]

    with (
        patch.object(predict, "cut", lambda *a, **o: predict_cut(*a, **{**o, "chunks": tile})),
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
    params = (["the whole volume at once", "tomoscale, blocks of 8 x 48 x 48"],)
    param_names = ("method",)
    number, repeat, warmup_time = 1, 1, 0.0

    def setup(self, method: str) -> None:
        torch.set_num_threads(1)
        self.network, self.volume = network_and_volume(shape=(8, 96, 96))
        self.reference = whole(self.network, self.volume)
        self.method = partial(ours_in_tiles, tile=(8, 48, 48)) if "tomoscale" in method else whole

    def time_volume(self, method: str) -> None:
        self.method(self.network, self.volume)

    def track_error(self, method: str) -> float:
        return float(np.abs(self.method(self.network, self.volume) - self.reference).max())

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
    print(f"\n{'3d-small, whole run':40}{'seconds':>10}{'share':>10}")
    for name, seconds, share in whole_run(network_and_volume()[0]):
        print(f"{name:40}{seconds:10.1f}{share:10.0%}")


def whole_run(network: networks.UNet) -> list[tuple[str, float, float]]:
    """Run the command's way from Zarr to Zarr on one thread; time that, and the network alone on the same tiles."""
    inner, tiles = networks.UNet.forward, []

    def noted(self: networks.UNet, x: torch.Tensor, part: Sequence[slice]) -> torch.Tensor:
        tiles.append((x.clone(), part))
        return inner(self, x, part)

    volume = (np.random.default_rng(0).random((48, 192, 192)) * 60_000).astype("u2")
    with TemporaryDirectory() as folder, cluster.connect("threads", threads=1, memory=2 * 10**9) as workers:
        source = Path(folder, "in.zarr")
        store.create_array(source, volume.shape, volume.dtype, (64, 64, 64)).write((0, 0, 0), volume)
        with blocks.planned_for(workers.block_bytes, 1, workers.most_block_bytes):
            lazy = predict.segment(source, network)
        with patch.object(networks.UNet, "forward", noted):
            run.write(lazy, Path(folder, "tiles.zarr"), connection=workers, quiet=True)
        begin = time.perf_counter()
        run.write(lazy, Path(folder, "out.zarr"), connection=workers, quiet=True)
        whole_s = time.perf_counter() - begin
    begin = time.perf_counter()
    with torch.inference_mode():
        for tile, part in tiles:
            network(tile, part)
    alone_s = time.perf_counter() - begin
    return [
        (f"the network alone, {len(tiles)} tiles", alone_s, 1.0),
        ("tomoscale, Zarr to Zarr", whole_s, alone_s / whole_s),
    ]


if __name__ == "__main__":
    main()
