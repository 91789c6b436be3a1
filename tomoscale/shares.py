"""Grey values and classes of the same voxels, read together once: a histogram of every class."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import Any

import numpy as np

from tomoscale import kernels, survey
from tomoscale.blocks import Window


@dataclass(frozen=True)
class Shares:
    """
    What one reading of a volume and its classes found.

    Parameters
    ----------
    low, width : float
        Lower edge of the first bin, and width of the bins.
    counts : (class, bin) int64
        Voxels; the outermost bins also hold what lies outside.
    """

    low: float
    width: float
    counts: np.ndarray

    @property
    def voxels(self) -> np.ndarray:
        """Voxels of every class."""
        return self.counts.sum(axis=1)

    @property
    def means(self) -> np.ndarray:
        """Mean value of every class, as exactly as the bins tell; NaN where it is empty."""
        middles = self.low + self.width * (np.arange(self.counts.shape[1]) + 0.5 * (self.width != 1))
        with np.errstate(invalid="ignore"):
            return (self.counts @ middles) / self.voxels

    def ends(self, *shares: float) -> list[float]:
        """Return the bins up to which such shares of all voxels lie, by their lower edges; 0 for the lowest voxel."""
        seen = np.cumsum(self.counts.sum(axis=0))
        places = np.searchsorted(seen, np.maximum(np.multiply(shares, seen[-1]), 1))
        return [float(self.low + self.width * p) for p in places]

    def within(self, low: float, high: float, n_bins: int) -> tuple[np.ndarray, np.ndarray]:
        """Return edges, and counts of every class, of about so many bins of a range, each of whole bins."""
        last = self.counts.shape[1] - 1
        first, stop = (int(np.clip((v - self.low) // self.width, 0, last)) for v in (low, high))
        starts = np.arange(first, stop + 1, max(1, (stop + 1 - first) // n_bins))
        # The last bin ends where the range does.
        edges = self.low + self.width * np.append(starts, stop + 1)
        return edges, np.add.reduceat(self.counts[:, : stop + 1], starts, axis=1)


def of(volume: Any, labels: Any, n_classes: int, *, sampled: bool = False, quiet: bool = True) -> Shares:
    """
    Count the voxels of every class by their value.

    Parameters
    ----------
    volume : (z, y, x)
        Grey values.
    labels : (z, y, x) uint8
        Classes from 0 on.
    n_classes : int
        How many there may be.
    sampled : bool
        Of a sample of chunks instead of all.
    quiet : bool
        Show no progress.

    Returns
    -------
    Shares
        65,536 bins, one for each value of 8 and 16 bits.
    """
    low, width, _ = survey.bins_of(volume)
    total, lock = np.zeros((n_classes, survey.N_BINS), np.int64), threading.Lock()

    def read(window: Window) -> None:
        values, classes = volume.read(window), labels.read(window)
        counts = np.zeros_like(total)
        kernels.class_counts(values, np.minimum(classes, n_classes - 1), low, width, counts)
        with lock:
            np.add(total, counts, out=total)

    survey.read_in_threads(labels, read, sampled=sampled, title="report: reading", quiet=quiet)
    return Shares(low, width, total)
