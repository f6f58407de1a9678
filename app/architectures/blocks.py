"""The blocks that TernausNets are built of, with the parameter names of the published files.

References: Iglovikov and Shvets, "TernausNet", arXiv 1801.05746, figure 2; for the encoder Simonyan
and Zisserman, arXiv 1409.1556, table 1.
"""

from __future__ import annotations

import torch
from torch import nn

UPSAMPLINGS = ("transposed-3x3", "transposed-4x4", "nearest", "bilinear")

# How many convolutions each of the five stages has: columns A and D of the table.
VGG11 = (1, 1, 2, 2, 2)
VGG16 = (2, 2, 3, 3, 3)
_VGG_WIDTHS = (64, 128, 256, 512, 512)


def vgg(stages: tuple[int, ...]) -> nn.Sequential:
    """VGG without its classifier, numbered as torchvision's `features`: convolution and ReLU in
    turn, a 2x2 pool at the end of each stage; (N, 3, H, W) -> (N, 512, H / 32, W / 32).

    Not torchvision's own: its import brings a compiler along and takes longer than torch's, at the
    start of every server and of every conversion.
    """
    layers: list[nn.Module] = []
    inputs = 3
    for depth, width in zip(stages, _VGG_WIDTHS, strict=True):
        for _ in range(depth):
            layers += [nn.Conv2d(inputs, width, 3, padding=1), nn.ReLU(inplace=True)]
            inputs = width
        layers.append(nn.MaxPool2d(2))
    return nn.Sequential(*layers)


class ConvRelu(nn.Module):
    """3x3 convolution with padding 1, then ReLU: (N, inputs, H, W) -> (N, outputs, H, W)."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.activation = nn.ReLU(inplace=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.activation(self.conv(x))
        return result


class DecoderBlock(nn.Module):
    """Doubles height and width: (N, inputs, H, W) -> (N, outputs, 2H, 2W).

    `transposed-3x3` and `transposed-4x4` convolve and then upsample by a learned kernel of stride
    2; `nearest` and `bilinear` upsample first and convolve twice. Raises ValueError for another
    name.
    """

    def __init__(
        self,
        inputs: int,
        middle: int,
        outputs: int,
        *,
        upsampling: str,
        align_corners: bool = False,
    ) -> None:
        super().__init__()
        if upsampling in ("transposed-3x3", "transposed-4x4"):
            self.block = nn.Sequential(
                ConvRelu(inputs, middle),
                transposed(middle, outputs, upsampling),
                nn.ReLU(inplace=True),
            )
        else:
            self.block = nn.Sequential(
                interpolated(upsampling, align_corners=align_corners),
                ConvRelu(inputs, middle),
                ConvRelu(middle, outputs),
            )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.block(x)
        return result


def transposed(inputs: int, outputs: int, upsampling: str) -> nn.ConvTranspose2d:
    """Stride-2 transposed convolution (N, inputs, H, W) -> (N, outputs, 2H, 2W).

    A kernel of 3 doubles exactly only with `output_padding` 1, on the right and at the bottom; that
    makes the nets that use it look further to those two sides. Raises ValueError for another name.
    """
    if upsampling == "transposed-2x2":
        return nn.ConvTranspose2d(inputs, outputs, 2, stride=2)
    if upsampling == "transposed-3x3":
        return nn.ConvTranspose2d(inputs, outputs, 3, stride=2, padding=1, output_padding=1)
    if upsampling == "transposed-4x4":
        return nn.ConvTranspose2d(inputs, outputs, 4, stride=2, padding=1)
    raise ValueError(f"unknown upsampling `{upsampling}`")


def interpolated(upsampling: str, *, align_corners: bool) -> nn.Upsample:
    """Fixed doubling (N, C, H, W) -> (N, C, 2H, 2W). Raises ValueError for another name."""
    if upsampling == "nearest":
        return nn.Upsample(scale_factor=2, mode="nearest")
    if upsampling == "bilinear":
        return nn.Upsample(scale_factor=2, mode="bilinear", align_corners=align_corners)
    raise ValueError(f"unknown upsampling `{upsampling}`; known: {', '.join(UPSAMPLINGS)}")
