"""Random crops of scenes: place, zoom, turn, flip, colour. Crop i of a seed is always the same.

Each crop is drawn by its own generator from (seed, index), so a run that is killed and resumed sees
the very pictures that it would have seen, and so do several processes that share a batch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageFilter
from torch.utils.data import Dataset

from app.errors import TrainingError
from app.training.losses import IGNORE
from app.training.scenes import Labels, Scene

# Side, in pixels, of the cells that say where in a scene there is something to learn.
_CELL = 32
_TRIES = 8


@dataclass(frozen=True, slots=True)
class CropPlan:
    """How crops are drawn.

    `size` in pixels; `zoom` the range of output pixels per scene pixel; `positive` the share of
    crops centred where a class is; `least_valid` the smallest share of labelled pixels that a crop
    may have; `colour` the strength of recolouring; `mix` the share of crops whose channels are
    mixed, so that form and texture must be learnt, not the colours of one town. `quarters`: turned
    by right angles, as suits pictures without an up; `tilt`: the share of crops turned by up to
    `lean` more.
    """

    size: int = 256
    zoom: tuple[float, float] = (0.4, 1.8)
    positive: float = 0.65
    least_valid: float = 0.6
    colour: float = 1.0
    mix: float = 0.5
    quarters: bool = True
    flip: bool = True
    tilt: float = 0.5
    lean: float = math.pi / 4


# `aerial` is what overhead pictures bear; `normal` keeps the sky above.
AUGMENTATIONS: Mapping[str, CropPlan] = {
    "aerial": CropPlan(),
    "normal": CropPlan(zoom=(0.7, 1.4), colour=0.7, mix=0.2, quarters=False, lean=math.pi / 12),
    "light": CropPlan(
        zoom=(0.9, 1.1),
        positive=0.5,
        colour=0.3,
        mix=0.0,
        quarters=False,
        tilt=0.25,
        lean=math.pi / 36,
    ),
    "none": CropPlan(
        zoom=(1.0, 1.0), positive=0.5, colour=0.0, mix=0.0, quarters=False, flip=False, tilt=0.0
    ),
}


def crop_plan(augmentation: str, size: int) -> CropPlan:
    """Raises TrainingError that lists the known levels."""
    if augmentation not in AUGMENTATIONS:
        raise TrainingError(
            f"unknown augmentation `{augmentation}`; known: {', '.join(AUGMENTATIONS)}"
        )
    return replace(AUGMENTATIONS[augmentation], size=size)


class Pyramid:
    """A scene at full size, at half, at a quarter: zooming out without aliasing."""

    def __init__(self, scene: Scene) -> None:
        self.pictures = [Image.fromarray(scene.pixels)]
        self.labels = [[Image.fromarray(plane) for plane in scene.labels]]
        while min(self.pictures[-1].size) >= 256 and len(self.pictures) < 3:
            half = (max(1, self.pictures[-1].width // 2), max(1, self.pictures[-1].height // 2))
            self.pictures.append(self.pictures[-1].resize(half, Image.Resampling.BOX))
            self.labels.append(
                [plane.resize(half, Image.Resampling.NEAREST) for plane in self.labels[-1]]
            )


class Ground:
    """A scene's places to learn from; its pixels kept, or read again each time.

    `valid`, `positive`: (K, 2) rows and columns of cells that are labelled, and that show a class.
    """

    def __init__(self, read: Callable[[], Scene], *, keep: bool) -> None:
        scene = read()
        self._read = read
        self._kept = Pyramid(scene) if keep else None
        known = scene.labels != IGNORE
        valid = _cells(known.any(axis=0))
        positive = _cells(((scene.labels > 0) & known).any(axis=0))
        self.valid = _places(valid > 0.5)
        self.positive = _places((positive > 0.05) & (valid > 0.5))
        if not len(self.valid):
            # Smaller than half a cell each way, or hardly labelled: the middle is its one place.
            self.valid = np.zeros((1, 2), np.int64)

    def pyramid(self) -> Pyramid:
        """Of the scene, read anew where it is not kept."""
        return self._kept or Pyramid(self._read())


def _cells(mask: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Mean of each whole cell, (H // 32, W // 32) float32; of a smaller scene, of the whole."""
    rows, columns = mask.shape[0] // _CELL, mask.shape[1] // _CELL
    if not rows or not columns:
        return np.full((1, 1), mask.mean(), np.float32)
    whole = mask[: rows * _CELL, : columns * _CELL].astype(np.float32)
    means: NDArray[np.float32] = whole.reshape(rows, _CELL, columns, _CELL).mean((1, 3))
    return means


def _places(cells: NDArray[np.bool_]) -> NDArray[np.int64]:
    return np.argwhere(cells)


