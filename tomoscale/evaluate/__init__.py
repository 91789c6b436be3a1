"""A result held against the truth, in numbers."""

from tomoscale.evaluate.blobs import BlobScore, blobs
from tomoscale.evaluate.masks import ClassScore, MaskScore, compare

__all__ = ["BlobScore", "ClassScore", "MaskScore", "blobs", "compare"]
