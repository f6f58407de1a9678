"""TernausNet-11 on an image pyramid: the same net sees the picture, and the picture at half its
size.

A net knows things by their size in pixels: what it was taught at 0.15 m to a pixel it misses at
0.075. With shared weights on two scales one of them is always near what it knows, and the coarse
one sees four times the surroundings. The fusion is the plain mean of the logits: average pooling of
score maps in Chen, Yang, Wang, Xu and Yuille, Attention to Scale (arXiv 1511.03339). It costs a
quarter more than one scale. Parameter names and shapes are those of `ternausnet11`: weights of
either are weights of both.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from app.architectures.base import Architecture, register
from app.architectures.blocks import UPSAMPLINGS
from app.architectures.ternausnet import ELEVEN, TernausNet
from app.types import Halo


class PyramidTernausNet(TernausNet):
    """(N, 3, H, W) normalised RGB -> (N, classes, H, W) raw logits; H and W multiples of 64."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        fine = super().forward(x)
        coarse = super().forward(functional.avg_pool2d(x, 2))
        # Corners are not aligned, so that every tile is sampled as the whole picture is.
        large = functional.interpolate(coarse, scale_factor=2, mode="bilinear", align_corners=False)
        return (fine + large) / 2


def _make(**parameters: Any) -> nn.Module:
    return PyramidTernausNet(**ELEVEN, align_corners=False, **parameters)


# Twice what the net needs at half the size, and a pixel of that size for the interpolation; rounded
# up to the stride.
_HALOS = {
    "transposed-3x3": Halo(top=256, left=256, bottom=320, right=320),
    "transposed-4x4": Halo(top=320, left=320, bottom=320, right=320),
    "nearest": Halo(top=256, left=256, bottom=256, right=256),
    "bilinear": Halo(top=320, left=320, bottom=320, right=320),
}


def _halo(parameters: Mapping[str, Any]) -> Halo:
    return _HALOS[parameters["upsampling"]]


register(
    Architecture(
        name="ternausnet11-pyramid",
        title="TernausNet-11 on two scales with shared weights",
        make=_make,
        stride=64,
        halo_of=_halo,
        choices={"upsampling": UPSAMPLINGS},
        encoder="vgg11",
    )
)
