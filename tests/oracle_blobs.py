"""Blobs by the definition: every one grown in the whole volume with SciPy, one after the other."""

from __future__ import annotations

import numpy as np
from scipy import ndimage


def components(mask, connectivity=6, wrap=False):
    """Label the connected components; with `wrap` the last frame meets the first."""
    full = ndimage.generate_binary_structure(3, 1 if connectivity == 6 else 3)
    labels, n = ndimage.label(mask, full)
    if not wrap or len(mask) < 2:
        return labels
    seam, _ = ndimage.label(np.concatenate([mask[-1:], mask[:1]]), full)
    ends = np.concatenate([labels[-1:], labels[:1]])
    root = np.arange(n + 1)
    for s in range(1, seam.max() + 1):
        joined = np.unique(root[ends[seam == s]])
        root[np.isin(root, joined)] = joined[0]
    return root[labels]


def segment(
    frames, seed_threshold, c_min, tau=0.1, c_max=np.inf, range="literal", min_seed_voxels=1,
    min_size=(1, 1, 1), max_size=None, connectivity=6, overlaps="keep", wrap=False, exclude=(),
):  # fmt: skip
    """
    Return the label volume, the blobs (dicts, by label) and the number of rejected seeds by reason.

    Thresholds are numbers, or (row, column) arrays.
    """
    values = np.nan_to_num(np.asarray(frames, np.float64), nan=-np.inf)
    for (r0, r1), (c0, c1) in exclude:
        values[:, r0:r1, c0:c1] = -np.inf
    seeds = components(values >= np.maximum(seed_threshold, c_min), connectivity, wrap)
    found = []
    for s in np.unique(seeds[seeds > 0]):
        inside = np.flatnonzero(seeds == s)
        top = inside[values.flat[inside].argmax()]
        found.append((-values.flat[top], top, len(inside)))
    labels, rows = np.zeros(values.shape, np.uint32), []
    rejected = dict.fromkeys(("few", "above", "absorbed", "small", "large"), 0)
    for negative, top, n_seed in sorted(found):
        peak = -negative
        if range == "literal":
            mask = (values >= np.maximum(c_min, tau * peak)) & (values <= np.minimum(c_max, peak))
        else:
            mask = values >= np.minimum(np.maximum(tau * peak, c_min), c_max)
        if n_seed < min_seed_voxels:
            rejected["few"] += 1
            continue
        if not mask.flat[top]:
            rejected["above"] += 1
            continue
        if overlaps == "claim":
            if labels.flat[top]:
                rejected["absorbed"] += 1
                continue
            mask &= labels == 0
        grown = components(mask, connectivity, wrap)
        blob = grown == grown.flat[top]
        box = box_of(blob, wrap)
        edges = [b - a for a, b in box]
        if any(e < m for e, m in zip(edges, min_size, strict=True)):
            rejected["small"] += 1
            continue
        if max_size and any(e > m for e, m in zip(edges, max_size, strict=True)):
            rejected["large"] += 1
            continue
        label = len(rows) + 1
        owner = int(labels.flat[top])
        labels[blob & (labels == 0)] = label
        rows.append(row_of(values, blob, box, peak, top, n_seed, label, owner))
    return labels, rows, rejected


def box_of(blob, wrap):
    """Return the half-open ranges of a blob; across the seam they end beyond the last frame."""
    box = []
    for axis, n in enumerate(blob.shape):
        hit = blob.any(axis=tuple({0, 1, 2} - {axis}))
        where = np.flatnonzero(hit)
        low, high = int(where[0]), int(where[-1]) + 1
        if axis == 0 and wrap and low == 0 and high == n and not hit.all():
            gap = np.flatnonzero(~hit)
            low, high = int(gap[-1]) + 1, n + int(gap[0])
        box.append((low, high))
    return box


def row_of(values, blob, box, peak, top, n_seed, label, owner):
    """Return a row of the table."""
    where = np.argwhere(blob)
    where[:, 0] += np.where(where[:, 0] < box[0][0], len(values), 0)
    weight = values[blob]
    row = {
        "label": label,
        "peak": peak,
        "voxels": len(where),
        "intensity": weight.sum(),
        "seed_voxels": n_seed,
    }
    row |= dict(zip(("peak_frame", "peak_row", "peak_column"), map(int, np.unravel_index(top, values.shape)),
                    strict=True))  # fmt: skip
    axes = ("frame", "row", "column")
    mean = (where * weight[:, None]).sum(0) / weight.sum()
    away = where - mean
    for i, axis in enumerate(axes):
        row[f"{axis}_min"], row[f"{axis}_max"] = box[i]
        row[axis] = mean[i]
        for j in (j for j in (0, 1, 2) if j >= i):
            row[f"moment_{axis}_{axes[j]}"] = (weight * away[:, i] * away[:, j]).sum() / weight.sum()
    row["absorbed_into"] = owner
    return row
