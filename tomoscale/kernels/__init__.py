"""
Block in, block out: plain loops about pixels, with `reference` saying what each kernel means.

Blocks are arrays of NumPy. Kernels that are `on_both` take those of CuPy as well, and return a block where they found
one.

Importing this package is cheap: a kernel's module, and Numba with it, is loaded when the kernel is first
used.
"""

from __future__ import annotations

import importlib
from typing import Any

_HOME = {
    "NanError": "_clean_frames",
    "add_gradients": "_depth",
    "bin_counts": "_histograms",
    "class_counts": "_histograms",
    "classes_of": "_histograms",
    "grey_bins": "_clahe",
    "interpolated": "_clahe",
    "moments": "_kmeans",
    "moving_median": "_moving_median",
    "moving_median_windows": "_moving_median",
    "clipped_tables": "_clahe",
    "cluster_labels": "_kmeans",
    "cluster_sums": "_kmeans",
    "coarse_labels": "_coarse",
    "coarse_means": "_coarse",
    "confusion": "_histograms",
    "frame_median": "_frame_median",
    "from_bit_planes": "_bit_planes",
    "clean_frames": "_clean_frames",
    "normalise": "_clean_frames",
    "replace_pixels": "_hot_pixels",
    "normalise_rint": "_clean_frames",
    "optimal_cuts": "_optimal_cuts",
    "otsu_indices": "_otsu",
    "running_gradients": "_depth",
    "sample": "_kmeans",
    "tile_counts": "_clahe",
    "value_counts": "_histograms",
    "find_components": "_runs",
    "join_voxels": "_union",
    "grow": "_growth",
    "host": "_arrays",
    "namespace": "_arrays",
    "ndimage": "_arrays",
    "paint": "_paint",
    "together": "_apart",
}

__all__ = [*_HOME, "reference"]  # noqa: PLE0604


def __getattr__(name: str) -> Any:
    if name in _HOME:
        kernel = getattr(importlib.import_module(f"tomoscale.kernels.{_HOME[name]}"), name)
        globals()[name] = kernel  # to look for it takes as long as to clean a small chunk
        return kernel
    if name == "reference":
        return importlib.import_module("tomoscale.kernels.reference")
    raise AttributeError(f"module 'tomoscale.kernels' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
