"""A checkpoint is whole or absent, says what it is, and runs no code; what is no checkpoint is refused in one line."""

from __future__ import annotations

import json
import os
import pickle
import signal
import struct
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="networks need the extra `learn`")
safetensors_torch = pytest.importorskip("safetensors.torch")
torch.set_num_threads(1)

from tomoscale.errors import TomoscaleError  # noqa: E402
from tomoscale.learn import checkpoint, networks  # noqa: E402
from tomoscale.learn.checkpoint import Checkpoint  # noqa: E402
from tomoscale.learn.networks import Architecture  # noqa: E402
from tomoscale.learn.scaling import Scaling  # noqa: E402

TINY = Architecture(2, (2, 3), pooling=(2, 2))


def trained(seed=0, architecture=TINY):
    return Checkpoint(
        networks.build(architecture, seed=seed),
        ("matrix", "sphere"),
        Scaling("fixed", 100.0, 65535.0),
        [{"step": "supervised", "epochs": 3}],
        {"dice": 0.934},
    )


def weights_of(network):
    return {n: t.numpy().tobytes() for n, t in network.state_dict().items()}


def test_what_was_written_is_read(tmp_path):
    made = trained()
    found = checkpoint.read(checkpoint.write(made, tmp_path / "m.safetensors"))
    assert found.network.architecture == TINY
    assert weights_of(found.network) == weights_of(made.network)
    assert replace(found, network=None, sha256="") == replace(made, network=None)
    assert len(found.sha256) == 64
    assert not found.network.training
    assert [p.name for p in tmp_path.iterdir()] == ["m.safetensors"]


def test_any_reader_of_safetensors_opens_the_weights(tmp_path):
    path = checkpoint.write(trained(), tmp_path / "m.safetensors")
    assert set(safetensors_torch.load_file(path)) == set(trained().network.state_dict())


KILLED = """
import os, signal, sys
sys.path.insert(0, {tests!r})
from test_learn_checkpoint import checkpoint, trained
moment = sys.argv[2]
kill = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
if moment == "fsync":
    os.fsync = kill
if moment == "rename":
    checkpoint.Path.replace = kill
if moment == "after":
    checkpoint.sync_folder = kill
checkpoint.write(trained(seed=2), sys.argv[1])
"""


@pytest.mark.parametrize(("moment", "seed"), [("fsync", 1), ("rename", 1), ("after", 2)])
def test_a_write_that_is_killed_leaves_a_whole_checkpoint(tmp_path, moment, seed):
    path = checkpoint.write(trained(seed=1), tmp_path / "m.safetensors")
    code = KILLED.format(tests=str(Path(__file__).parent))
    done = subprocess.run([sys.executable, "-c", code, str(path), moment], check=False)
    assert done.returncode == -signal.SIGKILL
    assert weights_of(checkpoint.read(path).network) == weights_of(trained(seed=seed).network)


def test_every_flipped_bit_is_noticed(tmp_path):
    path = checkpoint.write(trained(), tmp_path / "m.safetensors")
    content = path.read_bytes()
    rng = np.random.default_rng(0)
    for position in [*range(8, 40), *rng.integers(8, len(content), 120)]:
        damaged = bytearray(content)
        damaged[position] ^= 1 << int(rng.integers(8))
        path.write_bytes(damaged)
        try:
            found = checkpoint.read(path)
        except TomoscaleError:
            continue
        assert damaged[position : position + 1].isspace(), position  # padding of the header
        assert weights_of(found.network) == weights_of(trained().network)


