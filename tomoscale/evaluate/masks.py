"""Classes of voxels that were found, held against the true ones."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tomoscale import devices, kernels, store
from tomoscale.errors import TomoscaleError
from tomoscale.operation import command
from tomoscale.parameters import Device, Span
from tomoscale.readings import readings

MOST_CLASSES = 256


@dataclass(frozen=True)
class ClassScore:
    """
    How well one class was found.

    Parameters
    ----------
    label : int
        The class.
    true, found, both : int
        Voxels of it in the truth, in the result, in both.
    dice, iou : float
        2 both / (true + found) and both / (true or found), of the volume.
    slice_dice, slice_iou : (float, float)
        Mean and standard deviation over the slices in which it occurs.
    """

    label: int
    true: int
    found: int
    both: int
    dice: float
    iou: float
    slice_dice: tuple[float, float]
    slice_iou: tuple[float, float]


@dataclass(frozen=True)
class MaskScore:
    """
    How good a segmentation is.

    Parameters
    ----------
    result, truth : str
        What was compared.
    voxels : int
        Voxels that count.
    accuracy : float
        Share of them whose class is right.
    classes : list of ClassScore
        Every class that occurs, in ascending order.
    confusion : list of list of int
        Voxels by true class (rows) and found class (columns), in the order of `classes`.
    """

    result: str
    truth: str
    voxels: int
    accuracy: float
    classes: list[ClassScore]
    confusion: list[list[int]]

    def __str__(self) -> str:
        """Return it for people."""
        lines = [f"{self.result} against {self.truth}: {self.voxels} voxels, accuracy {self.accuracy:.4f}"]
        lines.append("class   dice    iou     dice by slice      iou by slice           true      found")
        for c in self.classes:
            by_slice = " ".join(f"{m:.4f} +- {d:.4f}  " for m, d in (c.slice_dice, c.slice_iou))
            lines.append(f"{c.label:<7} {c.dice:<7.4f} {c.iou:<7.4f} {by_slice} {c.true:>11} {c.found:>10}")
        return "\n".join(lines)


@command("evaluate masks")
def compare(
    result: Path,
    truth: Path,
    *,
    roi: tuple[Span, ...] = (),
    mask: Path | None = None,
    device: Device = "auto",
    as_json: bool = False,
) -> MaskScore | dict[str, Any]:
    """
    Hold labels against the true ones: Dice, IoU, accuracy, confusion.

    Parameters
    ----------
    result : Path
        Labels that were found: integers from 0 to 255, `IN-otsu.zarr` say.
    truth : Path
        The true ones, of the same shape.
    roi
        Compare this part only: k0:k1,r0:r1,c0:c1.
    mask : Path, optional
        Compare only where this volume of the same shape is not zero.
    device
        Where voxels are counted: `auto` takes a GPU if there is one.
    as_json
        Return plain data, which the command prints as JSON.

    Returns
    -------
    MaskScore or dict
        Of the whole, of every class, and of every class by slices.

    Raises
    ------
    TomoscaleError
        Shapes that differ, values that are no labels, no voxel to compare, or a GPU that cannot be used.
    """
    found, true = store.open_volume(result), store.open_volume(truth)
    volumes = [("truth", true), *([("mask", store.open_volume(mask))] if mask is not None else [])]
    for name, volume in volumes:
        if volume.shape != found.shape or volume.ndim != 3:
            raise TomoscaleError(
                f"evaluate.compare: {name} has shape {volume.shape}, the result {found.shape}; expected the same"
            )
    for name, volume in (("result", found), ("truth", true)):
        if volume.dtype.kind not in "iub":
            raise TomoscaleError(
                f"evaluate.compare: {name} is {volume.dtype}; expected labels, which are integers"
            )
    ranges = [(s.start, s.stop) for s in roi]
    opened = [
        store.crop(v, ranges) if roi else v for v in (found, true, *(v for n, v in volumes if n == "mask"))
    ]
    score = _score(
        str(result),
        str(truth),
        confusion_of(*(devices.placed("evaluate.compare", v, device)[0] for v in opened)),
    )
    return asdict(score) if as_json else score


def confusion_of(found: Any, true: Any, mask: Any = None) -> np.ndarray:
    """
    Count the voxels of every pair of classes in every slice.

    Parameters
    ----------
    found, true : Volume
        Labels.
    mask : Volume, optional
        Not zero where voxels count.

    Returns
    -------
    (slice, true class, found class) int64
        Counts.
    """
    highest = 0
    parts: list[tuple[slice, np.ndarray]] = []
    for window in readings(found):
        labels, truth = found.read(window), true.read(window)
        top = 0
        for name, values in (("the result", labels), ("the truth", truth)):
            low, high = int(values.min()), int(values.max())
            if low < 0 or high >= MOST_CLASSES:
                raise TomoscaleError(
                    f"evaluate.compare: labels of {name} reach from {low} to {high}; expected 0 to {MOST_CLASSES - 1}"
                )
            top = max(top, high)
        counts = np.zeros((len(labels), top + 1, top + 1), np.int64)
        # Whether a voxel counts; without a mask one place stands for all.
        counted = labels[:1, :1, :1] >= 0 if mask is None else mask.read(window) != 0
        kernels.confusion(truth.astype(np.uint8), labels.astype(np.uint8), counted.astype(np.uint8), counts)
        highest = max(highest, top)
        parts.append((window[0], counts))
    total = np.zeros((found.shape[0], highest + 1, highest + 1), np.int64)
    for z, counts in parts:
        n = counts.shape[1]
        total[z, :n, :n] += counts
    return total


def _score(result: str, truth: str, by_slice: np.ndarray) -> MaskScore:
    whole = by_slice.sum(axis=0)
    n_voxels = int(whole.sum())
    if not n_voxels:
        raise TomoscaleError("evaluate.compare: the mask is zero everywhere; there is nothing to compare")
    there = np.flatnonzero(whole.sum(axis=0) + whole.sum(axis=1))
    classes = []
    for label in map(int, there):
        both, either = _overlap(by_slice, label)
        occurs = either > 0
        dice, iou = 2 * both[occurs] / (both + either)[occurs], both[occurs] / either[occurs]
        total, union = int(both.sum()), int(either.sum())
        classes.append(
            ClassScore(
                label,
                int(whole[label].sum()),
                int(whole[:, label].sum()),
                total,
                2 * total / (total + union),
                total / union,
                (float(dice.mean()), float(dice.std())),
                (float(iou.mean()), float(iou.std())),
            )
        )
    right = int(np.trace(whole)) / n_voxels
    return MaskScore(result, truth, n_voxels, right, classes, whole[np.ix_(there, there)].tolist())


def _overlap(by_slice: np.ndarray, label: int) -> tuple[np.ndarray, np.ndarray]:
    """Return how many voxels of every slice have a class in both, and in one of both."""
    both = by_slice[:, label, label]
    return both, by_slice[:, label].sum(axis=1) + by_slice[:, :, label].sum(axis=1) - both
