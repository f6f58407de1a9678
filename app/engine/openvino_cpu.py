"""The CPU engine: OpenVINO, one stream on all cores. It imports no torch once a model is converted.

One compiled model serves every tile shape. Measured with OpenVINO 2026.4 on 2 cores of x86 with
bfloat16, TernausNet-11, batch of one: at 256, 512 and 1024 pixels square a dynamic shape runs as
fast as a static one (within the noise of 5 %), also when three shapes take turns; the first tile of
a new shape costs 0.02 to 0.2 s more than the second; compiling takes 0.15 to 0.3 s either way. A
static model per hot shape would give nothing and hold its own copy of the weights (about 100 MB).

What has to be bounded is memory: each new shape leaves about 4 MB of kernels behind, and the
working memory stays at that of the largest tile (2.2 GB after 2048 x 2048). See SHAPES and LARGE.
"""

from __future__ import annotations

import contextlib
import tempfile
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from app.engine.base import FromHost, Precision, check_batch
from app.engine.conversion import converted, quantised
from app.engine.cores import quota_cores
from app.engine.faults import verdict
from app.engine.openvino_library import openvino
from app.errors import EngineError, InferenceFailed
from app.types import Inference, ModelSpec, Pixels

# What is not quantised in int8 is so little that bfloat16 would not make it faster.
HINTS: Mapping[Precision, str] = {"float32": "f32", "bfloat16": "bf16", "int8": "f32"}
# Distinct batch shapes before the model is compiled afresh: 64 x 4 MB of kernels, then 0.2 s.
SHAPES = 64
# Working memory of a batch of more pixels than this is given back when one of at most a quarter of
# them comes (0.16 s); below it lies in the noise of the weights.
LARGE = 1024 * 1024


def device_name() -> str:
    """The processor, as OpenVINO calls it."""
    return str(openvino.Core().get_property("CPU", "FULL_DEVICE_NAME"))


def precisions() -> tuple[Precision, ...]:
    """What this processor computes natively."""
    able = openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    found: list[Precision] = ["float32"]
    if "BF16" in able:
        found.append("bfloat16")
    if "INT8" in able:
        found.append("int8")
    return tuple(found)


class OpenVinoEngine(FromHost):
    """A model on the CPU through OpenVINO. See `app.engine.base` for the contract."""

    def __init__(
        self,
        spec: ModelSpec,
        *,
        precision: Precision,
        threads: int = 0,
        batch_sizes: tuple[int, ...] = (1,),
        cache_dir: Path | None = None,
        beside: bool = False,
        sample: Pixels | None = None,
    ) -> None:
        """Convert or take from the cache, and compile. Raises ModelDamaged and EngineError.

        `beside`: another engine serves meanwhile and goes first. `sample`, (H, W, 3) uint8: for
        int8, the model's own picture, which says what numbers its layers meet.
        """
        if precision not in precisions():
            raise EngineError(
                f"this processor ({device_name()}) does not compute in {precision}; "
                f"it offers: {', '.join(precisions())}"
            )
        self.spec = spec
        self.batch_sizes = batch_sizes
        self.precision = precision
        self.trials: Mapping[str, Any] = {}
        self._lock = threading.Lock()
        self._device_name = device_name()
        self._seen: set[tuple[int, ...]] = set()
        self._largest = 0
        self._settings: dict[str, Any] = {
            "PERFORMANCE_HINT": "LATENCY",
            "NUM_STREAMS": 1,
            "INFERENCE_PRECISION_HINT": HINTS[precision],
        }
        # Unsaid, OpenVINO takes every core it sees.
        cores = threads or quota_cores()
        if cores:
            self._settings["INFERENCE_NUM_THREADS"] = cores
        self._runtime = openvino.Core()
        self._compiled: Any = None
        self._request: Any = None
        with contextlib.ExitStack() as stack:
            if cache_dir is None:
                cache_dir = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            try:
                if precision == "int8":
                    path = quantised(spec, cache_dir, sample, beside=beside)
                else:
                    path = converted(spec, cache_dir, beside=beside)
                self._model: Any = self._runtime.read_model(path)
                self._compile()
            except RuntimeError as exc:
                raise EngineError(f"OpenVINO cannot place {spec.label}: {exc}") from exc

    def infer(
        self, pixels: Pixels, thresholds: NDArray[np.float32], *, probability: bool = False
    ) -> Inference:
        check_batch(self.spec, pixels, thresholds)
        with self._lock:
            mask, p, total = self._run(pixels, thresholds)
            # The outputs lie in OpenVINO's memory, which the next call overwrites: packing copies
            # the mask (40 us per megapixel, against packing in the graph no difference).
            labels = self.spec.task == "multiclass"
            return Inference(
                bits=None if labels else np.packbits(mask, axis=-1),
                labels=mask.copy() if labels else None,
                probability=p.copy() if probability else None,
                finite=np.isfinite(total),
            )

    def prepare(self, height: int, width: int, batch: int) -> None:
        """Run a blank batch of a shape not seen yet; a seen one is as fast as it gets.

        It holds the engine for the time of one batch.
        """
        pixels = np.zeros((batch, height, width, 3), np.uint8)
        thresholds = np.full(batch, 0.5, np.float32)
        check_batch(self.spec, pixels, thresholds)
        with self._lock:
            if pixels.shape not in self._seen:
                self._run(pixels, thresholds)

    def describe(self) -> Mapping[str, Any]:
        compiled = self._compiled
        return {
            "backend": "openvino",
            "device": "cpu",
            "device_name": self._device_name,
            "version": openvino.get_version(),
            "precision": self.precision,
            "threads": compiled.get_property("INFERENCE_NUM_THREADS") if compiled else 0,
            "batch_sizes": self.batch_sizes,
            "trials": self.trials,
            "shapes": sorted(shape[:3] for shape in tuple(self._seen)),
        }

    def close(self) -> None:
        with self._lock:
            self._request = self._compiled = self._model = None
            self._seen.clear()

    def _compile(self) -> None:
        # Dropped first, so that two never stand in memory at once.
        self._request = self._compiled = None
        self._compiled = self._runtime.compile_model(self._model, "CPU", self._settings)
        self._request = self._compiled.create_infer_request()
        self._seen.clear()
        self._largest = 0

    def _run(self, pixels: Pixels, thresholds: NDArray[np.float32]) -> list[NDArray[Any]]:
        """Views of the three outputs, valid until the next call; the lock is held."""
        if self._model is None:
            raise InferenceFailed(f"the engine of {self.spec.label} is closed")
        count, height, width, _ = pixels.shape
        area = count * height * width
        try:
            if pixels.shape not in self._seen and len(self._seen) >= SHAPES:
                self._compile()
            elif self._largest > LARGE and area * 4 <= self._largest:
                self._compiled.release_memory()
                self._largest = 0
            self._seen.add(pixels.shape)
            self._largest = max(self._largest, area)
            inputs = [np.ascontiguousarray(pixels), np.ascontiguousarray(thresholds)]
            results = self._request.infer(inputs, share_inputs=True, share_outputs=True)
            return [results[index] for index in range(3)]
        except (RuntimeError, MemoryError) as exc:
            doing = f"infer of {count} x {height} x {width}"
            raise verdict(exc, alive=lambda: True, doing=doing) from exc
