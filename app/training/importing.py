"""A published checkpoint into the store: recognised, converted, proven on a sample picture."""

from __future__ import annotations

import colorsys
import re
import tempfile
from datetime import date
from pathlib import Path

import torch
from safetensors.torch import save_file

from app.architectures.checkpoints import Recognised, canonical, read
from app.errors import CheckpointRefused, TrainingError
from app.store.store import ModelStore
from app.training.publishing import Recipe, publish
from app.types import ClassSpec, Task

_CLASS = re.compile(r"^(?P<name>[^:#]+)(?::#(?P<colour>[0-9a-fA-F]{6}))?$")
_TASKS = ("binary", "multilabel", "multiclass")


def import_checkpoint(
    store: ModelStore,
    checkpoint: Path,
    *,
    name: str,
    sample: Path,
    classes: str | None,
    task: str | None,
    interpolation: str | None,
    align_corners: bool,
    threshold: float,
    licence: str,
    command: str,
) -> str:
    """Publish a foreign file as the next version of `name`; its label.

    `classes` names the channels, comma separated, each with an optional `:#rrggbb`; `task`,
    `interpolation` and `align_corners` say what no file can tell. Raises CheckpointError and the store's errors.
    """
    found, tensors = canonical(
        read(checkpoint), interpolation=interpolation, align_corners=align_corners
    )
    channels = int(found.parameters["classes"])
    kind = task_of(task, channels)
    recipe = Recipe(
        architecture=found.architecture,
        parameters=found.parameters,
        task=kind,
        classes=classes_of(classes, channels, kind),
        threshold=threshold,
        description=f"imported from {checkpoint.name}",
    )
    with tempfile.TemporaryDirectory() as folder:
        weights = Path(folder) / "weights.safetensors"
        save_file({k: v.contiguous() for k, v in tensors.items()}, weights)
        version = publish(
            store,
            name,
            weights=weights,
            recipe=recipe,
            sample=sample,
            card=_card(name, checkpoint, found, recipe, licence),
            licence={"identifier": licence},
            provenance={
                "data": [],
                "encoder": "unknown: part of the imported file",
                "command": command,
                "date": date.today(),
                "frameworks": {"torch": torch.__version__},
                "note": "; ".join([f"{found.family} ({found.dialect})", *found.notes]),
            },
            scores=[],
            # A foreign model keeps the precision that it came with.
            half=all(v.dtype == torch.float16 for v in tensors.values() if v.is_floating_point()),
        )
    return f"{name}@{version}"


def task_of(task: str | None, channels: int) -> Task:
    """The task that is asked for, or the usual one. Raises TrainingError for an unknown one."""
    if task is None:
        return "binary" if channels == 1 else "multiclass"
    if task not in _TASKS:
        raise TrainingError(f"unknown task `{task}`; known: {', '.join(_TASKS)}")
    if (task == "binary") != (channels == 1):
        raise CheckpointRefused(f"a {task} model does not have {channels} output channels")
    return task  # type: ignore[return-value]


def classes_of(text: str | None, channels: int, task: Task) -> tuple[ClassSpec, ...]:
    """Named classes with colours; made-up names where none are given. Raises TrainingError."""
    if text is None:
        names = ["background"] if task == "multiclass" else []
        names += [f"class {i}" for i in range(len(names), channels)]
        return tuple(ClassSpec(n, colour_of(i, task)) for i, n in enumerate(names))
    found = []
    for index, part in enumerate(text.split(",")):
        match = _CLASS.match(part.strip())
        if match is None:
            raise TrainingError(f"class `{part}` is not `name` or `name:#rrggbb`")
        colour = match["colour"]
        found.append(
            ClassSpec(
                match["name"].strip(),
                (int(colour[:2], 16), int(colour[2:4], 16), int(colour[4:], 16))
                if colour
                else colour_of(index, task),
            )
        )
    if len(found) != channels:
        raise TrainingError(f"{len(found)} class names for {channels} output channels")
    return tuple(found)


def colour_of(index: int, task: Task) -> tuple[int, int, int]:
    """Colours that differ from each other: steps of the golden angle round the hue circle."""
    if task == "multiclass" and index == 0:
        return (0, 0, 0)
    r, g, b = colorsys.hsv_to_rgb(index * 0.381966 % 1.0, 0.75, 0.95)
    return (round(r * 255), round(g * 255), round(b * 255))


def _card(
    name: str, checkpoint: Path, found: Recognised, recipe: Recipe, licence: str
) -> str:
    classes = ", ".join(c.name for c in recipe.classes)
    return (
        f"# {name}\n\n"
        f"Imported from `{checkpoint.name}`: {found.family} ({found.dialect}).\n\n"
        f"- Architecture: {found.architecture}\n"
        f"- Task: {recipe.task}; classes: {classes}\n"
        f"- Licence: {licence}\n\n"
        "What it was trained on and how it scores is not known to the file. Check it on your own pictures\n"
        "before you rely on it.\n"
    )
