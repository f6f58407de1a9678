"""The classic U-Net: blocks of two 3x3 convolutions with batch norm (arXiv 1505.04597, padded).

Four steps down (64, 128, 256, 512 channels), a bottleneck, four steps up. What descriptions of the
net leave open is fixed here so:

- The bottleneck is `bottleneck` channels wide, 1024 unless told (31,043,521 parameters with one
  class and 2x2 kernels; 512 gives 20,554,689), with ReLU after both of its batch norms.
- A step down keeps its map as skip, pools 2x2 and then drops out: 0.1 on the way down, 0.3 after
  the bottleneck, element by element. The way up has no dropout. The rates are constants: they
  concern training alone, and no weights depend on them.
- Convolutions keep their bias, though batch norm makes it redundant: the customary counts have it.
- A step up doubles by a transposed convolution without activation, or by a 1x1 convolution followed
  by interpolation (the same numbers as interpolating first, at a quarter of the work), either of
  which brings the channels to the skip's; then `[decoder output, skip]` are concatenated, in the
  order of the TernausNets.

Batch norm and dropout are in evaluation mode while serving; only then are tiles exact.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from app.architectures.base import Architecture, register
from app.architectures.blocks import UPSAMPLINGS, interpolated, transposed
from app.types import Halo

WIDTHS = (64, 128, 256, 512)
DROPOUT_DOWN = 0.1
DROPOUT_BOTTLENECK = 0.3


class ConvPair(nn.Module):
    """Twice 3x3 convolution, batch norm, ReLU: (N, inputs, H, W) -> (N, outputs, H, W)."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.norm1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1)
        self.norm2 = nn.BatchNorm2d(outputs)
        self.activation = nn.ReLU(inplace=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.activation(self.norm1(self.conv1(x)))
        result: torch.Tensor = self.activation(self.norm2(self.conv2(x)))
        return result


class StepUp(nn.Module):
    """(N, inputs, H, W) and a skip (N, outputs, 2H, 2W) -> (N, outputs, 2H, 2W)."""

    def __init__(self, inputs: int, outputs: int, *, upsampling: str, align_corners: bool) -> None:
        super().__init__()
        self.enlarge: nn.Module
        if upsampling.startswith("transposed"):
            self.enlarge = transposed(inputs, outputs, upsampling)
        else:
            self.enlarge = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1),
                interpolated(upsampling, align_corners=align_corners),
            )
        self.convs = ConvPair(2 * outputs, outputs)

    def forward(self, x: torch.Tensor, skip: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.convs(torch.cat([self.enlarge(x), skip], dim=1))
        return result


class UNet(nn.Module):
    """(N, 3, H, W) normalised RGB -> (N, classes, H, W) raw logits; H and W multiples of 16."""

    def __init__(
        self, *, classes: int, upsampling: str, align_corners: bool, bottleneck: int
    ) -> None:
        super().__init__()
        inputs = (3, *WIDTHS[:-1])
        self.down = nn.ModuleList(ConvPair(i, o) for i, o in zip(inputs, WIDTHS, strict=True))
        self.pool = nn.MaxPool2d(2)
        self.drop = nn.Dropout(DROPOUT_DOWN)
        self.bottleneck = ConvPair(WIDTHS[-1], bottleneck)
        self.drop_bottleneck = nn.Dropout(DROPOUT_BOTTLENECK)
        outputs = WIDTHS[::-1]
        self.up = nn.ModuleList(
            StepUp(i, o, upsampling=upsampling, align_corners=align_corners)
            for i, o in zip((bottleneck, *outputs[:-1]), outputs, strict=True)
        )
        self.final = nn.Conv2d(WIDTHS[0], classes, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        skips = []
        for down in self.down:
            skips.append(down(x))
            x = self.drop(self.pool(skips[-1]))
        x = self.drop_bottleneck(self.bottleneck(x))
        for up in self.up:
            x = up(x, skips.pop())
        logits: torch.Tensor = self.final(x)
        return logits


# Each is the traced need rounded up to the stride. The 3x3 kernel has output_padding 1, so the net
# looks further right and down than left and up.
_HALOS = {
    "transposed-2x2": Halo(top=96, left=96, bottom=96, right=96),
    "transposed-3x3": Halo(top=96, left=96, bottom=112, right=112),
    "transposed-4x4": Halo(top=112, left=112, bottom=112, right=112),
    "nearest": Halo(top=96, left=96, bottom=96, right=96),
    "bilinear": Halo(top=112, left=112, bottom=112, right=112),
}


def _halo(parameters: Mapping[str, Any]) -> Halo:
    return _HALOS[parameters["upsampling"]]


register(
    Architecture(
        name="unet",
        title="U-Net (two convolutions with batch norm per step)",
        make=UNet,
        stride=16,
        halo_of=_halo,
        choices={
            "upsampling": ("transposed-2x2", *UPSAMPLINGS),
            "align_corners": (False, True),
            "bottleneck": (1024, 512),
        },
    )
)
