"""A network over blocks gives what it gives over the whole volume; the whole volume is the oracle."""

from __future__ import annotations

import functools
import json
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import dask
import numpy as np
import pytest
from conftest import write_array

torch = pytest.importorskip("torch", reason="networks need the extra `learn`")
torch.set_num_threads(1)

from torch.utils.flop_counter import FlopCounterMode  # noqa: E402

from tomoscale import blocks, budget, cli, cluster, predict, run, store, tiling, verify  # noqa: E402
from tomoscale.errors import TomoscaleError  # noqa: E402
from tomoscale.learn import checkpoint, forward, networks, parts  # noqa: E402
from tomoscale.learn.checkpoint import Checkpoint  # noqa: E402
from tomoscale.learn.model import opened, stated  # noqa: E402
from tomoscale.learn.networks import Architecture  # noqa: E402
from tomoscale.learn.scaling import Scaling  # noqa: E402

FLAT = Architecture(2, (4, 6, 8), pooling=(2, 2), norm="batch", upsampling="transposed")
DEEP = Architecture(3, (4, 6, 8), pooling=(1, 2, 2), norm="batch")
CUBE = Architecture(3, (4, 6), pooling=(2, 2, 2), norm="batch", outputs=3)
SHAPE = (7, 37, 29)
CHUNKS = [(4, 16, 16), (7, 37, 29), (3, 20, 24), (16, 16, 16), (2, 37, 16), (5, 9, 29), (7, 33, 11)]


def network_of(architecture, seed=0):
    """A network whose normalisations do something, as after a training, and whose labels are of all kinds."""
    network = networks.build(architecture, seed=seed).eval()
    generator = torch.Generator().manual_seed(seed)
    for module in network.modules():
        if hasattr(module, "running_mean") and module.running_mean is not None:
            module.running_mean.uniform_(-0.2, 0.2, generator=generator)
            module.running_var.uniform_(0.1, 0.5, generator=generator)
        if getattr(module, "affine", False):
            module.weight.data.uniform_(0.5, 1.5, generator=generator)
            module.bias.data.uniform_(-0.2, 0.2, generator=generator)
    x = torch.rand((1, 1, *(8 * s for s in network.stride)), generator=generator)
    with torch.no_grad():
        network.head.bias.sub_(network(x).mean(dim=tuple(i for i in range(x.ndim) if i != 1)))
    return network


def volume_of(shape=SHAPE, seed=0):
    return np.random.default_rng(seed).random(shape, np.float32)


def whole(network, volume, axes=()):
    """The oracle: the whole volume at once, continued by reflection, mirrored on request; (class, z, y, x)."""
    stride = (1,) * (3 - network.architecture.dimensions) + network.stride
    grown = np.pad(volume, [(0, -n % s) for n, s in zip(volume.shape, stride, strict=True)], mode="reflect")
    x = torch.from_numpy(np.flip(grown, axes).astype(np.float32))
    with torch.no_grad():
        if network.architecture.dimensions == 3:
            logits = network(x[None, None])[0]
        else:
            logits = torch.cat([network(s[None, None]) for s in x]).transpose(0, 1)
    logits = logits.flip([a + 1 for a in axes])
    return logits[:, : volume.shape[0], : volume.shape[1], : volume.shape[2]].numpy()


def labels_of(logits):
    return (logits[0] > 0).astype(np.uint8) if len(logits) == 1 else logits.argmax(0).astype(np.uint8)


def sigmoid(x):
    return 1 / (1 + np.exp(-x.astype(np.float64)))


@pytest.fixture
def logits_of(monkeypatch):
    """Return a function that predicts the logits themselves, so that errors are seen at their full size."""
    monkeypatch.setattr(forward, "_probabilities", lambda logits: logits)

    def logits(volume, network, chunks, **options):
        with blocks.planned_for(10**9, 1):
            lazy = predict.segment(volume, network, probabilities=True, chunks=chunks, **options)
        with monkeypatch.context() as patch:
            patch.setattr(torch.Tensor, "half", lambda tensor: tensor)
            return dask.compute(lazy, scheduler="sync")[0]  # together: passes for statistics are made once

    return logits


@pytest.fixture(autouse=True)
def no_library(monkeypatch):
    """Plans for small volumes and little memory would only see the memory of PyTorch itself."""
    monkeypatch.setattr(budget, "LIBRARY_BYTES", 0)


def cut_small(monkeypatch):
    """Make every stored chunk a block of its own."""
    candidates = tiling._candidates
    monkeypatch.setattr(tiling, "_candidates", lambda *given: candidates(*given)[-1:])


