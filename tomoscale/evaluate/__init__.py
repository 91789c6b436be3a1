"""A result held against the truth, in numbers."""

from tomoscale.evaluate.blobs import BlobScore, blobs

__all__ = ["BlobScore", "blobs"]
