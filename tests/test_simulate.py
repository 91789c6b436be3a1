"""Simulated scans and volumes: the same whatever the blocks, and true to what is said about them."""

import json
import re
import tracemalloc
import warnings

import dask
import numpy as np
import pytest

from tomoscale import TomoscaleError, blocks, cluster, run, simulate, store
from tomoscale.simulate import composite, layout, rotation, spots

EDGE = np.float32(0.05)


def computed(made, *names):
    arrays = dask.compute(*[made[n] for n in names], scheduler="sync")
    return arrays if len(names) > 1 else arrays[0]


SCAN = ("frames", "truth/background", "truth/signal", "truth/labels")


@pytest.fixture(scope="module")
def scan():
    made = simulate.dct(shape=(70, 96, 128), blobs=30, seed=3)
    return {**made, **dict(zip(SCAN, computed(made, *SCAN), strict=True))}


def rows(table):
    return table.to_pylist()


# ---------------------------------------------------------------- scan


@pytest.mark.parametrize("block_bytes", [2_500_000, 5_000_000])
def test_scan_does_not_depend_on_the_blocks(scan, block_bytes):
    with blocks.planned_for(block_bytes, threads=1):
        made = simulate.dct(shape=(70, 96, 128), blobs=30, seed=3)
    assert 1 < made["frames"].numblocks[0] != 2
    for name, array in zip(SCAN, computed(made, *SCAN), strict=True):
        assert array.tobytes() == scan[name].tobytes(), name


def test_frames_are_the_same_without_truth(scan):
    made = simulate.dct(shape=(70, 96, 128), blobs=30, seed=3, truth=False)
    assert "truth/labels" not in made
    np.testing.assert_array_equal(computed(made, "frames"), scan["frames"])


def test_what_is_written_is_what_was_computed(scan, tmp_path):
    from pyarrow import parquet

    made = simulate.dct(shape=(70, 96, 128), blobs=30, seed=3)
    with cluster.connect("threads", workers=1, threads=2) as connection:
        path = run.write(made, tmp_path / "scan.zarr", quiet=True, connection=connection)
    for name in SCAN:
        stored = store.open_volume(path / name)
        np.testing.assert_array_equal(stored.read(tuple(slice(0, n) for n in stored.shape)), scan[name])
    assert store.open_volume(path).sibling("dark").shape == (20, 96, 128)
    assert parquet.read_table(tmp_path / "scan.parquet").to_pylist() == rows(scan["table"])
    attributes = json.loads((path / "zarr.json").read_text())["attributes"]
    assert attributes["ome"]["multiscales"][0]["name"] == "frames"


def test_another_seed_gives_another_scan(scan):
    made = simulate.dct(shape=(70, 96, 128), blobs=30, seed=4)
    assert (computed(made, "frames") != scan["frames"]).mean() > 0.8
    assert made["table"] != scan["table"]


@pytest.mark.parametrize("centre", ["blocked", "direct"])
def test_frames_minus_truth_are_noise_of_the_stated_size(centre):
    gain, read_noise = 3.0, 4.0
    made = simulate.dct(
        shape=(40, 96, 96), blobs=20, centre=centre, gain=gain, read_noise=read_noise, dark_frames=64
    )
    frames, background, signal, dark, defects = computed(
        made, "frames", "truth/background", "truth/signal", "dark", "truth/defects"
    )
    good = defects == 0
    clean = (background + signal)[:, good]
    sigma = np.sqrt(gain * (clean - dark.mean(0)[good]) + read_noise**2 + 1 / 12)
    z = (frames[:, good] - clean) / sigma
    noise = z[abs(z) < 6]  # the others are zingers
    assert noise.size > 0.9999 * z.size
    assert abs(noise.mean()) < 0.01
    assert abs(noise.std() - 1) < 0.01


