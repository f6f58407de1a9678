"""The contract of an encoding, and the registry that a file joins by being in this folder.

    png = get("png")
    png.require("binary", classes=1)        # refused before any work where it cannot be expressed
    data = png.encode(mask)                 # bytes of a 1-bit PNG for a binary mask
    png.decode(data)                        # (C, H, W) bool planes, for tests and clients

`encode` is pure and thread-safe; it never reads files, never resizes, and copies nothing of the
upload. Files whose name begins with an underscore are shared parts, not formats.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from app.errors import BadParameter, MalformedRequest
from app.types import Mask, Task

Shape = tuple[int, int]
Decoded = NDArray[np.bool_] | NDArray[np.uint8]

DEFAULT = "png"

# Decoders refuse what claims to be larger, before they allocate: about 32,000 x 32,000.
LARGEST_PIXELS = 1 << 30

_REGISTRY: dict[str, Encoding] = {}


@dataclass(frozen=True, slots=True)
class Encoding:
    """One format.

    `title` is one line for people; `extension` has no dot. `tasks` are the kinds of model that it
    can express; `overlapping` says that it holds several classes of a `multilabel` mask, whose
    pixels may belong to more than one. `needs_probability`: the mask must carry `probability`.
    `needs_shape`: the bytes do not hold the size, so `decode` must be told. `write` and `read` are
    the format's own two functions; call `encode` and `decode`, which check first. A mask of at most
    `brief_bytes` of packed bits takes less than 0.1 ms, whatever it shows.
    """

    name: str
    title: str
    media_type: str
    extension: str
    write: Callable[[Mask], bytes]
    read: Callable[[bytes, Shape | None], Decoded]
    needs_probability: bool = False
    needs_shape: bool = False
    overlapping: bool = False
    brief_bytes: int = 0
    tasks: tuple[Task, ...] = ("binary", "multilabel", "multiclass")

    def expresses(self, task: Task, *, classes: int) -> bool:
        """Whether a mask of that task and number of classes fits into this format."""
        return task in self.tasks and (self.overlapping or task != "multilabel" or classes == 1)

    def require(self, task: Task, *, classes: int) -> None:
        """Raise BadParameter, naming the formats that can, where `expresses` says no."""
        if self.expresses(task, classes=classes):
            return
        able = [each.name for each in registry().values() if each.expresses(task, classes=classes)]
        raise BadParameter(
            f"format `{self.name}` cannot hold a {task} mask of {classes} classes; "
            f"formats that can: {', '.join(able)}"
        )

    def brief(self, mask: Mask) -> bool:
        """Whether encoding it takes no longer than handing it to another thread would."""
        return mask.bits is not None and mask.bits.nbytes <= self.brief_bytes

    def encode(self, mask: Mask) -> bytes:
        """The mask as bytes.

        Raises BadParameter where the format cannot express the mask, and ValueError where the mask
        breaks its own contract: a fault of ours, not of the request.
        """
        self.require(mask.task, classes=len(mask.classes))
        _check_shapes(mask)
        if self.needs_probability and mask.probability is None:
            raise ValueError(f"format `{self.name}` needs a mask with probability")
        return self.write(mask)

    def decode(self, data: bytes, shape: Shape | None = None) -> Decoded:
        """Back from bytes; strict.

        (C, H, W) bool: planes of the foreground classes. (H, W) uint8: values as they stand in a
        label map. (C, H, W) uint8: round(255 p). `shape` is (H, W): necessary for a format that
        `needs_shape`, else what the bytes must agree with. Raises MalformedRequest.
        """
        if shape is None and self.needs_shape:
            raise MalformedRequest(f"format `{self.name}` does not hold a size; give the shape")
        if shape is not None:
            check_size(*shape)
        decoded = self.read(data, shape)
        if shape is not None and decoded.shape[-2:] != tuple(shape):
            height, width = decoded.shape[-2:]
            raise MalformedRequest(
                f"the mask is {width} x {height}; {shape[1]} x {shape[0]} was expected"
            )
        return decoded


def check_size(height: int, width: int) -> None:
    """Raise MalformedRequest unless a decoder may allocate a mask of that size."""
    if height < 1 or width < 1 or height * width > LARGEST_PIXELS:
        raise MalformedRequest(
            f"a mask of {width} x {height} is not decoded; "
            f"its sides are at least 1 and its pixels at most {LARGEST_PIXELS}"
        )


def _check_shapes(mask: Mask) -> None:
    """Hold the arrays to the contract of `Mask`: wrong ones would be written as noise."""
    height, width, classes = mask.height, mask.width, len(mask.classes)
    if height < 1 or width < 1 or not 1 <= classes <= 256:
        raise ValueError(f"a mask of {width} x {height} pixels and {classes} classes")
    multiclass = mask.task == "multiclass"
    if (mask.labels is None) == multiclass or (mask.bits is None) != multiclass:
        raise ValueError(f"a {mask.task} mask has either no pixels or those of another task")
    expected = {
        "bits": (mask.bits, (classes, height, (width + 7) // 8)),
        "labels": (mask.labels, (height, width)),
        "probability": (mask.probability, (classes, height, width)),
    }
    for name, (array, shape) in expected.items():
        if array is not None and (array.shape != shape or array.dtype != np.uint8):
            raise ValueError(f"`{name}` is {array.dtype} {array.shape}; expected uint8 {shape}")
    if mask.labels is not None and int(mask.labels.max()) >= classes:
        raise ValueError("a label has no class")


def register(encoding: Encoding) -> Encoding:
    """Add to the registry; a name is taken once."""
    if encoding.name in _REGISTRY:
        raise ValueError(f"encoding `{encoding.name}` is registered twice")
    _REGISTRY[encoding.name] = encoding
    return encoding


@cache
def registry() -> Mapping[str, Encoding]:
    """Every encoding of this folder, by name."""
    package = importlib.import_module("app.encodings")
    for module in pkgutil.iter_modules(package.__path__):
        if not module.name.startswith("_"):
            importlib.import_module(f"app.encodings.{module.name}")
    return MappingProxyType(dict(sorted(_REGISTRY.items())))


def get(name: str) -> Encoding:
    """The encoding of that name. Raises BadParameter that lists the known names."""
    try:
        return registry()[name]
    except KeyError:
        raise BadParameter(f"unknown format `{name}`; known: {', '.join(registry())}") from None
