"""The contract of an encoding, and the registry that a file joins by being in this folder.

    png = get("png")
    data = png.encode(mask)                 # bytes of a 1-bit PNG for a binary mask
    png.decode(data)                        # (C, H, W) bool planes or (H, W) labels, for tests and clients

`encode` is pure and thread-safe; it never reads files, never resizes, and copies nothing of the
upload. `needs_probability` says that the mask must carry `probability`.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

from app.errors import BadParameter
from app.types import Mask, Task

Decoded = NDArray[np.bool_] | NDArray[np.uint8]

_REGISTRY: dict[str, Encoding] = {}


@dataclass(frozen=True, slots=True)
class Encoding:
    """One format. `tasks` are the kinds of model that it can express; `title` is one line for people."""

    name: str
    title: str
    media_type: str
    extension: str
    encode: Callable[[Mask], bytes]
    decode: Callable[[bytes], Decoded]
    needs_probability: bool = False
    tasks: tuple[Task, ...] = ("binary", "multilabel", "multiclass")


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
        importlib.import_module(f"app.encodings.{module.name}")
    return dict(sorted(_REGISTRY.items()))


def get(name: str) -> Encoding:
    """The encoding of that name. Raises BadParameter that lists the known names."""
    try:
        return registry()[name]
    except KeyError:
        raise BadParameter(f"unknown format `{name}`; known: {', '.join(registry())}") from None
