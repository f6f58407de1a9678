"""What a picture costs, on the device and on the host: the pace that the front ends must keep."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from app.encodings import base as encodings
from app.engine.base import Engine
from app.fronts.count import Pace
from app.imaging.bounds import DecodeLimits
from app.imaging.decode import decode
from app.serving.batcher import Batcher
from app.serving.catalog import OpenModel
from app.types import Mask

# Processor seconds of a request beside decoding and encoding: HTTP, queueing, hand-over
# (`python -m benchmarks.frontends --sides 64`: 0.7 to 1.1 ms, whose pixels cost next to nothing).
REQUEST_S = 0.0009
_ROUNDS = 3


def measure(model: OpenModel, batcher: Batcher, max_batch: int) -> Pace:
    """Time the model's own sample, its picture on the device in the largest batch, and its picture
    and mask on the host. Blocking; while nothing else is computed.
    """
    assert model.sample is not None
    sizes = model.engine.batch_sizes
    size = max(n for n in sizes if n <= max(max_batch, sizes[0]))
    pixels = np.repeat(model.sample.pixels[None], size, axis=0)
    best = math.inf

    def run(engine: Engine) -> None:
        nonlocal best
        thresholds = np.full(size, model.spec.threshold, np.float32)
        for _ in range(_ROUNDS):
            begun = time.perf_counter()
            engine.infer(pixels, thresholds)
            best = min(best, time.perf_counter() - begun)

    batcher.exclusively(run, model.engine)
    return Pace(rate=size / best, host_s=REQUEST_S + _host_s(model))


def _host_s(model: OpenModel) -> float:
    """Processor seconds to decode the sample picture and to encode its mask."""
    assert model.sample is not None
    spec, expected = model.spec, model.sample.expected
    data = Path(spec.sample_picture).read_bytes()
    if spec.task == "multiclass":
        height, width = expected.shape
        labels = expected.astype(np.uint8)
        mask = Mask(height, width, spec.task, spec.classes, labels=labels)
    else:
        mask = Mask.from_planes(expected.astype(np.bool_), spec.task, spec.classes)
    usual = encodings.get(encodings.DEFAULT)
    able = usual.expresses(spec.task, classes=spec.channels)
    encoding = usual if able else encodings.get("rle")
    return _processor_s(lambda: decode(data, limits=DecodeLimits()), lambda: encoding.encode(mask))


def _processor_s(*work: Callable[[], object]) -> float:
    """Processor seconds of this thread for each, the best of a few, together."""
    total = 0.0
    for job in work:
        best = math.inf
        for _ in range(_ROUNDS):
            begun = time.thread_time()
            job()
            best = min(best, time.thread_time() - begun)
        total += best
    return total