def test_hot_pixels_stand_out_and_dead_ones_are_zero():
    made = simulate.dct(shape=(5, 128, 128), blobs=0, hot_fraction=2e-3)
    frames, background, dark, defects = computed(made, "frames", "truth/background", "dark", "truth/defects")
    assert np.bincount(defects.ravel()).tolist() == [128**2 - 33 - 8, 33, 8]
    assert (frames[:, defects == 2] == 0).all()
    assert (dark[:, defects == 2] == 0).all()
    more = np.median(frames - background, axis=0)[defects == 1]
    assert more.min() > 50
    np.testing.assert_allclose(np.median(dark, axis=0)[defects == 1] - 100, more, atol=50)


def test_dark_is_close_to_its_level():
    dark = computed(simulate.dct(shape=(3, 64, 64), dark_level=250.0, dark_frames=9, blobs=0), "dark")
    assert dark.shape == (9, 64, 64)
    assert abs(np.median(dark) - 250) < 10


def test_labels_are_where_the_signal_exceeds_a_share_of_the_peak(scan):
    signal, labels = scan["truth/signal"], scan["truth/labels"]
    peaks = np.float32([0, *(r["peak"] for r in rows(scan["table"]))])
    for blob in rows(scan["table"]):
        box = tuple(slice(blob[f"{a}_min"], blob[f"{a}_max"]) for a in spots.AXES)
        own = labels == blob["label"]
        assert own.sum() == own[box].sum() == blob["voxels"]
        for axis in range(3):  # the box is tight
            along = own[box].any(tuple({0, 1, 2} - {axis}))
            assert along[0]
            assert along[-1]
        top = tuple(blob[f"peak_{a}"] for a in spots.AXES)
        assert signal[top] == peaks[blob["label"]] == signal[own].max()
        assert signal[own].min() > EDGE * peaks[blob["label"]]
        assert blob["intensity"] == pytest.approx(signal[own].sum(dtype=float), rel=1e-12)
        centroid = [np.average(where, weights=signal[own].astype(float)) for where in np.nonzero(own)]
        np.testing.assert_allclose([blob[a] for a in spots.AXES], centroid, rtol=1e-9)
        assert blob["omega"] == pytest.approx(blob["frame"] * 360 / 70)
    assert len(rows(scan["table"])) == 30 == labels.max()
    assert signal[labels == 0].max() <= EDGE * peaks.max()


def test_labels_are_numbered_by_descending_peak(scan):
    peaks = [r["peak"] for r in rows(scan["table"])]
    assert peaks == sorted(peaks, reverse=True)


def test_margin_and_beam_are_free_of_blobs(scan):
    seen = scan["truth/signal"].max(0)
    margin = int(0.06 * 96)
    for view in (seen, seen[::-1], seen.T, seen.T[::-1]):
        assert view[:margin].max() == 0
    assert seen[40:56, 52:76].max() == 0
    assert seen.max() > 1000


def test_blobs_near_the_rotation_axis_are_long_in_omega():
    settings = rotation.Settings(shape=(2000, 512, 512), blobs=800)
    blobs = spots.place(settings)
    sine = np.array([abs(b.column - 255.5) / np.hypot(b.column - 255.5, b.row - 255.5) for b in blobs])
    half = np.array([b.half_frames for b in blobs])
    assert len(blobs) == 800
    assert np.median(half[sine < 0.15]) > 4 * np.median(half[sine > 0.8])


def test_boxes_of_blobs_are_apart():
    settings = rotation.Settings(shape=(300, 128, 128), blobs=150)
    blobs = spots.place(settings)
    low = np.array([[s.start for s in b.box] for b in blobs])
    high = np.array([[s.stop for s in b.box] for b in blobs])
    overlap = ((low[:, None] < high[None]) & (low[None] < high[:, None])).all(2)
    assert overlap.sum() == len(blobs)


def test_ten_thousand_blobs_of_a_large_scan_are_placed():
    settings = rotation.Settings(shape=(7200, 2048, 2048), blobs=10_000)
    assert len(spots.place(settings)) == 10_000


