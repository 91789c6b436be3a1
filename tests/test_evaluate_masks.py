"""Scores of labels are the definitions, of the whole volume and slice by slice."""

from __future__ import annotations

import json

import numpy as np
import pytest
from conftest import write_array
from sklearn.metrics import confusion_matrix, f1_score, jaccard_score

from tomoscale import cli, evaluate
from tomoscale.errors import TomoscaleError


@pytest.fixture
def pair(tmp_path):
    """Return labels of three classes and worse ones, as arrays and as volumes."""
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 3, (6, 20, 24)).astype(np.uint8)
    truth[2] = 0
    found = np.where(rng.random(truth.shape) < 0.2, rng.integers(0, 4, truth.shape), truth).astype(np.uint8)
    paths = (
        write_array(tmp_path / "found.zarr", found, (2, 9, 24)),
        write_array(tmp_path / "truth.zarr", truth, (5, 7, 8)),
    )
    return found, truth, *paths


def test_scores_are_those_of_scikit_learn(pair):
    found, truth, found_path, truth_path = pair
    score = evaluate.compare(found_path, truth_path)
    np.testing.assert_array_equal(score.confusion, confusion_matrix(truth.ravel(), found.ravel()))
    assert score.accuracy == pytest.approx((found == truth).mean())
    labels = [c.label for c in score.classes]
    assert labels == [0, 1, 2, 3]
    np.testing.assert_allclose(
        [c.dice for c in score.classes], f1_score(truth.ravel(), found.ravel(), average=None)
    )
    np.testing.assert_allclose(
        [c.iou for c in score.classes], jaccard_score(truth.ravel(), found.ravel(), average=None)
    )


def test_a_class_is_scored_in_the_slices_where_it_occurs(pair):
    found, truth, found_path, truth_path = pair
    found[4][found[4] == 1] = 0
    truth[4][truth[4] == 1] = 0
    write_array(found_path, found, (6, 20, 24))
    write_array(truth_path, truth, (6, 20, 24))
    both = [(f == 1) & (t == 1) for f, t in zip(found, truth, strict=True)]
    size = [(f == 1).sum() + (t == 1).sum() for f, t in zip(found, truth, strict=True)]
    dice = [2 * b.sum() / n for b, n in zip(both, size, strict=True) if n]
    assert len(dice) == 5
    one = evaluate.compare(found_path, truth_path).classes[1]
    assert one.slice_dice == pytest.approx((np.mean(dice), np.std(dice)))


def test_only_a_region_or_a_mask_counts(pair, tmp_path):
    found, truth, found_path, truth_path = pair
    part = np.s_[1:4, 2:18, 3:20]
    score = evaluate.compare(found_path, truth_path, roi=((1, 4), (2, 18), (3, 20)))
    assert (score.voxels, score.accuracy) == (found[part].size, pytest.approx((found == truth)[part].mean()))
    mask = np.random.default_rng(1).random(found.shape) < 0.3
    path = write_array(tmp_path / "mask.zarr", mask.astype(np.uint8))
    score = evaluate.compare(found_path, truth_path, mask=path)
    assert (score.voxels, score.accuracy) == (mask.sum(), pytest.approx((found == truth)[mask].mean()))


def test_command_prints_words_or_json(pair, capsys):
    found, truth, found_path, truth_path = pair
    assert cli.main(["evaluate", "masks", str(found_path), str(truth_path)]) == 0
    assert f"accuracy {(found == truth).mean():.4f}" in capsys.readouterr().out
    roi = ["--roi", "1:4,2:18,3:20"]
    assert cli.main(["evaluate", "masks", str(found_path), str(truth_path), "--json", *roi]) == 0
    assert json.loads(capsys.readouterr().out)["voxels"] == 3 * 16 * 17


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (np.zeros((6, 20, 23), np.uint8), "expected the same"),
        (np.zeros((6, 20, 24), np.float32), "expected labels"),
        (np.full((6, 20, 24), 700, np.uint16), "reach from 700 to 700"),
    ],
)
def test_what_cannot_be_compared_is_refused(pair, tmp_path, other, message):
    with pytest.raises(TomoscaleError, match=message):
        evaluate.compare(pair[2], write_array(tmp_path / "other.zarr", other))


def test_an_empty_mask_is_refused(pair, tmp_path):
    mask = write_array(tmp_path / "mask.zarr", np.zeros(pair[0].shape, np.uint8))
    with pytest.raises(TomoscaleError, match="zero everywhere"):
        evaluate.compare(pair[2], pair[3], mask=mask)
