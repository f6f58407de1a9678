"""A model scored through the engine or the server that serves it, on pictures with known masks.

For each class: IoU, Dice, precision, recall and boundary IoU, over all pixels and as the mean of
pictures; IoU over all pixels by threshold. What an absent class scores: see `app.training.scores`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from app.errors import TrainingError
from app.training.boundaries import band, width_of
from app.training.examples import Example
from app.training.losses import IGNORE
from app.training.progress import counted
from app.training.scenes import Labels
from app.training.scores import NOTHING, Counts, Scores, count, mean
from app.training.segmenters import Answer, Answering, Segmenter
from app.training.survey import require_sound, survey
from app.types import Task

THRESHOLDS = tuple(round(0.05 * i, 2) for i in range(1, 20))


@dataclass(frozen=True, slots=True)
class PictureScore:
    """Counts of one picture, by class; `boundary` in the bands along the contours."""

    name: str
    counts: tuple[Counts, ...]
    boundary: tuple[Counts, ...]

    @property
    def iou(self) -> float | None:
        """Mean over the classes that are there."""
        return mean(c.iou for c in self.counts)


@dataclass(frozen=True, slots=True)
class ClassScore:
    """One class over all pictures."""

    name: str
    scores: Scores
    boundary: Scores


@dataclass(frozen=True)
class Report:
    """Scores at the model's threshold, and `sweep`: threshold -> IoU over all pixels by class."""

    model: Answering
    classes: tuple[ClassScore, ...]
    pictures: tuple[PictureScore, ...]
    sweep: dict[float, tuple[float | None, ...]]

    @property
    def iou(self) -> float | None:
        """Over all pixels, the mean of the classes."""
        return mean(c.scores.iou for c in self.classes)

    def best_threshold(self) -> float | None:
        """With the highest mean of class IoU in the sweep, nearest 0.5 of equals; None without."""
        means = {t: mean(values) for t, values in self.sweep.items()}
        there = {t: value for t, value in means.items() if value is not None}
        if not there:
            return None
        return max(there, key=lambda t: (there[t], -abs(t - 0.5)))

    def json(self) -> str:
        """Everything, as JSON."""
        return json.dumps(
            {
                "model": self.model.label,
                "threshold": self.model.threshold,
                "iou": self.iou,
                "classes": {
                    c.name: {**asdict(c.scores), "boundary": _boundary(c.boundary)}
                    for c in self.classes
                },
                "sweep": {f"{t:.2f}": dict(self._named(v)) for t, v in self.sweep.items()},
                "best_threshold": self.best_threshold(),
                "pictures": {
                    p.name: {
                        name: {
                            **asdict(counts),
                            "iou": counts.iou,
                            "dice": counts.dice,
                            "precision": counts.precision,
                            "recall": counts.recall,
                            "boundary_iou": edge.iou,
                        }
                        for (name, counts), edge in zip(
                            self._named(p.counts), p.boundary, strict=True
                        )
                    }
                    for p in self.pictures
                },
            },
            indent=1,
        )

    def _named(self, values: Sequence[Any]) -> list[tuple[str, Any]]:
        return list(zip((c.name for c in self.classes), values, strict=True))

    def table(self) -> str:
        """For people."""
        width = max(12, *(len(c.name) for c in self.classes))
        lines = [
            f"{self.model.label}, threshold {self.model.threshold:g}, "
            f"{len(self.pictures)} pictures",
            f"{'class':<{width}}  {'':<9}{'IoU':>8}{'Dice':>8}{'prec.':>8}{'recall':>8}"
            f"{'edge IoU':>10}  counted",
        ]
        for c in self.classes:
            s, b = c.scores, c.boundary
            lines += [
                f"{c.name:<{width}}  {'pixels':<9}{_shown(s.iou)}{_shown(s.dice)}"
                f"{_shown(s.precision)}{_shown(s.recall)}  {_shown(b.iou)}",
                f"{'':<{width}}  {'pictures':<9}{_shown(s.mean_iou)}{_shown(s.mean_dice)}"
                f"{_shown(s.mean_precision)}{_shown(s.mean_recall)}  {_shown(b.mean_iou)}"
                f"{s.counted:>9}",
            ]
        if len(self.classes) > 1:
            lines.append(f"{'mean':<{width}}  {'pixels':<9}{_shown(self.iou)}")
        best = self.best_threshold()
        if best is not None:
            swept = "  ".join(f"{t:.2f}: {_shown(mean(v)).strip()}" for t, v in self.sweep.items())
            lines += [f"IoU over all pixels by threshold: {swept}", f"best of these: {best:.2f}"]
        return "\n".join(lines)


