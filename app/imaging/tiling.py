"""A picture that is too large for one launch, cut into tiles whose masks are the whole's exactly.

    plan = plan_tiles(height, width, stride=32, halo=halo, whole_pixels=..., tile=1024)
    canvas = Canvas(plan, channels=1, kind="bits")
    for tile in plan.tiles:
        canvas.place(tile, bits_of(cut(pixels, fitting, tile)))
    mask = canvas.crop(fitting, height=..., width=...)

Our nets are local and repeat every `stride` pixels. A tile whose origin is a multiple of the stride
and whose halo covers what an output pixel looks at therefore gives the same numbers as the whole
padded picture: no blending, no seams. At a real border the tile ends where the picture does, since
the whole run has zero padding in that very place. All tiles of a plan have one shape, so that the
device can take them in batches.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from app.imaging.fit import Fit, crop_bits, crop_plane, window
from app.types import Halo, Pixels

Kind = Literal["bits", "labels", "probability"]


@dataclass(frozen=True, slots=True)
class TileSpec:
    """One tile in the padded picture.

    `top` and `left` are its origin; `height` and `width` its shape. Its core, the part that it
    answers for, runs from `core_top` to before `core_bottom` and so on, in the padded picture too.
    """

    top: int
    left: int
    height: int
    width: int
    core_top: int
    core_left: int
    core_bottom: int
    core_right: int


@dataclass(frozen=True, slots=True)
class TilePlan:
    """Tiles of one `shape` (height, width) whose cores cover the padded `size` exactly once."""

    size: tuple[int, int]
    shape: tuple[int, int]
    tiles: tuple[TileSpec, ...]

    @property
    def pixels(self) -> int:
        """Pixels that the device computes, halos included."""
        return len(self.tiles) * self.shape[0] * self.shape[1]


@dataclass(frozen=True, slots=True)
class _Axis:
    """One direction: tiles of `side`, each as (origin, core start, core end)."""

    side: int
    spans: tuple[tuple[int, int, int], ...]


def plan_tiles(
    height: int, width: int, *, stride: int, halo: Halo, whole_pixels: int, tile: int
) -> TilePlan:
    """How to cut a padded picture of `height` x `width`, both multiples of `stride`.

    Up to `whole_pixels` it is one tile. Otherwise no tile has more than `tile` squared pixels, and
    among the shapes within that budget the one with the fewest computed pixels wins. Where a halo
    is so wide that such a tile would be mostly halo, the budget grows to tiles of twice the halo,
    but not beyond `whole_pixels`, which the device is known to bear; only a tile that could make
    no progress at all grows further. Raises ValueError for sizes or halos off the stride.
    """
    _check(height, width, stride, halo)
    if height * width <= whole_pixels:
        down, across = _axis(height, height, stride, 0, 0), _axis(width, width, stride, 0, 0)
    else:
        budget = _budget(height, width, stride, halo, whole_pixels, tile)
        rows, columns = _best_sides(height, width, stride, halo, budget)
        down = _axis(height, rows, stride, halo.top, halo.bottom)
        across = _axis(width, columns, stride, halo.left, halo.right)
    tiles = tuple(
        TileSpec(top, left, down.side, across.side, core_top, core_left, core_bottom, core_right)
        for top, core_top, core_bottom in down.spans
        for left, core_left, core_right in across.spans
    )
    return TilePlan((height, width), (down.side, across.side), tiles)


def cut(pixels: Pixels, fitting: Fit, tile: TileSpec) -> Pixels:
    """The pixels of a tile, (tile height, tile width, 3) uint8.

    `pixels` is the picture before padding. A view where the tile lies inside it; where it reaches
    into the margin, a new array of one tile. Tiles that are views may not be C-contiguous.
    """
    return window(
        pixels, fitting, top=tile.top, left=tile.left, height=tile.height, width=tile.width
    )


class Canvas:
    """Results of tiles, put together.

    `kind` says what is placed: `bits` (channels, h, w / 8) packed rows, `labels` (h, w), or
    `probability` (channels, h, w), all uint8. Tiles may be placed in any order and from several
    threads, each once: no two write to the same place.
    """

    def __init__(self, plan: TilePlan, *, channels: int, kind: Kind) -> None:
        self.plan = plan
        self.kind = kind
        height, width = plan.size
        self._eight = 8 if kind == "bits" else 1
        if any(edge % self._eight for tile in plan.tiles for edge in (tile.left, tile.core_left)):
            raise ValueError("packed rows need tiles whose edges are multiples of 8")
        across = -(-width // self._eight)
        shape = (height, across) if kind == "labels" else (channels, height, across)
        self._shape = shape
        # One tile is the whole: it is kept as it comes.
        self._plane: NDArray[np.uint8] | None = None
        if len(plan.tiles) > 1:
            self._plane = np.empty(shape, np.uint8)
        self._missing = set(plan.tiles)

    @property
    def missing(self) -> int:
        """Tiles not placed yet."""
        return len(self._missing)

    @property
    def plane(self) -> NDArray[np.uint8]:
        """The result at the padded size. Raises ValueError while a tile is missing."""
        if self._missing or self._plane is None:
            raise ValueError(f"{self.missing} of {len(self.plan.tiles)} tiles are missing")
        return self._plane

    def place(self, tile: TileSpec, result: NDArray[np.uint8]) -> None:
        """Take the core out of a tile's result.

        Raises ValueError for a wrong shape and KeyError for a tile that is not of this plan or was
        placed before.
        """
        expected = (*self._shape[:-2], tile.height, -(-tile.width // self._eight))
        if result.shape != expected:
            raise ValueError(f"result of a tile is {result.shape}, expected {expected}")
        self._missing.remove(tile)
        if self._plane is None:
            self._plane = result
            return
        rows = slice(tile.core_top, tile.core_bottom)
        left = tile.core_left // self._eight
        right = -(-tile.core_right // self._eight)
        down, across = tile.core_top - tile.top, left - tile.left // self._eight
        self._plane[..., rows, left:right] = result[
            ...,
            down : down + tile.core_bottom - tile.core_top,
            across : across + right - left,
        ]

    def crop(self, fitting: Fit, *, height: int, width: int) -> NDArray[np.uint8]:
        """The result at the picture's own size, padding bits 0."""
        way_back = crop_bits if self.kind == "bits" else crop_plane
        return way_back(self.plane, fitting, height=height, width=width)


