"""Pictures made on the spot: each the smallest file that shows one row of the input policy."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterable
from io import BytesIO
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from app.types import Pixels


def scene(height: int = 37, width: int = 53, seed: int = 0) -> Pixels:
    """(H, W, 3) uint8: smooth, coloured, and different under every turn."""
    noise = np.random.default_rng(seed).integers(0, 256, (5, 7, 3), np.uint8)
    smooth = Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC)
    return np.array(smooth)


def noise(height: int, width: int, seed: int = 0) -> Pixels:
    """(H, W, 3) uint8 without any structure."""
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def encoded(image: Image.Image | NDArray[Any], format: str, **options: Any) -> bytes:
    """The bytes of a file that Pillow writes."""
    if not isinstance(image, Image.Image):
        image = Image.fromarray(image)
    out = BytesIO()
    image.save(out, format, **options)
    return out.getvalue()


def exif(orientation: int, kind: int = 3, order: str = "<") -> bytes:
    """An EXIF block with one field: the orientation, as BYTE (1), SHORT (3) or LONG (4)."""
    mark = b"II" if order == "<" else b"MM"
    value = struct.pack(order + {1: "B3x", 3: "H2x", 4: "I"}[kind], orientation)
    head = mark + struct.pack(order + "HI", 42, 8)
    entry = struct.pack(order + "HHHI", 1, 0x0112, kind, 1) + value
    return b"Exif\0\0" + head + entry + struct.pack(order + "I", 0)


def chunk(kind: bytes, body: bytes) -> bytes:
    """A PNG chunk with the right checksum."""
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(values: NDArray[Any], *, colour: int, extra: Iterable[tuple[bytes, bytes]] = ()) -> bytes:
    """A PNG of (H, W) or (H, W, bands) uint8 or uint16; `extra` chunks before the pixels."""
    height, width = values.shape[:2]
    depth = 8 * values.dtype.itemsize
    wire = values.astype(">u2") if depth == 16 else values
    rows = b"".join(b"\0" + wire[row].tobytes() for row in range(height))
    return png_of(height, width, depth=depth, colour=colour, rows=rows, extra=extra)


def png_of(
    height: int,
    width: int,
    *,
    depth: int,
    colour: int,
    rows: bytes,
    extra: Iterable[tuple[bytes, bytes]] = (),
) -> bytes:
    """A PNG with a free header and free, filtered rows."""
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    chunks = [(b"IHDR", header), *extra, (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(kind, body) for kind, body in chunks)


def tiff(
    values: NDArray[Any],
    *,
    photometric: int,
    order: Literal["<", ">"] = "<",
    bits: tuple[int, ...] | None = None,
    sample_format: int = 1,
    tags: Iterable[tuple[int, int]] = (),
) -> bytes:
    """An uncompressed TIFF of one strip; `tags` are further (tag, SHORT) pairs."""
    height, width = values.shape[:2]
    bands = values.shape[2] if values.ndim == 3 else 1
    wire = values.astype(values.dtype.newbyteorder(order)).tobytes()
    bits = bits or (8 * values.dtype.itemsize,) * bands
    depths = struct.pack(f"{order}{bands}H", *bits)
    shorts = [(259, 1), (262, photometric), (277, bands), (339, sample_format), *tags]
    longs = [(256, width), (257, height), (273, 8), (278, height), (279, len(wire))]
    entries = [
        *((tag, 3, 1, struct.pack(order + "H2x", value)) for tag, value in shorts),
        *((tag, 4, 1, struct.pack(order + "I", value)) for tag, value in longs),
    ]
    directory = 8 + len(wire) + len(depths)
    inline = depths.ljust(4, b"\0") if bands <= 2 else struct.pack(order + "I", 8 + len(wire))
    entries.append((258, 3, bands, inline))
    body = struct.pack(order + "H", len(entries))
    for tag, kind, count, value in sorted(entries):
        body += struct.pack(order + "HHI", tag, kind, count) + value
    mark = b"II" if order == "<" else b"MM"
    head = mark + struct.pack(order + "HI", 42, directory)
    return head + wire + depths + body + struct.pack(order + "I", 0)


def animation(format: str, frames: int = 3, height: int = 9, width: int = 14) -> bytes:
    """Frames of one grey each: 40, 80, 120, ... or, of more than six, 9, 18, 27, ..."""
    step = 40 if frames <= 6 else 9
    images = [
        Image.new("RGB", (width, height), (step * index + step,) * 3) for index in range(frames)
    ]
    options: dict[str, Any] = {"lossless": True} if format == "WEBP" else {}
    return encoded(images[0], format, save_all=True, append_images=images[1:], **options)
