"""Parameters go through a file unchanged; what does not fit is refused in words, before anything runs."""

from __future__ import annotations

import inspect
import math
import tomllib
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import pytest
from annotated_types import Ge
from conftest import small_scan, write_scan
from hypothesis import given, settings
from hypothesis import strategies as st

from tomoscale import background, cli, convert, how, presets, simulate, store
from tomoscale.errors import TomoscaleError
from tomoscale.operation import operation
from tomoscale.parameters import Count, Edge, Grid, Rect, Span, Volume, Width


def run(line: str) -> int:
    return cli.main(line.split())


@operation("try all")
def everything(
    frames: Volume,
    *,
    level: float | str,
    mask: Volume | Literal["none"] | None = None,
    highest: float = math.inf,
    count: Count = 3,
    edge: Edge = 3,
    sizes: tuple[Count, Count, Count] = (1, 3, 3),
    parts: tuple[Rect, ...] = (),
    roi: tuple[Span, ...] | None = None,
    grid: Grid | None = None,
    mode: Literal["keep", "claim"] = "keep",
    wrap: bool = False,
    place: Path | None = None,
    words: tuple[str, ...] = (),
    share: Annotated[float, Ge(0)] = 0.1,
) -> dict[str, np.ndarray]:
    """Take every kind of parameter."""
    return {}


spans = st.tuples(st.integers(0, 99), st.integers(0, 99)).map(lambda s: Span(*s))
text = st.text(st.characters(codec="utf-8"), max_size=12)
values = st.fixed_dictionaries(
    {"level": st.floats(allow_nan=False) | text},
    optional={
        "highest": st.floats(allow_nan=False),
        "count": st.integers(1, 10**9),
        "edge": st.integers(0, 50).map(lambda n: 2 * n + 1),
        "sizes": st.tuples(*[st.integers(1, 99)] * 3),
        "parts": st.lists(st.tuples(spans, spans).map(lambda r: Rect(*r))).map(tuple),
        "roi": st.lists(spans).map(tuple),
        "grid": st.tuples(st.integers(1, 9), st.integers(1, 9)).map(lambda g: Grid(*g)),
        "mode": st.sampled_from(["keep", "claim"]),
        "wrap": st.booleans(),
        "words": st.lists(text).map(tuple),
        "share": st.floats(0, 1e300),
    },
)


@given(chosen=values)
@settings(max_examples=200, deadline=None)
def test_what_is_saved_is_what_is_read(chosen, tmp_path_factory):
    path = tmp_path_factory.getbasetemp() / "all.toml"
    presets.save(path, everything, chosen)
    defaults = {
        n: p.default
        for n, p in inspect.signature(everything).parameters.items()
        if p.default not in (p.empty, None)
    }
    assert presets.read(path, everything) == {**defaults, **chosen}


def test_a_file_says_what_it_is_and_keeps_the_defaults_of_its_time(tmp_path):
    presets.save(tmp_path / "p.toml", background.remove, {"half_window": 9})
    content = (tmp_path / "p.toml").read_text("utf-8")
    assert "tomoscale background" in content
    assert "written by tomoscale " in content
    assert tomllib.loads(content)["background"] == {
        "margin": 0, "margin_roi": [], "half_window": 9, "step": 50, "ranking": "fixed", "smoothing": 3,
        "hot_pixels": False, "dtype": "float32",
    }  # fmt: skip


def test_one_file_holds_the_parameters_of_several_operations(tmp_path):
    path = tmp_path / "chain.toml"
    path.write_text(
        "# of the July beamtime\n\n[blobs]\nseed_threshold = 40  # by eye\n\n[background]\nstep = 3\n"
    )
    presets.save(path, simulate.dct, {"seed": 5})
    presets.save(path, background.remove, {"half_window": 9})
    presets.save(path, background.remove, {"half_window": 11})
    assert presets.read(path, simulate.dct)["seed"] == 5
    assert presets.read(path, background.remove)["half_window"] == 11
    assert presets.read(path, background.remove)["step"] == 50
    content = path.read_text("utf-8")
    assert "# of the July beamtime" in content
    assert "seed_threshold = 40  # by eye" in content
    assert content.count("[background]") == 1


def test_words_of_the_command_may_stand_in_a_file(tmp_path):
    path = tmp_path / "p.toml"
    path.write_text('[background]\nmargin_roi = ["0:3,0:5", [[5, 8], [1, 2]]]\n[convert]\ngrid = "2x3"\n')
    assert presets.read(path, background.remove) == {
        "margin_roi": (Rect(Span(0, 3), Span(0, 5)), Rect(Span(5, 8), Span(1, 2)))
    }
    assert presets.read(path, convert.scan) == {"grid": Grid(2, 3)}


REFUSED = {
    "unknown": ("[background]\nhalf_windw = 3", "[background] has no parameter half_windw; did you mean half_window?"),
    "far off": ("[background]\nzzz = 3", "has no parameter zzz; expected one of dark, margin"),
    "operation": ("[simulate.dct]\nseed = 3", "p.toml: holds parameters of simulate.dct; expected a section [back"),
    "empty": ("", "holds parameters of nothing; expected a section [background]"),
    "no section": ("half_window = 3", "half_window stands in no section; put it below a line [background]"),
    "word for a number": ('[background]\nstep = "5"', 'step: input should be a valid integer, got \'5\''),
    "true for a number": ("[background]\nstep = true", "step: input should be a valid integer"),
    "number for true": ("[background]\nhot_pixels = 1", "hot_pixels: input should be a valid boolean"),
    "fraction": ("[background]\nstep = 5.5", "step: input should be a valid integer"),
    "bound": ("[background]\nstep = 0", "step: input should be greater than or equal to 1, got 0"),
    "even": ("[background]\nsmoothing = 4", "smoothing: must be odd (or 0 for none), got 4"),
    "choice": ('[background]\nranking = "fast"', "ranking: input should be 'fixed' or 'exact'"),
    "rectangle": ('[background]\nmargin_roi = ["0:3"]', "margin_roi: rectangle '0:3'; expected r0:r1,c0:c1"),
    "volume": ("[background]\ndark = 5", "dark: expected a path in quotes, got 5"),
    "date": ("[background]\nstep = 2021-05-31", "step: input should be a valid integer"),
    "syntax": ("[background\nstep = 5", "is no TOML file"),
    "bytes": (b"\xff\xfe\x00", "is no TOML file"),
}  # fmt: skip


