"""The contract of an engine.

    engine.infer(pixels, thresholds, probability=False) -> Inference

`pixels` (N, H, W, 3) uint8 RGB, H and W multiples of the model's stride; `thresholds` (N,) float32.
Normalisation, net, activation and threshold (strictly greater) or argmax happen on the device; bits
come back, and one byte per pixel and class where `probability` is asked for. An engine is used by
one thread at a time. It never decodes, pads, tiles, queues or speaks HTTP.

`infer` raises DeviceOutOfMemory when the device has no memory for this batch (the caller may try a
smaller one), EngineLost when the device is beyond help (the process should end), and
InferenceFailed for anything else.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from app.types import Inference, ModelSpec, Pixels


@runtime_checkable
class Engine(Protocol):
    """A model on a device."""

    @property
    def spec(self) -> ModelSpec:
        """The model that this engine serves."""
        ...

    @property
    def batch_sizes(self) -> tuple[int, ...]:
        """Batch sizes worth launching, ascending; the batcher fills up to the last."""
        ...

    def infer(
        self, pixels: Pixels, thresholds: NDArray[np.float32], *, probability: bool = False
    ) -> Inference:
        """Run one batch; blocks the calling thread, releases the GIL while the device works."""
        ...

    def prepare(self, height: int, width: int, batch: int) -> None:
        """Make the next `infer` of this shape fast (compile, capture); harmless to repeat."""
        ...

    def describe(self) -> Mapping[str, Any]:
        """For people: backend, device, precision, settings found, shapes prepared."""
        ...

    def close(self) -> None:
        """Give the device memory back. Idempotent."""
        ...
