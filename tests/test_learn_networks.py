"""Networks are what their record says, and see as far as arithmetic says."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="networks need the extra `learn`")
torch.set_num_threads(1)

from tomoscale.errors import TomoscaleError  # noqa: E402
from tomoscale.learn import networks, receptive, shapes  # noqa: E402
from tomoscale.learn.model import opened  # noqa: E402
from tomoscale.learn.networks import PRESETS, Architecture  # noqa: E402

SMALL = {
    "3d": Architecture(3, (2, 3, 4), pooling=(1, 2, 2)),
    "3d, z pooled": Architecture(3, (2, 3), pooling=(2, 2, 2)),
    "3d, residual": Architecture(3, (2, 3), pooling=(1, 2, 2), encoder="residual"),
    "3d, thirds": Architecture(3, (2, 2, 3), pooling=(1, 3, 2), upsampling="transposed"),
    "2d": Architecture(2, (2, 3, 4), pooling=(2, 2), upsampling="transposed", outputs=3),
    "2d, residual": Architecture(2, (2, 3, 4), pooling=(2, 2), encoder="residual"),
}


def lively(architecture):
    """A network in which every voxel that may matter does: no activation is cut off, no maximum is hidden."""
    network = networks.build(replace(architecture, norm="none"), seed=1).double().eval()
    for module in network.modules():
        if isinstance(module, torch.nn.ReLU):
            module.forward = lambda x: x
        if isinstance(module, torch.nn.MaxPool2d | torch.nn.MaxPool3d):
            pool = (
                torch.nn.functional.avg_pool3d
                if module.kernel_size.__len__() == 3
                else torch.nn.functional.avg_pool2d
            )
            module.forward = lambda x, m=module, pool=pool: pool(x, m.kernel_size)
    return network


def seen_by(network, axis, position):
    """Return the first and last input that an output depends on, by its gradient."""
    n_axes = network.architecture.dimensions
    radius, stride = network.radius[axis], network.stride[axis]
    middle = -(-(radius + 1) // stride) * stride
    shape = [2 * s for s in network.stride]
    shape[axis] = 2 * middle + stride
    x = torch.zeros((1, 1, *shape), dtype=torch.float64, requires_grad=True)
    index = [n // 2 for n in shape]
    index[axis] = middle + position
    network(x)[(0, slice(None), *index)].sum().backward()
    other = tuple(a for a in range(n_axes) if a != axis)
    seen = np.flatnonzero(np.abs(x.grad.numpy()[0, 0]).sum(axis=other))
    return int(seen[0]) - middle, int(seen[-1]) - middle


@pytest.mark.parametrize("name", SMALL)
def test_the_reach_by_arithmetic_is_that_of_a_perturbation(name):
    network = lively(SMALL[name])
    for axis, stride in enumerate(network.stride):
        for position in range(stride):
            assert seen_by(network, axis, position) == network.before((position, position), axis)


def test_a_perturbation_beyond_the_halo_changes_nothing_and_one_within_does():
    network = networks.build(replace(SMALL["3d"], norm="batch"), seed=0).eval()
    halo, stride = network.halo, network.stride
    rng = np.random.default_rng(0)
    for axis in range(3):
        grown = -(-halo[axis] // stride[axis]) * stride[axis]
        shape = [4 * s if s > 1 else 5 for s in stride]
        shape[axis] = 2 * grown + 2 * stride[axis]
        x = torch.from_numpy(rng.standard_normal((1, 1, *shape)).astype("f4"))
        block = [slice(None)] * 5
        block[axis + 2] = slice(grown + stride[axis], grown + 2 * stride[axis])
        with torch.no_grad():
            quiet = network(x)[tuple(block)]
            far, near = x.clone(), x.clone()
            far.select(axis + 2, grown + stride[axis] - halo[axis] - 1).add_(100)
            near.select(axis + 2, grown + stride[axis] - halo[axis]).add_(100)
            assert torch.equal(network(far)[tuple(block)], quiet)
            assert not torch.equal(network(near)[tuple(block)], quiet)


@pytest.mark.parametrize("name", SMALL)
def test_a_part_is_the_same_as_in_the_whole(name):
    """Wherever it lies: at an end of the volume, off the grid of the stride, one voxel."""
    network = networks.build(SMALL[name], seed=0).eval()
    size = [10 * s for s in network.stride]
    x = torch.from_numpy(np.random.default_rng(0).standard_normal((2, 1, *size)).astype("f4"))
    with torch.no_grad():
        whole = network(x)
        for start, length in ((0, 1), (0, 7), (3, 4), (1, 1), (5, 5)):
            part = [slice(start, min(start + length, n)) for n in size]
            found = network(x, part)
            assert found.shape[2:] == tuple(p.stop - p.start for p in part)
            torch.testing.assert_close(found, whole[(..., *part)], rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "halo", "stride", "mflop"),
    [
        ("3d", (18, 94, 94), (1, 16, 16), 1.27),
        ("3d-table", (46, 46, 46), (8, 8, 8), 0.52),
        ("2d", (94, 94), (16, 16), 1.47),
        ("2d-batch", (94, 94), (16, 16), 1.47),
        ("3d-small", (10, 22, 22), (1, 4, 4), 0.17),
    ],
)
def test_presets_have_the_size_of_the_documents(name, halo, stride, mflop):
    network = networks.empty(PRESETS[name])
    assert (network.halo, network.stride) == (halo, stride)
    shape = (1, 1, *(2 * s for s in stride))
    assert networks.flops(network, shape) / math.prod(shape) / 1e6 == pytest.approx(mflop, abs=0.005)


def test_the_network_of_the_text_pools_in_x_and_y_only_and_doubles_its_features():
    network, shapes = networks.empty(PRESETS["3d"]), []
    for step in [*network.encoder, network.bridge]:
        step.register_forward_hook(lambda _m, _i, out: shapes.append(tuple(out.shape[1:])))
    out = network(torch.empty((1, 1, 10, 256, 256), device="meta"))
    assert shapes == [
        (32, 10, 256, 256), (64, 10, 128, 128), (128, 10, 64, 64), (256, 10, 32, 32), (512, 10, 16, 16)
    ]  # fmt: skip
    assert out.shape == (1, 1, 10, 256, 256)
    kinds = [type(m).__name__ for m in network.bridge]
    assert kinds == ["Conv3d", "BatchNorm3d", "ReLU"] * 2


def test_the_network_of_the_appendix_pools_three_times_along_every_axis():
    network, shapes = networks.empty(PRESETS["3d-table"]), []
    for step in [*network.encoder, network.bridge, *network.decoder]:
        step.register_forward_hook(lambda _m, _i, out: shapes.append(out.shape[1]))
    network(torch.empty((1, 1, 16, 32, 32), device="meta"))
    assert shapes == [32, 64, 128, 256, 128, 64, 32]


@pytest.mark.parametrize(
    "layer",
    [
        torch.nn.Conv3d(4, 6, (3, 2, 1), stride=(2, 1, 3), padding=(1, 0, 2), dilation=(2, 1, 1), groups=2),
        torch.nn.Conv2d(4, 6, 3, padding="same", bias=False),
        torch.nn.ConvTranspose3d(4, 6, 3, stride=(2, 3, 1), padding=1, output_padding=(1, 2, 0), groups=2),
        torch.nn.ConvTranspose2d(4, 3, 2, stride=2, dilation=2),
        torch.nn.MaxPool3d((1, 3, 2)),
        torch.nn.MaxPool3d(3, stride=2, padding=1),
        torch.nn.MaxPool2d(2),
        torch.nn.Upsample(scale_factor=(1, 2, 3)),
        torch.nn.Upsample(scale_factor=2, mode="bilinear"),
        torch.nn.BatchNorm3d(4),
        torch.nn.InstanceNorm2d(4, affine=True),
    ],
    ids=lambda layer: type(layer).__name__,
)
def test_the_shape_of_what_a_layer_computes_is_known_without_computing(layer):
    flat = "2d" in type(layer).__name__ or getattr(layer, "mode", "") == "bilinear"
    x = torch.zeros((2, 4, 9, 10) if flat else (2, 4, 9, 10, 11))
    with torch.no_grad(), shapes.Shapes():
        found = receptive.weightless(layer)(x.to("meta"))
    assert (found.shape, found.dtype, found.device.type) == (layer(x).shape, x.dtype, "meta")


@pytest.mark.parametrize("norm", ["batch", "instance", "none"])
@pytest.mark.parametrize("name", SMALL)
def test_a_network_is_planned_as_with_the_shapes_of_pytorch(name, norm, monkeypatch):
    network = networks.build(replace(SMALL[name], norm=norm), seed=0)
    ours = opened(network)
    monkeypatch.setattr(shapes, "_KNOWN", {})
    theirs = opened(network)
    assert (ours.appetite, ours.norms, ours.outputs) == (theirs.appetite, theirs.norms, theirs.outputs)


def test_features_that_do_not_fit_are_refused_as_pytorch_refuses_them():
    x, y = torch.zeros((1, 4, 9, 10), device="meta"), torch.zeros((1, 4, 9, 11), device="meta")
    for layer in (torch.nn.Conv2d(3, 1, 1), torch.nn.Conv2d(4, 1, 12), torch.nn.BatchNorm2d(3).eval()):
        with torch.no_grad(), shapes.Shapes(), pytest.raises(RuntimeError):
            receptive.weightless(layer)(x)
    with shapes.Shapes(), pytest.raises(RuntimeError):
        torch.cat((x, y), 1)
    with shapes.Shapes(), pytest.raises(RuntimeError):
        torch.nn.functional.interpolate(x[:, :, :1], scale_factor=0.5)  # to no pixel at all


@pytest.mark.parametrize("name", PRESETS)
def test_a_record_makes_the_same_architecture(name):
    assert Architecture.of(PRESETS[name].record()) == PRESETS[name]
    assert Architecture.of(name) == PRESETS[name]


def test_the_same_seed_makes_the_same_weights_and_leaves_the_generator_alone():
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    first, second = (networks.build(SMALL["2d"], seed=5).state_dict() for _ in range(2))
    assert all(torch.equal(first[k], second[k]) for k in first)
    assert torch.equal(torch.rand(1), expected)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"dimensions": 4}, "dimensions is 4; expected 2 or 3"),
        ({"widths": [64]}, "widths"),
        ({"widths": [64, 10**9]}, "widths"),
        ({"widths": [64, 1.5]}, "widths"),
        ({"pooling": [2, 2]}, "pooling"),
        ({"pooling": [0, 2, 2]}, "pooling"),
        ({"outputs": 0}, "outputs is 0"),
        ({"channels": True}, "channels is True"),
        ({"norm": "group"}, "norm is 'group'; expected one of batch, instance, none"),
        ({"depth": 5}, "expected dimensions, widths"),
        ("vnet", "no network 'vnet'; there are 3d"),
        (None, "expected dimensions, widths"),
    ],
)
def test_a_record_that_makes_no_network_is_refused(wrong, said):
    with pytest.raises(TomoscaleError, match=said):
        Architecture.of(wrong)


def test_a_layer_of_unknown_reach_is_named():
    with pytest.raises(TomoscaleError, match="reach of a Bilinear is not known; state halo and stride"):
        receptive.before(torch.nn.Bilinear(1, 1, 1), (0, 0), 0)
