"""Attacks on the decoder: whatever the bytes, a picture or one of our errors comes out, cheaply."""

from __future__ import annotations

import struct
import time
import tracemalloc
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from app.errors import PictureError, PictureTooLarge, TernausError
from app.imaging.bounds import DecodeLimits
from app.imaging.decode import decode
from app.imaging.probe import probe
from app.types import Picture
from tests.imaging.pictures import animation, chunk, encoded, exif, noise, png, png_of, scene, tiff

# A small limit keeps every attack cheap; ours are small anyway.
LIMITS = DecodeLimits(max_pixels=4_000_000, max_decoded_bytes=16_000_000)

SAMPLES: dict[str, bytes] = {
    "jpeg": encoded(scene(24, 31), "JPEG", exif=exif(6)),
    "jpeg-progressive": encoded(scene(24, 31), "JPEG", progressive=True),
    "jpeg-cmyk": encoded(Image.fromarray(scene(24, 31)).convert("CMYK"), "JPEG"),
    "png": encoded(scene(24, 31), "PNG", exif=exif(3)),
    "png-16": png(scene(12, 13).astype(np.uint16) * 251, colour=2),
    "png-palette": encoded(Image.fromarray(scene(24, 31)).quantize(9), "PNG", transparency=1),
    "apng": animation("PNG"),
    "webp": encoded(scene(24, 31), "WEBP"),
    "webp-lossless": encoded(scene(24, 31), "WEBP", lossless=True, exif=exif(8)),
    "webp-animated": animation("WEBP"),
    "tiff": tiff(scene(12, 13), photometric=2, tags=[(274, 6)]),
    "tiff-16": tiff(scene(12, 13).astype(np.uint16), photometric=2, order=">"),
    "tiff-lzw": encoded(scene(24, 31), "TIFF", compression="tiff_lzw"),
    "tiff-pages": animation("TIFF"),
    "bmp": encoded(scene(12, 13), "BMP"),
    "bmp-palette": encoded(Image.fromarray(scene(12, 13)).quantize(9), "BMP"),
    "gif": encoded(scene(24, 31), "GIF"),
    "gif-animated": animation("GIF"),
}


def attempt(data: bytes, **options: Any) -> Picture | TernausError:
    """A picture or one of ours; anything else fails the test."""
    try:
        picture = decode(data, limits=LIMITS, **options)
    except TernausError as error:
        return error
    assert picture.pixels.shape == (picture.height, picture.width, 3)
    return picture


