"""Scores of a segmentation against nnU-Net's and against an independent implementation."""

from __future__ import annotations

import math

import numpy as np
import pytest
from nnunetv2.evaluation.evaluate_predictions import compute_metrics
from scipy.ndimage import gaussian_filter
from scipy.spatial import cKDTree

from nnunetv2_unimrseg.evaluation.conventions import EMPTY_CONVENTIONS, with_convention
from nnunetv2_unimrseg.evaluation.metrics import RawScores, score_segmentation, surface_distances

SHAPE = (18, 20, 22)
SPACINGS = [(1.0, 1.0, 1.0), (5.0, 0.7, 0.7), (3.27, 3.0, 2.0), (0.5, 2.0, 1.5)]


def blob(seed: int, shape=SHAPE, threshold: float = 0.02) -> np.ndarray:
    return gaussian_filter(np.random.default_rng(seed).normal(size=shape), 2) > threshold


def surface_points(mask: np.ndarray, spacing) -> np.ndarray:
    """Positions in mm of the voxels that have a face neighbour outside the mask, found by comparing shifted copies."""
    padded = np.pad(mask, 1)
    inside = padded.copy()
    for axis in range(mask.ndim):
        for step in (-1, 1):
            inside &= np.roll(padded, step, axis)
    surface = (padded & ~inside)[tuple(slice(1, -1) for _ in mask.shape)]
    return np.argwhere(surface) * np.asarray(spacing)


def independent(reference, prediction, spacing) -> tuple[float, float]:
    points = [surface_points(mask, spacing) for mask in (reference, prediction)]
    there, back = cKDTree(points[0]).query(points[1])[0], cKDTree(points[1]).query(points[0])[0]
    return max(np.percentile(there, 95), np.percentile(back, 95)), float(np.mean([*there, *back]))


@pytest.mark.parametrize("pair", range(20))
def test_surface_distances_equal_an_independent_implementation(pair):
    shape = SHAPE if pair % 5 else SHAPE[:2]
    spacing = SPACINGS[pair % 4][: len(shape)]
    masks = blob(pair, shape), blob(100 + pair, shape)
    assert surface_distances(*masks, spacing) == pytest.approx(independent(*masks, spacing), rel=1e-5)


def test_a_shifted_cube_is_as_far_as_it_was_shifted():
    cube = np.zeros((12, 12, 12), bool)
    cube[3:6, 3:6, 3:6] = True
    shifted = np.roll(cube, 4, 0)
    hd95, asd = surface_distances(cube, shifted, (2.5, 1, 1))
    assert hd95 == pytest.approx(10)
    assert 0 < asd < 10
    assert surface_distances(cube, cube, (2.5, 1, 1)) == (0, 0)
    assert all(map(math.isnan, surface_distances(cube, cube & False, (1, 1, 1))))


class FakeReader:
    """Stands for nnU-Net's reader, whose files these arrays are."""

    def __init__(self, **images):
        self.images = images

    def read_seg(self, name):
        return self.images[name][None], {}


@pytest.mark.parametrize("ignore", [None, 3])
@pytest.mark.parametrize("labels", [{"edema": 1, "core": 2}, {"whole": (1, 2), "core": (2,)}])
def test_dice_is_nnunets(ignore, labels):
    rng = np.random.default_rng(1)
    reference, prediction = rng.integers(0, 4 if ignore else 3, SHAPE), rng.integers(0, 3, SHAPE)
    expected = compute_metrics(
        "reference", "prediction", FakeReader(reference=reference, prediction=prediction), list(labels.values()), ignore
    )["metrics"]
    scores = score_segmentation(reference, prediction, labels, (1, 1, 1), ignore)
    for name, value in labels.items():
        assert scores[name].dice == expected[value]["Dice"]
        assert (scores[name].tp, scores[name].fp, scores[name].fn) == tuple(
            expected[value][count] for count in ("TP", "FP", "FN")
        )


def test_ignored_voxels_move_no_surface():
    reference, prediction = np.zeros(SHAPE, int), np.zeros(SHAPE, int)
    reference[5:8, 5:8, 5:8] = prediction[5:8, 5:8, 5:8] = 1
    prediction[15, 15, 15] = 1
    assert score_segmentation(reference, prediction, {"a": 1}, (1, 1, 1), 9)["a"].fp == 1
    reference[15, 15, 15] = 9
    score = score_segmentation(reference, prediction, {"a": 1}, (1, 1, 1), 9)["a"]
    assert (score.dice, score.hd95_mm, score.fp) == (1, 0, 0)


def test_volumes_in_millilitres_and_the_diagonal():
    reference, prediction = np.zeros((10, 20, 30), int), np.zeros((10, 20, 30), int)
    reference[:2, :5, :10] = 1
    prediction[:1, :5, :10] = 1
    row = score_segmentation(reference, prediction, {"a": 1}, (3.0, 2.0, 1.0))["a"].row("brats")
    assert row["reference_ml"] == pytest.approx(0.6)
    assert row["volume_difference_ml"] == pytest.approx(-0.3)
    score = score_segmentation(
        np.zeros((155, 240, 240), np.uint8), np.ones((155, 240, 240), np.uint8), {"a": 1}, (1,) * 3
    )
    assert score["a"].row("brats")["hd95_mm"] == pytest.approx(373.13, abs=0.005)


def test_a_2d_image_is_scored_in_its_plane():
    reference, prediction = blob(1, (1, 30, 30)), blob(2, (1, 30, 30))
    score = score_segmentation(reference.astype(int), prediction.astype(int), {"a": 1}, (999, 1, 1))["a"]
    assert (score.hd95_mm, score.asd_mm) == pytest.approx(independent(reference[0], prediction[0], (1, 1)), rel=1e-5)
    assert score.diagonal_mm == pytest.approx(math.hypot(30, 30))


def test_the_conventions_for_empty_labels():
    def scores(reference, prediction, empty):
        values = with_convention(
            0.5, 7.0, 2.0, 1.0, reference=reference, prediction=prediction, diagonal_mm=99.0, empty=empty
        )
        return tuple(None if math.isnan(value) else value for value in values)

    for empty in EMPTY_CONVENTIONS:
        assert scores(3, 4, empty) == (0.5, 7, 2, 1)
    assert scores(0, 0, "brats") == (1, 0, 0, 1)
    assert scores(0, 4, "brats") == scores(3, 0, "brats") == (0, 99, 99, 1)
    assert scores(0, 0, "skip") == scores(0, 4, "skip") == (None, None, None, None)
    assert scores(3, 0, "skip") == (0, 99, 99, 1)
    assert scores(0, 0, "nan") == (None, None, None, 1)
    assert scores(0, 4, "nan") == scores(3, 0, "nan") == (0, None, None, 1)


def test_raw_scores_survive_json():
    score = RawScores(1, 2, 3, math.nan, 1.5, 0.02, 40.0)
    again = RawScores.from_json(score.to_json())
    assert score.to_json()["hd95_mm"] is None
    assert math.isnan(again.hd95_mm) and again.asd_mm == 1.5 and again.dice == pytest.approx(2 / 7)
