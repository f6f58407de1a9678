"""Crop i of a seed is always the same, and labels stay where their pixels are."""

from __future__ import annotations

import hashlib
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from app.errors import TrainingError
from app.training.crops import (
    AUGMENTATIONS,
    CropPlan,
    Crops,
    Ground,
    affine,
    crop_plan,
    mix,
)
from app.training.losses import IGNORE
from app.training.ranks import Share
from app.training.scenes import Scene
from tests.training.pictures import blobs


def drawn_in(height: int = 160, width: int = 200, *, seed: int = 0) -> Scene:
    """The labels are to be seen in the picture: red 255 where the class is, 0 elsewhere."""
    _, labels = blobs(height, width, seed=seed)
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[..., 0] = labels * 255
    pixels[..., 1] = 128
    return Scene(f"s{seed}", pixels, labels[None])


def crops(plan: CropPlan, *, seed: int = 3, scenes: int = 2, keep: bool = True) -> Crops:
    town = [Ground(lambda i=i: drawn_in(seed=i), keep=keep) for i in range(scenes)]  # type: ignore[misc]
    return Crops([town], [1.0], plan, seed=seed, length=50)


def test_crop_is_the_same_whenever_and_in_whatever_order_it_is_drawn() -> None:
    plan = CropPlan(size=64)
    first, second = crops(plan), crops(plan)
    forward = [first[i] for i in range(6)]
    for i in reversed(range(6)):
        pixels, labels = second[i]
        assert torch.equal(pixels, forward[i][0])
        assert torch.equal(labels, forward[i][1])
    assert not torch.equal(forward[0][0], forward[1][0])
    assert not torch.equal(crops(plan, seed=4)[0][0], forward[0][0])


def test_crop_is_the_same_from_kept_pixels_and_from_pixels_read_again() -> None:
    plan = CropPlan(size=64)
    for index in range(4):
        kept, read = crops(plan)[index], crops(plan, keep=False)[index]
        assert torch.equal(kept[0], read[0])
        assert torch.equal(kept[1], read[1])


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_labels_stay_where_their_pixels_are(name: str) -> None:
    # Recolouring is left out: here the colour says what the label must be.
    plan = replace(crop_plan(name, 96), colour=0.0, mix=0.0)
    for index in range(20):
        pixels, labels = crops(plan)[index]
        assert pixels.shape == (3, 96, 96)
        assert labels.shape == (1, 96, 96)
        assert pixels.dtype == labels.dtype == torch.uint8
        red, label = pixels[0], labels[0]
        known = label != IGNORE
        # Bilinear and nearest sampling differ along contours alone, where red is in between.
        clear = known & ((red < 40) | (red > 215))
        agree = (red > 127) == (label == 1)
        assert bool(agree[clear].float().mean() > 0.99), (name, index)
        assert float(clear.float().mean()) > 0.5


def test_ground_outside_the_scene_is_not_labelled() -> None:
    plan = CropPlan(size=128, zoom=(0.3, 0.3), colour=0.0, mix=0.0, least_valid=0.0)
    for index in range(10):
        pixels, labels = crops(plan)[index]
        outside = pixels[1] == 0
        assert bool((labels[0][outside] == IGNORE).all())
        assert bool(outside.any())


def test_affine_maps_the_centre_and_turns_about_it() -> None:
    a, b, c, d, e, f = affine(50, 30, turn=math.pi / 2, flip=1.0, zoom=2.0, size=64)
    assert (a * 32 + b * 32 + c, d * 32 + e * 32 + f) == pytest.approx((50, 30))
    # One output pixel to the right is half a scene pixel down.
    assert (a, d) == pytest.approx((0, 0.5))


def test_crops_prefer_ground_with_a_class() -> None:
    labels = np.zeros((1, 256, 256), np.uint8)
    labels[0, 200:240, 10:50] = 1
    scene = Scene("s", np.zeros((256, 256, 3), np.uint8), labels)
    for positive, least in ((1.0, 0.95), (0.0, 0.0)):
        plan = CropPlan(size=64, zoom=(1.0, 1.0), positive=positive)
        made = Crops([[Ground(lambda: scene, keep=True)]], [1.0], plan, seed=1, length=60)
        share = np.mean([bool((made[i][1] == 1).any()) for i in range(60)])
        assert share >= least
        if not positive:
            assert share < 0.5


