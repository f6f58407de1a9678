"""Every example looked at before a run begins, and everything that is bad told at once."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from app.errors import TrainingError
from app.training.classes import Label
from app.training.examples import Collection, Example, Reading, open_data
from app.training.losses import IGNORE
from app.training.scenes import Labels
from app.types import Task

SHOWN = 40


@dataclass(frozen=True, slots=True)
class Checked:
    """An example that can be read. `pixels`: of each class; `valid`: labelled ones."""

    example: Example
    size: tuple[int, int]
    pixels: tuple[int, ...]
    valid: int
    digest: str

    @property
    def area(self) -> int:
        return self.size[0] * self.size[1]


@dataclass(frozen=True, slots=True)
class Survey:
    """The sound examples of a place, and its problems, each one sentence."""

    where: str
    task: Task
    classes: tuple[Label, ...]
    checked: tuple[Checked, ...]
    problems: tuple[str, ...]

    def counts(self) -> tuple[int, ...]:
        """Pixels of each class."""
        totals = np.zeros(len(self.classes), np.int64)
        for one in self.checked:
            totals += one.pixels
        return tuple(totals.tolist())

    def words(self) -> str:
        """One line for people."""
        valid = max(1, sum(one.valid for one in self.checked))
        shares = ", ".join(
            f"{label.name} {count / valid:.1%}"
            for label, count in zip(self.classes, self.counts(), strict=True)
        )
        return f"{self.where}: {len(self.checked)} pictures; {shares}"


def survey(
    places: Iterable[str], reading: Reading, *, tick: Callable[[], None] = lambda: None
) -> list[Survey]:
    """Read every file of every place. Raises TrainingError only where a place is not understood.

    `tick` is called once for each picture. Classes of all places must be the same.
    """
    found = []
    for where in places:
        collection = open_data(where, reading)
        problems = list(collection.problems)
        checked = []
        for example in collection.examples:
            try:
                checked.append(_check(example, collection))
            except TrainingError as exc:
                problems.append(str(exc))
            tick()
        found.append(
            Survey(where, collection.task, collection.classes, tuple(checked), tuple(problems))
        )
    for other in found[1:]:
        if other.classes != found[0].classes or other.task != found[0].task:
            raise TrainingError(
                f"`{other.where}` has the classes {_names(other.classes)} ({other.task}), "
                f"`{found[0].where}` {_names(found[0].classes)} ({found[0].task})\n"
                "hint: say which with `--class`"
            )
    return found


def _names(classes: Sequence[Label]) -> str:
    return ", ".join(label.name for label in classes)


def _check(example: Example, collection: Collection) -> Checked:
    scene = example.read()
    labels = scene.labels
    valid = labels != IGNORE
    if not valid.any():
        raise TrainingError(f"`{example.name}` has no labelled pixel")
    return Checked(
        example,
        (labels.shape[1], labels.shape[2]),
        class_pixels(labels, collection.task, len(collection.classes)),
        int(np.count_nonzero(valid.any(axis=0))),
        hashlib.sha256(scene.pixels.tobytes()).hexdigest(),
    )


def class_pixels(labels: Labels, task: Task, classes: int) -> tuple[int, ...]:
    """Pixels of each class in (P, H, W) labels."""
    if task == "multiclass":
        counts = np.bincount(labels.ravel(), minlength=256)[:classes]
    else:
        counts = np.count_nonzero(labels == 1, axis=(1, 2))
    return tuple(int(count) for count in counts)


def require_sound(
    training: Sequence[Survey] | None, validation: Sequence[Survey], *, skip_bad: bool
) -> list[str]:
    """Raise TrainingError that lists every problem; with `skip_bad` only what cannot be skipped.

    `training` is None where nothing is trained. What can be skipped comes back. A picture
    that is trained on and scored on is never skipped: the scores would lie. Nor is a class without
    a pixel to learn from.
    """
    asked = [("score on", validation)]
    if training is not None:
        asked.insert(0, ("train on", training))
    training = training or ()
    skippable = [problem for place in (*training, *validation) for problem in place.problems]
    fatal = [
        f"`{name}` of `{place.where}` is the same picture as `{seen[digest]}`, which is trained on"
        for seen in [{c.digest: c.example.name for p in training for c in p.checked}]
        for place in validation
        for digest, name in [(c.digest, c.example.name) for c in place.checked]
        if digest in seen
    ]
    for what, places in asked:
        if not sum(len(place.checked) for place in places):
            fatal.append(f"no sound picture to {what}")
    if training and any(place.checked for place in training):
        totals = np.sum([place.counts() for place in training], axis=0)
        fatal += [
            f"class `{label.name}` has no pixel in any picture that is trained on"
            for label, total in zip(training[0].classes, totals, strict=True)
            if not total
        ]
    problems = fatal if skip_bad else fatal + skippable
    if problems:
        shown = "\n".join(f"  - {problem}" for problem in problems[:SHOWN])
        more = f"\n  and {len(problems) - SHOWN} more" if len(problems) > SHOWN else ""
        hint = "" if fatal else "\nhint: `--skip-bad` goes on without them"
        number = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
        raise TrainingError(f"{number} in the data:\n{shown}{more}{hint}")
    return skippable
