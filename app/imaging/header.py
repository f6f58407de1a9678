"""What the headers of an upload say: format, size, depth, frames, orientation.

A plain value. `app.imaging.probe` makes it from bytes, one module per format knows how.
"""

from __future__ import annotations

from dataclasses import dataclass

# The formats that we read, as people write them. Nothing else ever reaches a decoder.
FORMATS = {
    "jpeg": "JPEG",
    "png": "PNG",
    "webp": "WebP",
    "tiff": "TIFF",
    "bmp": "BMP",
    "gif": "GIF",
}


@dataclass(frozen=True, slots=True)
class Header:
    """A picture as its file describes it.

    `width` and `height` are as stored, before orientation. `channels` counts samples per pixel and
    `depth` their bits (a palette index is one channel). `frames` counts frames or pages; `pages`
    gives the place in the file of each where that differs from 0, 1, 2 ... `coding` is what the
    decoder must know beyond that: `grey`, `rgb`, `palette`,
    `cmyk`, `inverted` (0 is white), `scans` (a JPEG that takes several passes), or empty.
    """

    format: str
    width: int
    height: int
    channels: int
    depth: int
    frames: int = 1
    orientation: int = 1
    coding: str = ""
    pages: tuple[int, ...] = ()

    @property
    def seen_size(self) -> tuple[int, int]:
        """(width, height) as a person sees the picture: swapped for orientations 5 to 8."""
        if self.orientation >= 5:
            return self.height, self.width
        return self.width, self.height

    @property
    def pixels(self) -> int:
        """Pixels of one frame."""
        return self.width * self.height

    @property
    def decoded_bytes(self) -> int:
        """Bytes that one decoded frame takes: never less than the three per pixel we hand on."""
        return self.pixels * max(3, self.channels * -(-self.depth // 8))
