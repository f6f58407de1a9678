"""The one wall at which the codecs' exceptions become ours, by one table.

Codecs fail in many ways on bytes that someone made up; whatever they raise, the picture is at
fault. An error of ours passes unchanged. A foreign exception that is not in the table passes too:
that is a defect of ours, and must be seen.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from PIL import Image

from app.errors import PictureDamaged, PictureError, PictureTooLarge, TernausError

# The most specific class wins: the table is searched along the exception's own ancestry. Pillow
# raises SyntaxError for broken headers. A Warning only arrives where the process turned warnings
# into errors; each means that the decoder had to guess.
FOREIGN: Mapping[type[BaseException], type[PictureError]] = {
    Image.DecompressionBombError: PictureTooLarge,
    MemoryError: PictureTooLarge,
    OSError: PictureDamaged,
    EOFError: PictureDamaged,
    SyntaxError: PictureDamaged,
    ValueError: PictureDamaged,
    TypeError: PictureDamaged,
    LookupError: PictureDamaged,
    ArithmeticError: PictureDamaged,
    AttributeError: PictureDamaged,
    AssertionError: PictureDamaged,
    RuntimeError: PictureDamaged,
    Warning: PictureDamaged,
    struct.error: PictureDamaged,
    zlib.error: PictureDamaged,
}
_LONGEST = 200


@contextmanager
def wall(title: str) -> Iterator[None]:
    """Inside, `title` (a format's name) is being decoded; only our errors come out."""
    try:
        yield
    except TernausError:
        raise
    except tuple(FOREIGN) as exc:
        ours = next(FOREIGN[kind] for kind in type(exc).__mro__ if kind in FOREIGN)
        said = " ".join(str(exc).split())[:_LONGEST] or type(exc).__name__
        raise ours(f"{title} cannot be decoded: {said}") from exc