@pytest.mark.parametrize("chunks", CHUNKS)
@pytest.mark.parametrize("architecture", [FLAT, DEEP, CUBE, replace(DEEP, encoder="residual")])
def test_blocks_give_what_the_whole_volume_gives(architecture, chunks, monkeypatch, logits_of):
    cut_small(monkeypatch)
    network, volume = network_of(architecture), volume_of()
    expected = whole(network, volume)
    found = logits_of(volume, network, chunks)["probabilities"]
    assert found.shape == expected.shape
    error = np.abs(found - expected).max() / expected.std()
    assert error <= 1e-5
    far = np.abs(expected[0]) > 1e-5 if len(expected) == 1 else np.ptp(np.sort(expected, 0)[-2:], 0) > 1e-5
    with blocks.planned_for(10**9, 1):
        labels = predict.segment(volume, network, chunks=chunks)["labels"].compute(scheduler="sync")
    assert labels.dtype == np.uint8
    np.testing.assert_array_equal(labels[far], labels_of(expected)[far])
    assert 0.05 < (labels > 0).mean() < 0.95


@pytest.mark.parametrize("chunks", CHUNKS)
@pytest.mark.parametrize("architecture", [replace(DEEP, norm="instance"), replace(CUBE, norm="instance")])
def test_instance_norm_is_that_of_the_whole_volume(architecture, chunks, monkeypatch, logits_of):
    cut_small(monkeypatch)
    network, volume = network_of(architecture), volume_of()
    expected = whole(network, volume)
    found = logits_of(volume, network, chunks)
    assert np.abs(found["probabilities"] - expected).max() <= 1e-4 * expected.std()
    if chunks == (4, 16, 16):
        assert "statistics" in found
    if chunks == SHAPE:
        assert "statistics" not in found, "a block that sees everything needs none"


@pytest.mark.parametrize("chunks", CHUNKS)
def test_instance_norm_of_slices_is_that_of_whole_slices(chunks, monkeypatch, logits_of):
    network, volume = network_of(replace(FLAT, norm="instance")), volume_of((2, 45, 30))
    expected = whole(network, volume)
    found = logits_of(volume, network, chunks)
    assert list(found) == ["probabilities"], "slices fit: no passes for statistics"
    assert np.abs(found["probabilities"] - expected).max() <= 1e-4 * expected.std()
    with blocks.planned_for(10**9, 2):
        made = predict.segment(volume, network, chunks=chunks)
    assert list(made) == ["labels"], "nor do blocks of several slices each need any"
    monkeypatch.setattr(predict, "cut", lambda *a, whole=None, **o: None if whole else predict_cut(*a, **o))
    cut_small(monkeypatch)
    found = logits_of(volume, network, chunks)
    assert "statistics" in found, "these blocks see parts of slices"
    assert np.abs(found["probabilities"] - expected).max() <= 1e-4 * expected.std()


predict_cut = predict.cut


def test_without_the_calibration_instance_norm_is_another_network(monkeypatch, logits_of):
    """The test above can fail: tiles that normalise for themselves are far off."""
    cut_small(monkeypatch)
    network, volume = (
        network_of(replace(DEEP, norm="instance")),
        volume_of() + np.linspace(0, 3, SHAPE[1])[None, :, None].astype("f4"),
    )
    expected = whole(network, volume)
    monkeypatch.setattr(predict.calibration, "statistics", lambda *_: None)
    found = logits_of(volume, network, (4, 16, 16))
    assert np.abs(found["probabilities"] - expected).max() > 0.1 * expected.std()


@pytest.mark.parametrize("shape", [(1, 1, 1), (2, 3, 5), (1, 40, 1), (5, 4, 4), (7, 9, 31)])
@pytest.mark.parametrize("architecture", [FLAT, DEEP, CUBE, replace(DEEP, norm="instance")])
def test_small_and_odd_volumes_are_continued_by_reflection(architecture, shape, logits_of):
    network, volume = network_of(architecture), volume_of(shape)
    if architecture.norm == "instance" and shape == (1, 1, 1):
        network = network_of(replace(architecture, norm="batch"))
    expected = whole(network, volume)
    found = logits_of(volume, network, None)["probabilities"]
    np.testing.assert_allclose(found, expected, atol=1e-5 * max(1, expected.std()))


