"""Files changed at random are read, or refused in one line: a short run of `python -m tests.fuzz`."""

from __future__ import annotations

from collections.abc import Iterator

import fuzz
import pytest
from bad_files import PICKLE
from command_server import MIB


@pytest.mark.slow
def test_nothing_worse_than_a_named_error_comes_of_a_changed_file():
    findings = fuzz.run(seed=3, count=100)
    assert findings.found == []
    assert findings.total == 100
    assert findings.peak < 512 * MIB
    outcomes = {outcome for _, outcome in findings.counts}
    assert outcomes == {"read", "refused"}


@pytest.fixture(scope="module")
def server() -> Iterator[fuzz.CommandServer]:
    with fuzz.CommandServer(fuzz.MEMORY, 30, "fuzz:attempt") as running:
        yield running


def test_a_pickle_in_the_place_of_any_file_is_never_executed(server, tmp_path):
    tried = 0
    for kind, files in fuzz.originals().items():
        for name in files:
            root = fuzz.written({**files, name: PICKLE}, tmp_path)
            done = server.run([root.name], tmp_path)
            assert fuzz.outcome_of(done) is None, (kind, name)
            assert not (tmp_path / "executed").exists(), (kind, name)
            tried += 1
    assert tried > 40


def test_files_are_good_before_they_are_changed(server, tmp_path):
    for kind, files in fuzz.originals().items():
        done = server.run([fuzz.written(files, tmp_path).name], tmp_path)
        assert done.status == 0, (kind, done)


@pytest.mark.parametrize(
    ("call", "words"),
    [("1 // 0", "ZeroDivisionError"), ("bytearray(2**30)", "MemoryError"), ("os._exit(7)", "status 7")],
)
def test_what_is_looked_for_is_found(tmp_path, monkeypatch, call, words):
    (tmp_path / "broken.py").write_text(f"import os\ndef attempt(arguments):\n    {call}\n    return 0\n")
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{fuzz.os.environ.get('PYTHONPATH', '')}")
    with fuzz.CommandServer(fuzz.MEMORY, 5, "broken:attempt") as server:
        assert words in str(fuzz.outcome_of(server.run(["x"], tmp_path)))
