"""A strict reader of the PNG files that `_png` writes, for tests and clients.

Every length, CRC and order of chunks is checked, and nothing is allocated that the data does not
fill. Not a general decoder: filters other than none and Up, interlacing and true colour are
refused.
"""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from app.encodings._png import NO_FILTER, SIGNATURE, UP_FILTER, Colour
from app.encodings.base import check_size
from app.errors import MalformedRequest

_DEPTHS = {Colour.GREY: (1, 8), Colour.PALETTE: (1, 2, 4, 8)}
_KIND = re.compile(rb"[A-Za-z]{4}")


@dataclass(frozen=True, slots=True)
class Png:
    """A decoded file: `samples` is (H, W) uint8, as they stand; `palette` R, G, B per index."""

    depth: int
    colour: Colour
    palette: bytes
    samples: NDArray[np.uint8]


def read(data: bytes) -> Png:
    """Decode. Raises MalformedRequest that says what is wrong."""
    chunks = list(_chunks(data))
    height, width, depth, colour = _header(chunks[0])
    palette = _palette(chunks[1:], depth=depth, colour=colour)
    body = b"".join(content for kind, content in chunks if kind == b"IDAT")
    rows = _rows(body, height=height, size=(width * depth + 7) // 8)
    samples = _unpack(rows, width=width, depth=depth)
    if palette and int(samples.max()) >= len(palette) // 3:
        raise _damaged("an index has no colour in the palette")
    return Png(depth, colour, palette, samples)


def _damaged(what: str) -> MalformedRequest:
    return MalformedRequest(f"PNG mask: {what}")


def _chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Type and content of every chunk, in an order that the specification allows."""
    if data[:8] != SIGNATURE:
        raise _damaged("no PNG signature")
    position, before = 8, b""
    seen: set[bytes] = set()
    while before != b"IEND":
        if len(data) - position < 12:
            raise _damaged("truncated")
        (length,) = struct.unpack_from(">I", data, position)
        kind = data[position + 4 : position + 8]
        if not _KIND.fullmatch(kind):
            raise _damaged("a chunk type is not four letters")
        if length > len(data) - position - 12:
            raise _damaged(f"{kind.decode()} is longer than the file")
        content = data[position + 8 : position + 8 + length]
        (crc,) = struct.unpack_from(">I", data, position + 8 + length)
        if crc != zlib.crc32(content, zlib.crc32(kind)):
            raise _damaged(f"the CRC of {kind.decode()} does not match")
        known = kind in (b"IHDR", b"PLTE", b"IDAT", b"IEND")
        if not known and not kind[:1].islower():
            raise _damaged(f"unknown critical chunk {kind.decode()}")
        if kind in seen and (kind != b"IDAT" or before != b"IDAT") and known:
            raise _damaged(f"{kind.decode()} is repeated or not in one piece")
        if (kind == b"IHDR") == bool(seen):
            raise _damaged("IHDR is not the first chunk")
        seen.add(kind)
        before = kind
        position += 12 + length
        yield kind, content
    if content or position != len(data):
        raise _damaged("data in or after IEND")
    if b"IDAT" not in seen:
        raise _damaged("no IDAT")


def _header(chunk: tuple[bytes, bytes]) -> tuple[int, int, int, Colour]:
    """Height, width, depth and colour type."""
    if len(chunk[1]) != 13:
        raise _damaged("IHDR is not 13 bytes")
    width, height, depth, colour, *rest = struct.unpack(">IIBBBBB", chunk[1])
    check_size(height, width)
    if colour not in (Colour.GREY, Colour.PALETTE) or depth not in _DEPTHS[Colour(colour)]:
        raise _damaged(f"colour type {colour} with depth {depth} is not a mask of ours")
    if any(rest):
        raise _damaged("compression, filter and interlace methods other than 0")
    return height, width, depth, Colour(colour)


def _palette(chunks: list[tuple[bytes, bytes]], *, depth: int, colour: Colour) -> bytes:
    """The content of PLTE, which stands before IDAT where, and only where, there is a palette."""
    kinds = [kind for kind, _ in chunks]
    if (b"PLTE" in kinds) != (colour is Colour.PALETTE):
        raise _damaged("PLTE does not agree with the colour type")
    if colour is not Colour.PALETTE:
        return b""
    place = kinds.index(b"PLTE")
    palette = chunks[place][1]
    if place > kinds.index(b"IDAT"):
        raise _damaged("PLTE after IDAT")
    if not palette or len(palette) % 3 or len(palette) // 3 > 1 << depth:
        raise _damaged(f"PLTE of {len(palette)} bytes at depth {depth}")
    return palette


def _rows(body: bytes, *, height: int, size: int) -> NDArray[np.uint8]:
    """Inflate to exactly H scanlines of 1 + S bytes and undo the filter: (H, S) uint8."""
    expected = height * (1 + size)
    stream = zlib.decompressobj()
    try:
        # One byte more than expected: neither a bomb nor a surplus is inflated further.
        scanlines = stream.decompress(body, expected + 1)
    except zlib.error as exc:
        raise _damaged("the zlib stream is broken") from exc
    if len(scanlines) != expected or not stream.eof or stream.unused_data:
        raise _damaged(f"the zlib stream does not end after {expected} bytes")
    table = np.frombuffer(scanlines, np.uint8).reshape(height, 1 + size)
    kinds, rows = table[:, 0], table[:, 1:]
    if (kinds == NO_FILTER).all():
        return rows
    if (kinds == UP_FILTER).all():
        return np.cumsum(rows, axis=0, dtype=np.uint8)
    raise _damaged("scanline filters other than none or Up throughout")


def _unpack(rows: NDArray[np.uint8], *, width: int, depth: int) -> NDArray[np.uint8]:
    """(H, S) packed rows -> (H, W) uint8 samples."""
    if depth == 8:
        return np.ascontiguousarray(rows)
    if depth == 1:
        return np.unpackbits(rows, axis=1, count=width)
    shifts = np.arange(8 - depth, -1, -depth, dtype=np.uint8)
    samples = (rows[:, :, None] >> shifts) & np.uint8((1 << depth) - 1)
    return np.ascontiguousarray(samples.reshape(rows.shape[0], -1)[:, :width])
