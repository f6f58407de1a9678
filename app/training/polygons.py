"""Polygons to pixels: a pixel belongs where its centre lies inside, by the even-odd rule."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


def fill(ring: Sequence[float], height: int, width: int) -> NDArray[np.bool_]:
    """(H, W) bool of one closed ring x0, y0, x1, y1, ... in pixels, (0, 0) the picture's corner.

    Raises ValueError unless it has at least three corners of finite numbers.
    """
    corners = np.asarray(ring, np.float64).reshape(-1, 2)
    if len(corners) < 3 or not np.isfinite(corners).all():
        raise ValueError("a polygon has at least three corners")
    # Along each row, inside changes at every crossing of an edge: count the crossings to the left.
    changes = np.zeros((height, width + 1), np.int32)
    for (x0, y0), (x1, y1) in zip(corners, np.roll(corners, -1, axis=0), strict=True):
        if y0 == y1:
            continue
        low, high = sorted((y0, y1))
        # Centres with low <= y + 0.5 < high: half open, so that a shared corner counts once.
        rows = np.arange(max(0, int(np.ceil(low - 0.5))), min(height, int(np.ceil(high - 0.5))))
        crossing = x0 + (rows + 0.5 - y0) * (x1 - x0) / (y1 - y0)
        columns = np.clip(np.ceil(crossing - 0.5), 0, width).astype(np.int64)
        np.add.at(changes, (rows, columns), 1)
    return (changes.cumsum(axis=1)[:, :width] & 1).astype(np.bool_)
