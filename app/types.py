"""Frozen values handed between rooms. numpy only: no torch, no codec, no framework.

Words: a *picture* is decoded pixels as a person would see them; a *tile* is a piece of one exact
shape, the unit the device works on; a *mask* is what the net says of a picture, at its own size.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]
Task = Literal["binary", "multilabel", "multiclass"]
# Of a device with its models. `restarting`: its process ended and is being started again.
State = Literal["starting", "restarting", "ok", "idle", "failing", "stalled", "lost"]


@dataclass(frozen=True, slots=True)
class Halo:
    """How far an output pixel looks beyond its own place, in pixels, each a multiple of the
    stride.
    """

    top: int
    left: int
    bottom: int
    right: int


@dataclass(frozen=True, slots=True)
class Picture:
    """Decoded pixels, turned as a person would see them.

    `pixels`: (H, W, 3) uint8 RGB, C-contiguous. `orientation` is the EXIF value that was undone (1
    where there was none). `format` is the name of the file format, lower case.
    """

    pixels: Pixels
    orientation: int = 1
    format: str = "raw"

    @property
    def height(self) -> int:
        return int(self.pixels.shape[0])

    @property
    def width(self) -> int:
        return int(self.pixels.shape[1])


@dataclass(frozen=True, slots=True)
class ClassSpec:
    """One class of a model: its name and the colour (R, G, B) that shows it."""

    name: str
    colour: tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """Everything that an engine and the way of a picture need to know of a model.

    `classes` lists what the net has output channels for. For `multiclass` channel 0 is the
    background. `mean` and `std` apply to RGB in 0..1. `stride` divides every tile side; `halo`
    makes tiling exact. `digest` (sha256 hex) names everything that changes an answer: weights,
    architecture, parameters, task, classes, input, threshold, precision. `weights` (of
    `weights_sha256`) and `sample` are local files; the sample is a picture and the mask PNG that
    the model must give. A picture with a longer side than `longest_side` is shown to the net scaled
    down to it.
    """

    name: str
    version: int
    architecture: str
    parameters: Mapping[str, Any]
    task: Task
    classes: tuple[ClassSpec, ...]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    stride: int
    halo: Halo
    threshold: float
    precision: str
    digest: str
    weights: str
    weights_sha256: str
    sample_picture: str
    sample_mask: str
    fit: Literal["pad"] = "pad"
    longest_side: int | None = None

    @property
    def label(self) -> str:
        """`name@version`, as users write it."""
        return f"{self.name}@{self.version}"

    @property
    def local(self) -> bool:
        """Whether distant pixels are independent, so that tiles give the whole's numbers.

        Interpolation with aligned corners depends on the size of the whole map.
        """
        return not self.parameters.get("align_corners", False)

    @property
    def channels(self) -> int:
        """Output channels of the net."""
        return len(self.classes)


@dataclass(frozen=True)
class Mask:
    """What the net says of one picture, at the picture's own size.

    `bits`: (C, H, ceil(W / 8)) uint8, rows packed from the most significant bit, padding bits 0;
    one plane per class, for `binary` and `multilabel`. `labels`: (H, W) uint8 class indices, for
    `multiclass`. Exactly one of the two is set. `probability`: (C, H, W) uint8, round(255 p), where
    it was asked for.
    """

    height: int
    width: int
    task: Task
    classes: tuple[ClassSpec, ...]
    bits: NDArray[np.uint8] | None = None
    labels: NDArray[np.uint8] | None = None
    probability: NDArray[np.uint8] | None = None
    model: str = ""
    version: int = 0
    threshold: float | None = None
    _planes: dict[int, NDArray[np.bool_]] = field(default_factory=dict, repr=False, compare=False)

    def plane(self, index: int) -> NDArray[np.bool_]:
        """The pixels of class `index`: (H, W) bool. Unpacked once and kept."""
        found = self._planes.get(index)
        if found is None:
            if self.labels is not None:
                found = self.labels == index
            else:
                assert self.bits is not None
                found = np.unpackbits(self.bits[index], axis=1, count=self.width).view(np.bool_)
            self._planes[index] = found
        return found

    @cached_property
    def foreground(self) -> tuple[int, ...]:
        """Indices of the classes that an answer lists: all but the background of `multiclass`."""
        return tuple(range(1 if self.task == "multiclass" else 0, len(self.classes)))

    @classmethod
    def from_planes(
        cls, planes: NDArray[np.bool_], task: Task, classes: tuple[ClassSpec, ...], **rest: Any
    ) -> Mask:
        """Pack (C, H, W) bool planes into a binary or multilabel mask."""
        _, height, width = planes.shape
        bits = np.packbits(planes, axis=2)
        return cls(height, width, task, classes, bits=bits, **rest)


@dataclass(frozen=True, slots=True)
class Inference:
    """What an engine gives back for a batch of N tiles of height H and width W.

    `bits`: (N, C, H, ceil(W / 8)) uint8 or None. `labels`: (N, H, W) uint8 or None.
    `probability`: (N, C, H, W) uint8 or None unless asked. `finite`: (N,) bool, False where the net
    gave NaN or infinity: that item failed, its neighbours did not.
    """

    bits: NDArray[np.uint8] | None
    labels: NDArray[np.uint8] | None
    probability: NDArray[np.uint8] | None
    finite: NDArray[np.bool_]

    def item(self, index: int) -> Inference:
        """The part of one tile, as a batch of one; views, nothing is copied."""
        part = slice(index, index + 1)
        return Inference(
            bits=None if self.bits is None else self.bits[part],
            labels=None if self.labels is None else self.labels[part],
            probability=None if self.probability is None else self.probability[part],
            finite=self.finite[part],
        )
