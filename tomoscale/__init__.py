"""
Scans and volumes that do not fit in memory.

Every topic is a module and every operation a function of it: `tomoscale.background.remove`,
`tomoscale.convert.scan`, `tomoscale.simulate.dct`. Modules are loaded when first used.
"""

from __future__ import annotations

import importlib
from types import ModuleType

from tomoscale._version import __version__
from tomoscale.errors import TomoscaleError

TOPICS = (
    "simulate",
    "convert",
    "export",
    "background",
    "blobs",
    "smooth",
    "otsu",
    "kmeans",
    "depth",
    "predict",
    "evaluate",
    "pyramid",
    "verify",
    "info",
    "report",
    "demo",
)
_MODULES = (*TOPICS, "blocks", "cluster", "kernels", "presets", "run", "store")

__all__ = ["TOPICS", "TomoscaleError", "__version__", *_MODULES]


def __getattr__(name: str) -> ModuleType:
    if name in _MODULES:
        return importlib.import_module(f"tomoscale.{name}")
    raise AttributeError(f"module 'tomoscale' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
