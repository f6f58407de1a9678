"""IoU, Dice, precision and recall, per picture and over all pixels, from exact pixel counts.

An absent class (no pixel in truth and none in prediction) has no score for that picture: it is left
out of the mean, and the number of pictures that counted is reported. Both empty is thus neither 0
nor 1, and a class invented by the prediction scores 0. Precision has no value where nothing was
predicted, recall none where nothing is there. The background of exclusive classes is counted like
any class, so that false alarms on it cost the class that raised them, and left out of means over
classes.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Counts:
    """Pixels of one class in one picture (or summed over many)."""

    true_positive: int
    false_positive: int
    false_negative: int

    def __add__(self, other: Counts) -> Counts:
        return Counts(
            self.true_positive + other.true_positive,
            self.false_positive + other.false_positive,
            self.false_negative + other.false_negative,
        )

    @property
    def iou(self) -> float | None:
        """Intersection over union (Jaccard index); None where the class is absent from both."""
        return _ratio(
            self.true_positive, self.true_positive + self.false_positive + self.false_negative
        )

    @property
    def dice(self) -> float | None:
        """Dice coefficient (F1); None where the class is absent from both."""
        return _ratio(
            2 * self.true_positive,
            2 * self.true_positive + self.false_positive + self.false_negative,
        )

    @property
    def precision(self) -> float | None:
        """Share of the prediction that is right; None where nothing was predicted."""
        return _ratio(self.true_positive, self.true_positive + self.false_positive)

    @property
    def recall(self) -> float | None:
        """Share of the truth that was found; None where there is none."""
        return _ratio(self.true_positive, self.true_positive + self.false_negative)


NOTHING = Counts(0, 0, 0)


def _ratio(part: int, whole: int) -> float | None:
    return part / whole if whole else None


def count(
    predicted: NDArray[np.bool_], truth: NDArray[np.bool_], valid: NDArray[np.bool_] | None = None
) -> Counts:
    """Compare two (H, W) bool masks where `valid` (all, if None)."""
    if valid is not None:
        predicted, truth = predicted & valid, truth & valid
    both = int(np.count_nonzero(predicted & truth))
    return Counts(
        both, int(np.count_nonzero(predicted)) - both, int(np.count_nonzero(truth)) - both
    )


@dataclass(frozen=True, slots=True)
class Scores:
    """Scores of one class over a set of pictures: `iou` over all pixels, `mean_iou` of pictures."""

    iou: float | None
    dice: float | None
    precision: float | None
    recall: float | None
    mean_iou: float | None
    mean_dice: float | None
    mean_precision: float | None
    mean_recall: float | None
    pictures: int
    counted: int

    @classmethod
    def of(cls, counts: Sequence[Counts]) -> Scores:
        """`iou` and so on over all pixels; `mean_*` over the pictures where they are defined."""
        total = sum(counts, NOTHING)
        return cls(
            iou=total.iou,
            dice=total.dice,
            precision=total.precision,
            recall=total.recall,
            mean_iou=mean(c.iou for c in counts),
            mean_dice=mean(c.dice for c in counts),
            mean_precision=mean(c.precision for c in counts),
            mean_recall=mean(c.recall for c in counts),
            pictures=len(counts),
            counted=sum(c.iou is not None for c in counts),
        )


def mean(values: Iterable[float | None]) -> float | None:
    """Of those that there are; None where there are none."""
    there = [value for value in values if value is not None]
    return float(np.mean(there)) if there else None
