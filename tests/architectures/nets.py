"""Nets made small or fast for tests, by rebuilding their layers; nothing is patched."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import nn

from app.architectures.base import Architecture


def thin(architecture: Architecture, by: int = 32, **parameters: object) -> nn.Module:
    """The net with every inner width divided by `by`, float64, evaluation mode, weights not set.

    The module graph is the real one: only widths change. Input (3) and output channels stay.
    """
    with torch.device("meta"):
        net = architecture.build(**parameters)
    ends = (3, parameters.get("classes", 1))

    def less(width: int) -> int:
        return width if width in ends else width // by

    for parent in list(net.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.Conv2d | nn.ConvTranspose2d):
                kind = type(child)
                extra = (
                    {"output_padding": child.output_padding}
                    if isinstance(child, nn.ConvTranspose2d)
                    else {}
                )
                thinner: nn.Module = kind(
                    less(child.in_channels),
                    less(child.out_channels),
                    child.kernel_size,  # type: ignore[arg-type]
                    stride=child.stride,  # type: ignore[arg-type]
                    padding=child.padding,  # type: ignore[arg-type]
                    bias=child.bias is not None,
                    **extra,  # type: ignore[arg-type]
                )
            elif isinstance(child, nn.BatchNorm2d):
                thinner = nn.BatchNorm2d(less(child.num_features))
            else:
                continue
            setattr(parent, name, thinner)
    return net.double().eval()


class MeanPool(nn.MaxPool2d):
    """The mean where a max pool takes the maximum: every pixel of the window gets a gradient."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.avg_pool2d(x, self.kernel_size, self.stride, self.padding)


def averaging(net: nn.Module) -> nn.Module:
    """Max pools become mean pools of the same window, in place."""
    for parent in list(net.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.MaxPool2d):
                setattr(parent, name, MeanPool(child.kernel_size, child.stride, child.padding))
    return net


def positive(net: nn.Module) -> nn.Module:
    """Every weight positive, in place: no ReLU kills and no path cancels another."""
    for name, value in net.named_parameters():
        fan_in = math.prod(value.shape[1:]) if value.ndim == 4 else 1
        nn.init.constant_(value, 0.0 if name.endswith("bias") else 1.0 / fan_in)
    return net


def hashed(shape: tuple[int, ...], seed: int) -> torch.Tensor:
    """Float32 values in [-1, 1) that depend on `shape` and `seed` alone, on any machine.

    Not torch's generator, whose stream no release promises to keep: each place's number is mixed by
    shifts and multiplications modulo 2^32.
    """
    x = np.arange(math.prod(shape), dtype=np.uint32) + np.uint32(seed * 0x9E3779B1 % 2**32)
    for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B)):
        x ^= x >> np.uint32(shift)
        x *= np.uint32(factor)
    x ^= x >> np.uint32(16)
    return torch.from_numpy((x >> np.uint32(8)).astype(np.float32) / 2**23 - 1).reshape(shape)


def filled(architecture: Architecture, **parameters: object) -> nn.Module:
    """The full net with hashed weights of a size that keeps signals alive, in evaluation mode.

    Built without torch's own initial weights, which would cost more than all the rest.
    """
    net = nn.Module.to_empty(_skeleton(architecture, **parameters), device="cpu")
    with torch.no_grad():
        for seed, (name, value) in enumerate(sorted(net.state_dict().items())):
            if name.endswith("num_batches_tracked"):
                value.fill_(0)
                continue
            noise = hashed(tuple(value.shape), seed)
            if value.ndim == 4:
                value.copy_(noise * math.sqrt(6.0 / math.prod(value.shape[1:])))
            elif name.endswith(("bias", "running_mean")):
                value.copy_(0.1 * noise)
            elif name.endswith("running_var"):
                value.copy_(1 + 0.25 * noise)
            else:
                # Batch-norm weights of about one half, or residual sums grow block by block.
                value.copy_(0.5 + 0.125 * noise)
    return net.eval()


def _skeleton(architecture: Architecture, **parameters: object) -> nn.Module:
    with torch.device("meta"):
        return architecture.build(**parameters)