class Crops(Dataset[tuple[torch.Tensor, torch.Tensor]]):
    """Crop i: ((3, S, S) uint8 RGB, (P, S, S) uint8 labels with IGNORE), for i from 0 to `length`.

    `towns` are lists of grounds; `weights` the share of crops from each. Within a town a place is
    drawn uniformly over its ground, or over the ground where a class is.
    """

    def __init__(
        self,
        towns: Sequence[Sequence[Ground]],
        weights: Sequence[float],
        plan: CropPlan,
        *,
        seed: int,
        length: int,
    ) -> None:
        self.plan, self.seed, self.length = plan, seed, length
        self.towns = towns
        self.weights = np.asarray(weights, np.float64) / np.sum(weights)

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        random = np.random.default_rng((self.seed, index))
        for _ in range(_TRIES):
            picture, labels = self._cut(random)
            if np.mean((labels != IGNORE).any(axis=0)) >= self.plan.least_valid:
                break
        picture = recolour(picture, random, self.plan.colour)
        if random.random() < self.plan.mix:
            picture = mix(picture, random)
        pixels = np.ascontiguousarray(np.asarray(picture).transpose(2, 0, 1))
        return torch.from_numpy(pixels), torch.from_numpy(labels)

    def _cut(self, random: np.random.Generator) -> tuple[Image.Image, Labels]:
        ground, places = self._ground(random)
        row, column = (places[random.integers(len(places))] + random.random(2)) * _CELL
        low, high = self.plan.zoom
        zoom = math.exp(random.uniform(math.log(low), math.log(high)))
        pyramid = ground.pyramid()
        step = min(max(0, math.floor(-math.log2(zoom) + 0.5)), len(pyramid.pictures) - 1)
        turn, flip = self._turn(random)
        # Output (u, v) around the crop's centre -> scene (x, y): rotate, flip, divide by the zoom.
        # The crop's centre lies up to half a crop away from the place, so that it is not learnt.
        size = self.plan.size
        reach = size / zoom / 4
        x = (column + random.uniform(-reach, reach)) / 2**step
        y = (row + random.uniform(-reach, reach)) / 2**step
        return _transform(
            pyramid, step, affine(x, y, turn=turn, flip=flip, zoom=zoom * 2**step, size=size), size
        )

    def _ground(self, random: np.random.Generator) -> tuple[Ground, NDArray[np.int64]]:
        """A scene of a town, and the places in it that come into question."""
        town = self.towns[random.choice(len(self.towns), p=self.weights)]
        wanted = random.random() < self.plan.positive
        found = [ground.positive if wanted else ground.valid for ground in town]
        if wanted and not any(len(places) for places in found):
            found = [ground.valid for ground in town]
        # By the root of the area: one ground photographed at three zooms has 16 times the pixels at
        # the finest, and the coarse views must be seen too.
        share = np.sqrt([len(places) for places in found])
        index = random.choice(len(town), p=share / share.sum())
        return town[index], found[index]

    def _turn(self, random: np.random.Generator) -> tuple[float, float]:
        """An angle, and -1 where mirrored. Draws the same numbers whatever the plan."""
        quarters = float(random.integers(4)) * math.pi / 2
        turn = quarters if self.plan.quarters else 0.0
        if random.random() < self.plan.tilt:
            turn += random.uniform(-self.plan.lean, self.plan.lean)
        mirrored = random.random() < 0.5
        return turn, -1.0 if mirrored and self.plan.flip else 1.0


Affine = tuple[float, float, float, float, float, float]


def affine(x: float, y: float, *, turn: float, flip: float, zoom: float, size: int) -> Affine:
    """Pillow's six numbers that map a crop's pixels to those of a scene, its centre to (x, y)."""
    scale = 1 / zoom
    cos, sin = math.cos(turn) * scale, math.sin(turn) * scale
    half = size / 2
    return (
        cos * flip,
        -sin,
        x - cos * flip * half + sin * half,
        sin * flip,
        cos,
        y - sin * flip * half - cos * half,
    )


def _transform(
    pyramid: Pyramid, step: int, numbers: Affine, size: int
) -> tuple[Image.Image, Labels]:
    square = (size, size)
    picture = pyramid.pictures[step].transform(
        square, Image.Transform.AFFINE, numbers, Image.Resampling.BILINEAR
    )
    planes = [
        plane.transform(
            square, Image.Transform.AFFINE, numbers, Image.Resampling.NEAREST, fillcolor=IGNORE
        )
        for plane in pyramid.labels[step]
    ]
    return picture, np.stack([np.asarray(plane) for plane in planes])


def recolour(picture: Image.Image, random: np.random.Generator, level: float) -> Image.Image:
    """Brightness, contrast, colour cast, saturation, gamma, and now and then blur or noise."""
    if level <= 0:
        return picture
    if random.random() < 0.25 * level:
        picture = picture.filter(ImageFilter.GaussianBlur(random.uniform(0.4, 1.6)))
    x = np.asarray(picture, np.float32) / 255
    grey = x.mean(2, keepdims=True)
    x = grey + (x - grey) * np.float32(random.uniform(1 - 0.5 * level, 1 + 0.4 * level))
    mean = x.mean()
    x = (x - mean) * np.float32(random.uniform(1 - 0.3 * level, 1 + 0.3 * level)) + mean
    x = x * random.uniform(1 - 0.1 * level, 1 + 0.1 * level, 3).astype(np.float32)
    x = x + np.float32(random.uniform(-0.12, 0.12) * level)
    x = np.clip(x, 0, 1) ** np.float32(math.exp(random.uniform(-0.35, 0.35) * level))
    if random.random() < 0.2 * level:
        x = x + random.normal(0, random.uniform(0.005, 0.03), x.shape).astype(np.float32)
    return Image.fromarray((np.clip(x, 0, 1) * 255 + 0.5).astype(np.uint8))


def mix(picture: Image.Image, random: np.random.Generator) -> Image.Image:
    """Each channel a random mean of all three: from a slight cast, over other hues, to grey."""
    rows = random.dirichlet((0.7, 0.7, 0.7), size=1 if random.random() < 0.3 else 3)
    keep = random.uniform(0.0, 0.6)
    weights = (keep * np.eye(3) + (1 - keep) * rows).astype(np.float32)
    x = np.asarray(picture, np.float32) @ weights.T
    return Image.fromarray((x + 0.5).astype(np.uint8))
