"""The common example that every format is checked with, and masks that break naive encoders.

`M` is binary, `L` a label map of it (a piece with a hole, and a lone pixel), `P` its probability.
M's last pixel is set, its first is not, and it is not symmetric: the two scan orders differ.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import strategies as st
from numpy.typing import NDArray

from app.types import ClassSpec, Mask, Task

Planes = NDArray[np.bool_]

M: Planes = np.array([[0, 1, 1, 1, 0], [0, 1, 0, 1, 1], [0, 1, 1, 1, 0], [0, 0, 0, 0, 1]], np.bool_)
L: NDArray[np.uint8] = M.astype(np.uint8) + (np.arange(20).reshape(4, 5) == 19)
P: NDArray[np.float64] = np.where(M, 0.8, 0.2)
P[3, 4] = 0.6

COLOURS = ((0, 0, 0), (255, 0, 0), (0, 0, 255))


def class_specs(count: int) -> tuple[ClassSpec, ...]:
    """`class 0`, `class 1`, ... in black, red, blue and greys."""
    return tuple(ClassSpec(f"class {i}", COLOURS[i] if i < 3 else (i, i, i)) for i in range(count))


def bytes_of(probability: NDArray[np.float64]) -> NDArray[np.uint8]:
    return np.rint(255 * probability).astype(np.uint8)


def mask_of(planes: Planes, task: Task = "binary", **rest: Any) -> Mask:
    """(H, W) or (C, H, W) bool -> a mask whose probability is 0.8 inside and 0.2 outside."""
    planes = planes[None] if planes.ndim == 2 else planes
    members: dict[str, Any] = {
        "probability": bytes_of(np.where(planes, 0.8, 0.2)),
        "model": "example",
        "version": 3,
        "threshold": 0.5,
    }
    return Mask.from_planes(planes, task, class_specs(len(planes)), **{**members, **rest})


def label_mask_of(labels: NDArray[np.uint8], *, classes: int, **rest: Any) -> Mask:
    """(H, W) uint8 -> a multiclass mask whose own class has 0.8 and the others share 0.2."""
    height, width = labels.shape
    own = labels == np.arange(classes, dtype=np.uint8)[:, None, None]
    members: dict[str, Any] = {
        "probability": bytes_of(np.where(own, 0.8, 0.2 / max(1, classes - 1))),
        "model": "example",
        "version": 3,
    }
    specs = class_specs(classes)
    return Mask(height, width, "multiclass", specs, labels=labels, **{**members, **rest})


def blobs(height: int, width: int, seed: int = 0) -> Planes:
    """(H, W) bool of rounded pieces with rough edges."""
    random = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    field = np.zeros((height, width))
    for _ in range(12):
        fy, fx = random.uniform(-0.06, 0.06, 2)
        field += np.sin(fy * y + fx * x + random.uniform(0, 6.3))
    edge: Planes = field + random.normal(0, 0.15, field.shape) > 0.5
    return edge


def set_at(shape: tuple[int, int], *places: int) -> Planes:
    """(H, W) bool with only those flat places set."""
    mask = np.zeros(shape, np.bool_)
    mask.ravel()[list(places)] = True
    return mask


MASKS: dict[str, Planes] = {
    "example": M,
    "complement": ~M,
    "empty": np.zeros((4, 5), np.bool_),
    "full": np.ones((4, 5), np.bool_),
    "first pixel": set_at((7, 9), 0),
    "last pixel": set_at((7, 9), 62),
    "first and last": set_at((7, 9), 0, 62),
    "end of a column": set_at((3, 4), 9, 2),
    "row": set_at((1, 17), 0, 1, 5, 16),
    "column": set_at((17, 1), 0, 1, 5, 16),
    "one set": np.ones((1, 1), np.bool_),
    "one unset": np.zeros((1, 1), np.bool_),
    "width of 8": blobs(13, 8),
    "checkers": np.indices((16, 24)).sum(axis=0) % 2 == 1,
    "blobs": blobs(200, 301),
}


@st.composite
def random_masks(draw: st.DrawFn, largest: int = 40) -> Planes:
    """(H, W) bool, from sparse to dense, with rows or columns of one value now and then."""
    height, width = draw(st.tuples(*[st.integers(1, largest)] * 2))
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    mask: Planes = random.random((height, width)) < draw(st.sampled_from((0.02, 0.3, 0.5, 0.97)))
    if draw(st.booleans()):
        mask[:, random.integers(width)] = draw(st.booleans())
    return mask