@pytest.mark.parametrize("name", SAMPLES)
def test_truncation_at_every_place(name: str) -> None:
    data = SAMPLES[name]
    whole = attempt(data, frame=0)
    assert isinstance(whole, Picture)
    for length in range(0, len(data), max(1, len(data) // 150)):
        found = attempt(data[:length], frame=0)
        # What still decodes shows every pixel: a GIF may lack its last byte, a TIFF written with
        # its directory first some padding, an animation its later frames.
        if isinstance(found, Picture):
            assert np.array_equal(found.pixels, whole.pixels), length


@pytest.mark.parametrize("name", SAMPLES)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_flipped_bytes(name: str, data: st.DataObject) -> None:
    body = bytearray(SAMPLES[name])
    flips = data.draw(
        st.lists(st.tuples(st.integers(0, len(body) - 1), st.integers(0, 255)), max_size=4)
    )
    for place, value in flips:
        body[place] = value
    found = attempt(bytes(body), frame=data.draw(st.sampled_from([None, 0, 1])))
    if isinstance(found, TernausError):
        assert found.detail
        assert 400 <= found.status < 500


@pytest.mark.parametrize("name", SAMPLES)
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_flipped_headers(name: str, data: st.DataObject) -> None:
    body = bytearray(SAMPLES[name])
    place = data.draw(st.integers(0, min(len(body), 120) - 1))
    piece = data.draw(st.binary(min_size=1, max_size=6))
    body[place : place + len(piece)] = piece
    attempt(bytes(body), background=(1, 2, 3))


@settings(max_examples=150, deadline=None)
@given(
    st.sampled_from(
        [
            b"",
            b"\xff\xd8\xff",
            b"\x89PNG\r\n\x1a\n",
            b"RIFF\xff\0\0\0WEBPVP8 ",
            b"II*\0",
            b"MM\0*",
            b"II+\0\x08\0\0\0",
            b"GIF89a",
            b"BM" + b"\0" * 12 + b"\x28\0\0\0",
        ]
    ),
    st.binary(max_size=300),
)
def test_noise_behind_a_magic_number(magic: bytes, tail: bytes) -> None:
    assert isinstance(attempt(magic + tail), (TernausError, Picture))


def test_png_chunks_with_right_checksums_and_wrong_content() -> None:
    for kind in (b"tRNS", b"PLTE", b"gAMA", b"cHRM", b"iCCP", b"pHYs", b"acTL", b"fcTL", b"eXIf"):
        for body in (b"", b"\0", b"\xff" * 5, b"\0" * 26, b"\xff" * 40):
            for colour, bands in ((0, 1), (2, 3), (6, 4)):
                values = noise(3, 3)[..., :1].repeat(bands, 2).squeeze()
                attempt(png(values, colour=colour, extra=[(kind, body)]))


BOMBS: dict[str, Callable[[], bytes]] = {
    "png, one bit": lambda: png_of(30_000, 30_000, depth=1, colour=0, rows=b""),
    "gif screen": lambda: b"GIF89a" + b"\xff\xff\xff\xff\0\0\0" + animation("GIF")[13:],
    "webp canvas": lambda: (
        b"RIFF" + struct.pack("<I", 22) + b"WEBPVP8X" + struct.pack("<II", 10, 0) + b"\xff" * 6
    ),
    "webp lossless": lambda: (
        b"RIFF"
        + struct.pack("<I", 17)
        + b"WEBPVP8L"
        + struct.pack("<I", 5)
        + b"\x2f\xff\xff\xff\x0f"
    ),
    "jpeg": lambda: _resized_jpeg(65_500),
    "bmp": lambda: _patched(SAMPLES["bmp"], 18, struct.pack("<ii", 1 << 30, -(1 << 30))),
    "tiff": lambda: _tiff_of(1 << 31, 1 << 31),
}


def _patched(data: bytes, place: int, piece: bytes) -> bytes:
    return data[:place] + piece + data[place + len(piece) :]


def _resized_jpeg(side: int) -> bytes:
    place = SAMPLES["jpeg"].index(b"\xff\xc0") + 5
    return _patched(SAMPLES["jpeg"], place, struct.pack(">HH", side, side))


def _tiff_of(height: int, width: int) -> bytes:
    data = SAMPLES["tiff"]
    for tag, old, new in ((256, 13, width), (257, 12, height)):
        data = data.replace(
            struct.pack("<HHII", tag, 4, 1, old), struct.pack("<HHII", tag, 4, 1, new)
        )
    return data


@pytest.mark.parametrize("name", BOMBS)
def test_bombs_are_refused_from_the_header(name: str) -> None:
    data = BOMBS[name]()
    tracemalloc.start()
    try:
        with pytest.raises(PictureTooLarge) as caught:
            decode(data, limits=DecodeLimits(), frame=0)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert caught.value.limit in ("TERNAUS_MAX_PIXELS", "TERNAUS_MAX_DECODED_BYTES")
    assert peak < 1_000_000


def test_frame_that_widens_its_gif_counts() -> None:
    data = bytearray(SAMPLES["gif"])
    place = data.index(b",", 13 + 3 * 256)
    data[place + 5 : place + 9] = b"\xff\xff\xff\xff"
    with pytest.raises(PictureTooLarge):
        decode(bytes(data), limits=DecodeLimits())


def test_second_size_in_a_jpeg_does_not_get_past_the_first() -> None:
    data = SAMPLES["jpeg"]
    start = data.index(b"\xff\xc0")
    end = start + 2 + struct.unpack_from(">H", data, start + 2)[0]
    small = bytearray(data[start:end])
    small[5:9] = struct.pack(">HH", 8, 8)
    attempt(data[:start] + bytes(small) + data[start:])
    large = bytearray(data[start:end])
    large[5:9] = struct.pack(">HH", 60_000, 60_000)
    assert isinstance(attempt(data[:end] + bytes(large) + data[end:]), PictureError)


@pytest.mark.parametrize("kind", [b"zTXt", b"iTXt", b"iCCP"])
def test_metadata_bombs_cost_no_memory(kind: bytes) -> None:
    squeezed = zlib.compress(bytes(100_000_000), 9)
    head = {b"zTXt": b"a\0\0", b"iCCP": b"a\0\0", b"iTXt": b"a\0\1\0\0\0"}[kind]
    data = png(scene(), colour=2, extra=[(kind, head + squeezed)])
    assert len(data) < 200_000
    tracemalloc.start()
    try:
        assert isinstance(attempt(data), PictureError)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 10_000_000


@pytest.mark.parametrize(
    "data",
    [
        png(scene(), colour=2, extra=[(b"teXt", b"")] * 150_000),
        SAMPLES["gif"][:-1] + b"!\xfe" + b"\1a" * 600_000 + b"\0;",
        b"RIFF" + struct.pack("<I", 4 + 8 * 150_000) + b"WEBP" + b"NULL\0\0\0\0" * 150_000,
        b"\xff\xd8" + b"\xff\xfe\0\2" * 200_000 + SAMPLES["jpeg"][2:],
        b"\xff\xd8" + b"\xff" * 1_000_000 + SAMPLES["jpeg"][3:],
    ],
    ids=["png chunks", "gif blocks", "webp chunks", "jpeg segments", "jpeg fill"],
)
def test_many_small_parts_take_little_time(data: bytes) -> None:
    start = time.process_time()
    attempt(data)
    assert time.process_time() - start < 3


def test_tiff_with_a_huge_tile() -> None:
    data = tiff(scene(), photometric=2, tags=[(322, 60_000), (323, 60_000)])
    assert isinstance(attempt(data), PictureError)


@pytest.mark.parametrize("name", SAMPLES)
def test_trailing_archive_is_ignored(name: str) -> None:
    data = SAMPLES[name]
    first, second = attempt(data, frame=0), attempt(data + b"PK\x03\x04" * 50, frame=0)
    assert isinstance(first, Picture)
    assert isinstance(second, Picture)
    assert np.array_equal(first.pixels, second.pixels)


def test_nothing_of_the_upload_is_kept() -> None:
    secret = b"the owner's home"
    data = encoded(scene(), "JPEG", comment=secret)
    picture = decode(data, limits=LIMITS)
    assert secret in data
    assert secret not in picture.pixels.tobytes()
    assert set(Picture.__slots__) == {"pixels", "orientation", "format"}


def test_probe_of_a_bomb_is_quick() -> None:
    data = png_of(30_000, 30_000, depth=1, colour=0, rows=b"") + chunk(b"IDAT", bytes(1_000_000))
    start = time.process_time()
    for _ in range(100):
        probe(data)
    assert time.process_time() - start < 0.5