@pytest.mark.parametrize("norm", ["batch", "instance"])
@pytest.mark.parametrize(("flips", "count"), [("yx", 4), ("zyx", 8)])
def test_flips_average_the_probabilities_of_mirrored_volumes(norm, flips, count, monkeypatch):
    cut_small(monkeypatch)
    network, volume = network_of(replace(CUBE, norm=norm, outputs=1)), volume_of()
    passes = forward.FLIPS[flips]
    assert len(passes) == count
    expected = np.mean([sigmoid(whole(network, volume, axes)) for axes in passes], axis=0)
    options = {"flips": flips, "chunks": (4, 16, 20)}
    found, labels = dask.compute(
        predict.segment(volume, network, probabilities=True, **options)["probabilities"],
        predict.segment(volume, network, **options)["labels"],
    )
    np.testing.assert_allclose(found, expected, atol=6e-4)  # float16
    far = np.abs(expected[0] - 0.5) > 1e-5
    np.testing.assert_array_equal(labels[far], (expected[0] > 0.5)[far])


def test_probabilities_are_those_of_sigmoid_and_softmax():
    volume = volume_of()
    one = predict.segment(volume, network_of(DEEP), probabilities=True)["probabilities"].compute()
    np.testing.assert_allclose(one, sigmoid(whole(network_of(DEEP), volume)), atol=6e-4)
    assert one.dtype == np.float16
    three = predict.segment(volume, network_of(CUBE), probabilities=True)["probabilities"].compute()
    assert three.shape == (3, *SHAPE)
    np.testing.assert_allclose(three.astype("f4").sum(0), 1, atol=2e-3)


def test_half_precision_is_close_and_no_more():
    volume, network = volume_of(), network_of(DEEP)
    expected = sigmoid(whole(network, volume))
    found = predict.segment(volume, network, probabilities=True, precision="bfloat16")[
        "probabilities"
    ].compute()
    assert 1e-4 < np.abs(found - expected).max() < 0.05


@pytest.mark.parametrize("roi", [((3, 6), (10, 33), (5, 20)), ((0, 7), (36, 37), (0, 29))])
@pytest.mark.parametrize(
    "architecture", [DEEP, replace(DEEP, norm="instance"), replace(FLAT, norm="instance")]
)
def test_a_region_is_cut_out_of_the_result_for_the_whole(architecture, roi, logits_of):
    network, volume = network_of(architecture), volume_of()
    expected = whole(network, volume)[(slice(None), *(slice(*r) for r in roi))]
    found = logits_of(store.crop(store.as_volume(volume), roi), network, (4, 16, 16))["probabilities"]
    np.testing.assert_allclose(found, expected, atol=2e-5 * whole(network, volume).std())


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int32", "float64", "float16"])
def test_intensities_are_scaled_as_the_checkpoint_says(dtype, tmp_path):
    network = network_of(DEEP)
    volume = (volume_of() * 200 + 20).astype(dtype)
    for scaling in (Scaling("fixed", 20, 200), Scaling("range")):
        path = checkpoint.write(Checkpoint(network, scaling=scaling), tmp_path / "m.safetensors")
        low, high = (20, 220) if scaling.kind == "fixed" else (float(volume.min()), float(volume.max()))
        expected = whole(network, (volume.astype("f8") - low) / (high - low))
        found = predict.segment(volume, path, chunks=(4, 16, 16))["labels"].compute()
        far = np.abs(expected[0]) > 1e-4
        np.testing.assert_array_equal(found[far], labels_of(expected)[far])


# ---------------------------------------------------------------- any network


class Own(torch.nn.Module):
    """A network that this package knows nothing of: two convolutions, the second with holes."""

    def __init__(self):
        super().__init__()
        self.first = torch.nn.Conv3d(1, 3, 3, padding=1)
        self.second = torch.nn.Conv3d(3, 2, 3, padding=2, dilation=2)

    def forward(self, x):
        return self.second(torch.nn.functional.gelu(self.first(x)))


def test_any_network_with_a_stated_halo_runs_without_seams(monkeypatch):
    cut_small(monkeypatch)
    torch.manual_seed(0)
    network, volume = Own().eval(), volume_of()
    with torch.no_grad():
        expected = network(torch.from_numpy(volume)[None, None])[0].numpy()
    model = stated(network, halo=(3, 3, 3), stride=(1, 1, 1), classes=("pore", "solid"))
    found = predict.segment(volume, model, chunks=(4, 16, 16))["labels"].compute()
    far = np.abs(expected[0] - expected[1]) > 1e-5
    np.testing.assert_array_equal(found[far], expected.argmax(0)[far])


def test_a_network_that_writes_on_what_it_is_given_does_no_harm():
    class Centred(torch.nn.Module):
        def forward(self, x):
            return x.sub_(0.5)

    volume = volume_of()
    given = volume.copy()
    found = predict.segment(volume, stated(Centred(), halo=(0, 0, 0), stride=(1, 1, 1)), flips="zyx")
    np.testing.assert_array_equal(found["labels"].compute(), given > 0.5)
    np.testing.assert_array_equal(volume, given)


