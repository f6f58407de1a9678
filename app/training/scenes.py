"""Scenes: the ground that crops are cut from. Touching web-map tiles become one scene.

Tiles are named `<anything>-x-y-zoom`; a crop may then reach across their edges, and ground that no
tile covers is labelled IGNORE. Any other picture is a scene of its own.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from app.errors import TrainingError
from app.imaging.scale import shown_size, shrink
from app.training.losses import IGNORE
from app.types import Pixels

_TILE = re.compile(r"^(?P<source>.+)-(?P<x>\d+)-(?P<y>\d+)-(?P<zoom>\d+)$")

Labels = NDArray[np.uint8]
Place = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Scene:
    """`pixels` (H, W, 3) uint8 RGB; `labels` (P, H, W) uint8, IGNORE where nothing is known.

    One plane of 0 and 1 (`binary`) or of class indices (`multiclass`), or a plane of 0 and 1 for
    each class (`multilabel`).
    """

    name: str
    pixels: Pixels
    labels: Labels

    def shown(self, longest: int | None) -> Scene:
        """As a net sees it that is shown pictures of at most this longer side, labels with it."""
        height, width = self.pixels.shape[:2]
        size = shown_size(height, width, longest)
        if size == (height, width):
            return self
        planes = [
            Image.fromarray(plane).resize(size[::-1], Image.Resampling.NEAREST)
            for plane in self.labels
        ]
        return Scene(
            self.name, shrink(self.pixels, size), np.stack([np.asarray(plane) for plane in planes])
        )


@dataclass(frozen=True, slots=True, order=True)
class Tile:
    """The place of a web-map tile, read from its name."""

    source: str
    zoom: int
    x: int
    y: int

    @classmethod
    def of(cls, stem: str) -> Tile | None:
        """None where the name is not that of a tile."""
        match = _TILE.match(stem)
        if match is None:
            return None
        return cls(match["source"], int(match["zoom"]), int(match["x"]), int(match["y"]))

    def at(self, zoom: int) -> Tile:
        """The tile of a coarser zoom that covers this one's ground."""
        steps = self.zoom - zoom
        return Tile(self.source, zoom, self.x >> steps, self.y >> steps)


def grids(stems: Iterable[str]) -> list[list[str]]:
    """Names that make one scene each: single pictures first, then groups of touching tiles."""
    single: list[list[str]] = []
    found: dict[tuple[str, int], dict[Place, str]] = {}
    for stem in stems:
        tile = Tile.of(stem)
        if tile is None:
            single.append([stem])
        else:
            found.setdefault((tile.source, tile.zoom), {})[tile.x, tile.y] = stem
    # As text: the order of scenes decides which crop is which, so it must never change.
    for key in sorted(found, key=lambda key: (key[0], str(key[1]))):
        grid = found[key]
        single += [[grid[place] for place in group] for group in touching(grid)]
    return single


def touching(places: Iterable[Place]) -> list[list[Place]]:
    """Connected groups of grid places (8 neighbours), each sorted."""
    groups = []
    left = set(places)
    while left:
        edge = [min(left)]
        group: list[Place] = []
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


def join(scenes: Mapping[str, Scene]) -> Scene:
    """Paste tiles of one size side by side: x grows to the right, y downwards.

    `scenes` maps names of one group of `grids` to what they show; one scene is given back as it is.
    Raises TrainingError where sizes differ.
    """
    if len(scenes) == 1:
        return next(iter(scenes.values()))
    tiles = {Tile.of(stem): scene for stem, scene in scenes.items()}
    sizes = sorted({scene.labels.shape for scene in tiles.values()})
    first = min(tile for tile in tiles if tile is not None)
    if len(sizes) > 1:
        raise TrainingError(f"tiles of `{first.source}` differ in size: {sizes}")
    planes, height, width = sizes[0]
    places = [(tile.x, tile.y) for tile in tiles if tile is not None]
    left, top = min(x for x, _ in places), min(y for _, y in places)
    columns = max(x for x, _ in places) - left + 1
    rows = max(y for _, y in places) - top + 1
    pixels = np.zeros((rows * height, columns * width, 3), np.uint8)
    labels = np.full((planes, rows * height, columns * width), IGNORE, np.uint8)
    for (x, y), scene in zip(places, tiles.values(), strict=True):
        r, c = (y - top) * height, (x - left) * width
        pixels[r : r + height, c : c + width] = scene.pixels
        labels[:, r : r + height, c : c + width] = scene.labels
    return Scene(f"{first.source}-{first.zoom}-{left}-{top}", pixels, labels)