def test_blobs_without_room_are_counted_in_a_warning():
    with pytest.warns(UserWarning, match=r"simulate.dct: placed \d+ of 5000 blobs"):
        made = simulate.dct(shape=(6, 64, 64), blobs=5000)
    assert 0 < made["table"].num_rows < 5000


def test_source_and_omega_have_one_value_per_frame(scan):
    np.testing.assert_allclose(scan["omega"], np.arange(70) * 360 / 70)
    assert scan["truth/source"].shape == (70,)
    assert 0.8 < scan["truth/source"].min() < scan["truth/source"].max() < 1.2


def test_blocks_are_bands_of_whole_stored_chunks():
    made = simulate.dct(shape=(7200, 2048, 2048), blobs=50)
    chunks = made["frames"].chunks
    assert set(chunks[0][:-1]) == {16}
    assert chunks[1:] == ((2048,), (2048,))
    for name in SCAN:
        facts = blocks.facts(made[name])
        assert facts["stored"][0] == 16
        assert facts["cost"].block <= blocks.resources().block_bytes
        assert len(made[name].dask) <= 2 * made[name].numblocks[0]


# ---------------------------------------------------------------- memory


def peak_of(array):
    key = (array.name, *(0,) * array.ndim)
    tracemalloc.start()
    kept = dask.get(dict(array.dask), key)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    del kept
    return peak


@pytest.mark.parametrize("truth", [True, False])
@pytest.mark.parametrize("centre", ["blocked", "direct"])
def test_a_band_of_frames_holds_no_more_than_declared(truth, centre):
    rotation.scan_of.cache_clear()
    with blocks.planned_for(40_000_000, threads=1):
        made = simulate.dct(shape=(16, 512, 512), blobs=60, truth=truth, centre=centre)
    declared = blocks.facts(made["frames"])["cost"].block
    assert declared <= 40_000_000
    assert peak_of(made["frames"]) <= declared


def test_dark_frames_and_defects_hold_no_more_than_declared():
    rotation.scan_of.cache_clear()
    made = simulate.dct(shape=(3, 512, 512), blobs=0, hot_fraction=0.01)
    for name in ("dark", "truth/defects"):
        assert peak_of(made[name]) <= blocks.facts(made[name])["cost"].block, name


def test_a_brick_holds_no_more_than_declared():
    made = simulate.spheres(shape=(64, 128, 128))
    assert peak_of(made["volume"]) <= blocks.facts(made["volume"])["cost"].block


def test_tasks_carry_no_maps():
    import pickle

    made = simulate.dct(shape=(64, 512, 512), blobs=20)
    assert len(pickle.dumps(dict(made["frames"].dask))) < 20_000


# ---------------------------------------------------------------- spheres


@pytest.fixture(scope="module")
def volume():
    made = simulate.spheres(shape=(80, 150, 140), seed=2, diameter_um=(12.0, 16.0))
    grey, labels = computed(made, "volume", "truth/labels")
    return {**made, "volume": grey, "truth/labels": labels}


def test_volume_does_not_depend_on_the_blocks(volume):
    with blocks.planned_for(8_000_000, threads=1):
        made = simulate.spheres(shape=(80, 150, 140), seed=2, diameter_um=(12.0, 16.0))
    assert made["volume"].numblocks[0] > 1
    grey, labels = computed(made, "volume", "truth/labels")
    assert grey.tobytes() == volume["volume"].tobytes()
    assert labels.tobytes() == volume["truth/labels"].tobytes()


def test_spheres_have_their_volume_and_are_disjoint(volume):
    from scipy import ndimage

    whole = [r for r in rows(volume["table"]) if r["whole"]]
    components, _ = ndimage.label(volume["truth/labels"] == composite.GLASS)
    assert len(whole) > 10
    found = [components[round(r["z"]), round(r["y"]), round(r["x"])] for r in whole]
    assert len(set(found)) == len(whole)
    sizes = np.bincount(components.ravel())
    for sphere, number in zip(whole, found, strict=True):
        assert number > 0
        assert sizes[number] == pytest.approx(4 / 3 * np.pi * sphere["radius"] ** 3, rel=0.02)
        assert 6 <= sphere["radius_um"] <= 8


