"""Operations whose blocks lie on a GPU give what they give on the CPU, and a GPU that cannot be used is said so."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import cupy_stand_in
import dask
import numpy as np
import pytest
from conftest import write_array

from tomoscale import (
    blocks,
    cli,
    clusters,
    cubes,
    depth,
    devices,
    evaluate,
    kmeans,
    operation,
    otsu,
    run,
    smooth,
    store,
)
from tomoscale.errors import TomoscaleError
from tomoscale.kernels import _on_arrays

SHAPE = (12, 22, 26)
CHUNKINGS = [(5, 8, 13), (1, 22, 26)]
OPERATIONS = {
    "otsu": lambda v, **o: otsu.segment(v, classes=3, **o),
    "otsu smoothed": lambda v, **o: otsu.segment(v, sigma=(1.0,), **o),
    "scale": lambda v, **o: otsu.scale(v, percentiles=(2, 97), **o),
    "clahe 2D": lambda v, **o: otsu.equalize(v, **o),
    "clahe 3D": lambda v, **o: otsu.equalize(v, dimensions=3, dtype="float64", **o),
    "mask": lambda v, **o: otsu.initial_mask(v, invert="slice", **o),
    "kmeans": lambda v, **o: kmeans.segment(v, k=4, threshold=0.2, most_iterations=5, **o),
    "kmeans of zeros": lambda v, **o: kmeans.segment(
        v, threshold=0.4, below="zero", sigma=(0.6,), most_iterations=5, **o
    ),
    "kmeans of intensities": lambda v, **o: kmeans.segment(
        v, features="intensity", threshold=0.3, below="zero", **o
    ),
    "depth project": lambda v, **o: depth.project(v, **o),
    "depth": lambda v, **o: depth.segment(v, **o),
    "depth cumulative": lambda v, **o: depth.segment(v, mode="cumulative", **o),
    "smooth": lambda v, **o: smooth.gaussian(v, sigma=(1, 0, 2), **o),
}
ROUNDED = ("otsu smoothed", "kmeans of zeros", "depth cumulative", "smooth")
"""Those with a Gaussian over voxels."""


def soft(dtype: str) -> np.ndarray:
    """Return a volume of two phases with noise."""
    z, y, x = np.indices(SHAPE)
    values = (
        0.3 + 0.3 * (np.hypot(y - 11, x - 9) < 7 + z / 4) + np.random.default_rng(0).normal(0, 0.06, SHAPE)
    )
    values = np.clip(values, 0, 1)
    return values.astype(dtype) if np.dtype(dtype).kind == "f" else (values * 250).astype(dtype)


def arrays_of(result: object) -> dict[str, np.ndarray]:
    """Return the arrays of a result, computed in this thread."""
    fields = {n: a for n, a in operation.fields_of(result).items() if hasattr(a, "chunks")}
    return dict(zip(fields, dask.compute(*fields.values(), scheduler="sync"), strict=True))


@pytest.fixture
def gpu(monkeypatch, small_blocks):
    """Put a stand-in in the place of CuPy."""
    return cupy_stand_in.installed(monkeypatch)


@pytest.fixture
def small_samples(monkeypatch):
    """Let k-means begin with few voxels."""
    monkeypatch.setattr(clusters, "SAMPLE", 512)


@pytest.fixture
def small_blocks(monkeypatch):
    """Store results in small chunks, so that small volumes have many blocks."""
    monkeypatch.setattr(blocks, "volume_chunks", lambda shape, edge: tuple(min(8, n) for n in shape))


# ---------------------------------------------------------------- the same results


@pytest.mark.parametrize("case", OPERATIONS)
@pytest.mark.parametrize("dtype", ["uint16", "float32"])
@pytest.mark.usefixtures("small_samples")
def test_a_result_on_the_stand_in_is_that_on_the_cpu_whatever_the_chunks(tmp_path, gpu, case, dtype):
    image = soft(dtype)
    expected = arrays_of(OPERATIONS[case](image, device="cpu"))
    assert cupy_stand_in.counted.there == 0
    for number, chunks in enumerate(CHUNKINGS):
        source = write_array(tmp_path / f"{number}.zarr", image, chunks)
        cupy_stand_in.counted.there = 0
        with blocks.planned_for(2**24, 3):
            found = arrays_of(OPERATIONS[case](source, device="gpu"))
        assert cupy_stand_in.counted.there >= image.nbytes
        assert found.keys() == expected.keys()
        for name in expected:
            np.testing.assert_array_equal(found[name], expected[name], err_msg=name)


@pytest.mark.parametrize("masked", [False, True])
def test_masks_are_compared_on_the_stand_in_as_on_the_cpu(tmp_path, gpu, masked):
    found, truth, mask = np.random.default_rng(0).integers(0, 3, (3, *SHAPE)).astype(np.uint8)
    arrays = {"found": found, "truth": truth, "mask": mask}
    paths = {n: write_array(tmp_path / f"{n}.zarr", a, (5, 8, 13)) for n, a in arrays.items()}
    options = {"mask": paths["mask"]} if masked else {}
    on_cpu, on_gpu = (
        evaluate.compare(paths["found"], paths["truth"], device=device, **options)
        for device in ("cpu", "gpu")
    )
    assert on_gpu == on_cpu
    assert cupy_stand_in.counted.there >= found.nbytes + truth.nbytes


@pytest.mark.usefixtures("gpu", "small_samples")
@pytest.mark.parametrize(
    ("case", "dtype"), [(c, t) for c in ("otsu", "kmeans", "smooth") for t in ("float16", ">u2")]
)
def test_types_that_kernels_do_not_know_are_converted_there_too(case, dtype):
    image = soft(dtype)
    expected = arrays_of(OPERATIONS[case](image, device="cpu"))
    found = arrays_of(OPERATIONS[case](image, device="gpu"))
    for name in expected:
        np.testing.assert_array_equal(found[name], expected[name], err_msg=name)


@pytest.mark.gpu
@pytest.mark.skipif(isinstance(devices.found(), str), reason="there is no GPU")
@pytest.mark.parametrize("case", OPERATIONS)
@pytest.mark.usefixtures("small_blocks", "small_samples")
def test_a_result_on_a_gpu_is_that_on_the_cpu(tmp_path, case):
    image = soft("float32")
    expected = arrays_of(OPERATIONS[case](image, device="cpu"))
    source = write_array(tmp_path / "v.zarr", image, CHUNKINGS[0])
    found = arrays_of(OPERATIONS[case](source, device="gpu"))
    for name, array in expected.items():
        if case not in ROUNDED:
            np.testing.assert_array_equal(found[name], array, err_msg=name)
        elif array.dtype.kind == "f":
            np.testing.assert_allclose(found[name], array, rtol=1e-5, atol=1e-5, err_msg=name)
        else:
            assert np.mean(found[name] != array) < 1e-3, name


def test_the_stand_in_is_as_strict_as_cupy(gpu):
    there = gpu.asarray(np.arange(3))
    for wrong in (
        lambda: np.asarray(there), lambda: np.sum(there), lambda: np.arange(3) + there, lambda: there + np.arange(3),
        lambda: there[np.arange(2)], lambda: gpu.minimum(np.arange(3), 1), lambda: np.array([there.sum()], float),
        lambda: np.arange(3).__setitem__(0, there), lambda: there.__setitem__(slice(3), np.arange(3)),
    ):  # fmt: skip
        with pytest.raises(TypeError):
            wrong()
    assert int(there.sum()) == 3


# ---------------------------------------------------------------- which device


@pytest.fixture
def no_gpu(monkeypatch):
    """Let CuPy be there and no GPU, as on a login node."""
    return cupy_stand_in.installed(monkeypatch, n_devices=0)


def test_a_run_takes_a_gpu_says_so_and_writes_the_same(tmp_path, gpu, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_array(tmp_path / "v.zarr", soft("uint16"), (5, 8, 13))
    for device in ("auto", "cpu", "gpu"):
        assert (
            cli.main(
                f"otsu v.zarr -o {device}.zarr --scheduler threads --threads 2 --device {device}".split()
            )
            == 0
        )
    said = [
        line.strip() for line in capsys.readouterr().err.splitlines() if line.strip().startswith("device ")
    ]
    both = "GPU 0, Stand-in, 10 GB; 2 blocks at a time of at most 3.23 GB"
    assert [line.removeprefix("device").strip() for line in said] == [both, "CPU", both]
    results = [store.open_volume(f"{device}.zarr").whole() for device in ("auto", "cpu", "gpu")]
    np.testing.assert_array_equal(results[0], results[1])
    np.testing.assert_array_equal(results[2], results[1])
    records = [
        store.open_volume(f"{device}.zarr").history()[-1]["parameters"] for device in ("auto", "cpu", "gpu")
    ]
    assert records[0] == records[1] == records[2]
    assert "device" not in records[0]


def test_only_what_a_gpu_rounds_otherwise_is_another_run(gpu):
    def parameters(device, sigma):
        return run.Result.of(otsu.segment(soft("uint8"), sigma=sigma, device=device)).made_by()["parameters"]

    assert parameters("gpu", (0.0,)) == parameters("cpu", (0.0,))
    assert parameters("cpu", (1.0,))["device"] == "cpu"
    assert parameters("gpu", (1.0,)) == parameters("cpu", (1.0,)) | {"device": "gpu"}


def test_without_a_gpu_auto_is_the_cpu_and_gpu_an_error(no_gpu, monkeypatch):
    image = soft("uint8")
    assert "  device             CPU" in run.plan(otsu.segment(image)).describe()
    with pytest.raises(TomoscaleError, match="no GPU to compute on: CuPy finds no GPU; or give --device cpu"):
        otsu.segment(image, device="gpu")
    assert cupy_stand_in.counted.there == 0


def broken(error: BaseException) -> object:
    """Return a CuPy that raises an error as soon as it is used."""

    def use(*_: object) -> int:
        raise error

    made = ModuleType("cupy")
    made.cuda = SimpleNamespace(runtime=SimpleNamespace(getDeviceCount=use))  # type: ignore[attr-defined]
    return made


def test_whatever_is_wrong_with_a_gpu_is_one_line_and_leaves_auto_to_the_cpu(monkeypatch):
    reasons = {
        "the package cupy is not installed; tomoscale's extra `gpu`": None,
        "CuPy cannot use a GPU: cudaErrorInsufficientDriver: too old": broken(
            RuntimeError("cudaErrorInsufficientDriver:\ntoo old")
        ),
    }
    for words, module in reasons.items():
        monkeypatch.setitem(sys.modules, "cupy", module)
        with pytest.raises(TomoscaleError) as caught:
            depth.project(soft("uint8"), device="gpu")
        assert words in str(caught.value)
        assert "\n" not in str(caught.value)
        view, facts = devices.placed("test", store.as_volume(soft("uint8")), "auto")
        assert not isinstance(view, devices.OnGpu)
        assert facts["says"] == {"device": "CPU"}


@pytest.mark.parametrize("line", ["background v.zarr", "blobs v.zarr --seed-threshold 9 --c-min 3"])
def test_an_operation_that_computes_on_the_cpu_only_refuses_a_gpu(tmp_path, monkeypatch, capsys, line):
    monkeypatch.chdir(tmp_path)
    write_array(tmp_path / "v.zarr", soft("uint16"), SHAPE)
    assert cli.main([*line.split(), "--device", "gpu"]) == 2
    assert "computes on the CPU only, so far; leave out --device gpu" in capsys.readouterr().err
    assert cli.main([*line.split(), "--device", "auto", "--dry-run", "--scheduler", "threads"]) == 0


# ---------------------------------------------------------------- the script that measures


@pytest.fixture
def script(monkeypatch):
    """Return `benchmarks/gpu/run.py` for small blocks."""
    path = Path(__file__).parents[1] / "benchmarks" / "gpu" / "run.py"
    spec = importlib.util.spec_from_file_location("gpu_run", path)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setattr(sys, "path", [*sys.path])
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "SHAPE", (4, 64, 80))
    monkeypatch.setattr(module, "seconds", lambda function, *_: bool(function) + 1.0)
    return module


def test_the_script_prints_a_row_for_all_that_is_equal(script, gpu, capsys):
    assert script.main() == 0
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
    assert len(rows) == 2 + len(script.cases())


@pytest.mark.usefixtures("gpu")
def test_the_script_fails_where_a_result_differs(script, monkeypatch, capsys):
    def wrong(values):
        return _on_arrays.classes_of(values, np.array([1], values.dtype))

    case = script.Case(
        "classes",
        np.zeros((2, 3, 4), np.uint8),
        lambda v: wrong(v) if not isinstance(v, np.ndarray) else v + 1,
    )
    monkeypatch.setattr(script, "cases", lambda: [case])
    assert script.main() == 1
    assert "classes: 24 of 24 values differ" in capsys.readouterr().err


def test_the_script_says_where_there_is_no_gpu(script, no_gpu, capsys):
    assert script.main() == 2
    assert capsys.readouterr().err == "benchmarks/gpu/run.py: no GPU to measure: CuPy finds no GPU\n"


# ---------------------------------------------------------------- its memory


def test_blocks_fit_the_memory_of_the_device(monkeypatch, small_blocks):
    image = store.as_volume(np.zeros((600, 16, 16), np.float32))
    cupy_stand_in.installed(monkeypatch, memory=10**9)
    monkeypatch.setattr(devices, "LEAST_BYTES", 0)
    edges = []
    for share in (10**6, 10**5):
        monkeypatch.setattr(devices, "SCRATCH", int(devices.USABLE * 10**9) - share)
        with blocks.planned_for(10**9, 1):
            view, _ = devices.placed("test", image, "gpu")
            edges.append(cubes.cut("test", view, held=4).edges[0])
    assert edges[0] > edges[1]
    monkeypatch.setattr(devices, "SCRATCH", int(devices.USABLE * 10**9) - 1000)
    with blocks.planned_for(10**9, 1):
        view, _ = devices.placed("test", image, "gpu")
        with pytest.raises(TomoscaleError, match="1 kB are allowed; try fewer --workers, or --device cpu"):
            cubes.cut("test", view, held=4)


def test_a_gpu_that_is_shared_by_too_many_blocks_is_not_taken(monkeypatch):
    cupy_stand_in.installed(monkeypatch, memory=10**9)
    with blocks.planned_for(10**9, 16):
        assert not isinstance(
            devices.placed("test", store.as_volume(soft("uint8")), "auto")[0], devices.OnGpu
        )
        with pytest.raises(TomoscaleError, match="too little for 16 blocks at a time; fewer --workers"):
            smooth.gaussian(soft("uint8"), device="gpu")


def test_a_device_whose_memory_runs_out_is_named(tmp_path, gpu):
    class OutOfMemoryError(MemoryError):
        """As CuPy's."""

    def full(_: np.ndarray) -> None:
        raise OutOfMemoryError("Out of memory allocating 512 bytes")

    gpu.asarray = full
    with pytest.raises(TomoscaleError, match="fewer --workers, or --device cpu"):
        run.write(otsu.segment(soft("uint8"), device="gpu"), tmp_path / "o.zarr", quiet=True)
