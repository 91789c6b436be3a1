"""
The passes of `blobs.segment`: find components, join them, grow blobs, number them, paint labels.

Every growth limit is at least c_min, so that a blob lies inside one component of {I >= c_min}. A block keeps of its
voxels only the components that hold a seed voxel or touch an open face; joined across the faces and with the seedless
ones dropped, each is a problem of its own, solved where its first voxel lies.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tomoscale import buffers, kernels, labels, noise
from tomoscale.blocks import Window, shape_of, volume_of
from tomoscale.bricks import Bricks
from tomoscale.errors import TomoscaleError
from tomoscale.noise import Threshold
from tomoscale.parameters import Rect
from tomoscale.progress import human_bytes

WHO = "blobs.segment"
RUNS = ("component", "line", "start", "stop")
PERCOLATING = 1 << 17
"""Voxels from which a component that holds most of the foreground is no blob."""
LEAST_GATHERED = 1 << 18
"""Voxels that a task may gather however small its block is: what begins in a block may go on in others."""
BYTES_PER_SEED = 400
"""What numbering holds for a seed."""


@dataclass(frozen=True)
class Rules:
    """
    What all passes know.

    Parameters
    ----------
    bricks : Bricks
        The blocks.
    seed_threshold, c_min, c_max : Threshold
        In counts, or in multiples of the noise.
    how : tomoscale.kernels._growth.Growth
        How blobs grow.
    exclude : tuple of Rect
        Pixels without blobs.
    itemsize : int
        Bytes of a voxel.
    room : int
        Bytes that a task may hold that is the only one of its pass.
    label_type : numpy.dtype
        Of the labels.
    """

    bricks: Bricks
    seed_threshold: Threshold
    c_min: Threshold
    c_max: Threshold
    how: Any
    exclude: tuple[Rect, ...]
    itemsize: int
    room: int
    label_type: np.dtype

    @property
    def is_relative(self) -> bool:
        """Whether the noise must be known."""
        return any(t.relative for t in (self.seed_threshold, self.c_min, self.c_max))

    def levels(self, window: Window, sigma: Sequence[np.ndarray]) -> Any:
        """Return the thresholds of a block in counts, those in sigma pixel by pixel."""
        from tomoscale.kernels._levels import Levels

        there = noise.of_pixels(sigma[0], window) if sigma else None
        return Levels(*(t.at(there) for t in (self.c_min, self.seed_threshold, self.c_max)))

    @property
    def most_gathered(self) -> int:
        """Voxels that one task may gather: all of a small block, a sixth of a large one."""
        n_voxels = int(np.prod(self.bricks.edges, dtype=np.int64))
        return max(LEAST_GATHERED, min(n_voxels, 8 * LEAST_GATHERED), n_voxels // 6)

    @property
    def gather_bytes(self) -> int:
        """Bytes that a task with so many voxels holds."""
        from tomoscale.kernels._growth import BYTES_PER_VOXEL

        return (BYTES_PER_VOXEL + 3 * self.itemsize) * self.most_gathered


def find_bytes(edges: tuple[int, ...], itemsize: int, copies: bool) -> int:
    """Bytes that finding components holds beyond the voxels."""
    from tomoscale.kernels._runs import scratch_bytes

    return scratch_bytes(edges, itemsize) + (int(np.prod(edges, dtype=np.int64)) * itemsize if copies else 0)


# ---------------------------------------------------------------- A: one read of every block


def find_components(
    frames: np.ndarray, number: int, rules: Rules, *sigma: np.ndarray
) -> dict[str, np.ndarray]:
    """Find the components of a block that may be, or be part of, a blob; `sigma` is the noise, where it is needed."""
    window, shape, how = rules.bricks.window(number), rules.bricks.shape, rules.how
    frames = _without(as_ranked(frames), window, rules.exclude)
    faces = labels.open_faces(window, shape, how.wrap)
    found = kernels.find_components(frames, rules.levels(window, sigma), faces, how.connectivity)
    if found is None or found.voxels.sum() > rules.most_gathered:
        place = ", ".join(f"{s.start}:{s.stop}" for s in window)
        raise TomoscaleError(
            f"{WHO}: too much of [{place}] is at least c_min={rules.c_min}; blobs would melt together: raise c_min"
        )
    return {
        **{n: getattr(found, n) for n in (*RUNS, "values", "flags", "seeded", "voxels")},
        "shell": labels.in_volume(found.shell, window, shape),
        "shell_component": found.shell_component,
        "foreground": np.array(found.foreground),
    }


def as_ranked(frames: np.ndarray) -> np.ndarray:
    """Return frames in a type that kernels take: half floats are widened."""
    return frames.astype(np.float32) if frames.dtype == np.float16 else frames


def _without(frames: np.ndarray, window: Window, exclude: Sequence[Rect]) -> np.ndarray:
    """Return frames with excluded pixels at the lowest value."""
    lowest = np.iinfo(frames.dtype).min if frames.dtype.kind in "iu" else -np.inf
    masked = frames
    for part in _inside(window, exclude):
        masked = frames.copy() if masked is frames else masked
        masked[part] = lowest
    return masked


def _inside(window: Window, exclude: Sequence[Rect]) -> Iterator[tuple[slice, ...]]:
    for rect in exclude:
        pixels = [
            slice(max(a, s.start) - s.start, min(b, s.stop) - s.start)
            for (a, b), s in zip(rect, window[1:], strict=True)
        ]
        if all(p.start < p.stop for p in pixels):
            yield (slice(None), *pixels)


# ---------------------------------------------------------------- B: faces


def join_components(rules: Rules, found: Sequence[Any]) -> dict[str, np.ndarray]:
    """
    Join the components of all blocks, drop those without a seed, and say which block takes care of which.

    Every component has a home: the block of its first voxel.
    """
    shells = [(part["shell"], part["shell_component"]) for part in found]
    n_shell = sum(len(i) for i, _ in shells)
    if n_shell * labels.BYTES_PER_SHELL_VOXEL > rules.room:
        raise TomoscaleError(
            f"{WHO}: {n_shell:,} voxels on the faces of blocks are at least c_min={rules.c_min}; joining them "
            f"takes {human_bytes(n_shell * labels.BYTES_PER_SHELL_VOXEL)} of {human_bytes(rules.room)}: raise "
            "c_min, or give a larger --memory"
        )
    joined = labels.join(
        [len(part["voxels"]) for part in found],
        shells,
        rules.bricks.shape,
        connectivity=rules.how.connectivity,
        wrap=rules.how.wrap,
    )
    n = len(joined.root)
    voxels = np.concatenate([np.empty(0, np.int64), *(part["voxels"] for part in found)])
    seeded = np.concatenate([np.empty(0, bool), *(part["seeded"] for part in found)])
    size = np.bincount(joined.root, voxels, n)
    wanted = (np.bincount(joined.root, seeded, n) > 0)[joined.root]
    foreground = sum(int(part["foreground"]) for part in found)
    _check_percolation(rules, size[joined.root[wanted]], foreground)
    home = np.where(wanted, joined.block, -1)
    gathered = np.bincount(home[wanted], voxels[wanted], len(found))
    if gathered.max(initial=0) > rules.most_gathered:
        raise TomoscaleError(
            f"{WHO}: the components of at least c_min={rules.c_min} that begin in one block have "
            f"{int(gathered.max()):,} voxels, {rules.most_gathered:,} fit the memory of a task: raise c_min, or give a "
            "larger --memory"
        )
    block = np.repeat(np.arange(len(found)), np.diff(joined.offset))
    pairs = np.unique(home[wanted] * len(found) + block[wanted])
    return {
        "offset": joined.offset,
        "root": joined.root,
        "home": home,
        "pairs": np.stack(np.divmod(pairs, len(found))),
    }


def _check_percolation(rules: Rules, sizes: np.ndarray, foreground: int) -> None:
    largest = int(sizes.max(initial=0))
    if largest > max(PERCOLATING, foreground // 2) and largest > volume_of(_whole(rules)) // 100:
        raise TomoscaleError(
            f"{WHO}: c_min={rules.c_min} percolates: one component holds {largest:,} of the {foreground:,} "
            "voxels above it; raise c_min"
        )


def _whole(rules: Rules) -> Window:
    return tuple(slice(0, n) for n in rules.bricks.shape)


# ---------------------------------------------------------------- C: every component is a problem of its own


def grow_blobs(
    number: int, rules: Rules, found: Sequence[Any], joined: Sequence[Any]
) -> dict[str, np.ndarray]:
    """Grow the blobs of the components at home in a block."""
    sparse = _gather(number, rules, found, joined[0])
    if sparse is None:
        return {}
    return dict(kernels.grow(sparse, rules.bricks.shape, rules.how)._asdict())


def _gather(number: int, rules: Rules, found: Sequence[Any], joined: Any) -> Any:
    """Bring the voxels of components together, as if there were no blocks: in order, runs in one piece."""
    from tomoscale.kernels._growth import Sparse

    homes, blocks = joined["pairs"]
    offset, home, root = joined["offset"], joined["home"], joined["root"]
    components, lines, starts, stops, voxels, marks = [], [], [], [], [], []
    for block in blocks[homes == number]:
        part, window = found[block], rules.bricks.window(int(block))
        own = home[offset[block] : offset[block + 1]] == number
        component, line, start, stop = (part[n] for n in RUNS)
        values, flags = part["values"], part["flags"]
        runs = own[component]
        if not runs.all():
            within = np.repeat(runs, stop - start)
            values, flags = values[within], flags[within]
            component, line, start, stop = component[runs], line[runs], start[runs], stop[runs]
        components.append(root[offset[block] + component])
        frame, row = np.divmod(line.astype(np.int64), shape_of(window)[1])
        lines.append((frame + window[0].start) * rules.bricks.shape[1] + row + window[1].start)
        starts.append(start + np.int32(window[2].start))
        stops.append(stop + np.int32(window[2].start))
        voxels.append(values)
        marks.append(flags)
    if not lines:
        return None
    component, line, start, stop = map(_end_to_end, (components, lines, starts, stops))
    values, flags = _end_to_end(voxels), _end_to_end(marks)
    if len(lines) > 1 or (np.diff(component) < 0).any() or rules.how.wrap:
        order = np.lexsort((start, line, component))
        moved = _moved(stop - start, order)
        values, flags = values[moved], flags[moved]
        component, line, start, stop = component[order], line[order], start[order], stop[order]
        opens = np.append(
            True, (component[1:] != component[:-1]) | (line[1:] != line[:-1]) | (start[1:] != stop[:-1])
        )
        closes = np.append(opens[1:], True)
        component, line, start, stop = component[opens], line[opens], start[opens], stop[closes]
    return Sparse(component, line, start, stop, values, flags)


def _end_to_end(arrays: Sequence[np.ndarray]) -> np.ndarray:
    return arrays[0] if len(arrays) == 1 else np.concatenate(arrays)


def _moved(lengths: np.ndarray, order: np.ndarray) -> np.ndarray:
    """Return where the voxels of runs lie that are brought into another order."""
    begin = np.cumsum(lengths, dtype=np.int64) - lengths
    moved = lengths[order]
    shift = begin[order] - (np.cumsum(moved, dtype=np.int64) - moved)
    return np.arange(moved.sum()) + np.repeat(shift, moved)


# ---------------------------------------------------------------- D is `table.number_blobs`; E: the label volume


def paint_labels(
    number: int, rules: Rules, grown: Sequence[Any], joined: Sequence[Any], numbered: Sequence[Any]
) -> np.ndarray:
    """Write the labels of one block."""
    window, n_rows = rules.bricks.window(number), rules.bricks.shape[1]
    out = buffers.empty(shape_of(window), rules.label_type)
    out.view(np.uint8).fill(0)  # bytes are set past the cache: 12 instead of 33 ms in bench_blobs
    homes, blocks = joined[0]["pairs"]
    offset, label = numbered[0]["offset"], numbered[0]["label"]
    for home in homes[blocks == number]:
        part, own = grown[home], label[offset[home] : offset[home + 1]]
        kernels.paint(out, part["line"], part["start"], part["stop"], part["of"], own,
                      *(s.start for s in window), n_rows)  # fmt: skip
    return out
