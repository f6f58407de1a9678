"""How the learning rate goes: up in a short warm-up, then down by a named curve."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

# What is left of the highest rate at the end, so that the last steps still learn.
FLOOR = 0.02

# From the share of the run that is done, 0..1, to the share of the highest rate.
SCHEDULES: Mapping[str, Callable[[float], float]] = {
    "cosine": lambda done: FLOOR + (1 - FLOOR) * 0.5 * (1 + math.cos(math.pi * done)),
    "linear": lambda done: FLOOR + (1 - FLOOR) * (1 - done),
    "poly": lambda done: FLOOR + (1 - FLOOR) * (1 - done) ** 0.9,
    # As the robot-surgery nets were trained: a tenth from half-time on.
    "step": lambda done: 1.0 if done < 0.5 else 0.1,
    "constant": lambda done: 1.0,
}


def factor(schedule: str, step: int, *, steps: int, warmup: int) -> float:
    """What to multiply the highest rate by at `step`, from 0."""
    if step < warmup:
        return (step + 1) / warmup
    return SCHEDULES[schedule](min(1.0, (step - warmup) / max(1, steps - warmup)))
