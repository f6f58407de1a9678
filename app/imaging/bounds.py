"""How much of a picture the server is willing to hold, checked on the header alone.

`DecodeLimits` carries what the settings say; its errors name the setting. It never sees pixels.
"""

from __future__ import annotations

from dataclasses import dataclass

from app.errors import PictureTooLarge
from app.imaging.header import Header

# A short side counts as this many pixels: every net works on at least one stride, so a picture of
# 1 x 50,000 costs the device as much as one of 32 x 50,000.
SHORTEST_SIDE = 32
# Progressive JPEGs of cameras and web tools have 10 to 20 scans. Every scan is one more pass over
# the coefficients and costs the sender as little as 20 bytes (libjpeg-turbo, "Two issues with the
# JPEG standard", 2015).
MOST_SCANS = 100
# Passes over a picture of the largest allowed size that one request may cause.
MOST_PASSES = 20


@dataclass(frozen=True, slots=True)
class DecodeLimits:
    """What one picture may cost. `max_pixels` counts pixels, `max_decoded_bytes` bytes."""

    max_pixels: int = 100_000_000
    max_decoded_bytes: int = 536_870_912

    def check(self, header: Header, *, ceiling: int | None = None) -> None:
        """Raise PictureTooLarge, naming the setting, where `header` promises too much.

        `ceiling` is a lower number of pixels that a decoder insists on.
        """
        most = self.max_pixels if ceiling is None else min(self.max_pixels, ceiling)
        width, height = header.seen_size
        pixels = max(width, SHORTEST_SIDE) * max(height, SHORTEST_SIDE)
        if pixels > most:
            padded = "" if pixels == width * height else " once padded"
            raise PictureTooLarge(
                f"picture is {width:,} x {height:,} ({_megapixels(pixels, most)}{padded}); "
                f"this server takes at most {_megapixels(most, pixels)} (TERNAUS_MAX_PIXELS)",
                limit="TERNAUS_MAX_PIXELS",
                limit_value=self.max_pixels,
            )
        if header.decoded_bytes > self.max_decoded_bytes:
            raise PictureTooLarge(
                f"picture is {width:,} x {height:,} of {header.channels} x {header.depth} bits, "
                f"{header.decoded_bytes:,} bytes when decoded; this server takes at most "
                f"{self.max_decoded_bytes:,} bytes (TERNAUS_MAX_DECODED_BYTES)",
                limit="TERNAUS_MAX_DECODED_BYTES",
                limit_value=self.max_decoded_bytes,
            )

    def check_passes(self, header: Header, passes: int, what: str) -> None:
        """Raise PictureTooLarge where `passes` times the picture is more work than we give one.

        Frames of an animation build on each other and scans of a JPEG refine each other, so a small
        body can ask for hours of decoding that no thread pool can interrupt.
        """
        if passes > self.most_passes(header):
            raise PictureTooLarge(
                f"picture of {header.width:,} x {header.height:,} needs {passes:,} {what}; this "
                f"server takes at most {self.most_passes(header):,} for this size: {MOST_PASSES} "
                f"times {_megapixels(self.max_pixels)} of work (TERNAUS_MAX_PIXELS)",
                limit="TERNAUS_MAX_PIXELS",
                limit_value=self.max_pixels,
            )

    def most_passes(self, header: Header) -> int:
        """How often a decoder may go over this picture; at least once."""
        return max(1, MOST_PASSES * self.max_pixels // max(1, header.width * header.height))


def _megapixels(pixels: int, other: int | None = None) -> str:
    """`108 megapixels`; exact pixels where rounding would make it read the same as `other`."""
    if pixels < 100_000:
        return f"{pixels:,} pixels"
    text = f"{pixels / 1e6:,.4g}"
    if other is not None and text == f"{other / 1e6:,.4g}":
        return f"{pixels:,} pixels"
    return f"{text} megapixels"
