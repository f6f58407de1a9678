"""Sixteen-bit colour through Pillow, which keeps the high byte of each sample and drops the low.

Pillow's unpackers for little-endian data take the second byte of each pair, those for big-endian
data the first. Decoding once with each gives both bytes, so that colour is rounded exactly as grey
is. The `tile` attribute is Pillow's documented interface for file plugins.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

from PIL import Image, ImageFile

_SWAPPED = {"B": "L", "L": "B", "N": "L" if sys.byteorder == "big" else "B"}
_SPACES = frozenset({"RGB", "RGBA", "RGBX"})


def rawmode_of(image: ImageFile.ImageFile) -> str:
    """How the samples of an opened, not yet loaded image lie in the file; empty if unknown."""
    if not image.tile:
        return ""
    args = image.tile[0].args
    found = args[0] if isinstance(args, tuple) and args else args
    return found if isinstance(found, str) else ""


def load_halves(
    image: ImageFile.ImageFile, reopen: Callable[[], ImageFile.ImageFile]
) -> tuple[Image.Image, Image.Image] | None:
    """(high, low) bytes of 16-bit colour as two loaded images, or None where this does not apply.

    `image` is opened and not loaded; `reopen` opens the same bytes again.
    """
    rawmode = rawmode_of(image)
    if rawmode == "LA;16B":
        # Grey and alpha are four bytes per pixel: read as such, all of them arrive at once.
        _relabel(image, "RGBA")
        image.load()
        grey, grey_low, alpha, alpha_low = image.split()
        return Image.merge("LA", (grey, alpha)), Image.merge("LA", (grey_low, alpha_low))
    space, _, width = rawmode.partition(";16")
    if space not in _SPACES or width not in _SWAPPED:
        return None
    other = reopen()
    for tile in other.tile:
        if tile.args != image.tile[0].args and rawmode_of(other) != rawmode:
            return None
    _relabel(other, f"{space};16{_SWAPPED[width]}")
    image.load()
    other.load()
    return image, other


def _relabel(image: ImageFile.ImageFile, rawmode: str) -> None:
    """Make the decoder unpack every tile as `rawmode`."""
    image.tile = [
        tile._replace(args=(rawmode, *tile.args[1:]) if isinstance(tile.args, tuple) else rawmode)
        for tile in image.tile
    ]
