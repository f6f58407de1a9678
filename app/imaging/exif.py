"""The one field of EXIF that changes what a person sees: orientation, tag 0x0112.

Everything else in the block is left unread. A block that cannot be understood means orientation 1:
viewers show such a picture as it is stored, and so do we. It never raises.
"""

from __future__ import annotations

import struct
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

Buffer = bytes | memoryview
_Scalar = TypeVar("_Scalar", bound=np.generic)

_TAG = 0x0112
# Field types of TIFF 6.0 that writers use for the value, with the struct code of one value.
_TYPES = {1: "B", 3: "H", 4: "I"}
# Turning by 6 is undone by 8 and the other way round; every other value undoes itself.
INVERSE = {1: 1, 2: 2, 3: 3, 4: 4, 5: 5, 6: 8, 7: 7, 8: 6}


def orientation_of(block: Buffer) -> int:
    """The orientation (1 to 8) in an EXIF block, with or without its `Exif` prefix; 1 if broken.

    Source: Exif 2.32, section 4.6.4; TIFF 6.0, section 2 for the directory.
    """
    if block[:6] == b"Exif\0\0":
        block = block[6:]
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(bytes(block[:4]))
    if order is None:
        return 1
    try:
        (start,) = struct.unpack_from(order + "I", block, 4)
        (entries,) = struct.unpack_from(order + "H", block, start)
        for place in range(start + 2, start + 2 + 12 * entries, 12):
            tag, kind, count = struct.unpack_from(order + "HHI", block, place)
            if tag == _TAG:
                if count != 1 or kind not in _TYPES:
                    return 1
                (value,) = struct.unpack_from(order + _TYPES[kind], block, place + 8)
                return value if 1 <= value <= 8 else 1
    except struct.error:
        pass
    return 1


def turned(stored: NDArray[_Scalar], orientation: int) -> NDArray[_Scalar]:
    """A view of `stored` (H, W) or (H, W, ...) as a person would see it; nothing is copied.

    Source: Exif 2.32, the figure under tag 0x0112: where row 0 and column 0 of the file lie.
    """
    if orientation >= 5:
        stored = stored.swapaxes(0, 1)
    # After the axes are swapped, 5 is done, 6 is mirrored left to right, 7 both ways, 8 top to
    # bottom: the same three flips that 2, 3 and 4 are without the swap.
    if orientation in (2, 3, 6, 7):
        stored = stored[:, ::-1]
    if orientation in (3, 4, 7, 8):
        stored = stored[::-1]
    return stored
