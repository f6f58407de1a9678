"""From what a person types to a plan."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from app.engine.options import EngineOptions
from app.errors import TrainingError
from app.store.store import ModelStore
from app.training.classes import TASKS
from app.training.crops import CropPlan, crop_plan
from app.training.examples import Order, Reading
from app.training.losses import PAPER
from app.training.plan import DESCRIPTION, LAST, Plan
from app.training.precision import computes_bfloat16, half_of
from app.training.ranks import own_device
from app.types import Task

ORDERS: tuple[Order, ...] = ("F", "C")


def plan(
    *,
    data: Sequence[str],
    name: str | None,
    out: Path | None,
    validate: Sequence[str],
    classes: Sequence[str],
    task: str | None,
    ignore: int | None,
    order: str,
    upsampling: str | None,
    loss: Sequence[str],
    class_weights: Sequence[float],
    crop: int,
    augmentation: str,
    zoom: str | None,
    half: bool | None,
    **rest: Any,
) -> Plan:
    """Raises TrainingError for what is not understood. `rest`: fields of Plan, as they are.

    Without a word on `half`, a run that lies in `out` keeps its own, on whatever device it goes on.
    """
    if out is None:
        if name is None:
            raise TrainingError("a run needs `--name` (the model) or `--out` (its folder)")
        out = Path("runs") / name
    if half is None:
        half = half_of(out / DESCRIPTION) if (out / LAST).exists() else None
    return Plan(
        data=shares(data),
        out=str(out),
        validate=tuple(validate),
        reading=reading(classes=classes, task=task, ignore=ignore, order=order),
        parameters={} if upsampling is None else {"upsampling": upsampling},
        loss=weights(loss) or dict(PAPER),
        class_weights=tuple(class_weights),
        crop=_zoomed(crop_plan(augmentation, crop), zoom),
        half=computes_bfloat16(own_device()) if half is None else half,
        **rest,
    )


def _zoomed(crop: CropPlan, text: str | None) -> CropPlan:
    if text is None:
        return crop
    low, colon, high = text.partition(":")
    try:
        zoom = float(low), float(high)
    except ValueError:
        zoom = 0.0, 0.0
    if not colon or not 0 < zoom[0] <= zoom[1] < math.inf:
        raise TrainingError(f"a zoom is `LOW:HIGH`, such as 0.5:2, not `{text}`")
    return replace(crop, zoom=zoom)


def reading(*, classes: Sequence[str], task: str | None, ignore: int | None, order: str) -> Reading:
    """How to understand masks. Raises TrainingError that lists what is known."""
    wanted: Task | None = None
    if task is not None:
        if task not in TASKS:
            raise TrainingError(f"unknown task `{task}`; known: {', '.join(TASKS)}")
        wanted = task
    for known in ORDERS:
        if order == known:
            return Reading(tuple(classes), wanted, ignore, known)
    raise TrainingError(f"run lengths go F (down columns) or C (along rows), not `{order}`")


def shares(entries: Sequence[str]) -> dict[str, float]:
    """`PLACE` or `PLACE:share`; a colon that is followed by no number belongs to the place."""
    found: dict[str, float] = {}
    for entry in entries:
        place, _, share = entry.rpartition(":")
        try:
            found[place or entry] = float(share) if place else 1.0
        except ValueError:
            found[entry] = 1.0
    if len(found) < len(entries):
        raise TrainingError("a place of the data is named twice")
    return found


def weights(entries: Sequence[str]) -> Mapping[str, float]:
    """`name` or `name:weight` of a term of the loss."""
    found: dict[str, float] = {}
    for entry in entries:
        name, colon, weight = entry.partition(":")
        try:
            found[name] = float(weight) if colon else 1.0
        except ValueError as exc:
            raise TrainingError(f"loss `{entry}` is not `name` or `name:weight`") from exc
    return found


def start(label: str | None, store: ModelStore) -> str | None:
    """A weights file to go on from: itself, or that of a model in the store."""
    if label is None or Path(label).is_file():
        return label
    return str(store.resolve(label).weights)


def final(device: str, cache_dir: Path) -> EngineOptions:
    """The engine that computes the scores that are published: exact, one picture at a time."""
    return EngineOptions(
        device=device, precision="float32", batch_sizes=(1,), cache_dir=cache_dir / "engines"
    )
