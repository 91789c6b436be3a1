"""Clusters are those of scikit-learn on the matrix of all features, whatever the chunks and the workers."""

from __future__ import annotations

import itertools
import json

import dask
import numpy as np
import pytest
from conftest import write_array
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.cluster import KMeans

from tomoscale import blocks, cli, cluster, clusters, kernels, kmeans, run, store
from tomoscale.errors import InterruptedRunError, TomoscaleError

SHAPE = (20, 30, 33)
CENTRES = (0.3, 0.6, 0.9)


def phases(dtype: str, shape=SHAPE, seed: int = 0) -> np.ndarray:
    """Return three grey values with noise."""
    rng = np.random.default_rng(seed)
    values = rng.normal(0, 0.3, shape)
    values[:, :, : shape[2] // 3] += 2
    values[shape[0] // 2 :, shape[1] // 2 :] += 1.5
    unit = (values - values.min()) / np.ptp(values)
    if np.dtype(dtype).kind == "f":
        return (unit * 3 - 1).astype(dtype)
    info = np.iinfo(dtype)
    return (info.min + unit * (int(info.max) - int(info.min))).astype(dtype)


def start(image) -> np.ndarray:
    """Return centres to begin with, in real units."""
    places = [[3, 5, 4], [15, 20, 25], [10, 12, 30]]
    return np.array([[np.quantile(image, q), *p] for q, p in zip(CENTRES, places, strict=True)], float)


def standardised(image, keep):
    """Return the matrix of features of the voxels that count, and its scaling."""
    matrix = np.stack([image, *np.indices(image.shape)], axis=-1).reshape(-1, 4).astype(float)[keep.ravel()]
    mean, deviation = matrix.mean(axis=0), matrix.std(axis=0)
    deviation[deviation == 0] = 1
    return (matrix - mean) / deviation, mean, deviation


def sklearn_fit(image, initial, keep=None, k=3):
    """Return centres by intensity in standard units, labels, inertia and iterations of scikit-learn."""
    keep = np.ones(image.shape, bool) if keep is None else keep
    matrix, mean, deviation = standardised(image, keep)
    model = KMeans(k, init=(initial - mean) / deviation, n_init=1, tol=0, max_iter=300).fit(matrix)
    order = np.argsort(model.cluster_centers_[:, 0])
    names = np.empty(k, np.uint8)
    names[order] = np.arange(1, k + 1)
    labels = np.zeros(image.shape, np.uint8)
    labels[keep] = names[model.labels_]
    return model.cluster_centers_[order] * deviation + mean, labels, model.inertia_, model.n_iter_, deviation


def computed(lazy):
    return np.asarray(lazy.compute(scheduler="sync"))


def together(found):
    """Compute all of a result at once: labels, centres, inertia, iterations, scaling."""
    return type(found)(*dask.compute(*found, scheduler="sync"))


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "float16", "float32", "float64"])
@pytest.mark.parametrize("share", [None, 0.2])
def test_a_fit_is_that_of_scikit_learn_from_the_same_centres(dtype, share):
    image = phases(dtype)
    threshold = None if share is None else float(np.quantile(image, share))
    keep = None if share is None else image >= threshold
    centres, labels, inertia, n_iter, deviation = sklearn_fit(image, start(image), keep)
    found = together(kmeans.segment(image, initial=start(image), tolerance=0, threshold=threshold))
    assert np.abs((found.centres - centres) / deviation).max() < 1e-9
    np.testing.assert_array_equal(found.labels, labels)
    assert found.inertia[0] == pytest.approx(inertia, rel=1e-9)
    assert found.iterations[0] == n_iter


@pytest.mark.filterwarnings("ignore")  # of dask-ml, about what it depends on
def test_a_fit_is_that_of_dask_ml_from_the_same_centres():
    cluster_of_dask = pytest.importorskip("dask_ml.cluster", reason="dask-ml is not installed")
    import dask.array as da

    image = phases("uint16", (8, 12, 15))
    matrix, mean, deviation = standardised(image, np.ones(image.shape, bool))
    initial = np.array([[np.quantile(image, q), *p] for q, p in zip(CENTRES, np.eye(3) * 7, strict=True)])
    theirs = cluster_of_dask.KMeans(3, init=(initial - mean) / deviation, tol=1e-20, max_iter=100)
    with dask.config.set(scheduler="sync"):
        theirs.fit(da.from_array(matrix, chunks=(400, 4)))
        own = theirs.labels_.compute()
    found = kmeans.segment(image, k=3, initial=initial, tolerance=0)
    order = np.argsort(theirs.cluster_centers_[:, 0])
    expected = theirs.cluster_centers_[order] * deviation + mean
    np.testing.assert_allclose(computed(found.centres), expected, rtol=1e-9, atol=1e-9 * deviation.max())
    np.testing.assert_array_equal(computed(found.labels).ravel() - 1, np.argsort(order)[own])


