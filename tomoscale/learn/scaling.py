"""What is done to intensities before a network sees them."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

from tomoscale.errors import TomoscaleError


@dataclass(frozen=True)
class Scaling:
    """
    A straight line from intensities to what a network was trained on.

    Parameters
    ----------
    kind : {"fixed", "range"}
        `fixed`: (value - offset) / factor. `range`: the smallest value of the volume becomes 0, the largest 1.
    offset : float
        In the unit of the intensities.
    factor : float
        In the unit of the intensities; 255 brings bytes to [0, 1].

    Raises
    ------
    TomoscaleError
        A factor of 0, or numbers that are not finite.
    """

    kind: Literal["fixed", "range"] = "fixed"
    offset: float = 0.0
    factor: float = 1.0

    def __post_init__(self) -> None:
        if self.kind not in ("fixed", "range"):
            raise TomoscaleError(f"learn.scaling: kind {self.kind!r}; expected fixed or range")
        numbers = (self.offset, self.factor)
        if not all(isinstance(v, int | float) and math.isfinite(v) for v in numbers) or not self.factor:
            raise TomoscaleError(
                f"learn.scaling: offset {self.offset!r}, factor {self.factor!r}; expected numbers"
            )

    @classmethod
    def of(cls, record: Any) -> Scaling:
        """
        Read what `record` returned.

        Raises
        ------
        TomoscaleError
            Other names, or values that are no scaling.
        """
        if not isinstance(record, dict) or set(record) != {"kind", "offset", "factor"}:
            raise TomoscaleError(f"learn.scaling: {str(record)[:80]}; expected kind, offset and factor")
        return cls(**record)

    def record(self) -> dict[str, Any]:
        """Return the fields as JSON holds them."""
        return asdict(self)

    def apply(self, block: np.ndarray, extremes: np.ndarray | None = None) -> np.ndarray:
        """
        Scale a block.

        Parameters
        ----------
        block : numpy.ndarray
            Any numeric type.
        extremes : numpy.ndarray, optional
            Smallest and largest value of the whole volume, for `range`.

        Returns
        -------
        numpy.ndarray
            float32.
        """
        offset, factor = self.offset, self.factor
        if self.kind == "range":
            assert extremes is not None, "known before the first block"
            offset, factor = float(extremes[0]), float(extremes[1] - extremes[0]) or 1.0
        if (offset, factor) == (0.0, 1.0):
            return block.astype(np.float32, copy=False)
        scaled = np.subtract(block, offset, dtype=np.float32)
        scaled /= np.float32(factor)
        return scaled
