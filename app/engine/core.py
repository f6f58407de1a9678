"""The device-independent core: uint8 pixels in, mask out, as one torch module.

    core = Core(net, task="binary", mean=spec.mean, std=spec.std)
    mask, probability, total = core(pixels, thresholds)

The CPU fallback runs it, CUDA captures it, and OpenVINO is converted from it, so that
normalisation, activation and threshold are written once and proven once. It never chooses a device.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from app.types import Task

# The worth of eight neighbouring pixels in their byte, leftmost first.
PLACES = (128, 64, 32, 16, 8, 4, 2, 1)


class Core(nn.Module):
    """(N, H, W, 3) uint8 pixels and (N,) float32 thresholds -> mask, probability, total.

    `mask`: for `binary` and `multilabel` (N, C, H, W / 8) uint8, eight pixels to a byte, or with
    `packed=False` (N, C, H, W) bool; set where the probability is strictly greater than the item's
    threshold. For `multiclass` (N, H, W) uint8, the index of the largest logit.
    `probability`: (N, C, H, W) uint8, round(255 p) with halves to even; (0,) where not asked.
    `total`: (N,) float32, the sum of the item's logits. A sum is finite only where every term is,
    at a fraction of the cost of looking at each; only logits near 1e30 could mislead it.

    The net runs in `dtype`; all before and after it in float32. W is a multiple of 8.
    """

    mean: torch.Tensor
    scale: torch.Tensor
    places: torch.Tensor

    def __init__(
        self,
        net: nn.Module,
        *,
        task: Task,
        mean: Sequence[float],
        std: Sequence[float],
        packed: bool = True,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        self.net = net.to(dtype)
        self.task = task
        self.packed = packed
        self.dtype = dtype
        # In units of 0..255, so that one subtraction and one product do all of it.
        shape = (1, 3, 1, 1)
        self.register_buffer("mean", (torch.tensor(mean) * 255).view(shape), persistent=False)
        self.register_buffer("scale", (1 / (torch.tensor(std) * 255)).view(shape), persistent=False)
        self.register_buffer("places", torch.tensor(PLACES, dtype=torch.uint8), persistent=False)

    def forward(
        self, pixels: torch.Tensor, thresholds: torch.Tensor, probability: bool = True
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        # A permuted view of NHWC memory *is* NCHW in channels_last order: nothing moves.
        x = (pixels.permute(0, 3, 1, 2).to(torch.float32) - self.mean) * self.scale
        logits = self.net(x.to(self.dtype)).to(torch.float32)
        total = logits.sum(dim=(1, 2, 3))
        if self.task == "multiclass":
            mask = logits.argmax(dim=1).to(torch.uint8)
            p = logits.softmax(dim=1) if probability else logits
        else:
            p = logits.sigmoid()
            mask = p > thresholds.view(-1, 1, 1, 1)
            if self.packed:
                eights = mask.unflatten(3, (-1, 8)).to(torch.uint8)
                mask = (eights * self.places).sum(dim=-1, dtype=torch.uint8)
        if probability:
            return mask, (p * 255).round().to(torch.uint8), total
        return mask, torch.empty(0, dtype=torch.uint8, device=mask.device), total
