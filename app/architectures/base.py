"""The contract of an architecture, and the registry that a file joins by being in this folder.

    net = get("ternausnet11").build(classes=1, upsampling="transposed-3x3")
    net(torch.zeros(1, 3, 64, 96)).shape == (1, 1, 64, 96)      # raw logits, any dtype

An architecture knows its input multiple (`stride`) and how far an output pixel looks (`halo`), so
that a tile whose origin is a multiple of the stride and whose halo covers the window gives the same
numbers as the whole picture. It never normalises, activates, downloads or touches a device.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from torch import nn

from app.errors import EngineError
from app.types import Halo

_REGISTRY: dict[str, Architecture] = {}


@dataclass(frozen=True, slots=True)
class Architecture:
    """One family of nets.

    `build(**parameters)` gives an `nn.Module` mapping (N, 3, H, W) float to (N, classes, H, W) raw
    logits. `choices` lists the values each named parameter may take, default first; `classes` is
    accepted by all. `stride` and `halo` may depend on the parameters. `encoder` is the name of the
    torchvision net whose ImageNet weights fit the encoder, or None.
    """

    name: str
    title: str
    make: Callable[..., nn.Module]
    stride: int
    halo_of: Callable[[Mapping[str, Any]], Halo]
    choices: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    encoder: str | None = None

    def complete(self, parameters: Mapping[str, Any]) -> dict[str, Any]:
        """Defaults filled in. Raises EngineError naming an unknown parameter or value."""
        full: dict[str, Any] = {"classes": 1}
        full.update({name: values[0] for name, values in self.choices.items()})
        for name, value in parameters.items():
            if name not in full:
                raise EngineError(
                    f"architecture `{self.name}` has no parameter `{name}`; known: {', '.join(full)}"
                )
            if name in self.choices and value not in self.choices[name]:
                raise EngineError(
                    f"`{name}` of `{self.name}` cannot be {value!r}; "
                    f"known: {', '.join(str(v) for v in self.choices[name])}"
                )
            full[name] = value
        classes = full["classes"]
        if not isinstance(classes, int) or isinstance(classes, bool) or not 1 <= classes <= 256:
            raise EngineError(f"`classes` must be a whole number from 1 to 256, not {classes!r}")
        return full

    def build(self, **parameters: Any) -> nn.Module:
        """The net, with torch's own initial weights, in evaluation mode."""
        return self.make(**self.complete(parameters)).eval()

    def halo(self, **parameters: Any) -> Halo:
        """The receptive-field margin beyond which an output pixel is unaffected."""
        return self.halo_of(self.complete(parameters))


def register(architecture: Architecture) -> Architecture:
    """Add to the registry; a name is taken once."""
    if architecture.name in _REGISTRY:
        raise ValueError(f"architecture `{architecture.name}` is registered twice")
    _REGISTRY[architecture.name] = architecture
    return architecture


@cache
def registry() -> Mapping[str, Architecture]:
    """Every architecture of this folder, by name."""
    package = importlib.import_module("app.architectures")
    for module in pkgutil.iter_modules(package.__path__):
        importlib.import_module(f"app.architectures.{module.name}")
    return dict(sorted(_REGISTRY.items()))


def get(name: str) -> Architecture:
    """The architecture of that name. Raises EngineError that lists the known names."""
    try:
        return registry()[name]
    except KeyError:
        raise EngineError(
            f"unknown architecture `{name}`; known: {', '.join(registry())}"
        ) from None
