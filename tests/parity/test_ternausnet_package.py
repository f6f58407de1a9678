"""The `ternausnet` package and we give the same logits from the same weights, both ways."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from ternausnet import models as ternausnet
from torch import nn

from app.architectures.base import get
from app.architectures.checkpoints import canonical, export_published

pytestmark = [
    # The package calls torchvision's constructors with their old `pretrained` argument.
    pytest.mark.filterwarnings("ignore:The parameter 'pretrained' is deprecated:UserWarning"),
    pytest.mark.filterwarnings("ignore:Arguments other than a weight enum:UserWarning"),
]

CASES: list[tuple[str, str, Callable[[], nn.Module], dict[str, Any]]] = [
    (
        "unet11-upstream",
        "ternausnet11",
        ternausnet.UNet11,
        {"classes": 1, "upsampling": "transposed-3x3"},
    ),
    (
        "unet16",
        "ternausnet16",
        lambda: ternausnet.UNet16(num_classes=3),
        {"classes": 3, "upsampling": "bilinear"},
    ),
    (
        "unet16",
        "ternausnet16",
        lambda: ternausnet.UNet16(is_deconv=True),
        {"classes": 1, "upsampling": "transposed-4x4"},
    ),
]


@pytest.mark.parametrize(
    ("family", "architecture", "original", "parameters"),
    CASES,
    ids=["unet11", "unet16-bilinear", "unet16-deconv"],
)
def test_same_weights_give_the_same_logits_both_ways(
    family: str, architecture: str, original: Callable[[], nn.Module], parameters: dict[str, Any]
) -> None:
    theirs = original().eval()
    picture = torch.rand(2, 3, 64, 96, generator=torch.Generator().manual_seed(1))
    found, tensors = canonical(theirs.state_dict())
    assert (found.family, found.architecture) == (family, architecture)
    assert found.parameters == get(architecture).complete(parameters)
    ours = get(architecture).build(**found.parameters)
    ours.load_state_dict(tensors)
    with torch.inference_mode():
        expected = theirs(picture)
        assert float(expected.std()) > 0
        torch.testing.assert_close(ours(picture), expected, rtol=0, atol=1e-6)
        # Back again, into a net of theirs whose weights were others.
        with torch.no_grad():
            for value in theirs.parameters():
                value.mul_(0.5)
        exported = export_published(ours.state_dict(), family)
        theirs.load_state_dict(exported, strict=True)
        torch.testing.assert_close(theirs(picture), expected, rtol=0, atol=1e-6)


def test_pyramid_is_the_mean_of_two_scales() -> None:
    """Their net twice, and Pillow for both changes of size."""
    theirs = ternausnet.UNet11().eval()
    _, tensors = canonical(theirs.state_dict())
    ours = get("ternausnet11-pyramid").build(classes=1, upsampling="transposed-3x3")
    ours.load_state_dict(tensors)
    picture = torch.rand(1, 3, 128, 192, generator=torch.Generator().manual_seed(1))
    small = torch.stack([resized(plane, (96, 64), Image.Resampling.BOX) for plane in picture[0]])
    with torch.inference_mode():
        fine, coarse = theirs(picture)[0, 0], theirs(small[None])[0, 0]
        large = resized(coarse, (192, 128), Image.Resampling.BILINEAR)
        found = ours(picture)[0, 0]
    assert float((fine - large).abs().mean()) > 10 * 1e-5
    torch.testing.assert_close(found, (fine + large) / 2, rtol=0, atol=1e-5)


def resized(plane: torch.Tensor, size: tuple[int, int], how: Image.Resampling) -> torch.Tensor:
    """(H, W) float32 -> `size` (width, height)."""
    return torch.from_numpy(np.array(Image.fromarray(plane.numpy()).resize(size, how)))
