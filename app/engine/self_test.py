"""A model is ready only when its own sample picture gave its own mask on this device."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from app.engine.agreement import EXACT, TOLERANCES, Agreement, compare, planes_of
from app.engine.base import Engine
from app.errors import SelfTestFailed
from app.types import Pixels


def self_test(
    engine: Engine,
    pixels: Pixels,
    expected: NDArray[Any],
    *,
    top: int = 0,
    left: int = 0,
) -> Agreement:
    """Run the model's sample and compare: at the model's own threshold, batch of one.

    `pixels`: (H, W, 3) uint8, decoded and padded. `expected`: the model's mask, (C, h, w) bool, or
    for `multiclass` (h, w) uint8 labels; it may be smaller than the tile, then it begins at row
    `top`, column `left` of it. Raises SelfTestFailed with the numbers, and whatever `infer` raises.
    """
    spec = engine.spec
    thresholds = np.array([spec.threshold], np.float32)
    # Prepared first: what is tested is the way that hot shapes take.
    engine.prepare(pixels.shape[0], pixels.shape[1], 1)
    result = engine.infer(pixels[None], thresholds)
    if not result.finite.all():
        raise SelfTestFailed(f"{spec.label} gave NaN or infinity for its own sample picture")
    if spec.task == "multiclass":
        classes = np.arange(spec.channels).reshape(-1, 1, 1)
        expected = np.asarray(expected)[None] == classes
    height, width = expected.shape[-2:]
    found = planes_of(result, spec.channels)[0, :, top : top + height, left : left + width]
    if found.shape != expected.shape:
        raise SelfTestFailed(
            f"the sample mask of {spec.label} has shape {expected.shape}, "
            f"its sample picture gives {found.shape}"
        )
    agreement = compare(found, expected.astype(np.bool_, copy=False))
    tolerance = TOLERANCES.get(engine.describe()["precision"], EXACT)
    if not tolerance.accepts(agreement):
        raise SelfTestFailed(
            f"{spec.label} did not give its own mask for its sample picture: "
            f"{agreement.changed:.3%} of the pixels differ (at most {tolerance.changed:.2%}), "
            f"intersection over union {agreement.iou:.4f} (at least {tolerance.iou})"
        )
    return agreement
