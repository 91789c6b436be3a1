"""A result held against the truth, in numbers."""

from tomoscale.evaluate.masks import ClassScore, MaskScore, compare

__all__ = ["ClassScore", "MaskScore", "compare"]
