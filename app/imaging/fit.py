"""A picture to the multiple of a net's stride, and the exact way back.

Policy `pad`: reflection without repeating the edge, split evenly, the odd pixel at the bottom and
right (OpenCV's BORDER_REFLECT_101, numpy's `reflect`), for any side down to one pixel. It is what
TernausNet was trained and shown with. Nothing is ever resized here.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from app.types import Pixels


@dataclass(frozen=True, slots=True)
class Fit:
    """Pixels added on each side."""

    top: int = 0
    left: int = 0
    bottom: int = 0
    right: int = 0

    def padded(self, height: int, width: int) -> tuple[int, int]:
        """(height, width) with the margins."""
        return self.top + height + self.bottom, self.left + width + self.right


def margins(height: int, width: int, stride: int) -> Fit:
    """What brings a picture of this size to a multiple of `stride`."""
    down, across = -height % stride, -width % stride
    return Fit(down // 2, across // 2, down - down // 2, across - across // 2)


def fit(pixels: Pixels, stride: int) -> tuple[Pixels, Fit]:
    """`pixels` (H, W, 3) uint8, padded to multiples of `stride`; itself if nothing is missing."""
    height, width = pixels.shape[:2]
    fitting = margins(height, width, stride)
    rows, columns = fitting.padded(height, width)
    return window(pixels, fitting, top=0, left=0, height=rows, width=columns), fitting


def window(pixels: Pixels, fitting: Fit, *, top: int, left: int, height: int, width: int) -> Pixels:
    """A rectangle of the padded picture, without padding the whole.

    `pixels` (H, W, 3) uint8 is the picture as it came; `top` and `left` count in the padded one. A
    view where the rectangle lies inside the picture, else a new array of the rectangle alone: a
    100-megapixel picture is never copied.
    """
    down, across = top - fitting.top, left - fitting.left
    rows, inner_rows = _overlap(down, height, pixels.shape[0])
    columns, inner_columns = _overlap(across, width, pixels.shape[1])
    whole = pixels[rows, columns]
    if whole.shape[:2] == (height, width):
        return whole
    padded: Pixels = np.empty((height, width, 3), np.uint8)
    padded[inner_rows, inner_columns] = whole
    # One element per pixel: numpy gathers three bytes at once.
    source, out = pixels.view("V3")[..., 0], padded.view("V3")[..., 0]
    from_rows = _reflected(down, height, pixels.shape[0])
    from_columns = _reflected(across, width, pixels.shape[1])
    middle = source[rows]
    for side in (slice(0, inner_columns.start), slice(inner_columns.stop, width)):
        out[inner_rows, side] = middle[:, from_columns[side]]
    for side in (slice(0, inner_rows.start), slice(inner_rows.stop, height)):
        out[side] = source[from_rows[side, None], from_columns]
    return padded


def crop_bits(
    bits: NDArray[np.uint8], fitting: Fit, *, height: int, width: int
) -> NDArray[np.uint8]:
    """Packed rows of the padded size back to the picture's: padding bits are 0.

    `bits` (C, padded height, ceil(padded width / 8)) uint8, the first pixel in the highest bit ->
    (C, height, ceil(width / 8)) uint8. Never unpacked: rows are shifted as bytes. `bits` itself
    comes back where nothing was padded.
    """
    size = -(-width // 8)
    first, shift = divmod(fitting.left, 8)
    rows = bits[:, fitting.top : fitting.top + height]
    out: NDArray[np.uint8] = rows[:, :, first : first + size]
    if shift:
        out = np.left_shift(out, np.uint8(shift))
        following = rows[:, :, first + 1 : first + 1 + size]
        out[:, :, : following.shape[2]] |= np.right_shift(following, np.uint8(8 - shift))
    if width % 8 and (fitting.right or shift):
        if not out.flags.owndata:
            out = out.copy()
        out[:, :, -1] &= 0xFF << (-width % 8) & 0xFF
    return out if out.flags.c_contiguous else np.ascontiguousarray(out)


def crop_plane(
    plane: NDArray[np.uint8], fitting: Fit, *, height: int, width: int
) -> NDArray[np.uint8]:
    """Labels or probabilities (..., padded height, padded width) uint8 back to the picture's size.

    C-contiguous; `plane` itself where nothing was padded.
    """
    inner = plane[..., fitting.top : fitting.top + height, fitting.left : fitting.left + width]
    return inner if inner.flags.c_contiguous else np.ascontiguousarray(inner)


def _overlap(start: int, size: int, length: int) -> tuple[slice, slice]:
    """Where `size` places from `start` meet a line of `length`: in the line, and in themselves."""
    first, last = max(0, start), max(0, start, min(length, start + size))
    return slice(first, last), slice(first - start, last - start)


def _reflected(start: int, size: int, length: int) -> NDArray[np.intp]:
    """Where `size` places from `start` of an endlessly reflected line of `length` come from."""
    if length == 1:
        return np.zeros(size, np.intp)
    period = 2 * (length - 1)
    folded = np.arange(start, start + size) % period
    return np.minimum(folded, period - folded)
