"""Scores against scikit-learn, and none of the known bugs of evaluation."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import f1_score, jaccard_score, precision_score, recall_score

from app.training.boundaries import band, eroded, width_of
from app.training.evaluate import evaluate, truth_of
from app.training.examples import Example
from app.training.losses import IGNORE
from app.training.scenes import Labels
from app.training.scores import NOTHING, Counts, Scores, count, mean
from app.training.segmenters import Answer, Answering
from app.types import ClassSpec, Pixels, Task


def test_scores_are_those_of_scikit_learn() -> None:
    random = np.random.default_rng(0)
    pictures = [random.random((2, 13, 17)) > 0.6 for _ in range(4)]
    scores = Scores.of([count(found, truth) for found, truth in pictures])
    found = np.concatenate([p[0].ravel() for p in pictures])
    truth = np.concatenate([p[1].ravel() for p in pictures])
    assert scores.iou == pytest.approx(jaccard_score(truth, found))
    assert scores.dice == pytest.approx(f1_score(truth, found))
    assert scores.precision == pytest.approx(precision_score(truth, found))
    assert scores.recall == pytest.approx(recall_score(truth, found))
    each = [jaccard_score(p[1].ravel(), p[0].ravel()) for p in pictures]
    assert scores.mean_iou == pytest.approx(np.mean(each))
    assert (scores.pictures, scores.counted) == (4, 4)


def test_pixels_that_are_not_valid_do_not_count() -> None:
    found, truth = np.ones((4, 4), bool), np.zeros((4, 4), bool)
    truth[:2] = True
    valid = np.zeros((4, 4), bool)
    valid[1:3] = True
    assert count(found, truth, valid) == Counts(4, 4, 0)


def test_picture_without_the_class_in_truth_and_mask_has_no_score() -> None:
    empty = np.zeros((5, 5), bool)
    full = ~empty
    scores = Scores.of([count(empty, empty), count(full, full)])
    assert (scores.mean_iou, scores.iou) == (1.0, 1.0)
    assert (scores.pictures, scores.counted) == (2, 1)


def test_set_of_empty_pictures_is_not_perfect() -> None:
    empty = np.zeros((5, 5), bool)
    scores = Scores.of([count(empty, empty)] * 3)
    assert scores.iou is None
    assert scores.mean_iou is None
    assert scores.counted == 0


def test_class_invented_by_the_mask_scores_zero() -> None:
    empty = np.zeros((5, 5), bool)
    scores = Scores.of([count(~empty, empty)])
    assert (scores.iou, scores.dice, scores.mean_iou) == (0.0, 0.0, 0.0)
    assert scores.recall is None


def test_sum_of_counts_is_the_count_of_all() -> None:
    random = np.random.default_rng(1)
    found, truth = random.random((2, 20, 8)) > 0.5
    halves = count(found[:10], truth[:10]) + count(found[10:], truth[10:])
    assert halves == count(found, truth)
    assert mean([None, None]) is None
    assert NOTHING.iou is None


class Told:
    """A segmenter that answers what it was given."""

    def __init__(self, task: Task, classes: int, planes: dict[str, Labels]) -> None:
        specs = tuple(ClassSpec(f"c{i}", (i, 0, 0)) for i in range(classes))
        self.model = Answering("told@1", task, specs, 0.5)
        self.planes = planes

    def answer(self, example: Example, pixels: Pixels) -> Answer:
        labels = self.planes[example.name]
        planes, _ = truth_of(labels, self.model.task, len(self.model.classes))
        return Answer(planes, (planes * 255).astype(np.uint8))


class Known(Example):
    """An example whose labels need no file."""

    def pixels(self) -> Pixels:
        return np.zeros((*self.paint(0, 0).shape[1:], 3), np.uint8)


def known(name: str, labels: Labels) -> Example:
    from pathlib import Path

    return Known(name, Path(name), lambda height, width: labels)


def test_false_alarms_on_background_cost_their_class() -> None:
    truth = np.zeros((1, 10, 10), np.uint8)
    truth[0, :5] = 1
    found = truth.copy()
    found[0, 5:] = 2
    report = evaluate(Told("multiclass", 3, {"a": found}), [known("a", truth)])
    by_name = {c.name: c.scores for c in report.classes}
    assert by_name["c1"].iou == 1.0
    assert by_name["c2"].iou == 0.0
    assert report.iou == 0.5


def test_misses_to_background_cost_their_class() -> None:
    truth = np.ones((1, 10, 10), np.uint8)
    found = truth.copy()
    found[0, :5] = 0
    report = evaluate(Told("multiclass", 3, {"a": found}), [known("a", truth)])
    assert report.classes[0].scores.recall == 0.5
    assert report.classes[1].scores.iou is None
    assert report.iou == 0.5


def test_ignored_pixels_have_no_part_in_any_class() -> None:
    truth = np.full((1, 8, 8), IGNORE, np.uint8)
    truth[0, 0] = 1
    report = evaluate(Told("binary", 1, {"a": np.ones_like(truth)}), [known("a", truth)])
    assert report.classes[0].scores.iou == 1.0


def test_report_is_json_and_a_table() -> None:
    truth = np.zeros((2, 9, 9), np.uint8)
    truth[0, 2:7, 2:7] = 1
    report = evaluate(Told("multilabel", 2, {"a": truth}), [known("a", truth)])
    assert '"best_threshold": 0.5' in report.json()
    table = report.table()
    assert "1.0000" in table
    assert "n/a" in table
    assert report.pictures[0].iou == 1.0


def test_erosion_is_that_of_a_square_and_the_border_counts_as_outside() -> None:
    random = np.random.default_rng(2)
    mask = random.random((20, 30)) > 0.1
    for radius in (1, 2, 4):
        padded = np.pad(mask, radius)
        side = 2 * radius + 1
        windows = np.lib.stride_tricks.sliding_window_view(padded, (side, side))
        np.testing.assert_array_equal(eroded(mask, radius), windows.all(axis=(2, 3)))


def test_band_of_a_square_is_its_frame() -> None:
    mask = np.zeros((20, 20), bool)
    mask[4:16, 4:16] = True
    expected = mask.copy()
    expected[6:14, 6:14] = False
    np.testing.assert_array_equal(band(mask, 2), expected)
    assert width_of(300, 400) == 10
    assert width_of(3, 4) == 1


def test_boundary_iou_punishes_a_shift_more_than_iou() -> None:
    truth = np.zeros((1, 100, 100), np.uint8)
    truth[0, 20:80, 20:80] = 1
    report = evaluate(Told("binary", 1, {"a": np.roll(truth, 2, axis=2)}), [known("a", truth)])
    scores = report.classes[0]
    assert scores.scores.iou is not None
    assert scores.boundary.iou is not None
    assert scores.boundary.iou < scores.scores.iou