def tiles_needed(length: int, side: int, before: int, after: int) -> int:
    """Tiles of `side` with halos `before` and `after` that cover `length`; `side` > both halos.

    The first and the last tile have a halo on one side only, those between on both.
    """
    if length <= side:
        return 1
    core = side - before - after
    rest = max(0, length - (side - after) - (side - before))
    return 2 + -(-rest // core)


def _check(height: int, width: int, stride: int, halo: Halo) -> None:
    """Raise ValueError for what would make tiles differ from the whole."""
    if height < 1 or width < 1 or height % stride or width % stride:
        raise ValueError(f"{height} x {width} is not a multiple of the stride {stride}")
    for name in ("top", "left", "bottom", "right"):
        margin = getattr(halo, name)
        if margin < 0 or margin % stride:
            raise ValueError(f"halo `{name}` is {margin}, not a multiple of the stride {stride}")


def _budget(height: int, width: int, stride: int, halo: Halo, whole_pixels: int, tile: int) -> int:
    """The most pixels of one tile."""
    down, across = halo.top + halo.bottom, halo.left + halo.right
    useful = min(height, max(2 * down, stride)) * min(width, max(2 * across, stride))
    least = min(height, down + stride) * min(width, across + stride)
    return max(tile * tile, min(useful, whole_pixels), least)


def _best_sides(height: int, width: int, stride: int, halo: Halo, budget: int) -> tuple[int, int]:
    """The (height, width) of tiles that together compute the fewest pixels.

    Walks the number of rows of tiles; each fixes the lowest tile that does it, and with it the
    widest that the budget allows. Ties go to fewer tiles, then to the squarer one.
    """
    best: tuple[int, int, int] | None = None
    sides = (stride, stride)
    for rows, tall in _choices(height, stride, halo.top + halo.bottom):
        widest = min(width, budget // tall // stride * stride)
        if widest < width and widest <= halo.left + halo.right:
            continue
        columns = tiles_needed(width, widest, halo.left, halo.right)
        wide = _least_side(width, columns, stride, halo.left + halo.right)
        cost = (rows * tall * columns * wide, rows * columns, abs(tall - wide))
        if best is None or cost < best:
            best, sides = cost, (tall, wide)
    return sides


def _choices(length: int, stride: int, halo: int) -> list[tuple[int, int]]:
    """Every sensible (count, side) along one direction, from one tile to the smallest."""
    found: list[tuple[int, int]] = []
    side = length
    while side > 0:
        count = 1 if side >= length else -(-(length - halo) // (side - halo))
        side = _least_side(length, count, stride, halo)
        found.append((count, side))
        side -= stride
        if side <= halo:
            break
    return found


def _least_side(length: int, count: int, stride: int, halo: int) -> int:
    """The smallest side with which `count` tiles cover `length`: count sides less the overlaps."""
    side = -(-(length + (count - 1) * halo) // count)
    return min(length, -(-side // stride) * stride)


def _axis(length: int, side: int, stride: int, before: int, after: int) -> _Axis:
    """Where tiles of `side` lie along `length`.

    Each core reaches as far as its tile's halo allows; the last tile ends at the border.
    """
    count = tiles_needed(length, side, before, after)
    spans: list[tuple[int, int, int]] = []
    start = 0
    for index in range(count):
        origin = min(max(0, start - before), length - side)
        last = index == count - 1
        end = length if last else origin + side - after
        spans.append((origin, start, end))
        start = end
    return _Axis(side, tuple(spans))
