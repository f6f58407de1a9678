"""Engines that honour the whole contract and compute nothing: what is left is everything else.

    NullEngine(spec)                                          # answers at once
    SimulatedDevice(spec, pixels_per_s=..., launch_s=...)     # takes its time, and no processor

Both answer the same mask for every tile of a shape: some large pieces with rough edges, as encoders
and clients would see them.
"""

from __future__ import annotations

import ctypes
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from app.encodings import base as encodings
from app.engine.base import check_batch
from app.types import ClassSpec, Halo, Inference, Mask, ModelSpec, Pixels

STRIDE = 32
_SET_TIMER_SLACK = 29  # prctl(2)


def blobs(height: int, width: int) -> NDArray[np.uint8]:
    """(1, height, width / 8) packed bits: pieces of about an eighth of the side, a third set."""
    random = np.random.default_rng(7)
    coarse = random.integers(0, 256, (height // 64 + 2, width // 64 + 2), dtype=np.uint8)
    field = np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))
    rough = random.integers(0, 8, (height, width), dtype=np.uint8)
    bits: NDArray[np.uint8] = np.packbits(field.astype(np.int16) + rough > 160, axis=1)[None]
    return bits


def nothing_spec(folder: Path) -> ModelSpec:
    """A binary model without weights, with the sample that `NullEngine` answers; files are written
    to `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    side = 64
    picture, mask = folder / "sample.png", folder / "sample.mask.png"
    Image.new("RGB", (side, side), (90, 120, 60)).save(picture)
    spec = ModelSpec(
        name="nothing",
        version=1,
        architecture="none",
        parameters={"classes": 1},
        task="binary",
        classes=(ClassSpec("piece", (255, 255, 255)),),
        mean=(0.485, 0.456, 0.406),
        std=(0.229, 0.224, 0.225),
        stride=STRIDE,
        halo=Halo(192, 192, 192, 192),
        threshold=0.5,
        precision="float32",
        digest="",
        weights_sha256="",
        weights="",
        sample_picture=str(picture),
        sample_mask=str(mask),
    )
    planes = np.unpackbits(blobs(side, side), axis=2).astype(np.bool_)
    mask.write_bytes(encodings.get("png").encode(Mask.from_planes(planes, "binary", spec.classes)))
    return spec


class NullEngine:
    """Answers any batch at once. See `app.engine.base` for the contract."""

    def __init__(
        self, spec: ModelSpec, *, batch_sizes: tuple[int, ...] = (1, 2, 4, 8, 16, 32)
    ) -> None:
        self._spec = spec
        self._batch_sizes = batch_sizes
        self._answers: dict[tuple[int, int, int, bool], Inference] = {}
        self._staged: dict[tuple[int, ...], Pixels] = {}

    @property
    def spec(self) -> ModelSpec:
        return self._spec

    @property
    def batch_sizes(self) -> tuple[int, ...]:
        return self._batch_sizes

    def stage(self, tiles: Sequence[Pixels]) -> Pixels:
        """A batch of their shape, and nothing copied: bringing pixels to a device is its own work,
        and nobody looks at these."""
        shape = len(tiles), *tiles[0].shape
        found = self._staged.get(shape)
        if found is None:
            found = self._staged[shape] = np.zeros(shape, np.uint8)
        return found

    def infer(
        self, pixels: Pixels, thresholds: NDArray[np.float32], *, probability: bool = False
    ) -> Inference:
        check_batch(self._spec, pixels, thresholds)
        count, height, width, _ = pixels.shape
        key = count, height, width, probability
        found = self._answers.get(key)
        if found is None:
            found = self._answers[key] = self._answer(*key)
        return found

    def _answer(self, count: int, height: int, width: int, probability: bool) -> Inference:
        """Of any such batch. One array for all of them: nobody may write to it."""
        bits = blobs(height, width)
        bits.setflags(write=False)
        shown = None
        if probability:
            shown = np.broadcast_to(np.uint8(128), (count, 1, height, width))
        return Inference(
            bits=np.broadcast_to(bits, (count, *bits.shape)),
            labels=None,
            probability=shown,
            finite=np.ones(count, np.bool_),
        )

    def prepare(self, height: int, width: int, batch: int) -> None:
        """Nothing gets faster."""

    def describe(self) -> Mapping[str, Any]:
        return {"backend": "none", "device": "none", "precision": "exact"}

    def close(self) -> None:
        self._answers.clear()
        self._staged.clear()


class SimulatedDevice(NullEngine):
    """Takes `launch_s` for a batch and a second for `pixels_per_s` pixels, asleep all the while.

    `busy_s` is the time that the device would have worked: what a perfect scheduler needs.
    """

    def __init__(
        self,
        spec: ModelSpec,
        *,
        pixels_per_s: float,
        launch_s: float = 0.0,
        batch_sizes: tuple[int, ...] = (1, 2, 4, 8, 16, 32),
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        super().__init__(spec, batch_sizes=batch_sizes)
        self._pixels_per_s = pixels_per_s
        self._launch_s = launch_s
        self._sleep = sleep
        self._punctual = threading.local()
        self.busy_s = 0.0

    def infer(
        self, pixels: Pixels, thresholds: NDArray[np.float32], *, probability: bool = False
    ) -> Inference:
        begun = time.perf_counter()
        found = super().infer(pixels, thresholds, probability=probability)
        needs = self._launch_s + pixels.shape[0] * pixels[0, ..., 0].size / self._pixels_per_s
        self.busy_s += needs
        self._wake_in_time()
        left = begun + needs - time.perf_counter()
        if left > 0:
            self._sleep(left)
        return found

    def describe(self) -> Mapping[str, Any]:
        return {
            **super().describe(),
            "backend": "simulated",
            "pixels_per_s": self._pixels_per_s,
            "launch_s": self._launch_s,
        }

    def _wake_in_time(self) -> None:
        """Linux lets a thread oversleep by 50 us unless told otherwise; a device does not."""
        if sys.platform == "linux" and not getattr(self._punctual, "told", False):
            ctypes.CDLL(None).prctl(_SET_TIMER_SLACK, 1, 0, 0, 0)
            self._punctual.told = True
