"""How far two masks of the same tiles agree, and how far they must."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from app.types import Inference

Planes = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Agreement:
    """`changed`: the share of pixels that differ, of the worst class. `iou`: of the worst class."""

    changed: float
    iou: float


@dataclass(frozen=True, slots=True)
class Tolerance:
    """At most `changed` of a class's pixels differ, and its intersection over union reaches `iou`.

    Where no more than `spare` of the pixels differ the ratio is not asked: one pixel at the edge of
    an object of twenty would already cost 5 %.
    """

    changed: float
    iou: float
    spare: float = 1e-4

    def accepts(self, found: Agreement) -> bool:
        return found.changed <= self.changed and (
            found.iou >= self.iou or found.changed <= self.spare
        )


# A float32 engine differs from another by rounding alone: only pixels whose probability lies within
# about 1e-4 of the threshold may turn.
EXACT = Tolerance(changed=0.0005, iou=0.999)
# How far a model's own sample may be off its mask, by precision. bfloat16 carries 8 bits of
# mantissa, int8 has 256 values for a whole layer; a wrong channel order, mean, pad or weight costs
# far more than either.
TOLERANCES: Mapping[str, Tolerance] = {
    "float32": EXACT,
    "bfloat16": Tolerance(changed=0.005, iou=0.99, spare=5e-4),
    "int8": Tolerance(changed=0.02, iou=0.97, spare=5e-4),
}


def planes_of(inference: Inference, channels: int) -> Planes:
    """The mask of an inference as (N, C, H, W) bool, one plane per class."""
    if inference.labels is not None:
        classes = np.arange(channels, dtype=np.uint8).reshape(1, -1, 1, 1)
        equal: Planes = inference.labels[:, None] == classes
        return equal
    assert inference.bits is not None
    return np.unpackbits(inference.bits, axis=-1).view(np.bool_)


def compare(found: Planes, expected: Planes) -> Agreement:
    """Two sets of planes (..., C, H, W) bool of one shape. Raises ValueError for two shapes."""
    if found.shape != expected.shape:
        raise ValueError(f"masks of shapes {found.shape} and {expected.shape} cannot be compared")
    axes = tuple(axis for axis in range(found.ndim) if axis != found.ndim - 3)
    union = (found | expected).sum(axis=axes)
    both = (found & expected).sum(axis=axes)
    area = found.size // found.shape[-3]
    iou = np.where(union == 0, 1.0, both / np.maximum(union, 1))
    return Agreement(changed=float((union - both).max() / area), iou=float(iou.min()))