class Bomb:
    """A pickle that leaves a file behind when it is opened."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def bad_files(folder):
    """Return every file of the list of faults, with what is said about it."""
    good = checkpoint.write(trained(), folder / "good.safetensors").read_bytes()
    state = {n: t.contiguous() for n, t in trained().network.state_dict().items()}
    name = next(iter(state))

    def saved(weights, metadata=None):
        return safetensors_torch.save(weights, metadata)

    def record(**changed):
        """A record that is wrong, with the right sha256."""
        weights = changed.pop("weights", state)
        said = json.loads(checkpoint.files.safetensors_of(folder / "good.safetensors")[1]["tomoscale"])
        said = {k: v for k, v in {**said, **changed}.items() if v is not None}
        said["sha256"] = checkpoint._digest(said, weights)
        return saved(weights, {"tomoscale": json.dumps(said)})

    torch.save(state, folder / "zip.pt")
    return {
        "empty": (b"", "is empty"),
        "text": (b"these are the weights that you sought", "not a checkpoint"),
        "truncated": (good[:-7], "not a checkpoint, or a truncated one"),
        "cut header": (good[:50], "not a checkpoint, or a truncated one"),
        "longer": (good + b"more", "not a checkpoint"),
        "pickle": (pickle.dumps(Bomb(folder / "exploded")), "a pickle"),
        "torch pickle": ((folder / "zip.pt").read_bytes(), "a pickle"),
        "absurd header": (struct.pack("<Q", 2**62) + b"{}", "not a checkpoint"),
        "deep header": (struct.pack("<Q", 40_000) + b"[" * 40_000, "not a checkpoint"),
        "absurd shape": (
            struct.pack("<Q", 80) + b'{"a":{"dtype":"F32","shape":[1099511627776],"data_offsets":[0,4]}}'.ljust(80),
            "not a checkpoint",
        ),
        "no record": (saved(state), "weights without architecture"),
        "record is no JSON": (saved(state, {"tomoscale": "{"}), "weights without architecture"),
        "record is a number": (saved(state, {"tomoscale": "7"}), "checkpoint of format '7'"),
        "future": (record(format=99), "checkpoint of format '99'; this version reads 1"),
        "absurd network": (record(architecture={"widths": [10**12] * 3}), "widths is"),
        "huge network": (
            record(architecture={**TINY.record(), "widths": [4096] * 8}), "not the weights of this architecture"
        ),
        "no classes": (record(classes=None), "its record is incomplete: KeyError: 'classes'"),
        "classes do not fit": (record(classes=["a", "b", "c"]), r"3 classes \(a, b, c\) for a network of 1 outputs"),
        "no scaling": (record(scaling={"kind": "fixed", "offset": 0, "factor": 0}), "expected numbers"),
        "missing": (
            record(weights={k: v for k, v in state.items() if k != name}), f"1 weights are missing, first {name}"
        ),
        "more": (record(weights={**state, "extra": state[name].clone()}), "1 are of no use to it, first extra"),
        "shape": (record(weights={**state, name: torch.zeros(5)}), rf"{name} has shape \(5,\)"),
        "NaN": (record(weights={**state, name: state[name] * np.nan}), f"{name} holds NaN or infinite weights"),
    }  # fmt: skip


def test_what_is_no_checkpoint_is_refused_in_one_line_and_runs_nothing(tmp_path):
    for what, (content, said) in bad_files(tmp_path).items():
        path = tmp_path / "bad.safetensors"
        path.write_bytes(content)
        with pytest.raises(TomoscaleError, match=said) as caught:
            checkpoint.read(path)
        assert "\n" not in str(caught.value), what
        assert str(caught.value).startswith(f"{path}: "), what
        assert len(str(caught.value)) < 500, what
    assert not (tmp_path / "exploded").exists()


def test_no_file_and_a_folder_are_refused(tmp_path):
    with pytest.raises(TomoscaleError, match="no such checkpoint"):
        checkpoint.read(tmp_path / "absent.safetensors")
    with pytest.raises(TomoscaleError, match="is a folder"):
        checkpoint.read(tmp_path)


@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module."])
@pytest.mark.parametrize("wrapped", [None, "state_dict", "model"])
def test_foreign_weights_are_imported_whatever_is_around_their_names(tmp_path, prefix, wrapped):
    network = networks.build(TINY, seed=4)
    state = {prefix + n: t for n, t in network.state_dict().items()}
    torch.save({wrapped: state, "epoch": 7} if wrapped else state, tmp_path / "foreign.pt")
    found = checkpoint.imported(tmp_path / "foreign.pt", TINY)
    assert weights_of(found.network) == weights_of(network)
    again = checkpoint.read(checkpoint.write(found, tmp_path / "ours.safetensors"))
    assert weights_of(again.network) == weights_of(network)


def test_foreign_safetensors_are_imported(tmp_path):
    network = networks.build(TINY, seed=4)
    safetensors_torch.save_file(network.state_dict(), tmp_path / "foreign.safetensors")
    found = checkpoint.imported(tmp_path / "foreign.safetensors", TINY)
    assert weights_of(found.network) == weights_of(network)


def test_a_foreign_file_never_runs_code(tmp_path):
    torch.save({"state_dict": Bomb(tmp_path / "exploded")}, tmp_path / "bomb.pt")
    (tmp_path / "bomb.pkl").write_bytes(pickle.dumps(Bomb(tmp_path / "exploded")))
    for name in ("bomb.pt", "bomb.pkl"):
        with pytest.raises(
            TomoscaleError, match="holds more than weights, or is damaged, and nothing of it was run"
        ):
            checkpoint.imported(tmp_path / name, TINY)
    assert not (tmp_path / "exploded").exists()


@pytest.mark.parametrize(
    ("state", "said"),
    [
        ({}, "weights are missing, first"),
        ([1, 2], "weights are missing, first"),
        (networks.build(replace(TINY, channels=3), seed=0).state_dict(), r"has shape \(2, 3, 3, 3\)"),
        (networks.build(replace(TINY, widths=(2, 3, 4)), seed=0).state_dict(), "are of no use to it"),
    ],
)
def test_foreign_weights_of_another_network_are_refused(tmp_path, state, said):
    torch.save(state, tmp_path / "foreign.pt")
    with pytest.raises(TomoscaleError, match=said):
        checkpoint.imported(tmp_path / "foreign.pt", TINY)


def test_a_network_that_diverged_is_not_written_over_a_good_one(tmp_path):
    path = checkpoint.write(trained(), tmp_path / "m.safetensors")
    bad = trained()
    with torch.no_grad():
        next(bad.network.parameters()).fill_(float("nan"))
    with pytest.raises(TomoscaleError, match="the training diverged"):
        checkpoint.write(bad, path)
    assert weights_of(checkpoint.read(path).network) == weights_of(trained().network)


def test_what_cannot_be_written_is_refused(tmp_path):
    with pytest.raises(TomoscaleError, match="a Conv2d has no architecture to keep"):
        checkpoint.write(Checkpoint(torch.nn.Conv2d(1, 1, 1)), tmp_path / "m.safetensors")
    with pytest.raises(TomoscaleError, match="3 classes"):
        checkpoint.write(replace(trained(), classes=("a", "b", "c")), tmp_path / "m.safetensors")
    with pytest.raises(TomoscaleError, match="does not exist"):
        checkpoint.write(trained(), tmp_path / "absent" / "m.safetensors")


def test_intensities_are_scaled_to_what_the_network_was_trained_on():
    block = np.array([[100, 300]], np.uint16)
    np.testing.assert_array_equal(Scaling("fixed", 100, 200).apply(block), np.float32([[0, 1]]))
    np.testing.assert_array_equal(
        Scaling("range").apply(block, np.array([50.0, 300.0])), np.float32([[0.2, 1]])
    )
    assert Scaling("range").apply(np.full((2, 2), 7), np.array([7.0, 7.0])).max() == 0
    for record in ({"kind": "log", "offset": 0, "factor": 1}, {"kind": "fixed"}, None):
        with pytest.raises(TomoscaleError, match="expected"):
            Scaling.of(record)
