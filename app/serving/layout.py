"""How one picture lies on the device: its margins, its tiles, and the sheet its mask grows on."""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from app.errors import PictureTooLarge
from app.imaging import tiling
from app.imaging.fit import Fit, margins
from app.imaging.scale import enlarged, shown_size, shrink
from app.imaging.tiling import TilePlan, TileSpec, plan_tiles
from app.types import Halo, Inference, Mask, ModelSpec, Pixels

Plane = NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Tiling:
    """A picture up to `whole_pixels` padded pixels is one tile; larger ones are cut into tiles of
    at most `side` squared pixels."""

    whole_pixels: int
    side: int

    def plan(self, height: int, width: int, spec: ModelSpec) -> tuple[Fit, TilePlan]:
        """Margins and tiles of a picture of this size, as the net sees it."""
        height, width = shown_size(height, width, spec.longest_side)
        fitting = margins(height, width, spec.stride)
        rows, columns = fitting.padded(height, width)
        if not spec.local and rows * columns > self.whole_pixels:
            raise PictureTooLarge(
                f"`{spec.label}` interpolates with aligned corners, so a picture cannot be cut "
                f"into tiles; this server takes at most {self.whole_pixels:,} padded pixels whole "
                "(TERNAUS_WHOLE_PIXELS)",
                limit="TERNAUS_WHOLE_PIXELS",
                limit_value=self.whole_pixels,
            )
        return fitting, _plan(rows, columns, spec.stride, spec.halo, self.whole_pixels, self.side)


# Asked twice for each picture, and most pictures are of few sizes. A plan is frozen; one of the
# largest picture holds some hundred tiles.
@functools.lru_cache(maxsize=256)
def _plan(
    rows: int, columns: int, stride: int, halo: Halo, whole_pixels: int, tile: int
) -> TilePlan:
    return plan_tiles(rows, columns, stride=stride, halo=halo, whole_pixels=whole_pixels, tile=tile)


@dataclass(frozen=True, slots=True)
class Layout:
    """A picture with its plan: `pixels` as the net sees it, `size` (height, width) as it came."""

    size: tuple[int, int]
    pixels: Pixels
    spec: ModelSpec
    tiling: Tiling
    fitting: Fit
    plan: TilePlan
    # Whether the net sees the picture smaller than it is.
    scaled: bool

    @classmethod
    def of(cls, pixels: Pixels, spec: ModelSpec, tiling: Tiling) -> Layout:
        """The layout of decoded pixels, (H, W, 3) uint8."""
        size = height, width = pixels.shape[0], pixels.shape[1]
        fitting, plan = tiling.plan(height, width, spec)
        shown = shrink(pixels, shown_size(height, width, spec.longest_side))
        return cls(size, shown, spec, tiling, fitting, plan, scaled=shown.shape[:2] != size)

    @property
    def tiles(self) -> tuple[TileSpec, ...]:
        return self.plan.tiles

    @property
    def shape(self) -> tuple[int, int]:
        """(height, width) of every tile."""
        return self.plan.shape

    def cut(self, tile: TileSpec) -> Pixels:
        """The pixels of a tile; a view where it lies inside the picture."""
        return tiling.cut(self.pixels, self.fitting, tile)

    def smaller(self) -> Layout | None:
        """The same picture in tiles of about half the pixels; None where that is not possible.

        For a device without memory for the present ones. The mask stays the same: tiling is exact.
        """
        height, width = self.shape
        if not self.spec.local:
            return None
        half = replace(
            self.tiling,
            whole_pixels=height * width // 2,
            side=int((height * width // 2) ** 0.5),
        )
        fitting, plan = half.plan(*self.size, self.spec)
        layout = replace(self, tiling=half, fitting=fitting, plan=plan)
        return layout if layout.shape[0] * layout.shape[1] < height * width else None

    def sheet(self, *, probability: bool) -> Sheet:
        """An empty sheet for the results of the tiles.

        They must come with probabilities where those are asked for, or the picture is scaled.
        """
        return Sheet(self, probability=probability)


class Sheet:
    """Results of the tiles of one layout, and the mask that they make."""

    def __init__(self, layout: Layout, *, probability: bool) -> None:
        self._layout = layout
        self._wanted = probability
        spec = layout.spec
        # The mask of a scaled picture comes from its probabilities alone.
        self._mask = (
            None
            if layout.scaled
            else tiling.Canvas(
                layout.plan,
                channels=spec.channels,
                kind="labels" if spec.task == "multiclass" else "bits",
            )
        )
        self._probability = (
            tiling.Canvas(layout.plan, channels=spec.channels, kind="probability")
            if probability or layout.scaled
            else None
        )

    def place(self, tile: TileSpec, result: Inference) -> None:
        """Take the core of a tile out of an inference of one."""
        if self._mask is not None:
            plane = result.labels if self._layout.spec.task == "multiclass" else result.bits
            assert plane is not None
            self._mask.place(tile, plane[0])
        if self._probability is not None:
            assert result.probability is not None
            self._probability.place(tile, result.probability[0])

    def mask(self, threshold: float | None) -> Mask:
        """The mask at the picture's own size, once every tile is placed."""
        layout = self._layout
        if layout.scaled:
            return self._enlarged(threshold)
        height, width = layout.size

        def back(canvas: tiling.Canvas | None) -> Plane | None:
            if canvas is None:
                return None
            return canvas.crop(layout.fitting, height=height, width=width)

        return self._made(back(self._mask), back(self._probability), threshold)

    def _enlarged(self, threshold: float | None) -> Mask:
        """From the probabilities of the smaller picture."""
        layout, canvas = self._layout, self._probability
        assert canvas is not None
        height, width = layout.pixels.shape[:2]
        small = canvas.crop(layout.fitting, height=height, width=width)
        plane, large = enlarged(small, layout.size, threshold=threshold, keep=self._wanted)
        return self._made(plane, large, threshold)

    def _made(
        self, plane: Plane | None, probability: Plane | None, threshold: float | None
    ) -> Mask:
        spec = self._layout.spec
        height, width = self._layout.size
        exclusive = spec.task == "multiclass"
        return Mask(
            height=height,
            width=width,
            task=spec.task,
            classes=spec.classes,
            bits=None if exclusive else plane,
            labels=plane if exclusive else None,
            probability=probability,
            model=spec.name,
            version=spec.version,
            threshold=None if exclusive else threshold,
        )