def test_networks_that_cannot_run_tile_by_tile_are_refused():
    def refused(module, said, halo=(1, 1, 1), stride=(1, 1, 1), **options):
        with pytest.raises(TomoscaleError, match=said):
            stated(module, halo=halo, stride=stride, **options)

    conv = torch.nn.Conv3d
    refused(
        torch.nn.Sequential(conv(1, 4, 1), torch.nn.GroupNorm(2, 4)), "1 is a GroupNorm, which looks at all"
    )
    refused(conv(3, 1, 1), "does not run on one channel")
    refused(conv(1, 1, 3), "expected as many voxels")
    refused(conv(1, 3, 1), "2 classes for 3 outputs", classes=("a", "b"))
    refused(conv(1, 1, 1), "expected two or three numbers each", halo=(1,), stride=(1,))
    twice = torch.nn.InstanceNorm3d(1)
    refused(torch.nn.Sequential(twice, conv(1, 1, 1), twice), "one InstanceNorm runs twice")
    with pytest.raises(TomoscaleError, match=r"model is a Conv3d; expected the path of a checkpoint"):
        predict.segment(volume_of(), conv(1, 1, 1))


def test_a_volume_or_a_checkpoint_that_does_not_fit_is_refused(tmp_path):
    with pytest.raises(TomoscaleError, match=r"volume has shape \(4, 4\); expected \(z, y, x\)"):
        predict.segment(np.zeros((4, 4)), network_of(DEEP))
    with pytest.raises(TomoscaleError, match="no such checkpoint"):
        predict.segment(volume_of(), tmp_path / "absent.safetensors")
    colour = checkpoint.write(
        Checkpoint(networks.build(replace(DEEP, channels=3))), tmp_path / "c.safetensors"
    )
    with pytest.raises(
        TomoscaleError, match=r"c.safetensors: the network takes 3 channels; a volume has one"
    ):
        predict.segment(volume_of(), colour)
    with (
        blocks.planned_for(2 * 10**5, 1),
        pytest.raises(
            TomoscaleError, match=r"block of 7 x 16 x 16 needs .* give more --memory, or fewer --threads"
        ),
    ):
        predict.segment(volume_of(), network_of(DEEP))
    if not torch.cuda.is_available():
        with pytest.raises(TomoscaleError, match="PyTorch finds none; or give --device cpu"):
            predict.segment(volume_of(), network_of(DEEP), device="gpu")


# ---------------------------------------------------------------- memory


def test_when_memory_runs_out_a_tile_is_halved_and_the_run_goes_on(monkeypatch, logits_of):
    shape = (7, 61, 61)
    for architecture in (DEEP, replace(DEEP, norm="instance"), FLAT, replace(FLAT, norm="instance")):
        network, volume = network_of(architecture), volume_of(shape)
        seen = []

        def limited(self, x, *part, seen=seen, inner=networks.UNet.forward):
            if x.device.type == "meta":
                return inner(self, x, *part)
            seen.append(x.numel())
            if x.numel() > 24_000:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 3.00 GiB")
            return inner(self, x, *part)

        expected = whole(network, volume)
        chunks = (7, 48, 61) if architecture.norm == "instance" and architecture.dimensions == 3 else shape
        with monkeypatch.context() as patch:
            patch.setattr(networks.UNet, "forward", limited)
            patch.setattr(parts, "_too_large", {})
            patch.setattr(predict.Budget, "batch", lambda *_: 7)
            if chunks != shape:
                cut_small(patch)
            with pytest.warns(
                UserWarning, match="cpu has no memory for a tile of 7 x .*, goes on with halves"
            ):
                found = logits_of(volume, network, chunks)["probabilities"]
        limit = 1e-4 if architecture.norm == "instance" else 1e-5
        assert np.abs(found - expected).max() <= limit * expected.std()
        assert max(seen) > 24_000


def test_a_tile_that_cannot_be_halved_is_an_error_that_says_so(monkeypatch):
    def never(self, x, *part, inner=networks.UNet.forward):
        if x.device.type == "meta":
            return inner(self, x, *part)
        raise torch.OutOfMemoryError("CUDA out of memory")

    network = network_of(DEEP)
    monkeypatch.setattr(networks.UNet, "forward", never)
    monkeypatch.setattr(parts, "_too_large", {})
    with (
        pytest.warns(UserWarning, match="goes on with halves"),
        pytest.raises(TomoscaleError, match=r"cpu cannot hold a tile of .*, which cannot be cut"),
    ):
        predict.segment(volume_of(), network)["labels"].compute(scheduler="sync")