def test_voxels_below_the_threshold_may_stay_as_zeros():
    image = phases("uint16")
    threshold = float(np.quantile(image, 0.4))
    low = np.where(image < threshold, 0, image)
    centres, labels, *_ = sklearn_fit(low, start(image))
    found = kmeans.segment(image, initial=start(image), tolerance=0, threshold=threshold, below="zero")
    np.testing.assert_allclose(computed(found.centres), centres, rtol=1e-9)
    np.testing.assert_array_equal(computed(found.labels), labels)


@pytest.mark.parametrize("dtype", ["uint16", "float32"])
@pytest.mark.parametrize("features", ["coordinates", "intensity"])
@pytest.mark.parametrize("chunks", [(7, 30, 8), (1, 30, 33), (20, 4, 33), (16, 16, 16)])
def test_result_does_not_depend_on_the_chunks(tmp_path, dtype, features, chunks, monkeypatch):
    image = phases(dtype)
    options = {"features": features, "most_iterations": 8}
    whole = together(kmeans.segment(image, **options))
    monkeypatch.setattr("tomoscale.readings.AT_ONCE", 5000)
    monkeypatch.setattr(blocks, "volume_chunks", lambda shape, edge: tuple(min(16, n) for n in shape))
    source = write_array(tmp_path / "v.zarr", image, chunks)
    with blocks.planned_for(8_000_000, 3):
        lazy = kmeans.segment(source, **options)
    assert lazy.labels.npartitions > 1
    for got, expected in zip(together(lazy), whole, strict=True):
        np.testing.assert_array_equal(got, expected)


def test_rounding_between_two_centres_does_not_depend_on_where_a_window_begins():
    values = np.ones((1, 200, 700), np.uint8)
    weights = np.array([[0, 0, 0, 0, 0.1], [0, 0, 0, 0.3, 0]])  # as near, but for rounding, where x = 3 y
    whole = kernels.cluster_labels(values, (0, 0, 0), weights, -np.inf, False)
    for cut in (1, 77, 300):
        rest = kernels.cluster_labels(values[:, :, cut:], (0, 0, cut), weights, -np.inf, False)
        np.testing.assert_array_equal(rest, whole[:, :, cut:])


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_result_does_not_depend_on_the_workers(tmp_path, workers):
    image = phases("uint16")
    source = write_array(tmp_path / "v.zarr", image, (8, 16, 16))
    with cluster.connect("local", workers=workers) as connection:
        out = run.write(kmeans.segment(source), tmp_path / "o.zarr", quiet=True, connection=connection)
    for name, expected in together(kmeans.segment(image))._asdict().items():
        np.testing.assert_array_equal(store.open_volume(out / name).whole(), expected)


def test_seeded_centres_find_what_many_restarts_find():
    image = phases("uint16")
    matrix, *_ = standardised(image, np.ones(image.shape, bool))
    best = KMeans(3, n_init=10, random_state=0).fit(matrix).inertia_
    found = together(kmeans.segment(image))
    assert found.inertia[0] == pytest.approx(best, rel=1e-3)
    assert found.iterations[0] <= 5


def test_the_sample_of_a_volume_is_that_of_its_parts():
    image = phases("uint16", (50, 60, 70))
    how = clusters.Features("t", image.shape, 3, 5, 1, 20000.0, False, 0.0, True)
    ends = np.array([image.min(), image.max()], float)

    def part(*window):
        return clusters.survey(how, [(window, image[window])], ends)

    whole = part(slice(0, 50), slice(0, 60), slice(0, 70))
    halves = [part(slice(0, 50), slice(a, b), slice(0, 70)) for a, b in ((0, 13), (13, 60))]
    n = 9 * clusters.DIGITS
    for both in (clusters.merged(*halves), clusters.merged(*halves[::-1])):
        for got, expected in zip(both[:n].reshape(9, -1), whole[:n].reshape(9, -1), strict=True):
            assert clusters.number(got) == clusters.number(expected)
        np.testing.assert_array_equal(both[n:], whole[n:])
    kept = whole[n:].reshape(-1, 3)
    assert (np.diff(kept[:, 0]) > 0).all()
    np.testing.assert_array_equal(image.ravel()[kept[:, 1]], kept[:, 2].copy().view(np.float64))


@settings(max_examples=80, deadline=None)
@given(st.lists(st.integers(1, 20), min_size=3, max_size=9), st.integers(2, 4), st.integers(0, 1000))
def test_intensities_alone_are_cut_at_the_global_optimum(counts, k, seed):
    n = len(counts)
    if n < k:
        return
    values = np.sort(np.random.default_rng(seed).choice(256, n, replace=False)).astype(float)
    counts = np.array(counts)

    def within(cuts):
        parts = np.split(np.arange(n), cuts)
        means = [np.average(values[p], weights=counts[p]) for p in parts]
        return sum((counts[p] * (values[p] - m) ** 2).sum() for p, m in zip(parts, means, strict=True))

    least = min(within(c) for c in itertools.combinations(range(1, n), k - 1))
    assert within(kernels.optimal_cuts(values, counts, k) + 1) == pytest.approx(least, rel=1e-12, abs=1e-9)


