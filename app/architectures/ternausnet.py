"""TernausNet-11 and TernausNet-16: U-Net with a VGG encoder (arXiv 1801.05746).

Parameter names are those of the published files with their aliases folded away: `encoder.N` as in
torchvision's `features.N`, `center`, `dec5` .. `dec1`, `final`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from app.architectures.base import Architecture, register
from app.architectures.blocks import UPSAMPLINGS, VGG11, VGG16, ConvRelu, DecoderBlock, vgg
from app.types import Halo

# Width of the decoder's last feature map; the published nets fix it, only 32 makes the widths meet.
FILTERS = 32


class TernausNet(nn.Module):
    """(N, 3, H, W) normalised RGB -> (N, classes, H, W) raw logits; H and W multiples of 32.

    `stages` are those of the VGG encoder; `dec4` is the width of the fourth decoder block's output,
    the one place beside the encoder where the published 11 and 16 differ.
    """

    def __init__(
        self,
        *,
        stages: tuple[int, ...],
        dec4: int,
        classes: int,
        upsampling: str,
        align_corners: bool,
    ) -> None:
        super().__init__()

        def block(inputs: int, middle: int, outputs: int) -> DecoderBlock:
            return DecoderBlock(
                inputs, middle, outputs, upsampling=upsampling, align_corners=align_corners
            )

        width = FILTERS
        self.encoder = vgg(stages)
        self.center = block(512, width * 16, width * 8)
        self.dec5 = block(512 + width * 8, width * 16, width * 8)
        self.dec4 = block(512 + width * 8, width * 16, dec4)
        self.dec3 = block(256 + dec4, width * 8, width * 2)
        self.dec2 = block(128 + width * 2, width * 4, width)
        self.dec1 = ConvRelu(64 + width, width)
        self.final = nn.Conv2d(width, classes, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        skips = []
        for layer in self.encoder:
            if isinstance(layer, nn.MaxPool2d):
                skips.append(x)
            x = layer(x)
        x = self.center(x)
        for decode in (self.dec5, self.dec4, self.dec3, self.dec2, self.dec1):
            x = decode(torch.cat([x, skips.pop()], dim=1))
        logits: torch.Tensor = self.final(x)
        return logits


# What makes a TernausNet an 11.
ELEVEN: Mapping[str, Any] = {"stages": VGG11, "dec4": FILTERS * 4}


def _ternausnet11(**parameters: Any) -> nn.Module:
    return TernausNet(**ELEVEN, **parameters)


def _ternausnet16(**parameters: Any) -> nn.Module:
    return TernausNet(stages=VGG16, dec4=FILTERS * 8, **parameters)


# Each is the traced need rounded up to the stride. The 3x3 kernel has output_padding 1, so the net
# looks further right and down than left and up.
_HALOS_11 = {
    "transposed-3x3": Halo(top=128, left=128, bottom=160, right=160),
    "transposed-4x4": Halo(top=160, left=160, bottom=160, right=160),
    "nearest": Halo(top=128, left=128, bottom=128, right=128),
    "bilinear": Halo(top=160, left=160, bottom=160, right=160),
}
_HALOS_16 = {
    "transposed-3x3": Halo(top=160, left=160, bottom=192, right=192),
    "transposed-4x4": Halo(top=192, left=192, bottom=192, right=192),
    "nearest": Halo(top=160, left=160, bottom=160, right=160),
    "bilinear": Halo(top=192, left=192, bottom=192, right=192),
}


def _halo11(parameters: Mapping[str, Any]) -> Halo:
    return _HALOS_11[parameters["upsampling"]]


def _halo16(parameters: Mapping[str, Any]) -> Halo:
    return _HALOS_16[parameters["upsampling"]]


register(
    Architecture(
        name="ternausnet11",
        title="TernausNet-11 (VGG11 encoder)",
        make=_ternausnet11,
        stride=32,
        halo_of=_halo11,
        choices={"upsampling": UPSAMPLINGS, "align_corners": (False, True)},
        encoder="vgg11",
    )
)
register(
    Architecture(
        name="ternausnet16",
        title="TernausNet-16 (VGG16 encoder)",
        make=_ternausnet16,
        stride=32,
        halo_of=_halo16,
        choices={
            "upsampling": ("bilinear", "transposed-4x4", "transposed-3x3", "nearest"),
            "align_corners": (False, True),
        },
        encoder="vgg16",
    )
)
