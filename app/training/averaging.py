"""The mean of the weights of several runs.

Runs that went on from one model lie in one basin, and the middle of it is flatter than its edges:
it often does better than each of them, above all in places that none has seen, and costs nothing
more to serve. Model soups (arXiv 2203.05482); with the model that all began from, WiSE-FT
(arXiv 2109.01903).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file

from app.errors import TrainingError
from app.training.nets import weights_of


def average(parts: Mapping[Path, float], out: Path) -> None:
    """Write the mean of the weights files `parts`, each with its share, as float32.

    Shares need not add up to 1. What is no floating point number is that of the first file. Raises
    TrainingError for files that cannot be read, or are not of one architecture.
    """
    if len(parts) < 2:
        raise TrainingError("a mean is of two files of weights or more")
    if not all(math.isfinite(share) and share > 0 for share in parts.values()):
        raise TrainingError("a share of a mean is above 0")
    total = sum(parts.values())
    first, *_ = parts
    mean: dict[str, torch.Tensor] = {}
    for path, share in parts.items():
        state = weights_of(path)
        if path != first:
            _require_same(mean, state, first, path)
        for name, value in state.items():
            if not value.is_floating_point():
                mean.setdefault(name, value)
            elif path == first:
                mean[name] = value.double() * (share / total)
            else:
                mean[name] += value.double() * (share / total)
    save_file({name: _single(value) for name, value in mean.items()}, out)


def _require_same(
    one: Mapping[str, torch.Tensor], other: Mapping[str, torch.Tensor], first: Path, path: Path
) -> None:
    shapes = [{name: tuple(value.shape) for name, value in state.items()} for state in (one, other)]
    differing = sorted(set(shapes[0].items()) ^ set(shapes[1].items()))
    if differing:
        raise TrainingError(
            f"`{path}` is not of the architecture of `{first}`: they differ in `{differing[0][0]}`"
        )


def _single(value: torch.Tensor) -> torch.Tensor:
    return (value.float() if value.is_floating_point() else value).contiguous()
