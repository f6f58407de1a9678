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
from itertools import product
from typing import Any

import torch
from torch import nn

from app.errors import EngineError
from app.types import Halo

_REGISTRY: dict[str, Architecture] = {}


@dataclass(frozen=True, slots=True)
class Architecture:
    """One family of nets.

    `build(**parameters)` gives an `nn.Module` mapping (N, 3, H, W) float to (N, classes, H, W) raw
    logits, where `stride` divides H and W. `choices` lists the values that each named parameter may
    take, default first; `classes` is accepted by all. `halo_of` gives the halo of completed
    parameters. `encoder` is the name of the torchvision net whose ImageNet weights fit the net's
    `encoder`, or None.
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
                    f"architecture `{self.name}` has no parameter `{name}`; "
                    f"known: {', '.join(full)}"
                )
            if name in self.choices and not _among(value, self.choices[name]):
                raise EngineError(
                    f"`{name}` of `{self.name}` cannot be {value!r}; "
                    f"known: {', '.join(str(v) for v in self.choices[name])}"
                )
            full[name] = value
        classes = full["classes"]
        if not isinstance(classes, int) or isinstance(classes, bool) or not 1 <= classes <= 256:
            raise EngineError(f"`classes` must be a whole number from 1 to 256, not {classes!r}")
        if full.get("align_corners") and full["upsampling"] != "bilinear":
            raise EngineError(
                f"`align_corners` of `{self.name}` concerns `bilinear` upsampling, "
                f"not `{full['upsampling']}`"
            )
        return full

    def build(self, **parameters: Any) -> nn.Module:
        """The net, with torch's own initial weights, in evaluation mode."""
        return self.make(**self.complete(parameters)).eval()

    def layout(self, **parameters: Any) -> dict[str, torch.Tensor]:
        """Every name of the net's `state_dict` with a tensor on the meta device: shape and dtype.

        Allocates and computes nothing; for checking weights before they are loaded.
        """
        with torch.device("meta"):
            return self.build(**parameters).state_dict()

    def halo(self, **parameters: Any) -> Halo:
        """The receptive-field margin beyond which an output pixel is unaffected.

        It makes tiling exact where `local` holds; elsewhere it is the same window without the
        promise.
        """
        return self.halo_of(self.complete(parameters))

    def local(self, **parameters: Any) -> bool:
        """Whether tiles with halos give exactly the numbers of the whole picture.

        False for `align_corners`: there the sampling points depend on the size of the whole map.
        """
        return not self.complete(parameters).get("align_corners", False)

    def variants(self) -> list[dict[str, Any]]:
        """Every permitted combination of `choices`, the default first; for tests and lists."""
        found = []
        for values in product(*self.choices.values()):
            parameters = dict(zip(self.choices, values, strict=True))
            try:
                self.complete(parameters)
            except EngineError:
                continue
            found.append(parameters)
        return found

    def spellings(self, parameters: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Every way to write `parameters`, one of `variants`: whole, and with defaults left out."""
        defaults = self.complete({})
        apart = [
            ({}, {name: value}) if value == defaults[name] else ({name: value},)
            for name, value in parameters.items()
        ]
        return [dict(item for part in parts for item in part.items()) for parts in product(*apart)]


def _among(value: Any, known: tuple[Any, ...]) -> bool:
    # By type as well: 0 == False and 1.0 == 1, yet a manifest that says so is a mistake.
    return any(type(value) is type(candidate) and value == candidate for candidate in known)


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
