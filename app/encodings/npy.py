"""`npy`: the probabilities of every class as a NumPy file, (C, H, W) uint8 of round(255 p).

Read with `numpy.load(file, allow_pickle=False) / 255`. A header and a copy, so by far the cheapest
to write; the one format that holds everything. Layout: NumPy's NEP 1, version 1.0.
"""

from __future__ import annotations

import io
import struct
from typing import Any

import numpy as np
from numpy.typing import NDArray

from app.encodings.base import Decoded, Encoding, Shape, check_size, register
from app.errors import MalformedRequest
from app.types import Mask

_MAGIC = b"\x93NUMPY\x01\x00"
_ALIGNMENT = 64


def pack(array: NDArray[Any]) -> bytes:
    """A whole version 1.0 file of a C-contiguous copy of `array`, any shape and plain dtype."""
    header = f"{{'descr': '{array.dtype.str}', 'fortran_order': False, 'shape': {array.shape!r}, }}"
    # Data begins at a multiple of 64 bytes: magic, a length of two bytes, the text, a newline.
    padding = -(len(_MAGIC) + 2 + len(header) + 1) % _ALIGNMENT
    text = header.encode("ascii") + b" " * padding + b"\n"
    return b"".join((_MAGIC, struct.pack("<H", len(text)), text, array.tobytes()))


def encode(mask: Mask) -> bytes:
    """(C, H, W) uint8, one plane per class of the model, background included."""
    assert mask.probability is not None
    return pack(mask.probability)


def decode(data: bytes, shape: Shape | None = None) -> Decoded:
    """(C, H, W) uint8. The header is checked against the length of the data before allocating."""
    stream = io.BytesIO(data)
    try:
        if np.lib.format.read_magic(stream) != (1, 0):
            raise ValueError("not version 1.0")
        dimensions, fortran, dtype = np.lib.format.read_array_header_1_0(stream)
    except (ValueError, EOFError) as exc:
        raise MalformedRequest(f"npy mask: {exc}") from exc
    if dtype != np.uint8 or fortran or len(dimensions) != 3:
        raise MalformedRequest("npy mask: not a (C, H, W) uint8 array in C order")
    classes, height, width = dimensions
    check_size(height, width)
    body = data[stream.tell() :]
    if classes < 1 or len(body) != classes * height * width:
        raise MalformedRequest(f"npy mask: {len(body)} bytes for shape {dimensions}")
    return np.frombuffer(body, np.uint8).reshape(dimensions)


register(
    Encoding(
        name="npy",
        title="NumPy array (C, H, W) of 255 times the probabilities",
        media_type="application/x-npy",
        extension="npy",
        write=encode,
        read=decode,
        needs_probability=True,
        overlapping=True,
    )
)
