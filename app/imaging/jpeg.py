"""JPEG: the header by hand, the pixels by libjpeg-turbo with the exact transform.

Strict: a warning of the decoder means that the entropy-coded data did not decode as written, and
the picture is refused. The primary picture of a phone's MPO file is an ordinary JPEG. Sources:
ITU-T T.81, annex B; Exif 2.32; Adobe technical note 5116 (APP14).
"""

from __future__ import annotations

import re
import struct

import numpy as np
import simplejpeg
from numpy.typing import NDArray

from app.errors import PictureDamaged, PictureDepth, PictureTooLarge, PictureUnsupported
from app.imaging.bounds import MOST_SCANS, DecodeLimits
from app.imaging.exif import Buffer, orientation_of, turned
from app.imaging.header import Header
from app.types import Pixels

_SOF = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_STANDALONE = frozenset({0x01, *range(0xD0, 0xD8)})
# Baseline and extended, Huffman or arithmetic: one scan if that holds all components, and the
# decoder then refuses another.
_SEQUENTIAL = frozenset({0xC0, 0xC1, 0xC9})
_SOS, _EOI, _APP1 = 0xDA, 0xD9, 0xE1
_NEXT = re.compile(rb"\xff")
# The next marker inside entropy-coded data: FF that is neither stuffed, nor a fill byte, nor a
# restart.
_MARKER = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]")
_START_OF_SCAN = re.compile(rb"\xff\xda")
# Warnings of libjpeg that leave every pixel as its writer meant it.
_HARMLESS = re.compile("JFIF revision|Adobe color transform|SOS parameters for sequential")
_ROWS = 1 << 16


def probe(data: Buffer) -> Header:
    """The header of a JPEG, read up to its first scan.

    Raises PictureDamaged where no frame header precedes the scan.
    """
    frame: tuple[int, int, int, int] | None = None
    orientation, coding = 0, ""
    place, end = 2, len(data)
    while place < end:
        if data[place] != 0xFF:
            found = _NEXT.search(data, place)
            if found is None:
                break
            place = found.start()
        while place < end and data[place] == 0xFF:
            place += 1
        marker = data[place]
        place += 1
        if marker in _STANDALONE:
            continue
        if marker in (_SOS, _EOI):
            if frame and marker == _SOS and data[place + 2] != frame[3]:
                coding = "scans"
            break
        (length,) = struct.unpack_from(">H", data, place)
        if marker in _SOF and frame is None:
            frame = struct.unpack_from(">BHHB", data, place + 2)
            coding = "" if marker in _SEQUENTIAL else "scans"
        elif marker == _APP1 and not orientation and data[place + 2 : place + 8] == b"Exif\0\0":
            orientation = orientation_of(data[place + 8 : place + length])
        place += max(2, length)
    if frame is None:
        raise PictureDamaged("JPEG has no frame header before its data")
    depth, height, width, channels = frame
    return Header(
        "jpeg", width, height, channels, depth, orientation=orientation or 1, coding=coding
    )


def decode(data: Buffer, header: Header, limits: DecodeLimits) -> Pixels:
    """(H, W, 3) uint8 as a person would see it.

    Raises PictureDamaged for anything the decoder complains of, PictureTooLarge for too many scans,
    PictureDepth for samples of other than 8 bits, PictureUnsupported for unusual colour.
    """
    if header.depth != 8:
        raise PictureDepth(f"JPEG has {header.depth} bits per sample; this server reads 8")
    if header.channels not in (1, 3, 4):
        raise PictureUnsupported(
            f"JPEG has {header.channels} colour components; this server reads 1, 3 or 4"
        )
    if header.coding == "scans":
        _check_scans(data, header, limits)
    if header.channels == 4:
        stored = _from_cmyk(_run(data, header, "CMYK"))
    else:
        stored = _run(data, header, "RGB")
    return upright(stored, header.orientation)


def upright(stored: Pixels, orientation: int) -> Pixels:
    """`stored` (H, W, 3) turned as seen, C-contiguous; itself for orientation 1."""
    if orientation == 1:
        return stored
    # One element per pixel makes numpy move three bytes at once: two to three times faster.
    whole = turned(stored.view("V3")[..., 0], orientation)
    return np.ascontiguousarray(whole).view(np.uint8).reshape(*whole.shape, 3)


def _run(data: Buffer, header: Header, space: str) -> Pixels:
    """The decoder, writing into memory of exactly the size that the header promised.

    A file whose decoder sees another size than our probe did fails here, before it allocates.
    """
    shape = (header.height, header.width, 4 if space == "CMYK" else 3)
    pixels: Pixels = np.empty(shape, np.uint8)
    try:
        found = simplejpeg.decode_jpeg(data, space, buffer=pixels)
    except ValueError as exc:
        if not _HARMLESS.search(str(exc)):
            raise
        found = simplejpeg.decode_jpeg(data, space, buffer=pixels, strict=False)
    if found.shape != shape:
        raise PictureDamaged(
            f"JPEG decodes to {found.shape[1]:,} x {found.shape[0]:,} pixels, "
            f"its header says {header.width:,} x {header.height:,}"
        )
    return pixels


def _from_cmyk(inks: NDArray[np.uint8]) -> Pixels:
    """(H, W, 4) inks, inverted as Adobe's programs write them, to (H, W, 3) RGB.

    Every writer of four-component JPEG follows Adobe here; Pillow assumes the same, and the
    arithmetic gives its numbers. Done in strips, so that the wider numbers stay in the cache.
    """
    height, width, _ = inks.shape
    pixels = np.empty((height, width, 3), np.uint8)
    step = max(1, _ROWS // max(1, width))
    for row in range(0, height, step):
        strip = inks[row : row + step].astype(np.uint32)
        black = strip[..., 3:]
        product = (255 - strip[..., :3]) * black + 128
        pixels[row : row + step] = black - ((product + (product >> 8)) >> 8)
    return pixels


def _check_scans(data: Buffer, header: Header, limits: DecodeLimits) -> None:
    """Refuse a file whose scans, not its pixels, are the work: cheap to send, dear to decode."""
    most = min(MOST_SCANS, limits.most_passes(header))
    # Counting two bytes is an upper bound: the pair also occurs in thumbnails and trailing data.
    if sum(1 for _ in _START_OF_SCAN.finditer(data)) <= most:
        return
    scans = 0
    place, end = 2, len(data)
    while (found := _MARKER.search(data, place)) is not None:
        marker, place = data[found.start() + 1], found.end()
        if marker == _EOI:
            break
        if marker == 0x01 or place + 2 > end:
            continue
        scans += marker == _SOS
        if scans > most:
            raise PictureTooLarge(
                f"JPEG of {header.width:,} x {header.height:,} has more than {most} scans; "
                f"this server takes at most {most} at this size",
                limit="scans",
                limit_value=most,
            )
        place += max(2, struct.unpack_from(">H", data, place)[0])
