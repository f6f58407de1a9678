"""Folders of pictures and masks, read into scenes: the ground that crops are cut from.

A folder holds `images/` and `masks/` with equal stems. Web-map tiles named `<anything>-x-y-zoom`
that touch each other are put together into one scene, so that a crop may reach across their edges;
ground that no tile covers is labelled IGNORE. Any other picture is a scene of its own.
"""

from __future__ import annotations

import re
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from app.errors import TrainingError
from app.training.losses import IGNORE

_TILE = re.compile(r"^(?P<source>.+)-(?P<x>\d+)-(?P<y>\d+)-(?P<zoom>\d+)$")
_PICTURES = (".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff", ".bmp")


@dataclass(frozen=True, slots=True)
class Pair:
    """A picture file and its mask file."""

    stem: str
    picture: Path
    mask: Path


@dataclass(frozen=True, slots=True)
class Scene:
    """`pixels` (H, W, 3) uint8 RGB, `labels` (H, W) uint8: 0, 1 or IGNORE."""

    name: str
    pixels: NDArray[np.uint8]
    labels: NDArray[np.uint8]


def pairs(folder: Path) -> list[Pair]:
    """Every picture of `folder`/images with its mask. Raises TrainingError listing what is wrong."""
    pictures = sorted(p for p in (folder / "images").glob("*") if p.suffix.lower() in _PICTURES)
    if not pictures:
        raise TrainingError(f"no pictures in `{folder / 'images'}`")
    found = [Pair(p.stem, p, folder / "masks" / f"{p.stem}.png") for p in pictures]
    orphans = [pair.picture.name for pair in found if not pair.mask.is_file()]
    if orphans:
        raise TrainingError(
            f"{len(orphans)} pictures of `{folder}` have no mask: {', '.join(orphans[:10])}"
        )
    return found


def read_pair(pair: Pair) -> Scene:
    """Decode both files. Raises TrainingError where they are unreadable or differ in size."""
    try:
        with Image.open(pair.picture) as image:
            pixels = np.asarray(image.convert("RGB"))
        with Image.open(pair.mask) as image:
            labels = (np.asarray(image.convert("L")) > 0).astype(np.uint8)
    except OSError as exc:
        raise TrainingError(f"cannot read `{pair.stem}`: {exc}") from exc
    if pixels.shape[:2] != labels.shape:
        raise TrainingError(
            f"`{pair.picture.name}` is {pixels.shape[1]} x {pixels.shape[0]}, "
            f"its mask {labels.shape[1]} x {labels.shape[0]}"
        )
    return Scene(pair.stem, pixels, labels)


def scenes(folder: Path) -> list[Scene]:
    """Every scene of a folder, touching web-map tiles joined."""
    single: list[Scene] = []
    grids: dict[tuple[str, str], dict[tuple[int, int], Scene]] = defaultdict(dict)
    for pair in pairs(folder):
        scene = read_pair(pair)
        match = _TILE.match(pair.stem)
        if match:
            grids[match["source"], match["zoom"]][int(match["x"]), int(match["y"])] = scene
        else:
            single.append(scene)
    for (source, zoom), grid in sorted(grids.items()):
        for group in _touching(set(grid)):
            single.append(_join(f"{source}-{zoom}", {place: grid[place] for place in group}))
    return single


def _touching(places: set[tuple[int, int]]) -> list[list[tuple[int, int]]]:
    """Connected groups of grid places (8 neighbours)."""
    groups = []
    left = set(places)
    while left:
        group, edge = [], [min(left)]
        left.discard(edge[0])
        while edge:
            x, y = edge.pop()
            group.append((x, y))
            for near in [(x + i, y + j) for i in (-1, 0, 1) for j in (-1, 0, 1)]:
                if near in left:
                    left.discard(near)
                    edge.append(near)
        groups.append(sorted(group))
    return groups


def _join(name: str, tiles: dict[tuple[int, int], Scene]) -> Scene:
    """Paste tiles of one size side by side: x grows to the right, y downwards."""
    sizes = {tile.labels.shape for tile in tiles.values()}
    if len(sizes) > 1:
        raise TrainingError(f"tiles of `{name}` differ in size: {sorted(sizes)}")
    (height, width) = sizes.pop()
    left, top = min(x for x, _ in tiles), min(y for _, y in tiles)
    columns = max(x for x, _ in tiles) - left + 1
    rows = max(y for _, y in tiles) - top + 1
    pixels = np.zeros((rows * height, columns * width, 3), np.uint8)
    labels = np.full((rows * height, columns * width), IGNORE, np.uint8)
    for (x, y), tile in tiles.items():
        r, c = (y - top) * height, (x - left) * width
        pixels[r : r + height, c : c + width] = tile.pixels
        labels[r : r + height, c : c + width] = tile.labels
    return Scene(f"{name}-{left}-{top}", pixels, labels)
