"""What a network is made from: a record of a few words and numbers, and the records of the documents."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from tomoscale.errors import TomoscaleError

MOST = {"widths": 8, "width": 4096, "channels": 256, "outputs": 256, "factor": 8}
"""Bounds of what a record may ask for: it comes from a file."""


@dataclass(frozen=True)
class Architecture:
    """
    A U-Net in words and numbers.

    Parameters
    ----------
    dimensions : int
        2 for a network over slices, 3 for one over volumes.
    widths : tuple of int
        Features at every level from the finest; the last are those of the bridge.
    pooling : tuple of int
        How many voxels a step down makes one, along every axis: (1, 2, 2) keeps z.
    channels : int
        Channels of the input.
    outputs : int
        1 for foreground against background (sigmoid), else one per class (softmax).
    norm : {"batch", "instance", "none"}
        What normalises the features behind every convolution.
    encoder : {"plain", "residual"}
        Two convolutions at every level, or two with a shortcut around them.
    upsampling : {"nearest", "transposed"}
        Repeated voxels, or a transposed convolution that also halves the features.

    Raises
    ------
    TomoscaleError
        A record that makes no network.
    """

    dimensions: int = 3
    widths: tuple[int, ...] = (32, 64, 128, 256, 512)
    pooling: tuple[int, ...] = (1, 2, 2)
    channels: int = 1
    outputs: int = 1
    norm: Literal["batch", "instance", "none"] = "batch"
    encoder: Literal["plain", "residual"] = "plain"
    upsampling: Literal["nearest", "transposed"] = "nearest"

    def __post_init__(self) -> None:
        def wrong(name: str, expected: str) -> TomoscaleError:
            return TomoscaleError(f"learn.networks: {name} is {getattr(self, name)!r}; expected {expected}")

        if self.dimensions not in (2, 3):
            raise wrong("dimensions", "2 or 3")
        if not (_are_counts(self.widths, MOST["width"]) and 2 <= len(self.widths) <= MOST["widths"]):
            raise wrong("widths", f"2 to {MOST['widths']} numbers from 1 to {MOST['width']}")
        if not (_are_counts(self.pooling, MOST["factor"]) and len(self.pooling) == self.dimensions):
            raise wrong("pooling", f"{self.dimensions} factors from 1 to {MOST['factor']}")
        for name in ("channels", "outputs"):
            if not _are_counts((getattr(self, name),), MOST[name]):
                raise wrong(name, f"a number from 1 to {MOST[name]}")
        for name, words in _WORDS.items():
            if getattr(self, name) not in words:
                raise wrong(name, f"one of {', '.join(words)}")

    @classmethod
    def of(cls, record: Any) -> Architecture:
        """
        Read what `record` returned, or the name of a preset.

        Raises
        ------
        TomoscaleError
            Unknown names, or values that make no network.
        """
        if isinstance(record, str):
            if record not in PRESETS:
                raise TomoscaleError(f"learn.networks: no network {record!r}; there are {', '.join(PRESETS)}")
            return PRESETS[record]
        if not isinstance(record, dict) or not set(record) <= set(cls.__dataclass_fields__):
            raise TomoscaleError(
                f"learn.networks: architecture {str(record)[:80]}; expected {', '.join(cls.__dataclass_fields__)}"
            )
        given: dict[str, Any] = {n: tuple(v) if isinstance(v, list) else v for n, v in record.items()}
        return cls(**given)

    def record(self) -> dict[str, Any]:
        """Return the fields as JSON holds them."""
        return {n: list(v) if isinstance(v, tuple) else v for n, v in asdict(self).items()}

    @property
    def stride(self) -> tuple[int, ...]:
        """Voxels of the input for one of the coarsest level."""
        return tuple(f ** (len(self.widths) - 1) for f in self.pooling)


_WORDS = {
    "norm": ("batch", "instance", "none"),
    "encoder": ("plain", "residual"),
    "upsampling": ("nearest", "transposed"),
}


def _are_counts(values: Any, most: int) -> bool:
    return isinstance(values, tuple) and all(type(v) is int and 1 <= v <= most for v in values)


_2D = Architecture(2, (64, 128, 256, 512, 1024), pooling=(2, 2), norm="instance", upsampling="transposed")
PRESETS = {
    "3d": Architecture(),
    "3d-table": Architecture(widths=(32, 64, 128, 256), pooling=(2, 2, 2)),
    "3d-small": Architecture(widths=(16, 32, 64)),
    "2d": _2D,
    "2d-batch": replace(_2D, norm="batch"),
}
"""
`3d` is the network of the text of DiBenedetto (Application of data analytics and deep learning ... ptychographic
imaging, section III A), pooling in x and y only; `3d-table` that of its appendix A, pooling in z too; `3d-small` has
two steps down and an eighth of the work. `2d` is the U-Net of Ronneberger et al. (arXiv:1505.04597) with padding and
InstanceNorm, as trained on single slices; `2d-batch` with BatchNorm.
"""
