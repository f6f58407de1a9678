"""Convolution, bias and ReLU in one kernel, layer by layer and shape by shape, where that pays.

    layers = fuse(net, torch.cudnn_convolution_relu)
    with choosing(layers, seconds):
        net(x)          # each layer tries both ways on what it is given
    with fusing(layers):
        net(x)          # and takes the faster one

torch computes the three one after the other, and on a device that multiplies as fast as those of
today, reading and writing a large map twice more costs as much as the convolution. cuDNN does all
in one pass. For some shapes it has no such kernel, and for some a slow one
(https://github.com/pytorch/pytorch/issues/68506), so this is measured and never assumed. A shape
that nobody chose for, and whatever is computed outside of `fusing`, is computed as ever.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from app.architectures.blocks import ConvRelu
from app.engine.recent import Recent

# (input, weight, bias, stride, padding, dilation, groups) -> relu(conv2d(...)).
Kernel = Callable[..., torch.Tensor]
# How long a call takes the device.
Seconds = Callable[[Callable[[], torch.Tensor]], float]

# One kernel must save a twentieth; less is noise.
WORTH = 0.95
# How far the two ways may lie apart, as a share of the largest value: other orders of summing, and
# one rounding to the type instead of two.
TOLERANCE: Mapping[torch.dtype, float] = {torch.float32: 3e-5, torch.bfloat16: 3e-2}
_SHAPES = 256


class ConvThenRelu(nn.Module):
    """relu(conv(x)): (N, inputs, H, W) -> (N, outputs, H', W'), in one kernel or in three."""

    def __init__(self, conv: nn.Conv2d, kernel: Kernel) -> None:
        super().__init__()
        self.conv = conv
        self.seconds: Seconds | None = None
        self.fusing = False
        self._kernel = kernel
        self._pays: Recent[torch.Size, bool] = Recent(_SHAPES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.seconds is not None and x.shape not in self._pays:
            self._pays.put(x.shape, self._choose(x, self.seconds))
        return self._in_one(x) if self.fusing and self.pays(x.shape) else self._in_three(x)

    def pays(self, shape: torch.Size) -> bool:
        """Whether inputs of that shape are computed in one kernel."""
        return bool(self._pays.get(shape))

    def _choose(self, x: torch.Tensor, seconds: Seconds) -> bool:
        try:
            three = self._in_three(x)
            # The kernel is given its own fresh memory as something to add none of. It comes from
            # where this was: one that multiplies it by nothing, and does not pass over it, shows.
            torch.full_like(three, torch.nan)
            one = self._in_one(x)
            apart = (one - three).abs().max().item()
            if not apart <= TOLERANCE[x.dtype] * three.abs().max().item():
                return False
            return seconds(lambda: self._in_one(x)) <= WORTH * seconds(lambda: self._in_three(x))
        except RuntimeError:
            # No such kernel for this shape, or no memory to try. An error that stays comes back
            # from whatever is computed next.
            return False

    def _in_one(self, x: torch.Tensor) -> torch.Tensor:
        conv = self.conv
        return self._kernel(
            x, conv.weight, conv.bias, conv.stride, conv.padding, conv.dilation, conv.groups
        )

    def _in_three(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu_(self.conv(x))


def fuse(net: nn.Module, kernel: Kernel) -> tuple[ConvThenRelu, ...]:
    """Replace every convolution that a ReLU follows at once, in place, and the ReLU with it.

    Found are neighbours in an `nn.Sequential` and `ConvRelu`. Names of parameters change: for a
    net whose weights are loaded. Gives the new layers, in no particular order.
    """
    found = []
    for module in list(net.modules()):
        if isinstance(module, ConvRelu):
            layer = ConvThenRelu(module.conv, kernel)
            module.conv, module.activation = layer, nn.Identity()  # type: ignore[assignment]
            found.append(layer)
        elif isinstance(module, nn.Sequential):
            for at in range(len(module) - 1):
                conv = module[at]
                if isinstance(conv, nn.Conv2d) and isinstance(module[at + 1], nn.ReLU):
                    layer = ConvThenRelu(conv, kernel)
                    module[at], module[at + 1] = layer, nn.Identity()
                    found.append(layer)
    return tuple(found)


@contextlib.contextmanager
def choosing(layers: Sequence[ConvThenRelu], seconds: Seconds) -> Iterator[None]:
    """Within the block, layers try both ways on shapes that they do not know."""
    for layer in layers:
        layer.seconds = seconds
    try:
        yield
    finally:
        for layer in layers:
            layer.seconds = None


@contextlib.contextmanager
def fusing(layers: Sequence[ConvThenRelu]) -> Iterator[None]:
    """Within the block, layers compute in one kernel where that pays."""
    for layer in layers:
        layer.fusing = True
    try:
        yield
    finally:
        for layer in layers:
            layer.fusing = False


def fused(layers: Sequence[ConvThenRelu], run: Callable[[], Any]) -> int:
    """How many of the layers compute in one kernel while `run` runs the net."""
    count = 0

    def look(layer: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        nonlocal count
        assert isinstance(layer, ConvThenRelu)
        count += layer.pays(inputs[0].shape)

    hooks = [layer.register_forward_pre_hook(look) for layer in layers]
    try:
        run()
    finally:
        for hook in hooks:
            hook.remove()
    return count
