"""Classes as people write them: `name`, `name=value` of their mask, `name:#rrggbb` its colour."""

from __future__ import annotations

import colorsys
import re
from collections.abc import Sequence
from dataclasses import dataclass

from app.errors import CheckpointRefused, TrainingError
from app.types import ClassSpec, Task

TASKS: tuple[Task, ...] = ("binary", "multilabel", "multiclass")

_CLASS = re.compile(r"^(?P<name>[^=:#]+)(?:=(?P<value>\d{1,3}))?(?::#(?P<colour>[0-9a-fA-F]{6}))?$")


@dataclass(frozen=True, slots=True)
class Label:
    """A class and the `value` that its pixels have in mask files; None: by position."""

    name: str
    colour: tuple[int, int, int]
    value: int | None = None
    coloured: bool = False

    @property
    def spec(self) -> ClassSpec:
        """Without the files' own business."""
        return ClassSpec(self.name, self.colour)


def labels_of(texts: Sequence[str], task: Task) -> tuple[Label, ...]:
    """Parsed classes, colours made up where none is given. Raises TrainingError."""
    found = []
    for index, text in enumerate(texts):
        match = _CLASS.match(text.strip())
        if match is None:
            raise TrainingError(
                f"class `{text}` is not `name`, `name=value` or `name:#rrggbb`, such as "
                "`roof=1:#ff0000`"
            )
        colour = match["colour"]
        value = match["value"]
        if value is not None and int(value) > 255:
            raise TrainingError(f"class `{text}`: a value of a mask is 0 to 255")
        found.append(
            Label(
                match["name"].strip(),
                (int(colour[:2], 16), int(colour[2:4], 16), int(colour[4:], 16))
                if colour
                else colour_of(index, task),
                None if value is None else int(value),
                colour is not None,
            )
        )
    names = [label.name for label in found]
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise TrainingError(f"class `{repeated[0]}` is named twice")
    return tuple(found)


def task_of(task: str | None, channels: int) -> Task:
    """The task that is asked for, or the usual one. Raises TrainingError for an unknown one."""
    if task is None:
        return "binary" if channels == 1 else "multiclass"
    for known in TASKS:
        if task == known:
            if (task == "binary") != (channels == 1):
                raise CheckpointRefused(f"a {task} model does not have {channels} output channels")
            return known
    raise TrainingError(f"unknown task `{task}`; known: {', '.join(TASKS)}")


def classes_of(text: str | None, channels: int, task: Task) -> tuple[ClassSpec, ...]:
    """Named classes with colours; made-up names where none are given. Raises TrainingError."""
    if text is None:
        names = ["background"] if task == "multiclass" else []
        names += [f"class {i}" for i in range(len(names), channels)]
        return tuple(ClassSpec(n, colour_of(i, task)) for i, n in enumerate(names))
    found = tuple(label.spec for label in labels_of(text.split(","), task))
    if len(found) != channels:
        raise TrainingError(f"{len(found)} class names for {channels} output channels")
    return found


def colour_of(index: int, task: Task) -> tuple[int, int, int]:
    """Colours that differ from each other: steps of the golden angle round the hue circle."""
    if task == "multiclass" and index == 0:
        return (0, 0, 0)
    r, g, b = colorsys.hsv_to_rgb(index * 0.381966 % 1.0, 0.75, 0.95)
    return (round(r * 255), round(g * 255), round(b * 255))
