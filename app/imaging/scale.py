"""A picture at the scale that a net knows, and its mask back at the picture's own size.

A net for photographs has learnt things at some size in pixels; a phone's picture shows them ten
times as large. Its manifest names the longest side that it should be shown: larger pictures are
scaled down by the mean over each pixel's footprint (Pillow's antialiased bilinear filter), and the
probabilities are scaled up bilinearly before they are compared, so that contours stay smooth. A
picture is never scaled up.
"""

from __future__ import annotations

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


def enlarged_bits(
    probability: NDArray[np.uint8], size: Size, threshold: float
) -> NDArray[np.uint8]:
    """(C, h, w) probabilities as packed planes (C, H, ceil(W / 8)): above `threshold`, scaled up.

    One plane at a time, so that a large picture costs a byte per pixel.
    """
    return np.stack(
        [np.packbits(enlarge(plane, size) > 255 * threshold, axis=1) for plane in probability]
    )


def enlarged_labels(probability: NDArray[np.uint8], size: Size) -> NDArray[np.uint8]:
    """(C, h, w) probabilities as the likeliest class of each pixel, (H, W); the first of equals."""
    most = enlarge(probability[0], size)
    labels = np.zeros(size, np.uint8)
    for index, plane in enumerate(probability[1:], 1):
        other = enlarge(plane, size)
        labels[other > most] = index
        most = np.maximum(most, other)
    return labels
