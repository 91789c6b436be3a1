"""A Gaussian of blocks is that of the whole volume."""

from __future__ import annotations

import numpy as np
import pytest
from conftest import write_array
from scipy.ndimage import gaussian_filter

from tomoscale import blocks, depth, otsu, run, smooth, store, volume
from tomoscale.errors import TomoscaleError


def noise(dtype="uint16", shape=(40, 33, 47)):
    return np.random.default_rng(0).integers(0, 200, shape).astype(dtype)


@pytest.mark.parametrize("chunks", [(40, 33, 47), (8, 8, 8), (1, 33, 47), (40, 5, 16)])
@pytest.mark.parametrize("sigma", [(1.0,), (0.8, 2.0, 0.0), (0.0, 0.0, 6.0)])
def test_blocks_with_their_halo_are_the_whole_volume(tmp_path, chunks, sigma, monkeypatch):
    monkeypatch.setattr(blocks, "volume_chunks", lambda shape, edge: tuple(min(16, n) for n in shape))
    image = noise()
    source = write_array(tmp_path / "v.zarr", image, chunks)
    with blocks.planned_for(1_000_000, 4):
        lazy = smooth.gaussian(source, sigma=sigma).volume
    assert lazy.npartitions > 1
    expected = gaussian_filter(image.astype(np.float32), sigma if len(sigma) == 3 else sigma[0])
    np.testing.assert_array_equal(lazy.compute(scheduler="sync"), expected)


@pytest.mark.parametrize("dtype", ["uint8", "int32", "float16", "float64"])
def test_every_type_is_smoothed_in_float32(dtype, tmp_path):
    image = noise(dtype, (9, 9, 9))
    out = run.write(smooth.gaussian(image, sigma=(1.5,)), tmp_path / "s.zarr", quiet=True)
    np.testing.assert_array_equal(store.open_volume(out).whole(), gaussian_filter(image.astype("f4"), 1.5))


def test_a_width_below_zero_is_refused():
    with pytest.raises(TomoscaleError, match="greater than or equal to 0"):
        smooth.gaussian(noise(), sigma=(-1.0,))


def test_a_halo_beyond_the_memory_is_refused():
    with (
        blocks.planned_for(3_000_000, 1),
        pytest.raises(TomoscaleError, match="the smallest block"),
    ):
        smooth.gaussian(np.zeros((300, 300, 300), np.uint8), sigma=(30.0,))


@pytest.mark.parametrize("mode", ["smooth", "otsu", "depth"])
def test_a_plan_counts_what_is_decoded_around_every_window(tmp_path, monkeypatch, mode):
    monkeypatch.setattr(blocks, "volume_chunks", lambda shape, edge: tuple(min(16, n) for n in shape))
    source = write_array(tmp_path / "v.zarr", noise(shape=(40, 60, 50)), (8, 8, 8))
    with blocks.planned_for(900_000 if mode == "depth" else 600_000, 2):
        result = {
            "smooth": lambda: smooth.gaussian(source, sigma=(1.0, 0.0, 2.0)),
            "otsu": lambda: otsu.segment(source, sigma=(1.0,)),
            "depth": lambda: depth.segment(source, mode="cumulative", threshold=3.0),
        }[mode]()
    decoded = []
    read = volume.StoredVolume.read

    def counted(self, window):
        decoded.append(self.decoded(window))
        return read(self, window)

    plan = run.plan(result)
    monkeypatch.setattr(volume.StoredVolume, "read", counted)
    run.write(result, tmp_path / "o.zarr", quiet=True)
    assert sum(decoded) == plan.read
    assert plan.read > (1 + len(plan.before)) * 2 * 40 * 60 * 50
