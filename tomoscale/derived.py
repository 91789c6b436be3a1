"""Volumes that are computed when they are read: nothing is stored between a source and its passes."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import numpy as np

from tomoscale import volume
from tomoscale.blocks import Piece, Window


@dataclass(frozen=True, repr=False)
class Derived(volume.Volume):
    """
    A volume, of float32 unless it says otherwise, that is computed from another one, window by window.

    Parameters
    ----------
    inner : Volume
        What is read; of the same shape.
    """

    inner: Any

    @property
    def shape(self) -> tuple[int, ...]:  # type: ignore[override]
        return self.inner.shape

    @property
    def dtype(self) -> np.dtype:  # type: ignore[override]
        return np.dtype(np.float32)

    @property
    def chunks(self) -> tuple[int, ...]:  # type: ignore[override]
        return self.inner.chunks

    @property
    def most_bytes(self) -> float:
        return self.inner.most_bytes

    @property
    def halo(self) -> tuple[int, ...]:
        return self.inner.halo

    def decoded(self, window: Window) -> int:
        return self.inner.decoded(self.grown(window))

    def grown(self, window: Window) -> Window:
        """Return what is read for a window."""
        raise NotImplementedError

    def computed(self, values: np.ndarray, window: Window) -> np.ndarray:
        """Return a window from what was read for it."""
        raise NotImplementedError

    def working_bytes(self, window: Window) -> int:
        """Return the bytes held while a window is read."""
        raise NotImplementedError

    def read(self, window: Window) -> np.ndarray:
        return self.computed(self.inner.read(self.grown(window)), window)

    def at(self, window: Window) -> Piece:
        extent = _Extent(self.inner.shape, self.inner.dtype, self.inner.chunks)
        view = dataclasses.replace(self, inner=extent)
        return Piece(_Travelling(view, self.inner.at(self.grown(window))), window)

    def identity(self) -> dict[str, Any]:
        return self.inner.identity()

    def history(self) -> list[dict[str, Any]]:
        return self.inner.history()


@dataclass(frozen=True)
class _Extent:
    """What a view must know of its source beside the window."""

    shape: tuple[int, ...]
    dtype: np.dtype
    chunks: tuple[int, ...]


@dataclass(frozen=True)
class _Travelling:
    """What travels to a task: the view, and what it reads for one window."""

    view: Derived
    piece: Piece

    @property
    def shape(self) -> tuple[int, ...]:
        return self.view.shape

    @property
    def dtype(self) -> np.dtype:
        return self.view.dtype

    @property
    def chunks(self) -> tuple[int, ...]:
        return self.view.chunks

    def decoded(self, window: Window) -> int:
        return self.piece.source.decoded(self.piece.window)

    def read(self, window: Window) -> np.ndarray:
        return self.view.computed(self.piece.load(), window)

    def at(self, window: Window) -> Piece:
        return Piece(self, window)
