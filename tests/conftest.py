"""Small scans with known features, written in every layout that users have."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from tomoscale import blosc, store

blosc._WORTH = 0  # what only large data meet is to be met by small ones, in this process

collect_ignore = ["disturbed.py"]
"""It disturbs the package as soon as it is imported, which looking for doctests would do."""


def small_scan(
    n_frames: int = 90, rows: int = 20, columns: int = 23, seed: int = 0, dtype: str = "uint16"
) -> np.ndarray:
    """Frames with a glow that drifts, noise, and two blobs."""
    rng = np.random.default_rng(seed)
    r, c = np.mgrid[:rows, :columns]
    glow = 300 + 80 * np.cos(r / 6) + 50 * np.sin(c / 5)
    source = 1 + 0.1 * np.sin(np.arange(n_frames) / 15) + 0.003 * rng.standard_normal(n_frames)
    frames = 100 + source[:, None, None] * glow + rng.normal(0, 9, (n_frames, rows, columns))
    frames[n_frames // 3 : n_frames // 3 + 4, 6:9, 6:10] += 400
    frames[-3:, -4:, -5:] += 250
    return np.rint(frames).astype(dtype) if np.dtype(dtype).kind in "iu" else frames.astype(dtype)


def write_array(path: Path, array: np.ndarray, chunks: tuple[int, ...] | None = None) -> Path:
    """Write an array as tomoscale stores it."""
    files = store.create_array(path, array.shape, array.dtype, chunks or array.shape)
    files.write((0,) * array.ndim, array)
    return path


def write_scan(folder: Path, frames: np.ndarray, chunks: tuple[int, ...], **beside: np.ndarray) -> Path:
    """Write a scan group as a user's own Zarr: frames and what lies beside them."""
    store.create_group(folder, {})
    write_array(folder / "frames", frames, chunks)
    for name, array in beside.items():
        write_array(folder / name, array)
    return folder


@pytest.fixture
def scan() -> np.ndarray:
    """Return a small scan."""
    return small_scan()


@pytest.fixture(scope="session")
def striped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a scan in stripes of two rows, from which operations make many blocks."""
    folder = tmp_path_factory.mktemp("striped") / "scan.zarr"
    return write_scan(folder, small_scan(160, rows=48, columns=64), (8, 2, 64))


@pytest.fixture
def frames(striped: Path, tmp_path: Path) -> np.ndarray:
    """Return the frames of a scan, which lies in the folder of the test as `scan.zarr`."""
    shutil.copytree(striped, tmp_path / "scan.zarr")
    return small_scan(160, rows=48, columns=64)