def test_other_errors_of_a_network_are_not_taken_for_a_lack_of_memory(monkeypatch):
    def broken(self, x, *part, inner=networks.UNet.forward):
        if x.device.type == "meta":
            return inner(self, x, *part)
        raise RuntimeError("expected scalar type Float")

    network = network_of(DEEP)
    monkeypatch.setattr(networks.UNet, "forward", broken)
    with pytest.raises(RuntimeError, match="expected scalar type"):
        predict.segment(volume_of(), network)["labels"].compute(scheduler="sync")


PASSES = [
    ("3d-small", (24, 96, 96), "whole"),
    ("3d-small", (24, 160, 160), "part"),
    ("3d", (8, 96, 96), "whole"),
    ("2d-batch", (320, 320), "whole"),
]
MEASURED = """
import json, math, os, sys, torch
torch.set_num_threads(1)
from tomoscale.learn import networks
from tomoscale.learn.model import opened
from tomoscale.tiling import Tiles
from tomoscale.worker import peak_bytes

def measure(name, shape, what):
    network = networks.build(name, seed=0).eval()
    inner = tuple(slice(n // 2 - n // 4, n // 2 + n // 4) for n in shape) if what == "part" else None
    with torch.inference_mode():
        network(torch.zeros((1, 1, *network.stride)))
        before = peak_bytes()
        network(torch.zeros((1, 1, *shape)), inner)
    taken = peak_bytes() - before
    plan = opened(network).appetite
    assert not {"sympy", "torch._dynamo"} & set(sys.modules), "a plan loads a compiler"
    tiles = Tiles(shape, inner or tuple(slice(0, n) for n in shape), shape, shape, plan.stages)
    features = max(math.prod(tiles.largest_of(s)) * s.bytes_per_voxel for s in plan.stages)
    print(taken, int(features), plan.weights, flush=True)

for asked in json.loads(sys.argv[1]):
    child = os.fork()  # a process for each, of one that has loaded PyTorch
    if child == 0:
        measure(*asked)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
"""


@pytest.fixture(scope="module")
def measured():
    """Bytes that each forward pass takes, of its features and of its weights, in processes of their own."""
    command = [sys.executable, "-c", MEASURED, json.dumps(PASSES)]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    return {one: tuple(map(int, line.split())) for one, line in zip(PASSES, lines, strict=True)}


@pytest.mark.parametrize("one", PASSES, ids=lambda one: "-".join(map(str, one)))
def test_the_memory_of_a_forward_pass_is_within_the_plan(one, measured, monkeypatch):
    monkeypatch.undo()
    taken, features, weights = measured[one]
    assert 0.5 * features < taken <= features + weights + budget.LIBRARY_BYTES


# ---------------------------------------------------------------- plan


def planned(shape, network, block_bytes=10**9, threads=2, **options):
    with blocks.planned_for(block_bytes, threads):
        volume = store.as_volume(np.broadcast_to(np.float32(0), shape))
        return run.plan(predict.segment(volume, network, **options))


def test_the_number_of_tasks_is_linear_in_blocks(monkeypatch):
    cut_small(monkeypatch)
    for norm in ("batch", "instance"):
        network = network_of(replace(DEEP, norm=norm))
        n_passes = 1 + len(opened(network).norms)
        few, many = (planned((32, 32, n), network, chunks=(16, 16, 16)) for n in (160, 640))
        assert (few.n_blocks, many.n_blocks) == (40, 160)
        assert many.n_graph_tasks - few.n_graph_tasks == n_passes * (many.n_blocks - few.n_blocks)


@pytest.mark.parametrize(("gigabytes", "most"), [(12, 1.2), (6, 1.3), (4, 1.4), (3, 1.5)])
def test_the_plan_states_the_work_of_the_halo_and_keeps_it_low(
    gigabytes, most, tmp_path, monkeypatch, capsys
):
    """512^3 with the small network, as the command plans it for two workers."""
    monkeypatch.undo()
    path = checkpoint.write(Checkpoint(networks.build("3d-small", seed=0)), tmp_path / "m.safetensors")
    volume = store.create_array(tmp_path / "in.zarr", (512, 512, 512), np.dtype("u2"), (64, 64, 64))
    volume.write((0, 0, 0), np.ones((64, 64, 64), "u2"))  # a plan reads nothing
    options = ["--workers", "2", "--memory", f"{gigabytes}GB", "--dry-run"]
    assert cli.main(["predict", str(tmp_path / "in.zarr"), str(path), *options]) == 0
    said = capsys.readouterr().err
    assert 1 <= float(re.search(r"([\d.]+) times the work", said)[1]) < most
    need, limit = re.search(r"per block, (\S+) GB per worker, .*limit (\S+) GB each", said).groups()
    assert float(need) <= float(limit)


