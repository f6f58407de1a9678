"""Initial weights as named choices, and encoder weights from torchvision, from a file, or none.

`he`: normal with variance 2 / fan_in (He et al., arXiv 1502.01852, equation 10). `lecun-uniform`:
uniform within sqrt(3 / fan_in), variance 1 / fan_in (LeCun et al., "Efficient BackProp", 1998), the
"from scratch" of the TernausNet paper. `bilinear` concerns transposed convolutions alone: each
starts as bilinear interpolation (Long et al., arXiv 1411.4038, section 3.3).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from app.architectures.weight_files import read
from app.errors import CheckpointError, CheckpointRefused

SCHEMES = ("he", "lecun-uniform")
TRANSPOSED_SCHEMES = ("same", "bilinear")
TORCHVISION_WEIGHTS = "IMAGENET1K_V1"


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
        return module.in_channels // module.groups * kernel / math.prod(module.stride)
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
    channel counts that is bilinear upsampling, channel by channel. A kernel of 4 samples between
    the pixels (`align_corners=False`); one of 3 keeps every pixel and puts means between them; one
    of 2 can only repeat each pixel.
    """
    factor = (size + 1) // 2
    centre = factor - 1 if size % 2 == 1 else factor - 0.5
    line = 1 - (torch.arange(size, dtype=torch.float32) - centre).abs() / factor
    for phase in range(2):
        # Every second tap meets the same output pixel; their sum must be 1 to keep brightness.
        line[phase::2] /= line[phase::2].sum()
    kernel = torch.outer(line, line)
    weight = torch.zeros(inputs, outputs, size, size)
    for j in range(outputs):
        sources = torch.arange(j % inputs, inputs, min(outputs, inputs))
        weight[sources, j] = kernel / len(sources)
    return weight


def load_encoder(net: nn.Module, source: str, *, encoder: str | None) -> str:
    """Fill `net.encoder` and say in a few words with what.

    `source` is `none`, `imagenet` (torchvision's IMAGENET1K_V1 weights of `encoder`, downloaded by
    torchvision, checked against the digest in their name, and cached) or the path of a weights file
    with torchvision's names (`features.N.*` for VGG, `layer1.*` for ResNet; a classifier is passed
    over). Half precision is widened. Raises CheckpointError where the file cannot be read or
    fetched and CheckpointRefused where it does not fit; the net is then untouched.
    """
    if source == "none":
        return "none"
    if encoder is None:
        raise CheckpointRefused(
            "this architecture has no torchvision encoder; `--encoder` must be `none`"
        )
    if source == "imagenet":
        state = _from_torchvision(encoder)
        words = f"{encoder} ImageNet (torchvision {TORCHVISION_WEIGHTS})"
    else:
        state = read(source)
        words = Path(source).stem
    target = net.get_submodule("encoder")
    expected = target.state_dict()
    found = {name.removeprefix("features."): value for name, value in state.items()}
    chosen = {}
    for name, value in expected.items():
        if name.endswith("num_batches_tracked"):
            # Counts training steps; files from before torch kept it go without.
            chosen[name] = torch.zeros_like(value)
            continue
        problem = _misfit(found.get(name), value)
        if problem:
            raise CheckpointRefused(
                f"encoder weights `{source}` do not fit a {encoder} encoder: `{name}` {problem}"
            )
        chosen[name] = found[name].float()
    target.load_state_dict(chosen)
    return words


def _from_torchvision(encoder: str) -> Mapping[str, Any]:
    # Only here: it takes longer to import than torch.
    from torchvision import models

    hint = "hint: give a weights file instead, or `none`"
    try:
        weights: Any = models.get_model_weights(encoder)[TORCHVISION_WEIGHTS]
        state: Mapping[str, Any] = weights.get_state_dict(
            progress=True, check_hash=True, weights_only=True
        )
    except OSError as exc:
        raise CheckpointError(
            f"torchvision's {encoder} weights could not be fetched: {exc}\n{hint}"
        ) from exc
    # A wrong digest, or a damaged file in the cache, which can raise nearly anything. torch's own
    # message is not passed on: it advises to load the file unsafely.
    except Exception as exc:
        raise CheckpointError(
            f"torchvision's {encoder} weights in `{torch.hub.get_dir()}` are damaged "
            f"({type(exc).__name__})\n{hint}"
        ) from exc
    return state


def _misfit(value: Any, expected: torch.Tensor) -> str | None:
    """What is wrong with a value for this place, in words that follow its name."""
    shape = tuple(expected.shape)
    if value is None:
        return f"should have shape {shape}, is missing"
    if not isinstance(value, torch.Tensor) or not value.is_floating_point():
        return "is not a tensor of floats"
    if value.shape != expected.shape:
        return f"should have shape {shape}, has {tuple(value.shape)}"
    if not bool(torch.isfinite(value.float()).all()):
        return "holds NaN or infinity"
    return None
