"""Synthetic training data: bright blobs on dark ground, so that a class can be learnt in steps."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image


def blobs(
    height: int, width: int, *, seed: int, classes: int = 1
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """(H, W, 3) pixels and (H, W) class indices: red, green, ... discs over dull noise."""
    random = np.random.default_rng(seed)
    pixels = random.integers(30, 90, (height, width, 3)).astype(np.uint8)
    labels = np.zeros((height, width), np.uint8)
    rows, columns = np.mgrid[:height, :width]
    for index in range(1, classes + 1):
        for _ in range(3):
            y, x = random.integers(0, height), random.integers(0, width)
            radius = random.integers(min(height, width) // 6, min(height, width) // 3)
            disc = (rows - y) ** 2 + (columns - x) ** 2 < radius**2
            pixels[disc, (index - 1) % 3] = 230
            labels[disc] = index
    return pixels, labels


def write_pairs(
    folder: Path,
    names: list[str],
    *,
    size: tuple[int, int] = (96, 96),
    classes: int = 1,
    seed: int = 0,
) -> Path:
    """`images/*.png` and `masks/*.png`: 255 for one class, indices for several."""
    (folder / "images").mkdir(parents=True, exist_ok=True)
    (folder / "masks").mkdir(parents=True, exist_ok=True)
    for offset, name in enumerate(names):
        pixels, labels = blobs(*size, seed=seed + offset, classes=classes)
        Image.fromarray(pixels).save(folder / "images" / f"{name}.png")
        values = labels * np.uint8(255) if classes == 1 else labels
        Image.fromarray(values).save(folder / "masks" / f"{name}.png")
    return folder
