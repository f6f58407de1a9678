"""The band along a mask's contour that boundary IoU compares (Cheng et al., arXiv 2103.16562).

The width is 2 % of the picture's diagonal, as published; a pixel is in the band when a square of
that radius around it reaches outside the mask. Beyond the picture's edge nothing is mask.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

SHARE = 0.02


def width_of(height: int, width: int, share: float = SHARE) -> int:
    """Width of the band in pixels, at least 1."""
    return max(1, round(share * math.hypot(height, width)))


def band(mask: NDArray[np.bool_], width: int) -> NDArray[np.bool_]:
    """(H, W) bool -> the pixels of the mask within `width` of its contour."""
    return mask & ~eroded(mask, width)


def eroded(mask: NDArray[np.bool_], radius: int) -> NDArray[np.bool_]:
    """Pixels whose square of side 2 * radius + 1 lies in the mask wholly.

    By running sums along rows, then columns: the cost does not depend on the radius.
    """
    side = 2 * radius + 1
    found = mask
    for _ in range(2):
        padded = np.pad(found.astype(np.int32), ((radius + 1, radius), (0, 0)))
        sums = padded.cumsum(0)
        found = ((sums[side:] - sums[:-side]) == side).T
    return np.ascontiguousarray(found)