@pytest.mark.parametrize("sample", ["block", "cylinder", "full"])
def test_glass_fills_its_share_of_the_sample(sample):
    made = simulate.spheres(shape=(96, 160, 160), volume_fraction=0.3, diameter_um=(6.0, 8.0), sample=sample)
    count = np.bincount(computed(made, "truth/labels").ravel(), minlength=3)
    assert count[2] / count[1:].sum() == pytest.approx(0.3, abs=0.02)
    assert (count[0] == 0) == (sample == "full")


def test_grey_values_lie_around_their_levels():
    made = simulate.spheres(shape=(40, 130, 130), levels=(0.1, 0.4, 0.9), fringe=0.0, shading=0.0)
    grey, labels = computed(made, "volume", "truth/labels")
    for label, level in enumerate((0.1, 0.4, 0.9)):
        assert np.median(grey[labels == label]) == pytest.approx(level, abs=0.05)


def test_noise_has_its_standard_deviation():
    quiet = computed(simulate.spheres(shape=(8, 130, 130), noise=0.0), "volume")
    noisy = computed(simulate.spheres(shape=(8, 130, 130), noise=0.2), "volume")
    assert (noisy - quiet).std() == pytest.approx(0.2, rel=0.02)


def test_another_seed_gives_another_volume(volume):
    made = simulate.spheres(shape=(80, 150, 140), seed=3, diameter_um=(12.0, 16.0))
    assert (computed(made, "truth/labels") != volume["truth/labels"]).mean() > 0.05


# ---------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"shape": (2, 64, 64)}, "at least 3 frames"),
        ({"shape": (10, 31, 64)}, "32 x 32"),
        ({"peak_counts": (100.0, 50.0)}, "peak_counts"),
        ({"edge_level": 0.001}, "edge_level"),
        ({"edge_level": 1.0}, "edge_level"),
        ({"degrees": 0.0}, "degrees"),
        ({"hot_fraction": 0.1}, "hot_fraction"),
        ({"centre": "open"}, "centre"),
        ({"glow": float("nan")}, "glow"),
        ({"read_noise": float("inf")}, "read_noise"),
        ({"shape": (3, 60_000, 60_000), "blobs": 0}, "takes .* GB, .* GB are allowed"),
    ],
)
def test_impossible_scans_are_refused(options, message):
    with pytest.raises(TomoscaleError, match=message):
        simulate.dct(**options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"volume_fraction": 0.0}, "volume_fraction"),
        ({"volume_fraction": 0.7}, "volume_fraction"),
        ({"diameter_um": (45.0, 38.0)}, "smaller one first"),
        ({"diameter_um": (1.0, 2.0)}, "below 3 voxels"),
        ({"shape": (4000, 4000, 4000), "diameter_um": (3.0, 4.0)}, "raise diameter_um"),
        ({"sample": "cone"}, "sample"),
    ],
)
def test_impossible_volumes_are_refused(options, message):
    with pytest.raises(TomoscaleError, match=message):
        simulate.spheres(**options)


def test_a_brick_that_cannot_fit_is_refused():
    with blocks.planned_for(100_000, threads=1), pytest.raises(TomoscaleError, match="--memory"):
        simulate.spheres(shape=(64, 128, 128))


def test_the_smallest_scan_is_made():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = simulate.dct(shape=(3, 32, 32), dark_frames=1)
    frames = computed(made, "frames")
    assert frames.shape == (3, 32, 32)
    assert set(made["table"].column_names) == set(spots.COLUMNS)
    assert layout.table({"label": []}, {"label": "uint32"}).num_rows == 0


@pytest.mark.parametrize("shape", [(5,), (5, 5, 5, 5)])
def test_a_shape_of_another_number_of_axes_is_refused_with_the_number(shape):
    with pytest.raises(TomoscaleError, match=re.escape(f"shape: expected 3 values, got {shape}")):
        simulate.dct(shape=shape)
