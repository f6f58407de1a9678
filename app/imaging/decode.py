"""Bytes of an upload to a Picture: the one way in, for serving, training and evaluation alike.

    decode(body, limits=DecodeLimits()).pixels         # (H, W, 3) uint8 RGB, as a person sees it

Refuses from the header before a pixel is allocated; a picture that is not whole is refused, never
shown in part. Metadata is not kept. Thread-safe; libjpeg-turbo and Pillow's decoders release the
GIL.

Pillow's own bomb guard is a global of its module that warns above 89 megapixels and raises above
179. We neither change it nor meet it: it sits in `Image.open`, and the plugins' classes are used
here directly, after our own limit. Where a plugin consults it inside (GIF frames, WebP canvas) our
limit is lowered to it. That route is also the allow-list: no other plugin can be reached.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from io import BytesIO

import numpy as np
from PIL import (
    BmpImagePlugin,
    GifImagePlugin,
    Image,
    ImageFile,
    JpegImagePlugin,
    PngImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)

from app.errors import BadParameter, PictureSeveralFrames, PictureUnsupported
from app.imaging import jpeg, png, samples, tiff
from app.imaging.bounds import DecodeLimits
from app.imaging.exif import Buffer
from app.imaging.halves import load_halves, rawmode_of
from app.imaging.header import FORMATS, Header
from app.imaging.probe import probe
from app.imaging.samples import Colour
from app.imaging.wall import wall
from app.types import Picture, Pixels

__all__ = ["Colour", "DecodeLimits", "Header", "decode", "probe"]

_PLUGINS: Mapping[str, Callable[[BytesIO], ImageFile.ImageFile]] = {
    "jpeg": JpegImagePlugin.JpegImageFile,
    "png": PngImagePlugin.PngImageFile,
    "webp": WebPImagePlugin.WebPImageFile,
    "tiff": TiffImagePlugin.TiffImageFile,
    "bmp": BmpImagePlugin.BmpImageFile,
    "gif": GifImagePlugin.GifImageFile,
}
# What libjpeg-turbo's own interface cannot name, Pillow's use of the same library decodes.
_ODD_SAMPLING = "subsampling"
# Pixels of the last row that must not all be 0 for a PNG to be believed whole.
_CORNER = 4096


def decode(
    data: Buffer,
    *,
    limits: DecodeLimits,
    frame: int | None = None,
    background: Colour | None = None,
    header: Header | None = None,
) -> Picture:
    """The picture in `data`.

    `frame`: which one (from 0) of an animation or a file of many pages. `background`: a colour to
    composite transparency on; without it alpha is dropped, and colour hidden under it shows.
    `header`: what `probe(data)` gave, if the caller has it already.

    Raises EmptyBody, PictureUnsupported, PictureTooLarge, PictureSeveralFrames, PictureDepth and
    PictureDamaged; BadParameter for a `frame` that is not there.
    """
    if header is None:
        header = probe(data)
    frame_index = _chosen(header, frame)
    if header.format == "tiff" and frame_index:
        header = tiff.at_page(data, header, frame_index)
    title = FORMATS[header.format]
    limits.check(header, ceiling=_ceiling(header))
    with wall(title):
        if header.format == "jpeg":
            pixels = _jpeg(data, header, limits)
        else:
            pixels = _pillow(data, header, frame_index, background, limits)
    return Picture(pixels, header.orientation, header.format)


def _chosen(header: Header, frame: int | None) -> int:
    """The frame to decode, from 0. Never silently the first of several."""
    title = FORMATS[header.format]
    if frame is None:
        if header.frames > 1:
            raise PictureSeveralFrames(
                f"{title} holds {header.frames:,} frames; name one with `frame`, "
                f"0 to {header.frames - 1:,}"
            )
        return 0
    if not 0 <= frame < header.frames:
        frames = "1 frame" if header.frames == 1 else f"{header.frames:,} frames"
        raise BadParameter(
            f"`frame` is {frame:,}, but the picture has {frames}: 0 to {header.frames - 1:,}"
        )
    return frame


def _ceiling(header: Header) -> int | None:
    """The number of pixels that Pillow's plugin itself insists on, where it does."""
    guard = Image.MAX_IMAGE_PIXELS
    if guard is None:
        return None
    return {"gif": guard, "webp": 2 * guard}.get(header.format)


