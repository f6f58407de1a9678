"""The blocks that TernausNets are built of, with the parameter names of the published files.

Reference: Iglovikov and Shvets, "TernausNet", arXiv 1801.05746, figure 2.
"""

from __future__ import annotations

import torch
from torch import nn

UPSAMPLINGS = ("transposed-3x3", "transposed-4x4", "nearest", "bilinear")


class ConvRelu(nn.Module):
    """3x3 convolution with padding 1, then ReLU: (N, inputs, H, W) -> (N, outputs, H, W)."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.activation = nn.ReLU(inplace=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.activation(self.conv(x))


class DecoderBlock(nn.Module):
    """Doubles height and width: (N, inputs, H, W) -> (N, outputs, 2H, 2W).

    `transposed-3x3` and `transposed-4x4` convolve and then upsample by a learned kernel of stride 2;
    `nearest` and `bilinear` upsample first and convolve twice.
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
        if upsampling == "transposed-3x3":
            self.block = nn.Sequential(
                ConvRelu(inputs, middle),
                nn.ConvTranspose2d(middle, outputs, 3, stride=2, padding=1, output_padding=1),
                nn.ReLU(inplace=True),
            )
        elif upsampling == "transposed-4x4":
            self.block = nn.Sequential(
                ConvRelu(inputs, middle),
                nn.ConvTranspose2d(middle, outputs, 4, stride=2, padding=1),
                nn.ReLU(inplace=True),
            )
        elif upsampling == "nearest":
            self.block = nn.Sequential(
                nn.Upsample(scale_factor=2, mode="nearest"),
                ConvRelu(inputs, middle),
                ConvRelu(middle, outputs),
            )
        elif upsampling == "bilinear":
            self.block = nn.Sequential(
                nn.Upsample(scale_factor=2, mode="bilinear", align_corners=align_corners),
                ConvRelu(inputs, middle),
                ConvRelu(middle, outputs),
            )
        else:
            raise ValueError(f"unknown upsampling `{upsampling}`; known: {', '.join(UPSAMPLINGS)}")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.block(x)
