"""The core alone, on stub nets whose answers are known."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from app.engine.core import Core
from app.types import Task

FLAT: dict[str, Any] = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}


class Net(nn.Module):
    """Logits from the normalised picture: its first channels, through `turn`."""

    def __init__(self, channels: int, scale: float = 1.0, offset: float = 0.0) -> None:
        super().__init__()
        self.channels, self.scale, self.offset = channels, scale, offset
        self.seen: list[torch.dtype] = []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.seen.append(x.dtype)
        return x[:, : self.channels] * self.scale + self.offset


def run(
    core: Core, pixels: np.ndarray, *thresholds: float, probability: bool = True
) -> list[np.ndarray]:
    with torch.inference_mode():
        found = core(torch.from_numpy(pixels), torch.tensor(thresholds), probability)
    return [tensor.numpy() for tensor in found]


def test_normalisation_is_that_of_the_manifest() -> None:
    class Look(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.x = x
            return x[:, :1]

    look = Look()
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    pixels = np.random.default_rng(0).integers(0, 256, (2, 8, 16, 3), dtype=np.uint8)
    run(Core(look, task="binary", mean=mean, std=std), pixels, 0.5, 0.5)
    expected = (pixels / 255 - np.array(mean)) / np.array(std)
    np.testing.assert_allclose(look.x.permute(0, 2, 3, 1).numpy(), expected, atol=1e-6)


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 1000),
    eights=st.integers(1, 5),
    height=st.integers(1, 9),
    task=st.sampled_from(["binary", "multilabel"]),
)
def test_packing_is_that_of_numpy(seed: int, eights: int, height: int, task: Task) -> None:
    pixels = np.random.default_rng(seed).integers(
        0, 256, (2, height, eights * 8, 3), dtype=np.uint8
    )
    channels = 1 if task == "binary" else 3
    net = Net(channels, 8.0, -4.0)
    packed = run(Core(net, task=task, **FLAT), pixels, 0.3, 0.7)[0]
    planes = run(Core(net, task=task, packed=False, **FLAT), pixels, 0.3, 0.7)[0]
    assert planes.dtype == np.bool_
    np.testing.assert_array_equal(packed, np.packbits(planes, axis=-1))


def test_first_of_equal_classes_wins() -> None:
    pixels = np.full((1, 8, 8, 3), 90, np.uint8)
    pixels[0, 0, 0] = (1, 2, 2)
    labels = run(Core(Net(3), task="multiclass", **FLAT), pixels, 0.5)[0]
    assert labels.dtype == np.uint8
    assert labels[0, 0, 0] == 1
    assert labels[0, 1, 1] == 0


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_only_the_item_with_a_bad_logit_is_flagged(bad: float) -> None:
    class Poison(Net):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            logits = super().forward(x).clone()
            logits[1, 0, 3, 3] = bad
            return logits

    pixels = np.full((3, 8, 8, 3), 100, np.uint8)
    core = Core(Poison(1), task="binary", **FLAT)
    mask, _, total = run(core, pixels, 0.5, 0.5, 0.5)
    assert np.isfinite(total).tolist() == [True, False, True]
    assert (mask[[0, 2]] == 255).all()


def test_probability_is_left_out_unless_asked() -> None:
    pixels = np.zeros((1, 8, 8, 3), np.uint8)
    tasks: list[Task] = ["binary", "multiclass"]
    for task in tasks:
        core = Core(Net(1), task=task, **FLAT)
        assert run(core, pixels, 0.5, probability=False)[1].size == 0
        assert run(core, pixels, 0.5)[1].shape == (1, 1, 8, 8)


def test_only_the_net_runs_in_the_reduced_type() -> None:
    net = Net(1)
    core = Core(net, task="binary", dtype=torch.bfloat16, **FLAT)
    p = run(core, np.arange(64, dtype=np.uint8).repeat(3).reshape(1, 8, 8, 3), 0.5)[1]
    assert net.seen == [torch.bfloat16]
    assert core.mean.dtype == torch.float32
    expected = 255 / (1 + np.exp(-np.arange(64) / 255))
    assert np.abs(p.reshape(-1) - expected).max() <= 1
