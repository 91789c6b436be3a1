"""
Where blocks are computed: by the processor, or on a GPU with CuPy.

Data lie on the disk and results go there, so a block is read as ever, copied to the GPU, computed with the functions
that compute it here too, and copied back before it is written.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from tomoscale import blocks
from tomoscale.blocks import Window
from tomoscale.derived import Derived
from tomoscale.errors import TomoscaleError
from tomoscale.kernels._on_arrays import SCRATCH
from tomoscale.parameters import Device
from tomoscale.progress import human_bytes

USABLE = 0.7
"""Of a GPU's memory; the rest is for its libraries, and for others."""
LEAST_BYTES = 2**28
"""Memory for one block beside what the kernels take, below which a GPU is not used."""


class Gpu(NamedTuple):
    """
    A GPU that CuPy can use.

    Parameters
    ----------
    name : str
        Of the model.
    memory : int
        Bytes.
    """

    name: str
    memory: int


def found() -> Gpu | str:
    """Return the first GPU that CuPy can use, or why there is none."""
    try:
        import cupy
    except ModuleNotFoundError as error:
        return f"the package {error.name} is not installed; tomoscale's extra `gpu` names what is needed"
    except ImportError as error:
        return f"CuPy does not load: {_one_line(error)}"
    try:
        if not cupy.cuda.runtime.getDeviceCount():
            return "CuPy finds no GPU"
        # What lacks a compiler or a driver of its version says so at the first sum, not before.
        int(cupy.arange(2).sum())
        properties = cupy.cuda.runtime.getDeviceProperties(0)
        return Gpu(properties["name"].decode(), int(properties["totalGlobalMem"]))
    except Exception as error:  # whatever a driver says
        return f"CuPy cannot use a GPU: {_one_line(error)}"


def placed(who: str, volume: Any, device: Device, *, rounds: bool = False) -> tuple[Any, dict[str, Any]]:
    """
    Return a volume as the blocks of an operation are to get it.

    Parameters
    ----------
    who : str
        The operation, for errors.
    volume : Volume
        What is read.
    device : str
        `auto` takes a GPU if there is one, `gpu` insists on it, `cpu` takes none.
    rounds : bool
        Whether results on a GPU differ by rounding: then the device becomes part of the record.

    Returns
    -------
    view : Volume
        The same volume, whose windows lie on the GPU if one is taken.
    facts : dict
        What to state of the result.

    Raises
    ------
    TomoscaleError
        A GPU is asked for and cannot be used; with what was found and what helps.
    """
    threads = blocks.resources().threads
    gpu = found() if device != "cpu" else ""
    share = 0 if isinstance(gpu, str) else int(USABLE * gpu.memory / threads) - SCRATCH
    if not isinstance(gpu, str) and share < LEAST_BYTES:
        gpu = f"{human_bytes(gpu.memory)} of {gpu.name} are too little for {threads} blocks at a time; fewer --workers"
    if isinstance(gpu, str):
        if device == "gpu":
            raise TomoscaleError(f"{who}: there is no GPU to compute on: {gpu}; or give --device cpu")
        return volume, _facts("CPU", "cpu", rounds)
    blocks_at_a_time = f"{threads} block{'s' * (threads > 1)} at a time"
    text = f"GPU 0, {gpu.name}, {human_bytes(gpu.memory)}; {blocks_at_a_time} of at most {human_bytes(share)}"
    return OnGpu(volume, share), _facts(text, "gpu", rounds)


def _facts(text: str, device: str, rounds: bool) -> dict[str, Any]:
    return {"says": {"device": text}, "parameters": {"device": device} if rounds else {}}


@dataclass(frozen=True, repr=False)
class OnGpu(Derived):
    """
    A volume whose windows are copied to the GPU when they are read.

    Parameters
    ----------
    inner : Volume
        What is read.
    share : int
        Bytes that a block may take there.
    """

    share: int

    @property
    def dtype(self) -> np.dtype:  # type: ignore[override]
        return self.inner.dtype

    @property
    def most_bytes(self) -> float:
        """Bytes that a block of it may take."""
        return self.share

    def grown(self, window: Window) -> Window:
        return window

    def working_bytes(self, window: Window) -> int:
        return 0

    def computed(self, values: np.ndarray, window: Window) -> Any:
        import cupy

        # CuPy knows neither the other byte order nor arrays with gaps in it.
        return cupy.asarray(np.ascontiguousarray(values, values.dtype.newbyteorder("=")))


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
