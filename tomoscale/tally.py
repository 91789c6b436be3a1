"""What became of the seeds of a blobs result, in a few figures."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np


def of_blobs(result: Path) -> dict[str, int]:
    """
    Count the blobs of a result, their voxels, and its rejected seeds by reason.

    Parameters
    ----------
    result : Path
        What `blobs.segment` wrote, with its table beside it.

    Returns
    -------
    dict of str to int
        `blobs` that own their peak, `voxels` of these, then one figure for each reason; `absorbed` also counts the
        rows of the table whose peak belongs to a brighter blob.
    """
    import pyarrow.parquet

    table = pyarrow.parquet.read_table(result.with_suffix(".parquet"))
    found = json.loads(table.schema.metadata[b"tomoscale"])["blobs"]
    own = table["absorbed_into"].to_numpy() == 0
    figures = {
        "blobs": int(own.sum()),
        "voxels": int(table["voxels"].to_numpy()[own].sum()),
        **found["rejected"],
    }
    figures["absorbed"] += int(np.count_nonzero(~own))
    return figures