@pytest.mark.slow
def test_no_worker_takes_more_than_the_plan_says(tmp_path, monkeypatch):
    """Eight blocks: what is kept from one to the next counts."""
    monkeypatch.undo()
    cut_small(monkeypatch)
    network = networks.build(replace(networks.PRESETS["3d-small"], outputs=8), seed=0).eval()
    path = checkpoint.write(Checkpoint(network, tuple("abcdefgh")), tmp_path / "m.safetensors")
    source = write_array(tmp_path / "in.zarr", volume_of((16, 64, 64)), (16, 32, 32))
    with cluster.connect("local", workers=1, threads=1, memory=2_000_000_000) as workers:
        with blocks.planned_for(workers.block_bytes, 1, workers.most_block_bytes):
            lazy = predict.segment(source, path, probabilities=True, chunks=(8, 32, 32))
        plan = run.plan(lazy)
        out = run.write(lazy, tmp_path / "out.zarr", connection=workers, quiet=True)
    (step,) = store.open_volume(out / "probabilities").history()
    assert plan.n_blocks == 8
    assert step["peak_bytes"] <= plan.worker_bytes()


def test_no_more_slices_are_planned_for_than_there_are():
    one, many = (planned((n, 64, 64), network_of(FLAT), threads=1).block_bytes for n in (1, 8))
    assert one < many / 4


def test_passes_for_statistics_fit_the_memory_of_a_region(monkeypatch):
    """They go over the whole volume, in which blocks have neighbours on both sides."""
    network = network_of(replace(DEEP, norm="instance"))
    volume = store.as_volume(np.broadcast_to(np.float32(0), (64, 64, 64)))
    for limit in range(18_000_000, 60_000_000, 6_000_000):
        with blocks.planned_for(limit, 1):
            lazy = predict.segment(store.crop(volume, ((0, 64), (0, 16), (0, 64))), network)
        assert "statistics" in lazy
        assert run.plan(lazy).block_bytes <= limit


def test_a_network_in_memory_is_recorded_by_its_weights(tmp_path):
    network, volume = network_of(DEEP), volume_of()
    out = run.write(predict.segment(volume, network), tmp_path / "out.zarr", quiet=True)
    (step,) = store.open_volume(out).history()
    assert step["inputs"]["model"]["sha256"] == opened(network).sha256
    assert "model" not in step["parameters"]
    chunk = next(p for p in (out / "labels" / "c").rglob("*") if p.is_file())
    chunk.write_bytes(b"half")
    with pytest.raises(TomoscaleError, match=r"its input .* was in memory; it cannot be made again"):
        verify.verify(out, repair=True)


@pytest.mark.parametrize("architecture", [DEEP, FLAT, CUBE, replace(DEEP, encoder="residual")])
def test_the_work_of_the_halo_is_what_is_computed(architecture, monkeypatch):
    volume, network = volume_of((20, 64, 64)), network_of(architecture)
    cut_small(monkeypatch)
    labels = predict.segment(volume, network, chunks=(8, 16, 16))["labels"]
    with FlopCounterMode(display=False) as counter:
        labels.compute(scheduler="sync")
    seen = (20, 1, 64, 64) if architecture.dimensions == 2 else (1, 1, 20, 64, 64)
    done = counter.get_total_flops() / networks.flops(network, seen)
    stated = blocks.facts(labels)["overhead"]
    assert 0.9 * stated < done <= 1.01 * stated
    assert done > 1.5


# ---------------------------------------------------------------- runs


@pytest.fixture
def stored(tmp_path):
    """Return a stored volume and a checkpoint."""
    path = checkpoint.write(
        Checkpoint(network_of(replace(DEEP, norm="instance")), ("matrix", "sphere")),
        tmp_path / "model.safetensors",
    )
    return write_array(tmp_path / "in.zarr", volume_of(), (5, 16, 29)), path


def differing(found, path):
    """Count labels that differ from the oracle where it is not undecided."""
    logits = whole(checkpoint.read(path).network, volume_of())[0]
    return int((found != (logits > 0))[np.abs(logits) > 1e-4 * logits.std()].sum())