def test_intensities_alone_are_labelled_by_the_nearest_centre():
    image = phases("uint8")
    found = together(kmeans.segment(image, features="intensity", k=4))
    centres = found.centres[:, 0]
    model = KMeans(4, init=centres[:, None], n_init=1, tol=0).fit(image.reshape(-1, 1).astype(float))
    np.testing.assert_allclose(np.sort(model.cluster_centers_[:, 0]), centres, rtol=1e-9)
    nearest = np.abs(image[..., None].astype(float) - centres).argmin(axis=-1) + 1
    np.testing.assert_array_equal(found.labels, nearest)
    scaled = model.inertia_ / image.var()
    assert found.inertia[0] == pytest.approx(scaled, rel=1e-9)


def test_a_run_that_goes_on_does_not_repeat_its_iterations(tmp_path, monkeypatch):
    image = phases("uint16")
    calls = []
    original = clusters.assigned

    def counted(*arguments):
        calls.append(1)
        if len(calls) == 3:
            raise InterruptedRunError("SIGTERM: stopped")
        return original(*arguments)

    monkeypatch.setattr(clusters, "assigned", counted)
    source = write_array(tmp_path / "v.zarr", image, SHAPE)

    def again():
        lazy = kmeans.segment(source, initial=start(image), tolerance=0)
        with cluster.connect("threads", threads=1) as one:
            return run.write(lazy, tmp_path / "o.zarr", quiet=True, connection=one)

    with pytest.raises(Exception, match="SIGTERM"):
        again()
    out = again()
    n_iter = store.open_volume(out / "iterations").whole()[0]
    assert len(calls) == n_iter + 1
    np.testing.assert_array_equal(store.open_volume(out).whole(), sklearn_fit(image, start(image))[1])


def test_command_writes_what_the_function_returns_and_counts_its_passes(tmp_path, capsys):
    source = write_array(tmp_path / "v.zarr", phases("uint8"), (8, 16, 16))
    assert cli.main(["kmeans", str(source), "--k", "2", "--scheduler", "threads"]) == 0
    out, err = capsys.readouterr()
    assert "passes             1 before the blocks, up to 100 more until they settle, 1 with them" in err
    group = tmp_path / "v-kmeans.zarr"
    assert out.strip() == str(group)
    for name, expected in together(kmeans.segment(source, k=2))._asdict().items():
        np.testing.assert_array_equal(store.open_volume(group / name).whole(), expected)
    assert store.open_volume(group / "iterations").whole()[0] <= 5
    history = json.loads((group / "zarr.json").read_text())["attributes"]["tomoscale"]["history"]
    assert history[-1]["parameters"]["k"] == 2


def test_centres_of_an_earlier_run_are_where_the_next_begins(tmp_path):
    source = write_array(tmp_path / "v.zarr", phases("uint8"), (8, 16, 16))
    run.write(kmeans.segment(source, tolerance=0), tmp_path / "a.zarr", quiet=True)
    again = kmeans.segment(source, initial=tmp_path / "a.zarr" / "centres", tolerance=1e-12)
    assert computed(again.iterations)[0] == 1
    np.testing.assert_array_equal(
        computed(again.labels), store.open_volume(tmp_path / "a.zarr/labels").whole()
    )


@pytest.mark.parametrize("features", ["coordinates", "intensity"])
@pytest.mark.parametrize(
    ("image", "options", "message"),
    [
        (np.full((3, 4, 5), np.nan, np.float32), {}, "NaN"),
        (phases("uint8"), {"threshold": 300.0}, "no voxel reaches the threshold 300"),
        (np.ones((4, 5), np.uint8), {}, r"expected \(z, y, x\)"),
        (phases("uint8"), {"k": 1}, "greater than or equal to 2"),
    ],
)
def test_what_cannot_be_clustered_is_refused_in_one_line(image, features, options, message):
    with pytest.raises(TomoscaleError, match=message) as error:
        computed(kmeans.segment(image, features=features, **options).labels)
    assert "\n" not in str(error.value)


def test_one_value_or_too_few_are_refused():
    constant = np.full((3, 4, 5), 9, np.uint8)
    with pytest.raises(TomoscaleError, match="all voxels that count have the value 9"):
        computed(kmeans.segment(constant).labels)
    with pytest.raises(TomoscaleError, match="1 different values are left for 3 clusters"):
        computed(kmeans.segment(constant, features="intensity").labels)
    two = constant.copy()
    two[0, 0, :2] = [200, 210]
    with pytest.raises(TomoscaleError, match="2 voxels are left for 3 clusters"):
        computed(kmeans.segment(two, threshold=100.0).labels)


def test_initial_centres_of_another_number_are_refused():
    with pytest.raises(TomoscaleError, match=r"initial has shape \(2, 4\); expected \(3, 4\)"):
        kmeans.segment(phases("uint8"), initial=np.zeros((2, 4)))
