"""The contract of an engine.

    engine.stage(tiles) -> pixels
    engine.infer(pixels, thresholds, probability=False) -> Inference

`pixels` (N, H, W, 3) uint8 RGB, H and W multiples of the model's stride; `thresholds` (N,) float32.
Normalisation, net, activation and threshold (strictly greater) or argmax happen on the device; bits
come back, and one byte per pixel and class where `probability` is asked for. Results belong to the
caller: no later call writes into them. `infer` is for one thread at a time; `stage`, `prepare`,
`describe` and `close` may come from another meanwhile. An engine never decodes, pads, tiles, queues
or speaks HTTP.

`infer` and `prepare` raise DeviceOutOfMemory when the device has no memory for this batch (the
caller may try a smaller one), EngineLost when the device is beyond help (the process should end),
and InferenceFailed for anything else.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from app.errors import InferenceFailed
from app.types import Inference, ModelSpec, Pixels

Precision = Literal["float32", "bfloat16", "int8"]
# The device for oneself, as long as the context lasts: how engines that share one get along.
Turn = Callable[[], AbstractContextManager[None]]


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

    def stage(self, tiles: Sequence[Pixels]) -> Pixels:
        """Tiles of one shape, (H, W, 3) uint8, as a batch in memory that suits this engine; on its
        way to the device already, where that takes time of its own.

        For `infer`, which takes any other memory too: the batch may be given to it whole, in parts
        or not at all. Raises MemoryError.
        """
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


class FromHost:
    """An engine that reads a batch wherever it lies."""

    def stage(self, tiles: Sequence[Pixels]) -> Pixels:
        """See `Engine`; a single tile in one piece is not copied."""
        return stacked(tiles)


def stacked(tiles: Sequence[Pixels]) -> Pixels:
    """(N, H, W, 3), in one piece; a single tile that is so already is not copied."""
    if len(tiles) == 1:
        return np.ascontiguousarray(tiles[0])[None]
    return np.stack(tiles)


def check_batch(spec: ModelSpec, pixels: Pixels, thresholds: NDArray[np.float32]) -> None:
    """Raises InferenceFailed that says which shape or type would have been right."""
    fits = pixels.ndim == 4 and pixels.shape[3] == 3 and min(pixels.shape) > 0
    if not fits or pixels.dtype != np.uint8:
        raise InferenceFailed(
            f"an engine takes pixels (N, H, W, 3) uint8, not {pixels.shape} {pixels.dtype}"
        )
    count, height, width, _ = pixels.shape
    if height % spec.stride or width % spec.stride:
        raise InferenceFailed(
            f"tile of {height} x {width}: both sides must be multiples of {spec.stride}, "
            f"the stride of {spec.label}"
        )
    if thresholds.shape != (count,) or thresholds.dtype != np.float32:
        raise InferenceFailed(
            f"{count} tiles need thresholds ({count},) float32, "
            f"not {thresholds.shape} {thresholds.dtype}"
        )