def test_the_command_writes_what_the_function_returns(stored, tmp_path, capsys):
    source, path = stored
    out = tmp_path / "out.zarr"
    status = cli.main(
        [
            "predict",
            str(source),
            str(path),
            "-o",
            str(out),
            "--scheduler",
            "threads",
            "--threads",
            "1",
            "--chunks",
            "4,16,16",
        ]
    )
    printed = capsys.readouterr()
    assert (status, printed.out.strip()) == (0, str(out)), printed.err
    assert "passes over the volume" not in printed.err, "one block holds it all"
    labels = store.open_volume(out)
    assert differing(labels.whole(), path) == 0
    (step,) = labels.history()
    assert step["operation"] == "predict.segment"
    assert step["inputs"]["model"]["sha256"] == checkpoint.read(path).sha256


@pytest.mark.parametrize("content", [None, b"", b"text", b"\x80\x04cos\nsystem\n", b"\xff" * 100])
def test_the_command_refuses_a_bad_checkpoint_in_one_line(stored, tmp_path, capsys, content):
    source, _ = stored
    bad = tmp_path / "bad.safetensors"
    if content is not None:
        bad.write_bytes(content)
    assert (
        cli.main(
            ["predict", str(source), str(bad), "-o", str(tmp_path / "out.zarr"), "--scheduler", "threads"]
        )
        == 2
    )
    error = capsys.readouterr().err
    assert error.startswith(f"tomoscale: {bad}: ")
    assert error.count("\n") == 1
    assert not (tmp_path / "out.zarr").exists()


def small_blocks(source, path, **options):
    """Plan a run of many blocks, with passes for statistics."""
    with pytest.MonkeyPatch.context() as patch:
        cut_small(patch)
        lazy = predict.segment(source, path, chunks=(4, 16, 16), **options)
    assert "statistics" in lazy
    assert run.plan(lazy).n_blocks >= 8
    return lazy


def test_a_result_keeps_its_statistics(stored, tmp_path):
    source, path = stored
    with cluster.connect("threads", threads=2) as connection:
        out = run.write(small_blocks(source, path), tmp_path / "out.zarr", connection=connection, quiet=True)
    statistics = store.open_volume(out / "statistics").whole()
    volume, network = torch.from_numpy(volume_of()), checkpoint.read(path).network
    with torch.no_grad():
        grown = np.pad(volume.numpy(), [(0, 0), (0, 3), (0, 3)], mode="reflect")
        features = network.encoder[0][0](torch.from_numpy(grown)[None, None])[0]
    assert statistics.shape == (1, 1, sum(n for _, n in opened(path).norms), 2)
    np.testing.assert_allclose(statistics[0, 0, :4, 0], features.mean((1, 2, 3)), atol=1e-6)
    np.testing.assert_allclose(statistics[0, 0, :4, 1], features.var((1, 2, 3), correction=0), rtol=1e-5)
    assert differing(store.open_volume(out).whole(), path) == 0


def test_a_damaged_block_is_made_again(stored, tmp_path):
    source, path = stored
    with cluster.connect("threads", threads=1) as connection:
        with blocks.planned_for(10**9, 1):
            lazy = predict.segment(source, path, chunks=(4, 16, 16))
        out = run.write(lazy, tmp_path / "out.zarr", connection=connection, quiet=True)
    chunk = out / "labels" / "c" / "1" / "1" / "1"
    content = chunk.read_bytes()
    chunk.write_bytes(b"half")
    verify.verify(out, repair=True)
    assert chunk.read_bytes() == content


def test_a_checkpoint_that_is_exchanged_during_a_run_is_noticed(stored):
    source, path = stored
    lazy = small_blocks(source, path)
    checkpoint.write(Checkpoint(network_of(replace(DEEP, norm="instance"), seed=5)), path)
    from tomoscale.learn import model

    model._loaded.cache_clear()
    with pytest.raises(TomoscaleError, match="the checkpoint was replaced during the run"):
        lazy["labels"].compute(scheduler="sync")


def test_a_worker_loads_a_checkpoint_once(stored, monkeypatch):
    from tomoscale.learn import model

    source, path = stored
    lazy = small_blocks(source, path)
    model._loaded.cache_clear()
    read, reads = checkpoint.read, []
    monkeypatch.setattr(checkpoint, "read", lambda p: (reads.append(p), read(p))[1])
    lazy["labels"].compute(scheduler="sync")
    assert len(reads) == 1


