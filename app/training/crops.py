"""Random crops of scenes: place, zoom, turn, flip, colour. Crop i of a seed is always the same.

Each crop is drawn by its own generator from (seed, index), so a run that is killed and resumed sees
the very pictures that it would have seen.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageFilter
from torch.utils.data import Dataset

from app.training.losses import IGNORE
from app.training.scenes import Scene

# Side, in pixels, of the cells that say where in a scene there is something to learn.
_CELL = 32


@dataclass(frozen=True, slots=True)
class CropPlan:
    """How crops are drawn. `size` in pixels; `zoom` the range of output pixels per scene pixel;
    `positive` the share of crops centred where the class is; `least_valid` the smallest share of
    labelled pixels that a crop may have."""

    size: int = 256
    zoom: tuple[float, float] = (0.4, 1.8)
    positive: float = 0.65
    least_valid: float = 0.6
    colour: float = 1.0


class Level:
    """A scene at half its resolution, a quarter, ...: zooming out without aliasing."""

    def __init__(self, scene: Scene) -> None:
        self.pictures = [Image.fromarray(scene.pixels)]
        self.labels = [Image.fromarray(scene.labels)]
        while min(self.pictures[-1].size) >= 256 and len(self.pictures) < 3:
            half = (max(1, self.pictures[-1].width // 2), max(1, self.pictures[-1].height // 2))
            self.pictures.append(self.pictures[-1].resize(half, Image.Resampling.BOX))
            self.labels.append(self.labels[-1].resize(half, Image.Resampling.NEAREST))
        valid, positive = _cells(scene.labels != IGNORE), _cells(scene.labels == 1)
        self.valid = np.argwhere(valid > 0.5)
        self.positive = np.argwhere((positive > 0.05) & (valid > 0.5))


def _cells(mask: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Mean of each whole cell: (H // 32, W // 32) float32."""
    rows, columns = mask.shape[0] // _CELL, mask.shape[1] // _CELL
    whole = mask[: rows * _CELL, : columns * _CELL].astype(np.float32)
    return whole.reshape(rows, _CELL, columns, _CELL).mean((1, 3))


class Crops(Dataset[tuple[torch.Tensor, torch.Tensor]]):
    """Crop i: ((3, S, S) uint8 RGB, (S, S) uint8 labels with IGNORE), for i from 0 to `length`.

    `towns` are lists of scenes; `weights` the share of crops from each. Within a town a place is
    drawn uniformly over its ground, or over the ground where the class is.
    """

    def __init__(
        self,
        towns: Sequence[Sequence[Scene]],
        weights: Sequence[float],
        plan: CropPlan,
        *,
        seed: int,
        length: int,
    ) -> None:
        self.plan, self.seed, self.length = plan, seed, length
        self.towns = [[Level(scene) for scene in town] for town in towns]
        self.weights = np.asarray(weights, np.float64) / np.sum(weights)

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        random = np.random.default_rng((self.seed, index))
        for _ in range(8):
            picture, labels = self._cut(random)
            if np.mean(labels != IGNORE) >= self.plan.least_valid:
                break
        picture = recolour(picture, random, self.plan.colour)
        pixels = np.ascontiguousarray(np.asarray(picture).transpose(2, 0, 1))
        return torch.from_numpy(pixels), torch.from_numpy(labels.copy())

    def _cut(self, random: np.random.Generator) -> tuple[Image.Image, NDArray[np.uint8]]:
        town = self.towns[random.choice(len(self.towns), p=self.weights)]
        wanted = "positive" if random.random() < self.plan.positive else "valid"
        counts = np.array([len(getattr(level, wanted)) for level in town])
        if counts.sum() == 0:
            wanted, counts = "valid", np.array([len(level.valid) for level in town])
        # By the root of the area: one ground photographed at three zooms has 16 times the pixels at
        # the finest, and the coarse views must be seen too.
        share = np.sqrt(counts)
        level = town[random.choice(len(town), p=share / share.sum())]
        places = getattr(level, wanted)
        row, column = (places[random.integers(len(places))] + random.random(2)) * _CELL
        low, high = self.plan.zoom
        zoom = math.exp(random.uniform(math.log(low), math.log(high)))
        step = min(max(0, int(math.floor(-math.log2(zoom) + 0.5))), len(level.pictures) - 1)
        turn = random.integers(4) * math.pi / 2
        if random.random() < 0.5:
            turn += random.uniform(-math.pi / 4, math.pi / 4)
        flip = -1.0 if random.random() < 0.5 else 1.0
        # Output (u, v) around the crop's centre -> scene (x, y): rotate, flip, divide by the zoom.
        # The crop's centre lies up to half a crop away from the place, so that it is not learnt.
        size = self.plan.size
        reach = size / zoom / 4
        scale = 1 / (zoom * 2**step)
        cos, sin = math.cos(turn) * scale, math.sin(turn) * scale
        x = (column + random.uniform(-reach, reach)) / 2**step
        y = (row + random.uniform(-reach, reach)) / 2**step
        half = size / 2
        affine = (
            cos * flip, -sin, x - cos * flip * half + sin * half,
            sin * flip, cos, y - sin * flip * half - cos * half,
        )
        square = (size, size)
        picture = level.pictures[step].transform(
            square, Image.Transform.AFFINE, affine, Image.Resampling.BILINEAR
        )
        labels = level.labels[step].transform(
            square, Image.Transform.AFFINE, affine, Image.Resampling.NEAREST, fillcolor=IGNORE
        )
        return picture, np.asarray(labels)


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
