"""BMP: the header by hand. Source: Microsoft, BITMAPCOREHEADER to BITMAPV5HEADER."""

from __future__ import annotations

import struct

from app.imaging.exif import Buffer
from app.imaging.header import Header


def probe(data: Buffer) -> Header:
    """The header of a BMP. A negative height means rows from top to bottom."""
    (size,) = struct.unpack_from("<I", data, 14)
    if size == 12:
        width, height, _, bits = struct.unpack_from("<HHHH", data, 18)
    else:
        width, height, _, bits = struct.unpack_from("<iiHH", data, 18)
    palette = bits <= 8
    channels = 1 if palette else 4 if bits == 32 else 3
    coding = "palette" if palette else "rgb"
    return Header("bmp", width, abs(height), channels, 8, coding=coding)
