"""PNG files written by hand: no image library, and the compressor runs without the GIL.

Scanlines carry the Up filter: masks are coherent from row to row, so most filtered bytes are zero.
Chunks and filters: the PNG specification, third edition (W3C, 2025), sections 5, 9 and 11.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from enum import IntEnum
from functools import lru_cache
from types import ModuleType

import numpy as np
from numpy.typing import NDArray

fast_zlib: ModuleType
try:
    from isal import isal_zlib as fast_zlib
except ImportError:  # no wheel for this machine; about four times slower
    fast_zlib = zlib

SIGNATURE = b"\x89PNG\r\n\x1a\n"
NO_FILTER, UP_FILTER = 0, 2

Rows = NDArray[np.uint8]
Deflate = Callable[[Rows], bytes]


class Colour(IntEnum):
    """The colour types that we write."""

    GREY = 0
    PALETTE = 3


def fast_deflate(scanlines: Rows) -> bytes:
    """A zlib stream, at level 1: higher levels cost more time than they save bytes."""
    return bytes(fast_zlib.compress(scanlines, 1))


def filter_up(rows: Rows) -> Rows:
    """(H, S) uint8 rows -> (H, 1 + S) uint8 scanlines: each row less the one above, modulo 256."""
    height, size = rows.shape
    scanlines = np.empty((height, 1 + size), np.uint8)
    scanlines[:, 0] = UP_FILTER
    scanlines[0, 1:] = rows[0]
    np.subtract(rows[1:], rows[:-1], out=scanlines[1:, 1:])
    return scanlines


def assemble(
    scanlines: Rows,
    *,
    width: int,
    depth: int,
    colour: Colour,
    palette: bytes = b"",
    deflate: Deflate = fast_deflate,
) -> bytes:
    """(H, 1 + S) uint8 filtered scanlines -> a whole file. `palette` is R, G, B per index."""
    parts = [_opening(width, scanlines.shape[0], depth, colour)]
    if palette:
        parts += _chunk(b"PLTE", palette)
    parts += _chunk(b"IDAT", deflate(scanlines))
    parts.append(_CLOSING)
    return b"".join(parts)


# Kept, as most pictures are of few sizes.
@lru_cache(maxsize=256)
def _opening(width: int, height: int, depth: int, colour: Colour) -> bytes:
    """Everything before the palette and the pixels."""
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return b"".join((SIGNATURE, *_chunk(b"IHDR", header)))


def write_bits(bits: Rows, *, width: int) -> bytes:
    """(H, ceil(W / 8)) uint8 packed rows -> a 1-bit grey PNG; nothing is unpacked."""
    return assemble(filter_up(bits), width=width, depth=1, colour=Colour.GREY)


def write_grey(values: Rows) -> bytes:
    """(H, W) uint8 -> an 8-bit grey PNG."""
    return assemble(filter_up(values), width=values.shape[1], depth=8, colour=Colour.GREY)


def write_palette(labels: Rows, *, colours: bytes) -> bytes:
    """(H, W) uint8 indices -> a palette PNG of the smallest depth that holds every colour."""
    entries = len(colours) // 3
    depth = next(depth for depth in (1, 2, 4, 8) if entries <= 1 << depth)
    rows = pack(labels, depth=depth)
    return assemble(
        filter_up(rows),
        width=labels.shape[1],
        depth=depth,
        colour=Colour.PALETTE,
        palette=colours,
    )


def pack(labels: Rows, *, depth: int) -> Rows:
    """(H, W) uint8 values below 2**depth -> (H, ceil(W * depth / 8)) uint8, first pixel highest."""
    if depth == 8:
        return labels
    if depth == 1:
        return np.packbits(labels, axis=1)
    each = 8 // depth
    height, width = labels.shape
    size = -(-width // each)
    if width % each or not labels.flags.c_contiguous:
        padded = np.zeros((height, size * each), np.uint8)
        padded[:, :width] = labels
        labels = padded
    if depth == 4:
        pairs = labels.view("<u2")
        return ((pairs << 4) | (pairs >> 8)).astype(np.uint8)
    # One multiplication moves four 2-bit values into the top byte; no other product reaches it.
    fours = labels.view("<u4") * np.uint32(1 << 30 | 1 << 20 | 1 << 10 | 1)
    return (fours >> 24).astype(np.uint8)


def _chunk(kind: bytes, data: bytes) -> tuple[bytes, bytes, bytes, bytes]:
    """Length, type, data and CRC-32 over the latter two."""
    crc = fast_zlib.crc32(data, fast_zlib.crc32(kind))
    return struct.pack(">I", len(data)), kind, data, struct.pack(">I", crc)


_CLOSING = b"".join(_chunk(b"IEND", b""))
