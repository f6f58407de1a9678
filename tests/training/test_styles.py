"""Styles that crops lend each other, against torch's own instance normalisation."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional

from app.architectures import base as architectures
from app.errors import TrainingError
from app.training.styles import StyleMixing, mixed
from app.training.train import train
from tests.training.runs import QUIET, tiny

NET = {"classes": 1, "upsampling": "nearest"}


@pytest.fixture
def maps() -> torch.Tensor:
    torch.manual_seed(3)
    scale = torch.tensor([1.0, 5.0, 0.2]).view(3, 1, 1, 1)
    return torch.randn(3, 4, 16, 16) * scale + scale


def test_a_lent_style_has_the_mean_and_deviation_of_the_lender(maps: torch.Tensor) -> None:
    order = torch.tensor([1, 2, 0])
    lent = mixed(maps, order, torch.zeros(3))
    torch.testing.assert_close(lent.mean((2, 3)), maps[order].mean((2, 3)))
    torch.testing.assert_close(lent.std((2, 3)), maps[order].std((2, 3)), rtol=1e-4, atol=1e-4)
    # The form is what normalisation leaves, and stays its own.
    torch.testing.assert_close(
        functional.instance_norm(lent, eps=1e-6),
        functional.instance_norm(maps, eps=1e-6),
        rtol=1e-3,
        atol=1e-3,
    )


def test_a_share_of_one_keeps_its_own_style_and_half_is_the_middle(maps: torch.Tensor) -> None:
    order = torch.tensor([1, 2, 0])
    torch.testing.assert_close(mixed(maps, order, torch.ones(3)), maps)
    means = maps.mean((2, 3))
    half = mixed(maps, order, torch.full((3,), 0.5)).mean((2, 3))
    torch.testing.assert_close(half, (means + means[order]) / 2)


def test_a_map_of_one_value_is_no_division_by_zero() -> None:
    flat = torch.ones(2, 1, 8, 8)
    assert torch.isfinite(mixed(flat, torch.tensor([1, 0]), torch.zeros(2))).all()


def test_gradients_flow_through_the_form_alone(maps: torch.Tensor) -> None:
    maps.requires_grad_()
    mixed(maps, torch.tensor([0, 1, 2]), torch.zeros(3)).sum().backward()  # type: ignore[no-untyped-call]
    assert maps.grad is not None
    torch.testing.assert_close(maps.grad, torch.ones_like(maps))


def test_styles_are_mixed_within_a_step_alone_and_by_its_number() -> None:
    net = architectures.get("ternausnet11").build(**NET).eval()
    styles = StyleMixing(net, 1.0, seed=5)
    x = torch.randn(2, 3, 64, 64) * torch.tensor([1.0, 4.0]).view(2, 1, 1, 1)
    with torch.inference_mode():
        plain = net(x)
        found: dict[int, torch.Tensor] = {}
        for number in (7, 8, 7):
            with styles.step(number):
                again = net(x)
            if number in found:
                assert torch.equal(again, found[number])
            found[number] = again
        assert torch.equal(net(x), plain)
    assert not torch.equal(found[7], plain)
    assert not torch.equal(found[7], found[8])


def test_a_run_with_styles_repeats_itself_and_differs_from_one_without(tmp_path: Path) -> None:
    plan = tiny(
        tmp_path,
        architecture="ternausnet11",
        parameters={"upsampling": "nearest"},
        steps=2,
        score=2,
    )
    states = [
        load_file(train(replace(plan, out=str(tmp_path / out), style_mix=share), console=QUIET))
        for out, share in (("a", 1.0), ("b", 1.0), ("c", 0.0))
    ]
    key = "final.weight"
    assert torch.equal(states[0][key], states[1][key])
    assert not torch.equal(states[0][key], states[2][key])


def test_what_cannot_be_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="from 0 to 1, not 2"):
        tiny(tmp_path, style_mix=2.0).check()
    net = architectures.get("albunet34").build(classes=1)
    with pytest.raises(TrainingError, match="VGG encoder"):
        StyleMixing(net, 0.5, seed=1)
    StyleMixing(net, 0.0, seed=1)
