"""Scaling down for the net and back, against torch's own antialiased interpolation."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn.functional import interpolate

from app.imaging.scale import enlarge, enlarged, shown_size, shrink


@pytest.mark.parametrize(
    ("size", "longest", "expected"),
    [
        ((3000, 4000), 400, (300, 400)),
        ((4000, 3000), 400, (400, 300)),
        ((400, 300), 400, (400, 300)),
        ((401, 300), 400, (400, 299)),
        ((10_000, 3), 100, (100, 1)),
        ((3000, 4000), None, (3000, 4000)),
        ((1, 1), 32, (1, 1)),
    ],
)
def test_longer_side_is_bounded_and_nothing_grows(
    size: tuple[int, int], longest: int | None, expected: tuple[int, int]
) -> None:
    assert shown_size(*size, longest) == expected


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


@pytest.mark.parametrize("size", [(50, 70), (33, 101), (1, 40)])
def test_shrinking_is_the_antialiased_bilinear_of_torch(size: tuple[int, int]) -> None:
    pixels = noise(120, 210, 3)
    x = torch.from_numpy(pixels).permute(2, 0, 1)[None].float()
    expected = interpolate(x, size=size, mode="bilinear", antialias=True)[0].permute(1, 2, 0)
    assert np.abs(shrink(pixels, size) - expected.numpy()).max() <= 1.1


def test_enlarging_is_the_bilinear_of_torch() -> None:
    plane = noise(21, 34)
    x = torch.from_numpy(plane)[None, None].float()
    expected = interpolate(x, size=(100, 131), mode="bilinear", align_corners=False)[0, 0].numpy()
    assert np.abs(enlarge(plane, (100, 131)) - expected).max() <= 1.1


def test_what_has_its_size_is_not_copied() -> None:
    pixels, plane = noise(5, 6, 3), noise(5, 6)
    assert shrink(pixels, (5, 6)) is pixels
    assert enlarge(plane, (5, 6)) is plane


def test_planes_are_compared_after_they_are_scaled_up() -> None:
    probability = noise(2, 20, 30)
    bits, kept = enlarged(probability, (61, 91), threshold=0.4, keep=False)
    assert bits.shape == (2, 61, 12)
    assert kept is None
    planes = np.unpackbits(bits, axis=2, count=91)
    large = np.stack([enlarge(plane, (61, 91)) for plane in probability])
    assert np.array_equal(planes, large > 102)
    # Smooth contours: not what scaling up a small mask would give.
    blocks = enlarge((probability[0] > 102).astype(np.uint8) * 255, (61, 91)) > 127
    assert not np.array_equal(planes[0], blocks)


def test_labels_are_the_likeliest_class_after_scaling_up() -> None:
    probability = noise(5, 20, 30)
    large = np.stack([enlarge(plane, (77, 50)) for plane in probability])
    labels, kept = enlarged(probability, (77, 50), threshold=None, keep=True)
    assert np.array_equal(labels, large.argmax(axis=0))
    assert kept is not None
    assert np.array_equal(kept, large)