@pytest.mark.parametrize(("content", "message"), REFUSED.values(), ids=REFUSED)
def test_a_file_that_does_not_fit_is_refused_in_one_line(content, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_scan(tmp_path / "scan.zarr", small_scan(), (30, 5, 23))
    (tmp_path / "p.toml").write_bytes(content if isinstance(content, bytes) else content.encode())
    assert run("background scan.zarr --params p.toml --dry-run") == 2
    printed = capsys.readouterr().err
    assert message in printed
    assert printed.count("\n") == 1


def test_a_file_that_is_not_there_and_one_that_cannot_be_written_are_named(tmp_path):
    with pytest.raises(TomoscaleError, match=r"absent.toml: No such file"):
        presets.read(tmp_path / "absent.toml", background.remove)
    with pytest.raises(TomoscaleError, match=r"p.toml: No such file .* cannot be saved"):
        presets.save(tmp_path / "absent" / "p.toml", background.remove, {})


@pytest.mark.parametrize("content", ["hello", "a = 1", "[open"])
def test_a_file_of_another_kind_is_not_written_over(content, tmp_path):
    (tmp_path / "notes.toml").write_text(content)
    with pytest.raises(TomoscaleError, match="is no file of parameters"):
        presets.save(tmp_path / "notes.toml", background.remove, {})
    assert (tmp_path / "notes.toml").read_text() == content


# ---------------------------------------------------------------- the command


@pytest.fixture
def folder(tmp_path, monkeypatch, scan):
    write_scan(tmp_path / "scan.zarr", scan, (30, 5, 23), dark=np.full(scan.shape[1:], 90, np.uint16))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_run_with_saved_parameters_equals_the_first(folder):
    first = (
        "background scan.zarr -o a.zarr --half-window 9 --step 4 --margin-roi 0:5,0:5 --dark scan.zarr/dark"
    )
    assert run(f"{first} --save p.toml --scheduler threads --quiet") == 0
    assert run("background scan.zarr -o b.zarr --params p.toml --scheduler threads --quiet") == 0
    a, b = store.open_volume("a.zarr"), store.open_volume("b.zarr")
    np.testing.assert_array_equal(a.whole(), b.whole())
    assert a.history()[-1]["parameters"] == b.history()[-1]["parameters"]
    assert a.history()[-1]["inputs"] == b.history()[-1]["inputs"]
    assert presets.read("p.toml", background.remove)["dark"] == str(folder / "scan.zarr" / "dark")


def test_options_of_the_command_go_before_those_of_the_file(folder):
    Path("p.toml").write_text("[background]\nhalf_window = 9\nstep = 4\nsmoothing = 0\n")
    line = "background scan.zarr --params p.toml --step 7 --scheduler threads --quiet"
    assert run(line) == 0
    used = store.open_volume("scan-background.zarr").history()[-1]["parameters"]
    assert (used["half_window"], used["step"], used["smoothing"]) == (9, 7, 0)


def test_a_dry_run_saves_the_parameters_and_nothing_else(folder, capsys):
    before = {p.name for p in folder.iterdir()}
    assert run("background scan.zarr --step 5 --save p.toml --dry-run") == 0
    assert {p.name for p in folder.iterdir()} - before == {"p.toml"}
    assert presets.read("p.toml", background.remove)["step"] == 5


def test_parameters_that_are_refused_are_not_saved(folder, capsys):
    assert run("background scan.zarr --margin 99 --save p.toml --dry-run") == 2
    assert not Path("p.toml").exists()


def test_what_is_required_may_come_from_the_file(folder, capsys):
    @operation("need it")
    def needed(frames: Volume, *, level: float, width: Width = 3) -> dict[str, np.ndarray]:
        """Ask for a level."""
        return {"volume": np.full(3, level)}

    call = cli._adapted(needed)
    with pytest.raises(TomoscaleError, match="need it: --level is missing; give it, or --params FILE"):
        call("scan.zarr", how=how.HowChosen())
    Path("p.toml").write_text("[need.it]\nlevel = 2.5\n")
    written = call("scan.zarr", how=how.HowChosen(params=Path("p.toml"), scheduler="threads", quiet=True))
    np.testing.assert_array_equal(store.open_volume(written / "volume").whole(), np.full(3, 2.5))
    app = cli.App()
    app.command(call, name="needed")
    app(["needed", "--help"], result_action="return_value")
    assert "--params]" in " ".join(capsys.readouterr().out.replace("│", " ").split())


def test_every_operation_saves_and_reads_its_defaults(tmp_path):
    operations = [f for f in cli.functions() if not getattr(f, "acts", False)]
    assert len(operations) >= 4
    for function in operations:
        presets.save(tmp_path / "p.toml", function, {})
        for name, value in presets.read(tmp_path / "p.toml", function).items():
            assert value == inspect.signature(function).parameters[name].default
