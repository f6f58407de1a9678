"""GIF: the header and the number of frames by hand.

Source: the GIF89a specification, CompuServe 1990, sections 17 to 27.
"""

from __future__ import annotations

import struct

from app.errors import PictureDamaged
from app.imaging.exif import Buffer
from app.imaging.header import Header

_IMAGE, _EXTENSION, _TRAILER = 0x2C, 0x21, 0x3B
# 50 MB in blocks of 255 bytes, which is what every writer makes, are 200,000.
_MOST_BLOCKS = 500_000


def probe(data: Buffer) -> Header:
    """The header of a GIF; all its blocks are stepped over to count the frames.

    A frame that reaches beyond the screen widens it, as viewers do. Raises PictureDamaged where a
    block is cut short or no frame is there.
    """
    width, height, flags = struct.unpack_from("<HHB", data, 6)
    place = 13 + _palette(flags)
    frames, left, end = 0, _MOST_BLOCKS, len(data)
    # A missing trailer is common and loses nothing; a missing end of a block loses pixels.
    while place < end and data[place] != _TRAILER:
        kind = data[place]
        if kind == _IMAGE:
            x, y, across, down, flags = struct.unpack_from("<HHHHB", data, place + 1)
            width, height = max(width, x + across), max(height, y + down)
            frames += 1
            place += 11 + _palette(flags)
        elif kind == _EXTENSION:
            place += 2
        else:
            # Viewers skip stray bytes between blocks; so does Pillow.
            place, left = place + 1, left - 1
            if left < 0:
                break
            continue
        while (size := data[place]) and left:
            place, left = place + 1 + size, left - 1
        place, left = place + 1, left - 1
        if left < 0:
            break
    if left < 0:
        raise PictureDamaged(f"GIF has more than {_MOST_BLOCKS:,} blocks")
    if not frames:
        raise PictureDamaged("GIF holds no picture")
    return Header("gif", width, height, 1, 8, frames=frames, coding="palette")


def _palette(flags: int) -> int:
    """Bytes of the colour table that `flags` announce."""
    return 3 << (flags & 7) + 1 if flags & 0x80 else 0
