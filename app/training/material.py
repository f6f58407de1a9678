"""What a run learns from and is scored on: surveyed, split, and made into grounds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

from app.training.classes import Label
from app.training.crops import Crops, Ground
from app.training.examples import Example
from app.training.plan import Plan
from app.training.scenes import Scene, grids, join
from app.training.split import hold_back
from app.training.survey import Checked, Survey, require_sound, survey
from app.types import Task

# Decoded bytes per pixel that a ground keeps, its half and quarter size included.
_BYTES_PER_PIXEL = 1.3125


@dataclass(frozen=True)
class Material:
    """`towns` of grounds with their `shares` of the crops; `validation` to score on."""

    task: Task
    classes: tuple[Label, ...]
    towns: tuple[tuple[Ground, ...], ...]
    shares: tuple[float, ...]
    validation: tuple[Example, ...]
    training: tuple[str, ...]
    pixels: int
    words: tuple[str, ...]

    @classmethod
    def of(
        cls,
        plan: Plan,
        *,
        say: Callable[[str], None] = lambda line: None,
        tick: Callable[[], None] = lambda: None,
    ) -> Material:
        """Look at every file and split them. Raises TrainingError with all faults."""
        training = survey(plan.data, plan.reading, tick=tick)
        first = training[0]
        if plan.validate:
            reading = replace(plan.reading, classes=_texts(plan, first), task=first.task)
            validation = survey(plan.validate, reading, tick=tick)
        else:
            training, validation = _split(training, plan)
        for problem in require_sound(training, validation, skip_bad=plan.skip_bad):
            say(f"left out: {problem}")
        words = [f"train on {s.words()}" for s in training]
        words += [f"score on {s.words()}" for s in validation]
        for line in words:
            say(line)
        pixels = sum(c.area for s in training for c in s.checked)
        planes = len(first.classes) if first.task == "multilabel" else 1
        keep = pixels * (3 + planes) * _BYTES_PER_PIXEL <= plan.memory
        there = [
            (s, share) for s, share in zip(training, plan.data.values(), strict=True) if s.checked
        ]
        return cls(
            task=first.task,
            classes=first.classes,
            towns=tuple(_grounds(s, plan.longest_side, keep=keep) for s, _ in there),
            shares=tuple(share for _, share in there),
            validation=tuple(c.example for s in validation for c in s.checked),
            training=tuple(c.example.name for s in training for c in s.checked),
            pixels=pixels,
            words=tuple(words),
        )

    def crops(self, plan: Plan) -> Crops:
        """All crops of the run, by index."""
        length = plan.steps * plan.batch * plan.accumulate
        return Crops(self.towns, self.shares, plan.crop, seed=plan.seed, length=length)

    def epoch_steps(self, plan: Plan) -> float:
        """Steps whose crops cover, in sum, as much ground as there is."""
        return self.pixels / (plan.crop.size**2 * plan.batch * plan.accumulate)


def _texts(plan: Plan, first: Survey) -> tuple[str, ...]:
    """Classes of the training data, for the places that are scored on."""
    return plan.reading.classes or tuple(label.name for label in first.classes)


def _split(training: Sequence[Survey], plan: Plan) -> tuple[list[Survey], list[Survey]]:
    """Hold groups back out of each place that has several; a single place must."""
    names = {f"{i}/{c.example.name}": c for i, s in enumerate(training) for c in s.checked}
    if len(names) < 2:
        # `require_sound` says it better, with everything else that is wrong.
        return list(training), [replace(s, checked=(), problems=()) for s in training]
    held = hold_back(list(names), plan.held_back, seed=plan.seed, pattern=plan.group)
    kept, back = [], []
    for index, place in enumerate(training):
        out = [c for c in place.checked if f"{index}/{c.example.name}" in held]
        stay = [c for c in place.checked if f"{index}/{c.example.name}" not in held]
        kept.append(replace(place, checked=tuple(stay)))
        back.append(replace(place, checked=tuple(out), problems=()))
    return kept, [place for place in back if place.checked]


def _grounds(place: Survey, longest: int | None, *, keep: bool) -> tuple[Ground, ...]:
    by_name = {c.example.name: c for c in place.checked}
    found = []
    for group in _by_size(grids(by_name), by_name):
        read = partial(_read, tuple(by_name[name].example for name in group), longest)
        found.append(Ground(read, keep=keep))
    return tuple(found)


def _by_size(groups: list[list[str]], checked: dict[str, Checked]) -> list[list[str]]:
    """Groups of touching tiles that differ in size cannot be joined; such tiles stay alone."""
    found: list[list[str]] = []
    for group in groups:
        same = len({checked[name].size for name in group}) == 1
        found += [group] if same else [[name] for name in group]
    return found


def _read(examples: tuple[Example, ...], longest: int | None) -> Scene:
    return join({example.name: example.read().shown(longest) for example in examples})
