"""Layers that are one kernel or three. The kernel itself needs CUDA; here another stands for it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from app.architectures.base import get
from app.engine.fusion import ConvThenRelu, choosing, fuse, fused, fusing

# Convolutions that a ReLU follows at once, counted in the papers' figures: 8 of VGG11 or 13 of
# VGG16, the centre, four steps up and the last block; with interpolation a step up has two.
COUNTS = [
    ("ternausnet11", {}, 8 + 6),
    ("ternausnet11", {"upsampling": "nearest"}, 8 + 5 * 2 + 1),
    ("ternausnet11-pyramid", {}, 8 + 6),
    ("ternausnet16", {}, 13 + 5 * 2 + 1),
    ("ternausnet16", {"upsampling": "transposed-4x4"}, 13 + 6),
]


class Kernel:
    """What cuDNN would do, counted."""

    def __init__(self, *, off: float = 0.0, error: Exception | None = None) -> None:
        self.calls = 0
        self._off, self._error = off, error

    def __call__(
        self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, *rest: Any
    ) -> torch.Tensor:
        self.calls += 1
        if self._error is not None:
            raise self._error
        return nn.functional.conv2d(x, weight, bias, *rest).clamp(min=0) + self._off


def timer(one: float, three: float) -> Callable[[Callable[[], torch.Tensor]], float]:
    """The first of each pair that is timed is the one kernel."""
    turns = iter([one, three] * 100)

    def seconds(call: Callable[[], torch.Tensor]) -> float:
        call()
        return next(turns)

    return seconds


def built(name: str, **parameters: Any) -> nn.Module:
    torch.manual_seed(0)
    return get(name).build(classes=2, **parameters).eval()


@pytest.fixture
def layer() -> tuple[ConvThenRelu, Kernel]:
    kernel = Kernel()
    torch.manual_seed(0)
    return ConvThenRelu(nn.Conv2d(3, 5, 3, padding=1), kernel), kernel


@pytest.mark.parametrize(("name", "parameters", "count"), COUNTS)
@torch.inference_mode()
def test_net_says_the_same_with_one_kernel(
    name: str, parameters: dict[str, Any], count: int
) -> None:
    net, kernel = built(name, **parameters), Kernel()
    x = torch.randn(1, 3, 64, 128)
    expected = net(x)
    layers = fuse(net, kernel)
    assert len(layers) == count
    assert torch.equal(net(x), expected)
    assert kernel.calls == 0, "nobody has chosen"
    with choosing(layers, timer(1.0, 2.0)):
        net(x)
    kernel.calls = 0
    assert torch.equal(net(x), expected)
    assert kernel.calls == 0, "outside of `fusing` nothing has changed"
    passes = 2 if name.endswith("pyramid") else 1
    with fusing(layers):
        assert fused(layers, lambda: net(x)) == passes * count == kernel.calls
        torch.testing.assert_close(net(x), expected)
    assert torch.equal(net(x), expected)


@pytest.mark.parametrize("name", ["unet", "unet-surgical", "albunet34"])
@torch.inference_mode()
def test_other_nets_are_left_right(name: str) -> None:
    net, x = built(name), torch.randn(1, 3, 64, 64)
    expected = net(x)
    layers = fuse(net, Kernel())
    with choosing(layers, timer(1.0, 2.0)):
        net(x)
    with fusing(layers):
        torch.testing.assert_close(net(x), expected)


@torch.inference_mode()
def test_each_shape_is_chosen_for_by_itself_and_once(layer: tuple[ConvThenRelu, Kernel]) -> None:
    one, kernel = layer
    small, large = torch.randn(1, 3, 8, 8), torch.randn(2, 3, 8, 8)
    with choosing([one], timer(1.0, 2.0)):
        one(small)
    with choosing([one], timer(2.0, 1.0)):
        one(small)
        one(large)
    assert one.pays(small.shape)
    assert not one.pays(large.shape)
    kernel.calls = 0
    with fusing([one]):
        one(large)
        assert kernel.calls == 0
        one(small)
        assert kernel.calls == 1


@pytest.mark.parametrize(
    "kernel",
    [
        Kernel(off=0.5),
        Kernel(off=float("nan")),
        Kernel(error=RuntimeError("GET was unable to find an engine to execute this computation")),
        Kernel(error=torch.OutOfMemoryError("CUDA out of memory")),
    ],
)
@torch.inference_mode()
def test_kernel_that_is_wrong_or_missing_is_not_taken(kernel: Kernel) -> None:
    torch.manual_seed(0)
    conv = nn.Conv2d(3, 5, 3, padding=1)
    layer, x = ConvThenRelu(conv, kernel), torch.randn(1, 3, 8, 8)
    with choosing([layer], timer(1.0, 2.0)):
        found = layer(x)
    assert not layer.pays(x.shape)
    assert torch.equal(found, conv(x).relu())


@torch.inference_mode()
def test_a_gain_that_may_be_noise_is_none(layer: tuple[ConvThenRelu, Kernel]) -> None:
    one, _ = layer
    x = torch.randn(1, 3, 8, 8)
    with choosing([one], timer(0.97, 1.0)):
        one(x)
    assert not one.pays(x.shape)
