"""`png`, the default: a 1-bit grey PNG of one plane, or a palette PNG of a label map.

A single PNG cannot say that a pixel belongs to two classes, so a multilabel mask of several classes
is refused rather than flattened in an order that nobody asked for.
"""

from __future__ import annotations

from itertools import chain

import numpy as np

from app.encodings import _png, _png_reader
from app.encodings.base import Decoded, Encoding, Shape, register
from app.errors import MalformedRequest
from app.types import Mask


def encode(mask: Mask) -> bytes:
    """Straight from the packed rows; multiclass: index = class id, in the colour of the class."""
    if mask.labels is None:
        assert mask.bits is not None
        return _png.write_bits(mask.bits[0], width=mask.width)
    colours = bytes(chain.from_iterable(each.colour for each in mask.classes))
    return _png.write_palette(mask.labels, colours=colours)


def decode(data: bytes, shape: Shape | None = None) -> Decoded:
    """(1, H, W) bool from a 1-bit file, (H, W) uint8 labels from a palette file."""
    found = _png_reader.read(data)
    if found.colour is _png.Colour.PALETTE:
        return found.samples
    if found.depth != 1:
        raise MalformedRequest("PNG mask: 8-bit grey; format `png` is 1-bit or has a palette")
    return found.samples[None].view(np.bool_)


register(
    Encoding(
        name="png",
        title="1-bit PNG, or a palette PNG in the colours of the classes",
        media_type="image/png",
        extension="png",
        write=encode,
        read=decode,
        # 512 x 512: 0.05 ms for blobs, 0.07 ms for noise, which nothing compresses.
        brief_bytes=32_768,
    )
)
