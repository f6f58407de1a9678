"""All that decides a run, as plain values: what `run.json` holds and `--resume` compares."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from app.architectures import base as architectures
from app.architectures.initialise import SCHEMES, TRANSPOSED_SCHEMES
from app.errors import TrainingError
from app.training.crops import CropPlan
from app.training.examples import Reading
from app.training.losses import PAPER, Objective
from app.training.schedule import SCHEDULES

# In a run's folder: its plan, and all that it needs to go on.
DESCRIPTION, LAST = "run.json", "last.pt"
# What may differ between a run and its resumption without changing a number of it.
_FREE = ("out", "report", "save", "workers", "memory", "charts")


@dataclass(frozen=True, slots=True)
class Plan:
    """All that decides a run; the same plan on the same machine gives the same curve.

    `data` maps a place to its share of the crops. Without `validate`, `held_back` of the pictures
    are scored on instead of trained on, in groups that `group` finds in their names. `steps` counts
    optimiser steps of `accumulate` batches of `batch` crops. The encoder learns at `encoder_rate`
    times `rate`, and not at all for the first `freeze` steps. `average` is the longest memory of
    the moving average of the weights. Larger pictures are scaled down to `longest_side`, in
    training and ever after. `half`: bfloat16 where it is safe. `style_mix`: how often crops lend
    each other their style. `memory`: bytes of pictures kept decoded.
    """

    data: Mapping[str, float]
    out: str
    validate: tuple[str, ...] = ()
    reading: Reading = field(default_factory=Reading)
    held_back: float = 0.15
    group: str | None = None
    skip_bad: bool = False
    architecture: str = "ternausnet11"
    parameters: Mapping[str, Any] = field(default_factory=dict)
    encoder: str = "imagenet"
    start: str | None = None
    scheme: str = "he"
    transposed: str = "bilinear"
    freeze: int = 0
    steps: int = 1000
    batch: int = 8
    accumulate: int = 1
    rate: float = 3e-4
    encoder_rate: float = 0.3
    decay: float = 1e-4
    warmup: int = 40
    schedule: str = "cosine"
    clip: float = 5.0
    average: float = 0.99
    loss: Mapping[str, float] = field(default_factory=lambda: dict(PAPER))
    class_weights: tuple[float, ...] = ()
    crop: CropPlan = field(default_factory=CropPlan)
    style_mix: float = 0.0
    half: bool = False
    seed: int = 1
    report: int = 10
    save: int = 25
    score: int = 150
    longest_side: int | None = None
    workers: int = 1
    memory: int = 4 * 2**30
    charts: bool = True

    def check(self) -> None:
        """Raise TrainingError (or EngineError, for an architecture) for what cannot be."""
        architecture = architectures.get(self.architecture)
        architecture.complete(self.parameters)
        Objective(self.loss, class_weights=self.class_weights)
        for name, value, known in (
            ("initialisation", self.scheme, SCHEMES),
            ("initialisation of transposed convolutions", self.transposed, TRANSPOSED_SCHEMES),
            ("schedule", self.schedule, tuple(SCHEDULES)),
        ):
            if value not in known:
                raise TrainingError(f"unknown {name} `{value}`; known: {', '.join(known)}")
        if self.crop.size % architecture.stride:
            raise TrainingError(
                f"a crop of {self.crop.size} is not a multiple of {architecture.stride}, "
                f"the stride of `{self.architecture}`"
            )
        if not 0 <= self.style_mix <= 1:
            raise TrainingError(f"a share of mixed styles is from 0 to 1, not {self.style_mix:g}")
        if any(share <= 0 for share in self.data.values()):
            raise TrainingError("a share of the data is above 0")
        if not 0 < self.held_back < 1:
            raise TrainingError(f"`held_back` is a share between 0 and 1, not {self.held_back}")
        if self.longest_side is not None and self.longest_side < 32:
            raise TrainingError(f"`longest_side` is at least 32, not {self.longest_side}")
        for name in ("steps", "batch", "accumulate", "report", "save", "score"):
            if getattr(self, name) < 1:
                raise TrainingError(f"`{name}` is at least 1, not {getattr(self, name)}")

    def as_json(self) -> dict[str, Any]:
        """Plain values, as they come back from a file."""
        found: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        return found

    def require_same(self, path: Path) -> None:
        """Raise TrainingError where the run described at `path` is not this one."""
        try:
            then = json.loads(path.read_text())["plan"]
        except (OSError, ValueError, KeyError) as exc:
            raise TrainingError(f"`{path}` does not describe a run: {exc!r}") from exc
        now = self.as_json()
        changed = [key for key in now if key not in _FREE and then.get(key) != now[key]]
        # The order of places decides which crop is which, and equality of mappings ignores it.
        if list(then.get("data", ())) != list(now["data"]) and "data" not in changed:
            changed.append("data")
        if changed:
            words = ", ".join(f"`{k}` was {then.get(k)!r}, is {now[k]!r}" for k in changed)
            raise TrainingError(
                f"this is not the run in `{path.parent}`: {words}\n"
                "hint: give the same options, or another folder"
            )
