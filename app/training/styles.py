"""MixStyle: crops of a batch lend each other their style inside the encoder (arXiv 2104.02008).

Style is the mean and deviation of each feature map: light, haze, camera, the colours of a town. A
net that meets every form under many styles tells by form, which is what holds in a place that it
has never seen. Nothing of it is left in the weights' file, and a net that serves costs no more.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise

import numpy as np
import torch
from torch import nn

from app.errors import TrainingError

# As in the paper: shares near 0 and 1, so mostly one style or the other; the first three stages.
_BETA = 0.1
_STAGES = 3
_LEAST = 1e-6


class StyleMixing:
    """Mixes styles at the ends of a VGG encoder's first stages, while `step` is open.

    `probability` of each place in each pass. What is drawn depends on `seed` and the step alone, so
    a resumed run sees the same. Raises TrainingError where the net has no such encoder.
    """

    def __init__(self, net: nn.Module, probability: float, seed: int) -> None:
        self.probability, self.seed = probability, seed
        self._random: np.random.Generator | None = None
        if probability:
            for layer in _ends(net):
                layer.register_forward_hook(self._mix)

    @contextmanager
    def step(self, number: int, rank: int = 0) -> Iterator[None]:
        """Passes within it are mixed; those outside are left alone."""
        self._random = np.random.default_rng((self.seed, number, rank))
        try:
            yield
        finally:
            self._random = None

    def _mix(
        self, _layer: nn.Module, _inputs: tuple[torch.Tensor, ...], x: torch.Tensor
    ) -> torch.Tensor:
        random = self._random
        if random is None or len(x) < 2 or random.random() >= self.probability:
            return x
        share = torch.from_numpy(random.beta(_BETA, _BETA, len(x)))
        return mixed(x, torch.from_numpy(random.permutation(len(x))), share)


def mixed(x: torch.Tensor, order: torch.Tensor, share: torch.Tensor) -> torch.Tensor:
    """(N, C, H, W) with the style of each: `share` (N,) its own, the rest that of `order` (N,).

    Statistics are taken in float32, and no gradient flows through them.
    """
    plain = x.detach().float()
    mean = plain.mean((2, 3), keepdim=True)
    deviation = (plain.var((2, 3), keepdim=True, unbiased=False) + _LEAST).sqrt()
    order, own = order.to(x.device), share.to(x.device, torch.float32).view(-1, 1, 1, 1)
    scale = own + (1 - own) * deviation[order] / deviation
    shift = own * mean + (1 - own) * mean[order] - mean * scale
    return x * scale.to(x.dtype) + shift.to(x.dtype)


def _ends(net: nn.Module) -> list[nn.Module]:
    """The last layers before the first poolings."""
    encoder = getattr(net, "encoder", None)
    layers = list(encoder) if isinstance(encoder, nn.Sequential) else []
    ends = [layer for layer, after in pairwise(layers) if isinstance(after, nn.MaxPool2d)][:_STAGES]
    if not ends:
        raise TrainingError(
            "styles can be mixed in a VGG encoder only, as TernausNet and its pyramid have"
        )
    return ends
