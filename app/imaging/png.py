"""PNG: the header by hand, and the checksums that say whether the pixels are what was written.

Pillow checks the checksums of the first chunks but not of the pixels' own, so a flipped bit would
give wrong pixels in silence. Source: W3C Portable Network Graphics, third edition.
"""

from __future__ import annotations

import struct
import zlib

from app.errors import PictureDamaged
from app.imaging.exif import Buffer, orientation_of
from app.imaging.header import Header

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
_DEPTHS = {0: (1, 2, 4, 8, 16), 2: (8, 16), 3: (1, 2, 4, 8), 4: (8, 16), 6: (8, 16)}
_CODING = {0: "grey", 2: "rgb", 3: "palette", 4: "grey", 6: "rgb"}
# Pixels and what gives them meaning; the rest of a PNG is comment.
_CHECKED = frozenset({b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND", b"acTL", b"fcTL", b"fdAT"})
# 50 MB of pixels in chunks of 8 KiB, the size that libpng writes, are 6,000 chunks.
_MOST_CHUNKS = 100_000
# The seven reduced pictures of Adam7: first column, first row, column step, row step.
_ADAM7 = (
    (0, 0, 8, 8),
    (4, 0, 8, 8),
    (0, 4, 4, 8),
    (2, 0, 4, 4),
    (0, 2, 2, 4),
    (1, 0, 2, 2),
    (0, 1, 1, 2),
)
# Bytes inflated at a time.
_INFLATED = 1 << 18


def probe(data: Buffer) -> Header:
    """The header of a PNG, its chunks stepped over to find frames and orientation.

    Raises PictureDamaged for a broken signature or header.
    """
    if bytes(data[:8]) != _SIGNATURE:
        raise PictureDamaged("PNG signature is broken: was the file transferred as text?")
    length, kind = struct.unpack_from(">I4s", data, 8)
    if kind != b"IHDR" or length != 13:
        raise PictureDamaged("PNG does not begin with its header")
    width, height, depth, colour = struct.unpack_from(">IIBB", data, 16)
    if depth not in _DEPTHS.get(colour, ()):
        raise PictureDamaged(f"PNG header names colour type {colour} with {depth} bits per sample")
    frames, orientation = _around_pixels(data)
    return Header(
        "png",
        width,
        height,
        _CHANNELS[colour],
        depth,
        frames=frames,
        orientation=orientation,
        coding=_CODING[colour],
    )


def _around_pixels(data: Buffer) -> tuple[int, int]:
    """(frames, orientation) from the chunks around the pixels."""
    animated, control, orientation = 0, False, 0
    place, end = 33, len(data)
    for _ in range(_MOST_CHUNKS):
        if place + 8 > end:
            raise PictureDamaged("PNG is truncated before its pixels")
        length, kind = struct.unpack_from(">I4s", data, place)
        if kind == b"IDAT":
            break
        if kind == b"acTL":
            (count,) = struct.unpack_from(">I", data, place + 8)
            if animated or length < 8 or not 0 < count < 1 << 31:
                raise PictureDamaged("PNG names its number of frames twice or wrongly")
            animated = count
        elif kind == b"fcTL":
            control = True
        elif kind == b"eXIf" and not orientation:
            orientation = orientation_of(data[place + 8 : place + 8 + length])
        place += 12 + length
    else:
        raise PictureDamaged(f"PNG has more than {_MOST_CHUNKS:,} chunks")
    # EXIF may also come behind the pixels: stepping over them costs less than searching them.
    for _ in range(_MOST_CHUNKS):
        if orientation or place + 8 > end:
            break
        length, kind = struct.unpack_from(">I4s", data, place)
        if kind == b"IEND":
            break
        if kind == b"eXIf":
            orientation = orientation_of(data[place + 8 : place + 8 + length])
        place += 12 + length
    # Pixels without a frame control are a picture of their own, shown by viewers that do not know
    # animation: one more to choose from.
    frames = animated + (not control) if animated else 1
    return frames, orientation or 1


def check(data: Buffer) -> None:
    """Raise PictureDamaged unless every chunk that makes pixels is whole and its checksum right.

    Bytes behind the end chunk are nobody's business. zlib releases the GIL for large chunks.
    """
    view = memoryview(data)
    place, end = 8, len(view)
    for _ in range(_MOST_CHUNKS):
        if place + 12 > end:
            break
        length, kind = struct.unpack_from(">I4s", view, place)
        after = place + 8 + length
        if after + 4 > end:
            break
        if kind in _CHECKED:
            (stored,) = struct.unpack_from(">I", view, after)
            if zlib.crc32(view[place + 4 : after]) != stored:
                raise PictureDamaged(f"PNG is corrupt: the checksum of {kind.decode()} is wrong")
        if kind == b"IEND":
            return
        place = after + 4
    else:
        raise PictureDamaged(f"PNG has more than {_MOST_CHUNKS:,} chunks")
    raise PictureDamaged("PNG is truncated: its end is missing")


def check_rows(data: Buffer, header: Header) -> None:
    """Raise PictureDamaged unless the compressed stream holds every row.

    Pillow takes a stream that ends early, with right checksums, for a picture whose last rows are
    black. Inflates once more, so it is asked only of a still picture that looks so.
    """
    view = memoryview(data)
    bits = header.channels * header.depth
    if is_interlaced(view):
        sizes = [
            (-(-(header.width - x) // across), -(-(header.height - y) // down))
            for x, y, across, down in _ADAM7
        ]
    else:
        sizes = [(header.width, header.height)]
    missing = sum(
        height * (1 + -(-width * bits // 8)) for width, height in sizes if width > 0 and height > 0
    )
    inflate = zlib.decompressobj()
    place = 8
    while missing > 0 and place + 12 <= len(view):
        length, kind = struct.unpack_from(">I4s", view, place)
        body: Buffer = view[place + 8 : place + 8 + length] if kind == b"IDAT" else b""
        while len(body) and missing > 0:
            missing -= len(inflate.decompress(body, _INFLATED))
            body = inflate.unconsumed_tail
        place += 12 + length
    if missing > 0:
        raise PictureDamaged(f"PNG is truncated: {missing:,} bytes of its rows are missing")


def is_interlaced(data: Buffer) -> bool:
    """Whether the rows come in the seven passes of Adam7."""
    return data[28] == 1
