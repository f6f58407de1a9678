"""A picture at the scale that a net knows, and its mask back at the picture's own size.

A net for photographs has learnt things at some size in pixels; a phone's picture shows them ten
times as large. Its manifest names the longest side that it should be shown: larger pictures are
scaled down by the mean over each pixel's footprint (Pillow's antialiased bilinear filter), and the
probabilities are scaled up bilinearly before they are compared, so that contours stay smooth. A
picture is never scaled up.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from app.types import Pixels

Size = tuple[int, int]


def shown_size(height: int, width: int, longest: int | None) -> Size:
    """(height, width) as the net sees it; at least one pixel each way."""
    side = max(height, width)
    if longest is None or side <= longest:
        return height, width
    return max(1, round(height * longest / side)), max(1, round(width * longest / side))


def shrink(pixels: Pixels, size: Size) -> Pixels:
    """(H, W, 3) uint8 as (*size, 3) uint8; itself if that is its size."""
    if pixels.shape[:2] == size:
        return pixels
    image = Image.fromarray(pixels)
    return np.asarray(image.resize(size[::-1], Image.Resampling.BILINEAR))


def enlarge(plane: NDArray[np.uint8], size: Size) -> NDArray[np.uint8]:
    """A plane of probabilities, (h, w) uint8, at the size of the picture."""
    if plane.shape == size:
        return plane
    return np.asarray(Image.fromarray(plane).resize(size[::-1], Image.Resampling.BILINEAR))


Planes = NDArray[np.uint8]


def enlarged(
    probability: Planes, size: Size, *, threshold: float | None, keep: bool
) -> tuple[Planes, Planes | None]:
    """The mask of (C, h, w) probabilities scaled up to `size`, and with `keep` those themselves.

    With a `threshold` packed planes (C, H, ceil(W / 8)) of what lies above it; without one the
    likeliest class of each pixel, (H, W), the first of equals. Kept are (C, H, W) uint8; otherwise
    one plane at a time is enlarged, so that a large picture costs a byte or two per pixel.
    """
    planes: Iterable[Planes] = (enlarge(plane, size) for plane in probability)
    kept = np.stack(list(planes)) if keep else None
    if kept is not None:
        planes = kept
    if threshold is None:
        return _likeliest(planes, size), kept
    return np.stack([np.packbits(plane > 255 * threshold, axis=1) for plane in planes]), kept


def _likeliest(planes: Iterable[Planes], size: Size) -> Planes:
    labels, most = np.zeros(size, np.uint8), np.zeros(size, np.uint8)
    for index, plane in enumerate(planes):
        labels[plane > most] = index
        most = np.maximum(most, plane)
    return labels
