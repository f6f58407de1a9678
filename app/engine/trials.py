"""Settings that a machine can find: precision and batch sizes, by trying them."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext

import numpy as np

from app.engine.agreement import Agreement, Tolerance, compare, planes_of
from app.engine.base import Engine, Precision, Turn
from app.errors import DeviceOutOfMemory
from app.types import Pixels

# bfloat16 is taken where at most one pixel in a thousand turns against float32 on the sample; int8,
# which an operator must ask for, where the masks agree to an IoU of 0.98.
GATES: Mapping[Precision, Tolerance] = {
    "bfloat16": Tolerance(changed=0.001, iou=0.999),
    "int8": Tolerance(changed=0.02, iou=0.98),
}
# A change of setting must save a tenth; less is noise, and a larger batch makes others wait.
WORTH = 0.9
ROUNDS = 2
SIDE = 256
# How long one batch takes an engine.
Seconds = Callable[[Engine, Pixels], float]


def _seconds(engine: Engine, pixels: Pixels) -> float:
    thresholds = np.full(len(pixels), engine.spec.threshold, np.float32)
    began = time.perf_counter()
    engine.infer(pixels, thresholds)
    return time.perf_counter() - began


def _in_turn(seconds: Seconds, turn: Turn) -> Seconds:
    """The same, with the device for itself."""

    def timed(engine: Engine, pixels: Pixels) -> float:
        with turn():
            return seconds(engine, pixels)

    return timed


def precision_pays(
    full: Engine,
    reduced: Engine,
    sample: Pixels,
    *,
    gate: Tolerance = GATES["bfloat16"],
    ratio: float | None = None,
    seconds: Seconds = _seconds,
    turn: Turn = nullcontext,
) -> tuple[bool, Agreement, float]:
    """Whether `reduced` may serve for `full`: it is faster, and the masks of `sample` agree.

    `sample`: (H, W, 3) uint8. `gate`: how far masks may differ. `ratio` of times, if it is known;
    otherwise both are timed by turns. `turn` is taken for each batch. Also gives the agreement and
    the ratio.
    """
    thresholds = np.array([full.spec.threshold], np.float32)
    masks = []
    finite = True
    for engine in (full, reduced):
        with turn():
            engine.prepare(sample.shape[0], sample.shape[1], 1)
        with turn():
            result = engine.infer(sample[None], thresholds)
        finite = finite and bool(result.finite.all())
        masks.append(planes_of(result, full.spec.channels))
    agreement = compare(masks[1], masks[0])
    if ratio is None:
        timed = _in_turn(seconds, turn)
        pairs = [(timed(full, sample[None]), timed(reduced, sample[None])) for _ in range(ROUNDS)]
        ratio = min(pair[1] for pair in pairs) / min(pair[0] for pair in pairs)
    return finite and gate.accepts(agreement) and ratio <= WORTH, agreement, ratio


def batches_that_pay(
    engine: Engine,
    candidates: Sequence[int],
    *,
    seconds: Seconds = _seconds,
    turn: Turn = nullcontext,
) -> tuple[int, ...]:
    """The sizes of `candidates` (ascending) at which a tile costs less than at the size before.

    Tried on blank tiles of 256 x 256, rounded up to the stride; stops at the first that does not.
    `turn` is taken for each batch.
    """
    timed = _in_turn(seconds, turn)
    side = -(-SIDE // engine.spec.stride) * engine.spec.stride
    kept = [candidates[0]]
    for size in candidates[1:]:
        try:
            for count in (kept[-1], size):
                with turn():
                    engine.prepare(side, side, count)
            costs: list[tuple[float, float]] = []
            for _ in range(ROUNDS):
                few, many = (np.zeros((n, side, side, 3), np.uint8) for n in (kept[-1], size))
                costs.append((timed(engine, few) / len(few), timed(engine, many) / len(many)))
        except DeviceOutOfMemory:
            break
        if min(cost[1] for cost in costs) > WORTH * min(cost[0] for cost in costs):
            break
        kept.append(size)
    return tuple(kept)
