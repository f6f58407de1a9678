"""A published checkpoint into the store: recognised, converted, proven on a sample picture."""

from __future__ import annotations

import tempfile
from datetime import date
from pathlib import Path

import torch
from safetensors.torch import save_file

from app.architectures.checkpoints import Recognised, canonical, read
from app.store.store import ModelStore
from app.training.classes import classes_of, task_of
from app.training.publishing import Recipe, publish


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
    longest_side: int | None,
    licence: str,
    command: str,
) -> str:
    """Publish a foreign file as the next version of `name`; its label.

    `classes` names the channels, comma separated, each with an optional `:#rrggbb`; `task`,
    `interpolation`, `align_corners` and `longest_side` say what no file can tell. Raises
    CheckpointError and the store's errors.
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
        longest_side=longest_side,
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
                "date": date.today().isoformat(),
                "frameworks": {"torch": torch.__version__},
                "note": "; ".join([f"{found.family} ({found.dialect})", *found.notes]),
            },
            scores=[],
            # A foreign model keeps the precision that it came with.
            half=all(v.dtype == torch.float16 for v in tensors.values() if v.is_floating_point()),
        )
    return f"{name}@{version}"


def _card(name: str, checkpoint: Path, found: Recognised, recipe: Recipe, licence: str) -> str:
    classes = ", ".join(c.name for c in recipe.classes)
    return (
        f"# {name}\n\n"
        f"Imported from `{checkpoint.name}`: {found.family} ({found.dialect}).\n\n"
        f"- Architecture: {found.architecture}\n"
        f"- Task: {recipe.task}; classes: {classes}\n"
        f"- Licence: {licence}\n\n"
        "What it was trained on and how it scores is not known to the file. Check it on your own\n"
        "pictures before you rely on it.\n"
    )