def _jpeg(data: Buffer, header: Header, limits: DecodeLimits) -> Pixels:
    """Exact libjpeg-turbo; by way of Pillow for sampling factors that have no name."""
    try:
        return jpeg.decode(data, header, limits)
    except ValueError as exc:
        if _ODD_SAMPLING not in str(exc):
            raise
        return _samples(_open(data, header, 0), data, header, 0, None)


def _pillow(
    data: Buffer, header: Header, frame: int, background: Colour | None, limits: DecodeLimits
) -> Pixels:
    """Every format but JPEG."""
    if header.format == "png":
        png.check(data)
    if header.format != "tiff":
        # Frames of an animation build on each other; pages of a TIFF do not.
        limits.check_passes(header, frame + 1, "frames decoded in turn")
    return _samples(_open(data, header, frame), data, header, frame, background)


def _open(data: Buffer, header: Header, frame: int) -> ImageFile.ImageFile:
    """The plugin's view of the file, at `frame`, nothing decoded yet where the format allows."""
    try:
        image = _PLUGINS[header.format](BytesIO(data))
    except SyntaxError as exc:
        if header.format != "tiff":
            raise
        # Our own walk found the directories in order, so the file is whole but of a rare kind.
        raise PictureUnsupported(
            f"TIFF of {header.channels} samples of {header.depth} bits is not of a kind that this "
            f"server reads: {exc}"
        ) from exc
    index = header.pages[frame] if header.pages else frame
    if index:
        image.seek(index)
    # Pillow takes an orientation from XMP where EXIF has none; viewers do not, nor does our header.
    image.info.pop("xmp", None)
    return image


def _samples(
    image: ImageFile.ImageFile,
    data: Buffer,
    header: Header,
    frame: int,
    background: Colour | None,
) -> Pixels:
    """The samples of an opened image as (H, W, 3) uint8, turned."""
    samples.check_mode(image.mode)
    # Pillow itself turns a TIFF while loading.
    orientation = 1 if header.format == "tiff" else header.orientation
    if header.depth > 8 and image.mode.startswith("I;16"):
        peak = 0xFFF if rawmode_of(image) == "I;12" else 0xFFFF
        key = _key(image)
        _load(image, data, header)
        return samples.sixteen(
            image,
            orientation,
            background,
            peak=peak,
            inverted=header.coding == "inverted",
            key=key,
        )
    if header.depth == 16 and header.frames == 1:
        key = _key(image)
        halves = load_halves(image, lambda: _open(data, header, frame))
        if halves is not None:
            if header.format == "png":
                _load(image, data, header)
            return samples.sixteen(halves, orientation, background, key=key)
    _load(image, data, header)
    if header.format == "png" and header.coding == "grey" and 1 < header.depth < 8:
        _stretch_key(image, header.depth)
    return samples.eight(image, orientation, background)


def _load(image: ImageFile.ImageFile, data: Buffer, header: Header) -> None:
    """Decode, and see that nothing is missing where Pillow does not."""
    image.load()
    if header.format != "png" or header.frames > 1:
        return
    width, height = image.size
    corner = image.crop((max(0, width - _CORNER), height - 1, width, height))
    if png.is_interlaced(data) or not np.asarray(corner).any():
        png.check_rows(data, header)


def _key(image: Image.Image) -> tuple[int, ...] | None:
    """The transparent colour of a 16-bit PNG, in 16 bits; None where there is none."""
    found = image.info.get("transparency")
    if isinstance(found, int):
        return (found,)
    return found if isinstance(found, tuple) else None


def _stretch_key(image: Image.Image, depth: int) -> None:
    """Pillow stretches grey of 2 and 4 bits to 8, but not the grey that is transparent."""
    key = image.info.get("transparency")
    if isinstance(key, int):
        image.info["transparency"] = key * 255 // ((1 << depth) - 1)