def _shown(value: float | None) -> str:
    return f"{'n/a' if value is None else format(value, '.4f'):>8}"


def _boundary(scores: Scores) -> dict[str, Any]:
    return {"iou": scores.iou, "mean_iou": scores.mean_iou}


def evaluate(
    segmenter: Segmenter,
    examples: Iterable[Example],
    *,
    seen: Callable[[Example, PictureScore, Labels, Answer], None] = lambda *_: None,
) -> Report:
    """Score every example; `seen` is told of each as it is done.

    Labels must be of the model's task and classes. Raises TrainingError for examples
    that cannot be read, and what the engine or the server raises.
    """
    model = segmenter.model
    names = [c.name for c in model.listed]
    swept = {} if model.task == "multiclass" else {t: [NOTHING] * len(names) for t in THRESHOLDS}
    pictures = []
    for example in examples:
        scene = example.read()
        answer = segmenter.answer(example, scene.pixels)
        truths, valids = truth_of(scene.labels, model.task, len(model.classes))
        picture = _score(example.name, answer, truths, valids)
        pictures.append(picture)
        for t, totals in swept.items():
            if answer.probability is not None:
                for i, parts in enumerate(zip(answer.above(t), truths, valids, strict=True)):
                    totals[i] += count(*parts)
        seen(example, picture, scene.labels, answer)
    if not pictures:
        raise TrainingError("there is no picture to score")
    classes = tuple(
        ClassScore(
            name,
            Scores.of([p.counts[i] for p in pictures]),
            Scores.of([p.boundary[i] for p in pictures]),
        )
        for i, name in enumerate(names)
    )
    sweep = {t: tuple(total.iou for total in totals) for t, totals in swept.items()}
    return Report(model, classes, tuple(pictures), sweep)


def truth_of(
    labels: Labels, task: Task, classes: int
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """(P, H, W) labels -> truth and validity, (C, H, W) bool of the classes but the background."""
    if task == "multiclass":
        index = np.arange(1, classes, dtype=np.uint8)[:, None, None]
        truth = labels == index
        return truth, np.broadcast_to(labels != IGNORE, truth.shape)
    return labels == 1, labels != IGNORE


def _score(
    name: str, answer: Answer, truths: NDArray[np.bool_], valids: NDArray[np.bool_]
) -> PictureScore:
    counts, boundary = [], []
    width = width_of(*truths.shape[1:])
    for found, truth, valid in zip(answer.planes, truths, valids, strict=True):
        counts.append(count(found, truth, valid))
        boundary.append(count(band(found, width), band(truth, width), valid))
    return PictureScore(name, tuple(counts), tuple(boundary))


def evaluate_places(
    segmenter: Segmenter,
    places: Sequence[str],
    *,
    classes: Sequence[str] = (),
    ignore: int | None = None,
    order: str = "F",
    sheet: Path | None = None,
    console: Console | None = None,
) -> Report:
    """Score a model on all pictures of `places`, read with its own classes unless others are given.

    `sheet`: where a PNG of the best and worst goes; `console`: where progress is shown. Raises
    TrainingError that lists everything bad in the data, before the first picture is scored.
    """
    from app.training.options import reading
    from app.training.sheet import Sheet

    console = console or Console(quiet=True)
    model = segmenter.model
    texts = tuple(classes) or tuple(c.name for c in model.classes)
    how = reading(classes=texts, task=model.task, ignore=ignore, order=order)
    with counted("looking at the data", console) as tick:
        found = survey(places, how, tick=tick)
    for place in found:
        if len(place.classes) != len(model.classes):
            raise TrainingError(
                f"`{model.label}` has {len(model.classes)} classes, the data of `{place.where}` "
                f"{len(place.classes)}\nhint: say how to read it with `--class`"
            )
    require_sound(None, found, skip_bad=False)
    frames = Sheet(model.task, len(model.classes))
    examples = [checked.example for place in found for checked in place.checked]
    with counted("scoring", console, len(examples)) as tick:

        def seen(*scored: Any) -> None:
            if sheet is not None:
                frames.show(*scored)
            tick()

        report = evaluate(segmenter, examples, seen=seen)
    if sheet is not None:
        sheet.write_bytes(frames.png())
    return report