@pytest.mark.parametrize(("threads", "each"), [(1, 4), (2, 2), (8, 1)])
def test_threads_that_compute_side_by_side_share_the_cores(threads, each, stored, tmp_path, monkeypatch):
    seen = []

    def noted(self, x, *part, inner=networks.UNet.forward):
        if x.device.type != "meta":
            seen.append(torch.get_num_threads())
        return inner(self, x, *part)

    torch.set_num_threads(4)
    try:
        monkeypatch.setattr(forward, "CORES", 4)
        monkeypatch.setattr(networks.UNet, "forward", noted)
        with cluster.connect("threads", threads=threads) as connection:
            run.write(small_blocks(*stored), tmp_path / "out.zarr", connection=connection, quiet=True)
        assert set(seen) == {each}
        assert torch.get_num_threads() == 4, "who called goes on with all of them"
    finally:
        torch.set_num_threads(1)


@pytest.mark.slow
def test_two_workers_give_what_one_gives(stored, tmp_path):
    source, path = stored
    results = []
    for name, where in (("a", ("threads", {"threads": 1})), ("b", ("local", {"workers": 2, "threads": 1}))):
        with cluster.connect(where[0], **where[1]) as connection:
            out = run.write(
                small_blocks(source, path), tmp_path / f"{name}.zarr", connection=connection, quiet=True
            )
        results.append([store.open_volume(out / n).whole() for n in ("labels", "statistics")])
    np.testing.assert_array_equal(results[0][0], results[1][0])
    np.testing.assert_array_equal(results[0][1], results[1][1])
    assert differing(results[0][0], path) == 0


KILLED = """
import sys
sys.path.insert(0, {tests!r})
from test_predict import cluster, run, small_blocks
with cluster.connect("threads", threads=1) as connection:
    run.write(small_blocks(sys.argv[1], sys.argv[2]), sys.argv[3], connection=connection, quiet=True)
"""


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["statistics", "blocks"])
def test_a_killed_run_goes_on_and_gives_the_same(stored, tmp_path, moment, capfd):
    source, path = stored
    out, undisturbed = tmp_path / "out.zarr", tmp_path / "undisturbed.zarr"
    job = tmp_path / "out.zarr.incomplete"
    code = KILLED.format(tests=str(Path(__file__).parent))
    process = subprocess.Popen([sys.executable, "-c", code, str(source), str(path), str(out)])
    pattern = ".tomoscale/once-4.npy" if moment == "statistics" else "labels/c/0/0/1"
    while not (job / pattern).exists() and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, "it was over too soon"
    assert not out.exists()
    with cluster.connect("threads", threads=1) as connection:
        run.write(small_blocks(source, path), out, connection=connection)
        run.write(small_blocks(source, path), undisturbed, connection=connection, quiet=True)
    assert "going on where an earlier run stopped" in capfd.readouterr().err
    for name in ("labels", "statistics"):
        found, expected = (store.open_volume(o / name).whole() for o in (out, undisturbed))
        np.testing.assert_array_equal(found, expected)
    assert differing(store.open_volume(out).whole(), path) == 0


ODD = (61, 333, 257)
KINDS = {
    "2D": Architecture(2, (3, 4), pooling=(2, 2), norm="batch"),
    "3D": Architecture(3, (1, 2), pooling=(1, 2, 2), norm="batch"),
    "InstanceNorm": Architecture(3, (1, 2), pooling=(1, 2, 2), norm="instance"),
}
CUTS = [(61, 128, 128), (32, 64, 257), (16, 333, 80), (61, 96, 96), (20, 190, 257), (13, 333, 257)]


@pytest.fixture(scope="module")
def odd():
    """Return an odd volume, and what makes a network of a kind and what that gives of it as a whole, once."""
    volume = volume_of(ODD)

    @functools.cache
    def made(kind):
        network = network_of(KINDS[kind], seed=1)
        return network, whole(network, volume)

    return volume, made


@pytest.mark.parametrize(
    ("kind", "chunks"),
    [
        *((kind, chunks) for kind in ("2D", "3D") for chunks in CUTS),
        pytest.param("InstanceNorm", (61, 190, 257), marks=pytest.mark.slow),  # a pass for each of its layers
    ],
)
def test_an_odd_volume_in_any_chunks_is_that_of_the_whole(kind, chunks, odd, monkeypatch, logits_of):
    cut_small(monkeypatch)
    volume, made = odd
    network, expected = made(kind)
    found = logits_of(volume, network, chunks)
    assert ("statistics" in found) == ("Instance" in kind)
    logits = found["probabilities"]
    assert np.abs(logits - expected).max() <= (1e-6 if kind == "2D" else 1e-4 * expected.std())
    decided = np.abs(expected) > 1e-4 * expected.std()
    np.testing.assert_array_equal((logits > 0)[decided], (expected > 0)[decided])
