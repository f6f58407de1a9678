"""IoU and Dice, per picture and over all pixels, from exact pixel counts.

An absent class (no pixel in truth and none in prediction) has no score for that picture: it is left
out of the mean, and the number of pictures that counted is reported. Both empty is thus neither 0
nor 1, and a class invented by the prediction scores 0.
"""

from __future__ import annotations

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
        union = self.true_positive + self.false_positive + self.false_negative
        return self.true_positive / union if union else None

    @property
    def dice(self) -> float | None:
        """Dice coefficient (F1); None where the class is absent from both."""
        total = 2 * self.true_positive + self.false_positive + self.false_negative
        return 2 * self.true_positive / total if total else None


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
    """Scores of one class over a set of pictures."""

    iou: float | None
    dice: float | None
    mean_iou: float | None
    mean_dice: float | None
    pictures: int
    counted: int

    @classmethod
    def of(cls, counts: list[Counts]) -> Scores:
        """`iou` and `dice` over all pixels; `mean_*` over the `counted` pictures where defined."""
        total = sum(counts, Counts(0, 0, 0))
        ious = [c.iou for c in counts if c.iou is not None]
        dices = [c.dice for c in counts if c.dice is not None]
        return cls(
            iou=total.iou,
            dice=total.dice,
            mean_iou=float(np.mean(ious)) if ious else None,
            mean_dice=float(np.mean(dices)) if dices else None,
            pictures=len(counts),
            counted=len(ious),
        )
