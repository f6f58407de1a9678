"""A binary model scored through the very engine that serves it, on pictures with known masks."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from app.engine.base import Engine
from app.errors import TrainingError
from app.imaging.fit import crop_plane, fit
from app.training.losses import IGNORE
from app.training.scenes import pairs, read_pair
from app.training.scores import Counts, Scores, count


@dataclass(frozen=True)
class Report:
    """Scores at the model's threshold, per picture, and IoU over all pixels by threshold."""

    model: str
    threshold: float
    scores: Scores
    pictures: dict[str, Counts]
    sweep: dict[float, float]

    def json(self) -> str:
        """Everything, as JSON."""
        return json.dumps(
            {
                "model": self.model,
                "threshold": self.threshold,
                "scores": asdict(self.scores),
                "sweep": {f"{t:.3f}": round(v, 5) for t, v in self.sweep.items()},
                "pictures": {
                    name: {**asdict(c), "iou": c.iou, "dice": c.dice}
                    for name, c in self.pictures.items()
                },
            },
            indent=1,
        )

    def table(self) -> str:
        """For people."""
        s = self.scores

        def shown(value: float | None) -> str:
            return "  n/a " if value is None else f"{value:.4f}"

        best = max(self.sweep, key=lambda t: self.sweep[t])
        return "\n".join(
            [
                f"{self.model}, threshold {self.threshold:g}, {s.pictures} pictures "
                f"({s.counted} with the class in truth or mask)",
                f"over all pixels   IoU {shown(s.iou)}   Dice {shown(s.dice)}",
                f"mean of pictures  IoU {shown(s.mean_iou)}   Dice {shown(s.mean_dice)}",
                "IoU over all pixels by threshold: "
                + "  ".join(f"{t:.2f}: {v:.4f}" for t, v in self.sweep.items()),
                f"best of these: {best:.2f}",
            ]
        )


def evaluate_folder(engine: Engine, folder: Path) -> Report:
    """Score every picture of `folder` (images/ and masks/). Raises TrainingError for bad data."""
    spec = engine.spec
    if spec.task != "binary":
        raise TrainingError(f"`{spec.label}` is a {spec.task} model; only binary ones are scored")
    thresholds = [round(0.05 * i, 2) for i in range(2, 19)]
    totals = {t: Counts(0, 0, 0) for t in thresholds}
    pictures: dict[str, Counts] = {}
    for pair in pairs(folder):
        scene = read_pair(pair)
        truth, valid = scene.labels == 1, scene.labels != IGNORE
        probability, mask = _infer(engine, scene.pixels)
        pictures[pair.stem] = count(mask, truth, valid)
        for t in thresholds:
            totals[t] += count(probability > t * 255, truth, valid)
    return Report(
        model=spec.label,
        threshold=spec.threshold,
        scores=Scores.of(list(pictures.values())),
        pictures=pictures,
        sweep={t: totals[t].iou or 0.0 for t in thresholds},
    )


def _infer(
    engine: Engine, pixels: NDArray[np.uint8]
) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    padded, margins = fit(pixels, engine.spec.stride)
    found = engine.infer(
        np.ascontiguousarray(padded)[None],
        np.array([engine.spec.threshold], np.float32),
        probability=True,
    )
    height, width = pixels.shape[:2]
    assert found.probability is not None
    assert found.bits is not None
    mask = np.unpackbits(found.bits[0], axis=2)
    return (
        crop_plane(found.probability[0], margins, height=height, width=width)[0],
        crop_plane(mask, margins, height=height, width=width)[0].view(np.bool_),
    )