def test_unlabelled_ground_is_avoided() -> None:
    labels = np.full((1, 256, 256), IGNORE, np.uint8)
    labels[0, :, :128] = 0
    scene = Scene("s", np.zeros((256, 256, 3), np.uint8), labels)
    plan = CropPlan(size=64, zoom=(1.0, 1.0))
    made = Crops([[Ground(lambda: scene, keep=True)]], [1.0], plan, seed=1, length=40)
    valid = [float((made[i][1] != IGNORE).float().mean()) for i in range(40)]
    assert min(valid) > 0.4
    assert np.mean([v >= plan.least_valid for v in valid]) > 0.95


def test_scene_smaller_than_a_cell_can_be_cropped() -> None:
    scene = Scene("s", np.zeros((20, 300, 3), np.uint8), np.ones((1, 20, 300), np.uint8))
    made = Crops([[Ground(lambda: scene, keep=True)]], [1.0], CropPlan(size=32), seed=1, length=9)
    assert all(made[i][0].shape == (3, 32, 32) for i in range(9))


def test_planes_of_overlapping_classes_move_together() -> None:
    base = drawn_in()
    scene = Scene("s", base.pixels, np.concatenate([base.labels, 1 - base.labels]))
    made = Crops([[Ground(lambda: scene, keep=True)]], [1.0], CropPlan(size=64), seed=1, length=9)
    _, labels = made[3]
    known = labels[0] != IGNORE
    assert torch.equal(known, labels[1] != IGNORE)
    assert bool((labels[0][known] + labels[1][known] == 1).all())


def test_towns_get_their_share() -> None:
    def town(value: int) -> list[Ground]:
        scene = Scene("s", np.full((64, 64, 3), value, np.uint8), np.ones((1, 64, 64), np.uint8))
        return [Ground(lambda: scene, keep=True)]

    plan = CropPlan(size=32, colour=0.0, mix=0.0)
    made = Crops([town(10), town(200)], [1, 3], plan, seed=1, length=400)
    bright = np.mean([int(made[i][0].max()) == 200 for i in range(400)])
    assert 0.68 < bright < 0.82


def test_processes_share_the_crops_of_each_batch() -> None:
    whole = list(Share(8, 24, batch=8, rank=0, count=1))
    assert whole == list(range(8, 24))
    halves = [list(Share(8, 24, batch=8, rank=rank, count=2)) for rank in (0, 1)]
    assert halves[0] == [8, 9, 10, 11, 16, 17, 18, 19]
    assert sorted(halves[0] + halves[1]) == whole
    loader = DataLoader(
        crops(CropPlan(size=32)), batch_size=4, sampler=Share(0, 8, batch=8, rank=1, count=2)
    )
    pixels, _ = next(iter(loader))
    assert torch.equal(pixels[0], crops(CropPlan(size=32))[4][0])


def test_crops_of_the_default_plan_never_change() -> None:
    # A run is resumed with the crops that it would have seen, also by a later version.
    made = crops(CropPlan(size=64, colour=0.0))
    digest = hashlib.sha256(b"".join(made[i][1].numpy().tobytes() for i in range(8)))
    assert digest.hexdigest()[:16] == "52ece495e623b7fd"


def test_mixed_channels_leave_grey_alone_and_change_hues() -> None:
    random = np.random.default_rng(0)
    grey = Image.fromarray(np.repeat(np.arange(256, dtype=np.uint8)[:, None, None], 3, axis=2))
    red = Image.new("RGB", (4, 4), (250, 10, 10))
    shades = []
    for _ in range(200):
        change = np.abs(np.asarray(mix(grey, random)).astype(int) - np.asarray(grey))
        assert change.max() <= 1
        shades.append(np.asarray(mix(red, random))[0, 0].astype(int))
    spread = np.ptp(shades, axis=1)
    assert spread.min() < 160
    assert spread.max() > 180
    # Now and then another channel is the brightest: a red roof becomes a green or a blue one.
    assert {0, 1, 2} <= {int(np.argmax(shade)) for shade in shades}


def test_share_of_crops_is_mixed() -> None:
    plain = crops(CropPlan(size=32, colour=0.0, mix=0.0))
    mixed = crops(CropPlan(size=32, colour=0.0, mix=0.5))
    changed = [not torch.equal(plain[i][0], mixed[i][0]) for i in range(50)]
    assert 12 < sum(changed) < 38
    assert all(torch.equal(plain[i][1], mixed[i][1]) for i in range(50))


def test_unknown_augmentation_is_refused_with_the_known_ones() -> None:
    with pytest.raises(TrainingError, match="known: aerial, normal, light, none"):
        crop_plan("wild", 64)
