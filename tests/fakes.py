"""Fakes that honour the real contracts: a clock that moves when told, an engine that obeys
orders.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from app.engine.base import FromHost
from app.errors import InferenceFailed
from app.types import ClassSpec, Halo, Inference, ModelSpec, Pixels


class FakeClock:
    """Stands still until `advance`; waiting ends by notification or when time has come."""

    def __init__(self) -> None:
        self._now = 1000.0
        self._conditions: set[threading.Condition] = set()
        self._lock = threading.Lock()

    def now(self) -> float:
        return self._now

    def wait(self, condition: threading.Condition, until: float | None) -> None:
        with self._lock:
            self._conditions.add(condition)
        if until is not None and until <= self._now:
            return
        condition.wait()

    def advance(self, seconds: float) -> None:
        self._now += seconds
        with self._lock:
            conditions = list(self._conditions)
        for condition in conditions:
            with condition:
                condition.notify_all()


def model_spec(**changes: Any) -> ModelSpec:
    """A binary model of stride 32 that no file stands behind."""
    values: dict[str, Any] = {
        "name": "fake",
        "version": 1,
        "architecture": "ternausnet11",
        "parameters": {"classes": 1},
        "task": "binary",
        "classes": (ClassSpec("bright", (255, 0, 0)),),
        "mean": (0.485, 0.456, 0.406),
        "std": (0.229, 0.224, 0.225),
        "stride": 32,
        "halo": Halo(32, 32, 32, 32),
        "threshold": 0.5,
        "precision": "auto",
        "digest": "0" * 64,
        "weights": "",
        "weights_sha256": "",
        "sample_picture": "",
        "sample_mask": "",
    }
    return ModelSpec(**{**values, **changes})


class FakeEngine(FromHost):
    """Says of every pixel whether its red value, out of 255, is above the threshold.

    Local and exact, so every way of tiling and batching must give the same mask. `before` is called
    with the batch before it is computed: it may wait, raise or look.
    """

    def __init__(
        self,
        spec: ModelSpec | None = None,
        *,
        sizes: tuple[int, ...] = (1, 2, 4, 8),
        before: Callable[[Pixels], None] = lambda pixels: None,
    ) -> None:
        self._spec = spec or model_spec()
        self._sizes = sizes
        self.before = before
        self.batches: list[tuple[int, ...]] = []
        self.closed = False

    @property
    def spec(self) -> ModelSpec:
        return self._spec

    @property
    def batch_sizes(self) -> tuple[int, ...]:
        return self._sizes

    def infer(
        self, pixels: Pixels, thresholds: NDArray[np.float32], *, probability: bool = False
    ) -> Inference:
        if self.closed:
            raise InferenceFailed(f"the engine of {self._spec.label} is closed")
        assert pixels.dtype == np.uint8
        assert pixels.flags.c_contiguous
        assert pixels.shape[1] % self._spec.stride == pixels.shape[2] % self._spec.stride == 0
        self.batches.append(tuple(int(p[0, 0, 0]) for p in pixels))
        self.before(pixels)
        red = pixels[..., 0].astype(np.float32) / 255
        planes = (red > thresholds[:, None, None])[:, None]
        return Inference(
            bits=np.packbits(planes, axis=3),
            labels=None,
            probability=pixels[..., 0][:, None].copy() if probability else None,
            finite=np.ones(len(pixels), np.bool_),
        )

    def prepare(self, height: int, width: int, batch: int) -> None:
        pass

    def describe(self) -> Mapping[str, Any]:
        return {"backend": "fake", "device": "none", "precision": "exact"}

    def close(self) -> None:
        self.closed = True
