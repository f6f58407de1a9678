"""The header of an upload, told from its bytes alone.

`probe` reads headers only and allocates no pixel, so that a picture can be refused, and its cost
known, before it is decoded. Formats are told by their magic bytes, never by a declared type.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping

from app.errors import EmptyBody, PictureDamaged
from app.imaging import bmp, gif, jpeg, png, tiff, webp
from app.imaging.exif import Buffer
from app.imaging.header import FORMATS, Header
from app.imaging.magic import recognise

_PROBES: Mapping[str, Callable[[Buffer], Header]] = {
    "jpeg": jpeg.probe,
    "png": png.probe,
    "webp": webp.probe,
    "tiff": tiff.probe,
    "bmp": bmp.probe,
    "gif": gif.probe,
}


def probe(data: Buffer) -> Header:
    """The header of an upload; some microseconds for JPEG and PNG.

    Raises EmptyBody for no bytes, PictureUnsupported for a format that we do not read (it names
    what the bytes look like), PictureDamaged for a header that cannot be understood or a side of 0.
    """
    if len(data) == 0:
        raise EmptyBody("the body is empty; send the bytes of a picture")
    format = recognise(data)
    try:
        header = _PROBES[format](data)
    # An offset beyond what the machine can address overflows instead.
    except (struct.error, IndexError, OverflowError) as exc:
        raise PictureDamaged(f"{FORMATS[format]} header points outside the file") from exc
    if header.width < 1 or header.height < 1:
        raise PictureDamaged(
            f"picture is {header.width:,} x {header.height:,}; each side must be at least 1 pixel"
        )
    return header
