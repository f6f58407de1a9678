"""Limits: checked on the header, and named in the error."""

from __future__ import annotations

import struct

import pytest
from PIL import Image

from app.errors import PictureTooLarge
from app.imaging.bounds import MOST_SCANS, DecodeLimits
from app.imaging.decode import decode
from app.imaging.header import Header
from tests.imaging.pictures import animation, encoded, png_of, scene


def test_message_says_what_was_found_what_is_allowed_and_the_setting() -> None:
    with pytest.raises(PictureTooLarge) as caught:
        DecodeLimits(100_000_000).check(Header("png", 12_000, 9_000, 3, 8))
    assert caught.value.detail == (
        "picture is 12,000 x 9,000 (108 megapixels); this server takes at most 100 megapixels "
        "(TERNAUS_MAX_PIXELS)"
    )
    assert caught.value.members() == {"limit": "TERNAUS_MAX_PIXELS", "limit_value": 100_000_000}


def test_message_of_decoded_bytes() -> None:
    with pytest.raises(PictureTooLarge) as caught:
        DecodeLimits(max_decoded_bytes=7_999).check(Header("png", 100, 10, 4, 16))
    assert caught.value.detail == (
        "picture is 100 x 10 of 4 x 16 bits, 8,000 bytes when decoded; this server takes at most "
        "7,999 bytes (TERNAUS_MAX_DECODED_BYTES)"
    )
    DecodeLimits(max_decoded_bytes=8_000).check(Header("png", 100, 10, 4, 16))


def test_the_limit_itself_is_allowed() -> None:
    limits = DecodeLimits(37 * 53)
    assert decode(encoded(scene(37, 53), "PNG"), limits=limits).pixels.shape == (37, 53, 3)
    with pytest.raises(PictureTooLarge, match=r"1,961 pixels\); this server takes at most 1,960"):
        decode(encoded(scene(37, 53), "PNG"), limits=DecodeLimits(37 * 53 - 1))


def test_numbers_that_round_alike_are_told_apart() -> None:
    with pytest.raises(PictureTooLarge, match=r"100,010,000 pixels\).* 100,000,000 pixels"):
        DecodeLimits(100_000_000).check(Header("png", 10_001, 10_000, 3, 8))


def test_size_is_told_as_seen() -> None:
    with pytest.raises(PictureTooLarge, match="picture is 40 x 100"):
        DecodeLimits(1_000).check(Header("jpeg", 100, 40, 3, 8, orientation=6))


def test_short_side_counts_as_the_padding_that_it_needs() -> None:
    limits = DecodeLimits(1_000_000)
    limits.check(Header("png", 31_250, 1, 3, 8))
    with pytest.raises(PictureTooLarge, match="once padded"):
        limits.check(Header("png", 1, 31_251, 3, 8))


@pytest.mark.parametrize("format", ["PNG", "GIF", "WEBP"])
def test_late_frames_of_an_animation_are_bounded_work(format: str) -> None:
    data = animation(format, 25, 40, 40)
    limits = DecodeLimits(1_600)
    assert (decode(data, limits=limits, frame=19).pixels == 180).all()
    with pytest.raises(PictureTooLarge, match=r"needs 21 frames decoded in turn.*at most 20"):
        decode(data, limits=limits, frame=20)


def test_pages_of_a_tiff_are_independent() -> None:
    pages = [Image.new("L", (40, 40), index) for index in range(25)]
    data = encoded(pages[0], "TIFF", save_all=True, append_images=pages[1:])
    assert (decode(data, limits=DecodeLimits(1_600), frame=24).pixels == 24).all()


def test_later_page_has_its_own_size() -> None:
    pages = [Image.new("L", (40, 40)), Image.new("L", (400, 400))]
    data = encoded(pages[0], "TIFF", save_all=True, append_images=pages[1:])
    with pytest.raises(PictureTooLarge, match="400 x 400"):
        decode(data, limits=DecodeLimits(1_600), frame=1)


def progressive_with(scans: int) -> bytes:
    """A progressive JPEG whose last scan is repeated: every copy is another pass."""
    data = encoded(scene(64, 64)[..., 0], "JPEG", progressive=True)
    last = data.rindex(b"\xff\xda")
    have = data.count(b"\xff\xda")
    return data[:last] + data[last:-2] * (scans - have + 1) + data[-2:]


def test_scans_are_bounded() -> None:
    many = progressive_with(MOST_SCANS + 1)
    with pytest.raises(PictureTooLarge, match=f"more than {MOST_SCANS} scans"):
        decode(many, limits=DecodeLimits())
    assert decode(encoded(scene(), "JPEG", progressive=True), limits=DecodeLimits())


def test_scans_are_bounded_by_the_work_too() -> None:
    many = progressive_with(30)
    with pytest.raises(PictureTooLarge, match="more than 20 scans"):
        decode(many, limits=DecodeLimits(64 * 64))


def test_scans_behind_the_end_and_in_thumbnails_do_not_count() -> None:
    data = encoded(scene(), "JPEG", progressive=True)
    note = b"\xff\xda" * 200
    comment = b"\xff\xfe" + struct.pack(">H", 2 + len(note)) + note
    picture = decode(data[:2] + comment + data[2:] + progressive_with(150), limits=DecodeLimits())
    assert picture.pixels.shape == scene().shape


def test_huge_promise_costs_nothing() -> None:
    for width, height in ((30_000, 30_000), (1 << 30, 1 << 30), ((1 << 31) - 1, 1)):
        data = png_of(height, width, depth=1, colour=0, rows=b"")
        with pytest.raises(PictureTooLarge):
            decode(data, limits=DecodeLimits())
