"""`png8`: a plain 8-bit grey PNG, for programs that want one byte per pixel.

One plane is written as 0 and 255. A label map is written as its class ids, because OpenCV turns a
palette into colours and loses them; it looks black in viewers. The file does not say which it is.
"""

from __future__ import annotations

import numpy as np

from app.encodings import _png, _png_reader
from app.encodings.base import Decoded, Encoding, Shape, register
from app.errors import MalformedRequest
from app.types import Mask


def encode(mask: Mask) -> bytes:
    """0 and 255 for one plane, class ids for a label map."""
    if mask.labels is not None:
        return _png.write_grey(mask.labels)
    return _png.write_grey(np.negative(mask.plane(0).view(np.uint8)))


def decode(data: bytes, shape: Shape | None = None) -> Decoded:
    """(H, W) uint8, the values as they stand."""
    found = _png_reader.read(data)
    if found.colour is not _png.Colour.GREY or found.depth != 8:
        raise MalformedRequest("PNG mask: not 8-bit grey")
    return found.samples


register(
    Encoding(
        name="png8",
        title="8-bit grey PNG: 0 and 255, or class ids",
        media_type="image/png",
        extension="png",
        write=encode,
        read=decode,
    )
)
