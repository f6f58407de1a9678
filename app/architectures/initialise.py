"""Initial weights as named choices, and encoder weights from torchvision, from a file, or none.

`he`: normal with variance 2 / fan_in (He et al., arXiv 1502.01852, equation 10). `lecun-uniform`:
uniform within sqrt(3 / fan_in), variance 1 / fan_in (LeCun et al., "Efficient BackProp", 1998), the
"from scratch" of the TernausNet paper. `bilinear` concerns transposed convolutions alone: each
starts as bilinear interpolation (Long et al., arXiv 1411.4038, section 3.3).
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from app.errors import CheckpointRefused

SCHEMES = ("he", "lecun-uniform")
TRANSPOSED_SCHEMES = ("same", "bilinear")


def initialise(
    net: nn.Module,
    *,
    scheme: str = "he",
    transposed: str = "same",
    generator: torch.Generator | None = None,
) -> None:
    """Give every convolution fresh weights, in place; biases become 0, batch norms the identity.

    `scheme` is one of SCHEMES; `transposed` is `same` (that scheme too) or `bilinear`. Raises
    ValueError for other names.
    """
    if scheme not in SCHEMES:
        raise ValueError(f"unknown initialisation `{scheme}`; known: {', '.join(SCHEMES)}")
    if transposed not in TRANSPOSED_SCHEMES:
        raise ValueError(
            f"unknown initialisation of transposed convolutions `{transposed}`; "
            f"known: {', '.join(TRANSPOSED_SCHEMES)}"
        )
    with torch.no_grad():
        for module in net.modules():
            if isinstance(module, nn.ConvTranspose2d) and transposed == "bilinear":
                module.weight.copy_(bilinear_kernel(*module.weight.shape[:3]))
            elif isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
                _fill(module.weight, _fan_in(module), scheme, generator)
            elif isinstance(module, nn.BatchNorm2d):
                module.reset_running_stats()
                module.weight.fill_(1.0)
            else:
                continue
            if module.bias is not None:
                module.bias.zero_()


def _fan_in(module: nn.Conv2d | nn.ConvTranspose2d) -> float:
    """How many products are summed into one output value."""
    kernel = math.prod(module.kernel_size)
    if isinstance(module, nn.ConvTranspose2d):
        # Of the kernel's taps only 1 in stride^2 meets a given output pixel.
        return module.in_channels * kernel / math.prod(module.stride)
    return module.in_channels // module.groups * kernel


def _fill(
    weight: torch.Tensor, fan_in: float, scheme: str, generator: torch.Generator | None
) -> None:
    if scheme == "he":
        weight.normal_(0.0, math.sqrt(2.0 / fan_in), generator=generator)
    else:
        bound = math.sqrt(3.0 / fan_in)
        weight.uniform_(-bound, bound, generator=generator)


def bilinear_kernel(inputs: int, outputs: int, size: int) -> torch.Tensor:
    """Weights (inputs, outputs, size, size) of a stride-2 transposed convolution that interpolates.

    Output channel j shows the mean of the input channels congruent to j, interpolated; with equal
    channel counts that is bilinear upsampling, channel by channel.
    """
    factor = (size + 1) // 2
    centre = factor - 1 if size % 2 == 1 else factor - 0.5
    line = 1 - (torch.arange(size, dtype=torch.float32) - centre).abs() / factor
    kernel = torch.outer(line, line)
    weight = torch.zeros(inputs, outputs, size, size)
    for j in range(outputs):
        sources = torch.arange(j % inputs, inputs, min(outputs, inputs))
        weight[sources, j] = kernel / len(sources)
    return weight


def load_encoder(net: nn.Module, source: str, *, encoder: str | None) -> str:
    """Fill `net.encoder` and say in a few words with what.

    `source` is `none`, `imagenet` (torchvision's IMAGENET1K_V1 weights of `encoder`, downloaded by
    torchvision and cached) or the path of a safetensors file with torchvision's names (`features.N.*`
    for VGG). Raises CheckpointRefused where the file is unreadable or does not fit.
    """
    if source == "none":
        return "none"
    if encoder is None:
        raise CheckpointRefused(
            "this architecture has no torchvision encoder; `--encoder` must be `none`"
        )
    if source == "imagenet":
        from torchvision import models

        weights: Any = models.get_weight(f"{encoder.upper()}_Weights".replace("RESNET", "ResNet") + ".IMAGENET1K_V1")
        state = weights.get_state_dict(progress=True)
        words = f"{encoder} ImageNet (torchvision IMAGENET1K_V1)"
    else:
        path = Path(source)
        try:
            state = load_file(path)
        except (OSError, SafetensorError) as exc:
            raise CheckpointRefused(f"`{source}` is not a readable safetensors file: {exc}") from exc
        words = path.stem
    target = net.get_submodule("encoder")
    expected = target.state_dict()
    found = {name.removeprefix("features."): value for name, value in state.items()}
    missing = [
        name
        for name, value in expected.items()
        if not name.endswith("num_batches_tracked")
        and (name not in found or found[name].shape != value.shape)
    ]
    if missing:
        raise CheckpointRefused(
            f"encoder weights `{source}` do not fit a {encoder} encoder: `{missing[0]}` should have "
            f"shape {tuple(expected[missing[0]].shape)}"
            + (f", has {tuple(found[missing[0]].shape)}" if missing[0] in found else ", is missing")
        )
    target.load_state_dict({name: found[name].float() for name in expected if name in found}, strict=False)
    return words
