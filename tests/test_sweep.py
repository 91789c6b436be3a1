"""A sweep tries what a full run would do, shows it, and carries the choice to the full run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from conftest import small_scan, write_scan
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from tomoscale import blocks, cli, how, outlines, pictures, presets, store, sweep, tally
from tomoscale.blocks import Field
from tomoscale.errors import TomoscaleError
from tomoscale.operation import operation
from tomoscale.parameters import Count, Shape3, Volume


class Bright(NamedTuple):
    """What is above a level."""

    labels: Any


def above(frames: np.ndarray, level: float) -> np.ndarray:
    return (frames >= level).astype(np.uint32)


def figures(result: Path) -> dict[str, Any]:
    labels = store.open_volume(result / "labels").whole()
    return {"voxels": int(labels.sum()), "highest": int(labels.max())}


@operation("bright", outcome=figures)
def bright(
    frames: Volume, *, level: float, sizes: Shape3 = (1, 1, 1), mode: str = "a", n: Count = 1
) -> Bright:
    """
    Label what is bright.

    Parameters
    ----------
    frames : (frame, row, column)
        Frames.
    level : float
        From here on.
    sizes : (int, int, int)
        Sizes.
    mode : str
        A word.
    n : int
        A number.
    """
    if level < 0:
        raise TomoscaleError(f"bright: level={level} is below zero; raise it")
    whole = tuple(slice(0, n) for n in frames.shape)
    fields = {"labels": Field(np.dtype("u4"), tuple((n,) for n in frames.shape), frames.shape)}
    return Bright(**blocks.map_blocks(above, lambda _: (frames.at(whole), level), fields, scratch=0))


@pytest.fixture
def folder(tmp_path, monkeypatch, scan):
    write_scan(tmp_path / "scan.zarr", scan, (30, 5, 23))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def tried(words, **options):
    call = cli._adapted(bright)
    chosen = how.HowTried(sweep=tuple(words), scheduler="threads", quiet=True, **options)
    return call("scan.zarr", how=chosen)


# ---------------------------------------------------------------- what is tried


def test_values_are_read_as_the_signature_types_them():
    read = sweep.values(bright, ["level=20, 4e1,inf", "mode=8 sigma,true", "sizes=1,3,3/2,5,5", "n=1,2"])
    assert read == {
        "level": [20.0, 40.0, float("inf")], "mode": ["8 sigma", "true"], "sizes": [(1, 3, 3), (2, 5, 5)], "n": [1, 2],
    }  # fmt: skip
    assert isinstance(read["level"][0], float)


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("levels=3", "bright has no parameter levels; did you mean level?"),
        ("level", "expected name=value,value"),
        ("level=", "expected name=value,value"),
        ("frames=a,b", "has no parameter frames"),
        ("n=1,0", "--sweep n: input should be greater than or equal to 1, got 0"),
        ("n=1,x", "--sweep n: input should be a valid integer"),
        ("sizes=1,2", "--sweep sizes: "),
    ],
)
def test_a_value_that_does_not_fit_is_refused_before_anything_runs(word, message, folder):
    with pytest.raises(TomoscaleError) as error:
        tried([word])
    assert message in str(error.value)
    assert [p.name for p in folder.iterdir()] == ["scan.zarr"]


def test_a_parameter_given_twice_is_refused():
    with pytest.raises(TomoscaleError, match="level is given twice"):
        sweep.values(bright, ["level=1", "level=2"])


# ---------------------------------------------------------------- what comes out


def test_every_value_has_its_figures_its_picture_and_its_parameters(folder, scan):
    got = tried(["level=200,300,500"], roi="10:60,2:12,3:20", as_json=True)
    part = scan[10:60, 2:12, 3:20]
    assert got["folder"] == "scan-bright-sweep"
    assert [(r["level"], r["voxels"]) for r in got["rows"]] == [
        (v, (part >= v).sum()) for v in (200, 300, 500)
    ]
    assert {p.name for p in (folder / "scan-bright-sweep").iterdir()} == {
        f"level={v}.{e}" for v in (200, 300, 500) for e in ("png", "toml")
    }
    assert presets.read(got["rows"][1]["params"], bright)["level"] == 300


def test_the_parameters_of_a_value_make_the_full_run(folder, scan):
    tried(["level=300"], roi="10:60,2:12,3:20")
    call = cli._adapted(bright)
    params = Path("scan-bright-sweep/level=300.toml")
    written = call("scan.zarr", how=how.HowTried(params=params, scheduler="threads", quiet=True))
    np.testing.assert_array_equal(store.open_volume(written / "labels").whole(), above(scan, 300))


def test_two_parameters_are_tried_in_all_combinations(folder):
    got = tried(["level=300,400", "n=1,2,3"], as_json=True, output=Path("here"))
    assert [(r["level"], r["n"]) for r in got["rows"]] == [(a, b) for a in (300, 400) for b in (1, 2, 3)]
    assert (folder / "here" / "level=400,n=2.png").is_file()


def test_a_value_that_the_operation_refuses_leaves_the_others(folder):
    got = tried(["level=-1,300"])
    lines = got.splitlines()
    assert lines[1].endswith("refused: bright: level=-1.0 is below zero; raise it")
    assert lines[2].split()[0] == "300"
    assert lines[-1] == "scan-bright-sweep"


def test_command_prints_a_table_and_the_folder(folder, monkeypatch, capsys):
    monkeypatch.setattr(cli, "functions", lambda: iter([bright]))
    line = "bright scan.zarr --roi 0:20,0:20,0:20 --sweep level=200,300 --scheduler threads"
    assert cli.main(line.split()) == 0
    printed = capsys.readouterr()
    assert printed.out.splitlines()[0].split() == ["level", "voxels", "highest", "seconds"]
    assert printed.out.splitlines()[-1] == "scan-bright-sweep"
    assert cli.main([*line.split(), "--json", "--quiet"]) == 0
    assert [r["level"] for r in json.loads(capsys.readouterr().out)["rows"]] == [200, 300]


def test_a_dry_run_of_a_sweep_writes_nothing(folder, capsys):
    assert tried(["level=200,300"], dry_run=True) is None
    assert capsys.readouterr().err.count("per worker") == 2
    assert [p.name for p in folder.iterdir()] == ["scan.zarr"]


def test_a_part_that_does_not_fit_the_memory_is_refused_with_the_figure(folder):
    with pytest.raises(TomoscaleError, match=r"90 x 20 x 23 voxels take 580 kB, of 500 kB .* --roi"):
        tried(["level=200"], memory="500KB")


@pytest.mark.parametrize("taken", ["a file", "a result"])
def test_pictures_do_not_go_into_what_is_something_else(folder, taken):
    place = folder / "here"
    place.write_text("mine") if taken == "a file" else store.create_group(place, {})
    with pytest.raises(TomoscaleError, match="is no folder of pictures"):
        tried(["level=200"], output=place)


def test_save_with_a_sweep_is_refused(folder):
    with pytest.raises(TomoscaleError, match="a sweep writes the parameters of every value"):
        tried(["level=200"], save=Path("p.toml"))


def test_json_without_a_sweep_is_refused(folder):
    with pytest.raises(TomoscaleError, match="--json goes with --sweep"):
        how.HowTried(as_json=True).check()


def test_an_operation_that_cannot_show_itself_has_no_sweep(folder, capsys):
    assert cli.main(["background", "scan.zarr", "--sweep", "step=1,2"]) == 2
    assert "--sweep" in capsys.readouterr().err


# ---------------------------------------------------------------- pictures


@pytest.mark.parametrize("name", ["frames", "volume"])
def test_a_picture_shows_two_planes_with_their_outlines(name, tmp_path):
    path = tmp_path / "x.zarr"
    store.create_group(path, {})
    values = small_scan()
    store.create_array(path / name, values.shape, values.dtype, values.shape).write((0, 0, 0), values)
    labels = above(values, 500)
    figure = outlines.over(values, labels, "title", store.open_volume(path))
    assert len(figure.axes) == 2
    lines = [len(axes.collections[0].get_segments()) for axes in figure.axes]
    if name == "frames":
        busiest = labels[np.argmax(labels.sum((1, 2)))]
        assert lines == [len(outlines.edges(p)) for p in (labels.max(0), busiest)]
    assert pictures.png(figure).startswith(b"\x89PNG")


@pytest.mark.parametrize(("name", "lower"), [("frames", (3, 2)), ("volume", (5, 2))])
def test_the_picture_of_a_part_is_numbered_as_the_whole(name, lower, tmp_path):
    path = tmp_path / "x.zarr"
    store.create_group(path, {})
    values = small_scan()
    store.create_array(path / name, values.shape, values.dtype, values.shape).write((0, 0, 0), values)
    part = store.crop(store.open_volume(path), [(5, 60), (3, 20), (2, 12)])
    labels = above(part.whole(), np.median(part.whole()))
    first, second = outlines.over(part.whole(), labels, "title", part).axes
    for axes, (top, left) in ((first, (3, 2)), (second, lower)):
        assert axes.images[0].get_extent()[::3] == [left - 0.5, top - 0.5]
        ends = np.array(axes.collections[0].get_segments())
        assert ends.min((0, 1)).tolist() == [left - 0.5, top - 0.5]
    busiest = 5 + np.argmax(labels.sum((1, 2)))
    assert second.get_title("left").startswith("y = 11" if name == "volume" else f"Frame {busiest},")


@given(
    labels=arrays.arrays(
        np.uint8, st.tuples(st.integers(1, 7), st.integers(1, 7)), elements=st.integers(0, 3)
    )
)
@settings(max_examples=150, deadline=None)
def test_outlines_run_between_pixels_of_different_labels_and_nowhere_else(labels):
    rows, columns = labels.shape
    padded = np.pad(labels.astype(int), 1)
    expected = set()
    for r in range(rows + 1):
        for c in range(columns + 1):
            if c < columns and padded[r, c + 1] != padded[r + 1, c + 1]:
                expected.add(((c, r), (c + 1, r)))
            if r < rows and padded[r + 1, c] != padded[r + 1, c + 1]:
                expected.add(((c, r), (c, r + 1)))
    found = []
    for (x0, y0), (x1, y1) in outlines.edges(labels) + 0.5:
        if y0 == y1:
            found += [((x, y0), (x + 1, y0)) for x in range(int(x0), int(x1))]
        else:
            found += [((x0, y), (x0, y + 1)) for y in range(int(y0), int(y1))]
    assert len(found) == len(set(found))
    assert set(found) == expected


@given(
    values=arrays.arrays(np.float32, (4, 3, 3), elements=st.integers(-3, 3)),
    labels=arrays.arrays(np.uint8, (4, 3, 3), elements=st.integers(0, 3)),
)
@settings(max_examples=100, deadline=None)
def test_from_the_front_the_brightest_labelled_voxel_is_seen(values, labels):
    seen = outlines.seen_from_the_front(values, labels)
    masked = np.where(labels > 0, values, -np.inf)
    expected = np.take_along_axis(labels, masked.argmax(0)[None], 0)[0]
    np.testing.assert_array_equal(seen, expected)


# ---------------------------------------------------------------- blobs


def test_a_sweep_of_blobs_counts_what_a_run_with_its_parameters_finds(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    frames = np.random.default_rng(1).normal(0, 1, (20, 30, 30)).astype(np.float32)
    frames[4:8, 5:10, 5:10] += 50
    frames[10:13, 20:24, 12:17] += 20
    frames[15, 3, 25] += 100
    write_scan(tmp_path / "cleaned.zarr", frames, (8, 16, 16))
    line = "blobs cleaned.zarr --roi 0:18,0:30,0:28 --min-size 1,3,3 --scheduler threads --quiet"
    assert (
        cli.main([*line.split(), "--sweep", "seed_threshold=10,30", "--sweep", "c_min=5,6 sigma", "--json"])
        == 0
    )
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert [(r["seed_threshold"], r["c_min"]) for r in rows] == [
        (10, 5),
        (10, "6 sigma"),
        (30, 5),
        (30, "6 sigma"),
    ]
    assert [(r["blobs"], r["too small"], r["absorbed"]) for r in rows] == [(2, 1, 0)] * 2 + [(1, 1, 0)] * 2
    assert rows[0]["voxels"] == 4 * 5 * 5 + 3 * 4 * 5
    assert cli.main([*line.split(), "--params", rows[1]["params"]]) == 0
    again = tally.of_blobs(Path("cleaned-blobs.zarr"))
    assert again == {n: rows[1][n] for n in again}


def test_a_value_that_contradicts_another_is_refused_in_its_row(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_scan(tmp_path / "cleaned.zarr", np.ones((6, 8, 8), np.float32), (6, 8, 8))
    line = "blobs cleaned.zarr --c-min 5 --sweep seed_threshold=3,30 --scheduler threads --quiet"
    assert cli.main(line.split()) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "refused: blobs.segment: c_min=5 exceeds seed_threshold=3" in lines[1]
    assert lines[2].split()[:3] == ["30", "0", "0"]


def test_blobs_without_a_threshold_name_the_option_and_the_file(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_scan(tmp_path / "cleaned.zarr", np.ones((6, 8, 8), np.float32), (6, 8, 8))
    assert cli.main(["blobs", "cleaned.zarr", "--c-min", "5"]) == 2
    assert (
        "blobs: --seed-threshold is missing; give it, or --params FILE that has it" in capsys.readouterr().err
    )
