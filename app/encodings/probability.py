"""`probability`: an 8-bit grey PNG of round(255 p) for one class.

Back: divide by 255; the largest error is 1/510. Several classes need several maps, and `npy` holds
them. Thresholding the map is not quite thresholding the probability: ask for the mask instead.
"""

from __future__ import annotations

from app.encodings import _png, png8
from app.encodings.base import Decoded, Encoding, Shape, register
from app.types import Mask


def encode(mask: Mask) -> bytes:
    """The probability of the one class, as the engine rounded it."""
    assert mask.probability is not None
    return _png.write_grey(mask.probability[0])


def decode(data: bytes, shape: Shape | None = None) -> Decoded:
    """(1, H, W) uint8, round(255 p)."""
    return png8.decode(data, shape)[None]


register(
    Encoding(
        name="probability",
        title="8-bit grey PNG of 255 times the probability",
        media_type="image/png",
        extension="png",
        write=encode,
        read=decode,
        needs_probability=True,
        tasks=("binary", "multilabel"),
    )
)
