"""AlbuNet-34: U-Net with a ResNet-34 encoder, proposed by Alexander Buslaev.

Parameter names are those of the published files with their aliases folded away and the unused
classifier left out: `encoder` as in torchvision's ResNet without `fc`, `center`, `dec5` .. `dec0`,
`final`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from app.architectures.base import Architecture, register
from app.architectures.blocks import UPSAMPLINGS, ConvRelu, DecoderBlock
from app.types import Halo

# Width of the decoder's last feature map, as published.
FILTERS = 32


class ResNetEncoder(nn.Module):
    """(N, 3, H, W) -> four maps of 64, 128, 256, 512 channels at strides 4, 8, 16, 32.

    The stem pools 2x2, where ResNet itself pools 3x3 with stride 2: so the published nets do.
    """

    def __init__(self) -> None:
        # Only for this net: what it brings along takes longer to import than torch.
        from torchvision.models import resnet34

        super().__init__()
        whole = resnet34(weights=None)
        self.conv1 = whole.conv1
        self.bn1 = whole.bn1
        self.relu = nn.ReLU(inplace=True)
        self.pool = nn.MaxPool2d(2)
        self.layer1 = whole.layer1
        self.layer2 = whole.layer2
        self.layer3 = whole.layer3
        self.layer4 = whole.layer4

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        x = self.pool(self.relu(self.bn1(self.conv1(x))))
        maps = []
        for layer in (self.layer1, self.layer2, self.layer3, self.layer4):
            x = layer(x)
            maps.append(x)
        return maps


class AlbuNet(nn.Module):
    """(N, 3, H, W) normalised RGB -> (N, classes, H, W) raw logits; H and W multiples of 64.

    One pool more than the encoder's strides suggest precedes `center`, and the last doubling
    (`dec1`) has no skip: the encoder keeps no map of stride 2.
    """

    def __init__(self, *, classes: int, upsampling: str, align_corners: bool) -> None:
        super().__init__()

        def block(inputs: int, middle: int, outputs: int) -> DecoderBlock:
            return DecoderBlock(
                inputs, middle, outputs, upsampling=upsampling, align_corners=align_corners
            )

        width = FILTERS
        self.encoder = ResNetEncoder()
        self.pool = nn.MaxPool2d(2)
        self.center = block(512, width * 16, width * 8)
        self.dec5 = block(512 + width * 8, width * 16, width * 8)
        self.dec4 = block(256 + width * 8, width * 16, width * 8)
        self.dec3 = block(128 + width * 8, width * 8, width * 2)
        self.dec2 = block(64 + width * 2, width * 4, width * 4)
        self.dec1 = block(width * 4, width * 4, width)
        self.dec0 = ConvRelu(width, width)
        self.final = nn.Conv2d(width, classes, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        skips = self.encoder(x)
        x = self.center(self.pool(skips[-1]))
        for decode in (self.dec5, self.dec4, self.dec3, self.dec2):
            x = decode(torch.cat([x, skips.pop()], dim=1))
        logits: torch.Tensor = self.final(self.dec0(self.dec1(x)))
        return logits


# Each is the traced need rounded up to the stride.
_HALOS = {
    "transposed-3x3": Halo(top=576, left=576, bottom=640, right=640),
    "transposed-4x4": Halo(top=640, left=640, bottom=640, right=640),
    "nearest": Halo(top=576, left=576, bottom=576, right=576),
    "bilinear": Halo(top=640, left=640, bottom=640, right=640),
}


def _halo(parameters: Mapping[str, Any]) -> Halo:
    return _HALOS[parameters["upsampling"]]


register(
    Architecture(
        name="albunet34",
        title="AlbuNet-34 (ResNet-34 encoder)",
        make=AlbuNet,
        stride=64,
        halo_of=_halo,
        choices={
            "upsampling": ("bilinear", *(u for u in UPSAMPLINGS if u != "bilinear")),
            "align_corners": (False, True),
        },
        encoder="resnet34",
    )
)
