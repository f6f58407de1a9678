"""How far every net looks, traced through its own graph and compared with what it declares.

With positive weights and mean instead of maximum in the pools, the gradient of an output pixel is
nonzero exactly where the pixel looks. Widths do not matter, so the nets are thin.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from app.architectures.base import Architecture, registry

from .nets import averaging, positive, thin

# Need left or top, and right or bottom, as published for these nets; ours must reach as far.
PUBLISHED = {
    ("ternausnet11", "transposed-3x3"): (123, 155),
    ("ternausnet11", "transposed-4x4"): (155, 155),
    ("ternausnet16", "transposed-4x4"): (186, 186),
    ("ternausnet16", "bilinear"): (186, 186),
    ("albunet34", "transposed-4x4"): (639, 610),
    ("albunet34", "bilinear"): (639, 610),
    ("unet-surgical", None): (126, 126),
    ("unet", "transposed-2x2"): (94, 94),
    ("unet", "transposed-3x3"): (94, 110),
    ("unet", "transposed-4x4"): (110, 110),
}
VARIANTS = [(a, p) for a in registry().values() for p in a.variants() if a.local(**p)]
IDS = [".".join((a.name, *map(str, p.values()))) for a, p in VARIANTS]


@pytest.mark.parametrize(("architecture", "parameters"), VARIANTS, ids=IDS)
def test_declared_halo_is_the_traced_need_rounded_up(
    architecture: Architecture, parameters: dict[str, Any]
) -> None:
    stride = architecture.stride
    halo = architecture.halo(**parameters)
    across = _need(architecture, parameters, axis=3)
    down = _need(architecture, parameters, axis=2)
    published = PUBLISHED.get((architecture.name, parameters.get("upsampling")))
    if published is not None:
        assert across == down == published
    assert (halo.left, halo.right) == tuple(-(-need // stride) * stride for need in across)
    assert (halo.top, halo.bottom) == tuple(-(-need // stride) * stride for need in down)


def test_every_published_need_was_compared() -> None:
    assert set(PUBLISHED) <= {(a.name, p.get("upsampling")) for a, p in VARIANTS}


def _need(architecture: Architecture, parameters: dict[str, Any], *, axis: int) -> tuple[int, int]:
    """How far a core of one stride looks beyond itself along `axis`, before and after it."""
    stride = architecture.stride
    margin = 11 * stride + (0 if stride > 16 else 64)
    shape = [1, 3, stride, stride]
    shape[axis] = 2 * margin + stride
    picture = torch.ones(shape, dtype=torch.float64, requires_grad=True)
    logits = positive(averaging(thin(architecture, **parameters)))(picture)
    logits.narrow(axis, margin, stride).sum().backward()
    assert picture.grad is not None
    touched = picture.grad.abs().sum(dim=(0, 1, 5 - axis)).nonzero().flatten()
    before, after = margin - int(touched[0]), int(touched[-1]) + 1 - margin - stride
    assert max(before, after) < margin, "the picture is too short to see the whole window"
    return before, after
