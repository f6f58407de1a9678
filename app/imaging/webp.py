"""WebP: the header by hand, because Pillow allocates the whole canvas on opening.

Source: RFC 9649; RFC 6386, section 9.1 for the size in a lossy bitstream.
"""

from __future__ import annotations

import struct

from app.errors import PictureDamaged
from app.imaging.exif import Buffer, orientation_of
from app.imaging.header import Header

_ALPHA = 0x10
_MOST_CHUNKS = 100_000


def probe(data: Buffer) -> Header:
    """The header of a WebP: canvas, alpha, frames and orientation from its chunks.

    Raises PictureDamaged where the file is shorter than it says or has no picture.
    """
    (size,) = struct.unpack_from("<I", data, 4)
    end = 8 + size
    if end > len(data):
        raise PictureDamaged(
            f"WebP is truncated: {len(data):,} bytes came, its header says {end:,}"
        )
    canvas: tuple[int, int] | None = None
    still: tuple[int, int] | None = None
    alpha, frames, orientation, place = False, 0, 0, 12
    for _ in range(_MOST_CHUNKS):
        if place + 8 > end:
            break
        kind, length = struct.unpack_from("<4sI", data, place)
        body = place + 8
        if kind == b"VP8X":
            flags, low, width_high, height, height_high = struct.unpack_from("<IHBHB", data, body)
            canvas = 1 + low + (width_high << 16), 1 + height + (height_high << 16)
            alpha = alpha or bool(flags & _ALPHA)
        elif kind == b"VP8 " and still is None:
            width, height = struct.unpack_from("<HH", data, body + 6)
            still = width & 0x3FFF, height & 0x3FFF
        elif kind == b"VP8L" and still is None:
            (bits,) = struct.unpack_from("<I", data, body + 1)
            still = 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
            alpha = alpha or bool(bits >> 28 & 1)
        elif kind == b"ANMF":
            frames += 1
        elif kind == b"EXIF" and not orientation:
            orientation = orientation_of(data[body : body + length])
        place = body + length + (length & 1)
    else:
        raise PictureDamaged(f"WebP has more than {_MOST_CHUNKS:,} chunks")
    seen = canvas or still
    if seen is None:
        raise PictureDamaged("WebP holds no picture")
    channels = 4 if alpha else 3
    return Header(
        "webp", *seen, channels, 8, frames=frames or 1, orientation=orientation or 1, coding="rgb"
    )
