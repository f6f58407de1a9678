"""The U-Net that was published beside the TernausNets for surgical video: no batch norm, 32 to 512.

Parameter names are the published ones: `down.N.l1.conv`, `up.N.l1.conv` (N = 0 is the step next to
the output, so `up` runs backwards), `conv_final`. No tensor has a second name.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import torch
from torch import nn

from app.architectures.base import Architecture, register
from app.architectures.blocks import ConvRelu
from app.types import Halo

WIDTHS = (32, 64, 128, 256, 512)
# What the map shrinks by after each step down but the last; the deepest pool takes 4x4 at once.
POOLS = (2, 2, 2, 4)


class ConvReluPair(nn.Module):
    """(N, inputs, H, W) -> (N, outputs, H, W), by two 3x3 convolutions with ReLU."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.l1 = ConvRelu(inputs, outputs)
        self.l2 = ConvRelu(outputs, outputs)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.l2(self.l1(x))
        return result


class SurgicalUNet(nn.Module):
    """(N, 3, H, W) normalised RGB -> (N, classes, H, W) raw logits; H and W multiples of 32."""

    def __init__(self, *, classes: int) -> None:
        super().__init__()
        inputs = (3, *WIDTHS[:-1])
        self.down = nn.ModuleList(ConvReluPair(i, o) for i, o in zip(inputs, WIDTHS, strict=True))
        self.up = nn.ModuleList(
            ConvReluPair(shallow + deep, shallow) for shallow, deep in pairwise(WIDTHS)
        )
        self.shrink = nn.ModuleList(nn.MaxPool2d(by) for by in POOLS)
        self.enlarge = nn.ModuleList(nn.Upsample(scale_factor=by, mode="nearest") for by in POOLS)
        self.conv_final = nn.Conv2d(WIDTHS[0], classes, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        skips = []
        for down, shrink in zip(self.down, self.shrink, strict=False):
            skips.append(down(x))
            x = shrink(skips[-1])
        x = self.down[-1](x)
        for up, enlarge in zip(reversed(self.up), reversed(self.enlarge), strict=True):
            x = up(torch.cat([enlarge(x), skips.pop()], dim=1))
        logits: torch.Tensor = self.conv_final(x)
        return logits


def _halo(parameters: Mapping[str, Any]) -> Halo:
    return Halo(top=128, left=128, bottom=128, right=128)


register(
    Architecture(
        name="unet-surgical",
        title="U-Net of the robot-surgery challenge (no batch norm, nearest upsampling)",
        make=SurgicalUNet,
        stride=32,
        halo_of=_halo,
    )
)
