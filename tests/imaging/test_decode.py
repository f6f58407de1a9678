"""The input policy, row by row: what each kind of upload must give."""

from __future__ import annotations

import struct
import threading
from io import BytesIO
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageOps

from app.errors import (
    BadParameter,
    EmptyBody,
    PictureDamaged,
    PictureDepth,
    PictureSeveralFrames,
    PictureUnsupported,
)
from app.imaging.decode import DecodeLimits, decode, probe
from app.types import Picture, Pixels
from tests.imaging.pictures import animation, chunk, encoded, exif, noise, png, png_of, scene, tiff

LIMITS = DecodeLimits()


def pixels_of(data: bytes, **options: Any) -> Pixels:
    """Decoded under the default limits, with what holds for every picture checked."""
    picture = decode(data, limits=LIMITS, **options)
    assert picture.pixels.dtype == np.uint8
    assert picture.pixels.shape == (picture.height, picture.width, 3)
    assert picture.pixels.flags.c_contiguous
    assert picture.pixels.flags.writeable
    return picture.pixels


def pillow(data: bytes, mode: str = "RGB") -> NDArray[Any]:
    """What Pillow alone makes of it."""
    with Image.open(BytesIO(data)) as image:
        return np.array(ImageOps.exif_transpose(image).convert(mode))


def opencv(data: bytes) -> NDArray[Any]:
    """What OpenCV alone makes of it, as RGB."""
    found = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    assert found is not None
    return np.asarray(found[..., ::-1])


# ---- the six formats ----


@pytest.mark.parametrize(
    ("format", "options"),
    [
        ("PNG", {}),
        ("WEBP", {"lossless": True}),
        ("TIFF", {}),
        ("TIFF", {"compression": "tiff_lzw"}),
        ("TIFF", {"compression": "tiff_adobe_deflate"}),
        ("TIFF", {"big_tiff": True}),
        ("BMP", {}),
    ],
)
@pytest.mark.parametrize("shape", [(37, 53), (1, 1), (1, 300), (600, 700)])
def test_lossless_formats_give_every_pixel(
    format: str, options: dict[str, Any], shape: tuple[int, int]
) -> None:
    pixels = scene(*shape)
    data = encoded(pixels, format, **options)
    assert np.array_equal(pixels_of(data), pixels)
    assert decode(data, limits=LIMITS).format == format.lower()


@pytest.mark.parametrize("subsampling", [0, 1, 2])
@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("shape", [(37, 53), (1, 1), (7, 300)])
def test_jpeg_is_exact_libjpeg(shape: tuple[int, int], progressive: bool, subsampling: int) -> None:
    data = encoded(scene(*shape), "JPEG", subsampling=subsampling, progressive=progressive)
    assert np.array_equal(pixels_of(data), pillow(data))
    # OpenCV may bring another libjpeg; the standard allows one level per transform.
    assert np.abs(pixels_of(data).astype(int) - opencv(data)).max() <= 4


def test_gif_is_what_pillow_shows() -> None:
    data = encoded(scene(), "GIF")
    assert np.array_equal(pixels_of(data), pillow(data))


def test_lossy_webp_is_what_pillow_shows() -> None:
    data = encoded(scene(), "WEBP", quality=80)
    assert np.array_equal(pixels_of(data), pillow(data))


def test_memoryview_and_known_header() -> None:
    for format in ("JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF"):
        data = encoded(scene(), format)
        seen = decode(memoryview(data), limits=LIMITS, header=probe(data))
        assert np.array_equal(seen.pixels, pixels_of(data))


def test_content_wins_over_any_name() -> None:
    assert decode(encoded(scene(), "PNG"), limits=LIMITS).format == "png"


# ---- orientation ----


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize(
    ("format", "options"),
    [
        ("JPEG", {}),
        ("PNG", {}),
        ("WEBP", {"lossless": True}),
        ("TIFF", {}),
        ("TIFF", {"compression": "tiff_lzw"}),
    ],
)
@pytest.mark.parametrize("shape", [(37, 53), (700, 500)])
def test_picture_is_turned_as_a_person_sees_it(
    shape: tuple[int, int], format: str, options: dict[str, Any], orientation: int
) -> None:
    block = Image.Exif()
    block[0x0112] = orientation
    data = encoded(scene(*shape), format, exif=block, **options)
    picture = decode(data, limits=LIMITS)
    assert picture.orientation == orientation
    assert np.array_equal(picture.pixels, pillow(data))
    assert (picture.width, picture.height) == probe(data).seen_size
    if format in ("JPEG", "PNG"):
        assert picture.pixels.shape == opencv(data).shape


@pytest.mark.parametrize("orientation", [1, 3, 6])
def test_sixteen_bits_and_orientation_together(orientation: int) -> None:
    values = scene()[..., 0].astype(np.uint16) * 257
    plain = pixels_of(png(values, colour=0))
    turned = pixels_of(png(values, colour=0, extra=[(b"eXIf", exif(orientation)[6:])]))
    image = Image.fromarray(plain)
    image.getexif()[0x0112] = orientation
    assert np.array_equal(turned, np.array(ImageOps.exif_transpose(image)))


def test_broken_exif_means_upright() -> None:
    data = encoded(scene(), "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff")
    assert decode(data, limits=LIMITS).orientation == 1


def test_orientation_in_xmp_alone_is_not_applied() -> None:
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><a tiff:Orientation="6"/></x:xmpmeta>'
    for format in ("TIFF", "WEBP", "PNG"):
        data = encoded(scene(), format, xmp=xmp) if format != "TIFF" else _tiff_with_xmp(xmp)
        picture = decode(data, limits=LIMITS)
        assert (picture.orientation, picture.pixels.shape) == (1, scene().shape)


def _tiff_with_xmp(xmp: bytes) -> bytes:
    return encoded(scene(), "TIFF", tiffinfo={700: xmp})


# ---- grey, palette, one bit ----


def test_grey_is_replicated() -> None:
    grey = scene()[..., 0]
    expected = np.repeat(grey[..., None], 3, axis=2)
    for format in ("PNG", "TIFF", "BMP"):
        assert np.array_equal(pixels_of(encoded(grey, format)), expected)
    data = encoded(grey, "JPEG")
    assert np.array_equal(pixels_of(data), pillow(data))


@pytest.mark.parametrize("format", ["PNG", "TIFF", "BMP"])
def test_one_bit_is_black_and_white(format: str) -> None:
    bits = scene()[..., 0] > 127
    found = pixels_of(encoded(Image.fromarray(bits), format))
    assert np.array_equal(found, np.repeat(bits[..., None] * np.uint8(255), 3, axis=2))


@pytest.mark.parametrize(("depth", "row"), [(1, 0b01100000), (2, 0b00011011), (4, 0b00001111)])
def test_few_bits_of_grey_are_stretched(depth: int, row: int) -> None:
    width = 8 // depth
    data = png_of(1, width, depth=depth, colour=0, rows=bytes([0, row]))
    top = (1 << depth) - 1
    values = [(row >> (8 - depth * (place + 1))) & top for place in range(width)]
    assert pixels_of(data)[0, :, 0].tolist() == [value * 255 // top for value in values]


def test_palette_is_expanded() -> None:
    image = Image.fromarray(scene()).quantize(17)
    for format in ("PNG", "GIF", "BMP", "TIFF"):
        assert np.array_equal(pixels_of(encoded(image, format)), np.array(image.convert("RGB")))


@pytest.mark.parametrize("transparent", [0, 3, b"\0\x80\xff\x40"])
def test_transparent_palette_entry_is_alpha(transparent: int | bytes) -> None:
    image = Image.fromarray(scene()).quantize(4)
    data = encoded(image, "PNG", transparency=transparent)
    assert np.array_equal(pixels_of(data), np.array(image.convert("RGB")))
    assert np.array_equal(pixels_of(data), opencv(data))
    rgba = pillow(data, "RGBA")
    assert np.array_equal(pixels_of(data, background=(9, 200, 30)), _over(rgba, (9, 200, 30)))


# ---- alpha ----


def _over(rgba: NDArray[Any], background: tuple[int, int, int]) -> NDArray[Any]:
    """Composition in floating point."""
    alpha = rgba[..., 3:] / 255
    return np.rint(rgba[..., :3] * alpha + np.array(background) * (1 - alpha)).astype(np.uint8)


@pytest.mark.parametrize("format", ["PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_alpha_is_dropped_or_composited(mode: str, format: str) -> None:
    rgba = Image.fromarray(np.dstack((scene(), scene(seed=1)[..., 0]))).convert(mode)
    options = {"lossless": True, "exact": True} if format == "WEBP" else {}
    data = encoded(rgba, format, **options)
    plain = np.array(rgba.convert("RGBA"))
    assert np.array_equal(pixels_of(data), plain[..., :3])
    assert np.array_equal(pixels_of(data, background=(255, 0, 99)), _over(plain, (255, 0, 99)))


def test_colour_hidden_under_alpha_shows_unless_a_background_is_named() -> None:
    data = encoded(Image.new("RGBA", (3, 2), (200, 10, 20, 0)), "PNG")
    assert (pixels_of(data) == (200, 10, 20)).all()
    assert (pixels_of(data, background=(1, 2, 3)) == (1, 2, 3)).all()
    assert np.array_equal(pixels_of(data), opencv(data))


@pytest.mark.parametrize("depth", [1, 2, 4])
def test_transparent_grey_of_few_bits(depth: int) -> None:
    top = (1 << depth) - 1
    row = top << (8 - depth)
    extra = [(b"tRNS", struct.pack(">H", top))]
    data = png_of(1, 2, depth=depth, colour=0, rows=bytes([0, row]), extra=extra)
    assert pixels_of(data, background=(7, 8, 9)).tolist() == [[[7, 8, 9], [0, 0, 0]]]
    assert pixels_of(data).tolist() == [[[255] * 3, [0, 0, 0]]]


def test_transparent_colour_of_eight_bits() -> None:
    values = np.array([[[1, 2, 3], [4, 5, 6]]], np.uint8)
    data = png(values, colour=2, extra=[(b"tRNS", struct.pack(">3H", 4, 5, 6))])
    assert pixels_of(data, background=(7, 8, 9)).tolist() == [[[1, 2, 3], [7, 8, 9]]]
    assert np.array_equal(pixels_of(data), values)


# ---- sixteen bits ----

RAMP = np.arange(1 << 16, dtype=np.uint16).reshape(256, 256)


def rounded(values: NDArray[Any]) -> NDArray[np.uint8]:
    """round(v / 257), in floating point."""
    return np.rint(values / 257).astype(np.uint8)


@pytest.mark.parametrize(
    "data",
    [
        png(RAMP, colour=0),
        tiff(RAMP, photometric=1),
        tiff(RAMP, photometric=1, order=">"),
        encoded(RAMP, "TIFF", compression="tiff_lzw"),
    ],
    ids=["png", "tiff", "tiff-big-endian", "tiff-lzw"],
)
def test_grey_of_sixteen_bits_is_scaled_never_clipped(data: bytes) -> None:
    found = pixels_of(data)
    assert np.array_equal(found, np.repeat(rounded(RAMP)[..., None], 3, axis=2))
    assert abs(found.mean() - 127.5) < 0.01


def test_white_is_zero() -> None:
    assert np.array_equal(pixels_of(tiff(RAMP, photometric=0))[..., 0], rounded(65535 - RAMP))
    grey = scene()[..., 0]
    assert np.array_equal(pixels_of(tiff(grey, photometric=0))[..., 0], 255 - grey)


COLOUR = np.dstack((RAMP, RAMP[::-1], RAMP.T))


@pytest.mark.parametrize(
    "data",
    [
        png(COLOUR, colour=2),
        tiff(COLOUR, photometric=2),
        tiff(COLOUR, photometric=2, order=">"),
    ],
    ids=["png", "tiff", "tiff-big-endian"],
)
def test_colour_of_sixteen_bits_is_rounded_as_grey_is(data: bytes) -> None:
    assert np.array_equal(pixels_of(data), rounded(COLOUR))
    # Pillow alone drops the low byte: never off by more than one.
    assert np.abs(pixels_of(data).astype(int) - pillow(data)).max() <= 1


def test_compressed_tiff_of_sixteen_bits_colour() -> None:
    done, data = cv2.imencode(".tiff", COLOUR[..., ::-1], [cv2.IMWRITE_TIFF_COMPRESSION, 5])
    assert done
    assert np.array_equal(pixels_of(data.tobytes()), rounded(COLOUR))


@pytest.mark.parametrize("colour", [4, 6])
def test_alpha_of_sixteen_bits(colour: int) -> None:
    bands = (RAMP, RAMP.T) if colour == 4 else (RAMP, RAMP[::-1], RAMP.T, RAMP[:, ::-1])
    values = np.dstack(bands)
    data = png(values, colour=colour)
    small = rounded(values)
    rgb = np.repeat(small[..., :1], 3, axis=2) if colour == 4 else small[..., :3]
    assert np.array_equal(pixels_of(data), rgb)
    rgba = np.dstack((rgb, small[..., -1]))
    assert np.array_equal(pixels_of(data, background=(0, 255, 9)), _over(rgba, (0, 255, 9)))


def test_transparent_colour_of_sixteen_bits_is_compared_in_sixteen() -> None:
    values = np.array([[[4000, 5000, 6000], [4001, 5000, 6000]]], np.uint16)
    data = png(values, colour=2, extra=[(b"tRNS", struct.pack(">3H", 4000, 5000, 6000))])
    assert pixels_of(data, background=(7, 8, 9)).tolist() == [[[7, 8, 9], [16, 19, 23]]]
    grey = png(values[..., 0], colour=0, extra=[(b"tRNS", struct.pack(">H", 4001))])
    assert pixels_of(grey, background=(7, 8, 9)).tolist() == [[[16] * 3, [7, 8, 9]]]


def test_twelve_bits_fill_the_range() -> None:
    row = bytes([0xFF, 0xF0, 0x00, 0x80, 0x07, 0xFF])
    data = tiff(np.frombuffer(row, np.uint8)[None], photometric=1, bits=(12,))
    data = data.replace(struct.pack("<HHII", 256, 4, 1, 6), struct.pack("<HHII", 256, 4, 1, 4))
    assert pixels_of(data)[0, :, 0].tolist() == [255, 0, 128, 127]


@pytest.mark.parametrize("mode", ["I", "F"])
def test_samples_without_a_known_range_are_refused(mode: str) -> None:
    with pytest.raises(PictureDepth, match="range is not known") as caught:
        pixels_of(encoded(Image.new(mode, (3, 2)), "TIFF"))
    assert caught.value.status == 422


# ---- four inks, odd JPEGs, profiles ----


def test_four_inks_are_what_pillow_shows() -> None:
    data = encoded(Image.fromarray(noise(64, 64)).convert("CMYK"), "JPEG", quality=95)
    assert b"Adobe" in data
    assert np.array_equal(pixels_of(data), pillow(data))
    photo = encoded(Image.fromarray(scene()).convert("CMYK"), "JPEG", quality=95)
    assert np.abs(pixels_of(photo).astype(int) - scene()).mean() < 4


def test_four_inks_in_a_tiff() -> None:
    image = Image.fromarray(scene()).convert("CMYK")
    data = encoded(image, "TIFF")
    assert np.array_equal(pixels_of(data), np.array(image.convert("RGB")))


def test_adobe_marked_as_luminance_and_chrominance_of_inks() -> None:
    data = encoded(Image.fromarray(scene()).convert("CMYK"), "JPEG", quality=95)
    place = data.index(b"Adobe") + 11
    ycck = data[:place] + b"\2" + data[place + 1 :]
    assert np.array_equal(pixels_of(ycck), pillow(ycck))


def test_jpeg_that_keeps_rgb() -> None:
    data = encoded(scene(), "JPEG", keep_rgb=True, quality=95)
    assert np.array_equal(pixels_of(data), pillow(data))


@pytest.mark.parametrize("factors", [b"\x31\x11\x11", b"\x22\x22\x11", b"\x13\x11\x11"])
def test_jpeg_of_odd_sampling_is_what_pillow_shows(factors: bytes) -> None:
    # The entropy data no longer fits, so only what decodes at all is compared.
    data = bytearray(encoded(np.full((48, 48, 3), 90, np.uint8), "JPEG", subsampling=0))
    place = data.index(b"\xff\xc0") + 11
    data[place : place + 9 : 3] = factors
    try:
        found = pixels_of(bytes(data))
    except PictureDamaged:
        return
    assert np.array_equal(found, pillow(bytes(data)))


def test_profile_and_gamma_are_ignored() -> None:
    plain = scene()
    profile = encoded(plain, "PNG", icc_profile=b"not even a profile")
    gamma = png(plain, colour=2, extra=[(b"gAMA", struct.pack(">I", 100000))])
    assert np.array_equal(pixels_of(profile), plain)
    assert np.array_equal(pixels_of(gamma), plain)


@pytest.mark.parametrize(("components", "depth"), [(2, 8), (3, 12)])
def test_rare_jpegs_are_refused_by_name(components: int, depth: int) -> None:
    data = bytearray(encoded(scene(), "JPEG"))
    place = data.index(b"\xff\xc0")
    data[place + 4], data[place + 9] = depth, components
    error = PictureDepth if depth == 12 else PictureUnsupported
    with pytest.raises(error, match=r"12 bits per sample|2 colour components"):
        pixels_of(bytes(data))


def test_phone_picture_with_several_pictures_gives_the_first() -> None:
    first, second = Image.fromarray(scene()), Image.fromarray(scene(20, 20))
    data = encoded(first, "MPO", save_all=True, append_images=[second])
    assert probe(data).frames == 1
    picture = decode(data, limits=LIMITS)
    assert picture.format == "jpeg"
    assert np.array_equal(picture.pixels, pillow(data))


# ---- several frames ----


@pytest.mark.parametrize("format", ["GIF", "PNG", "WEBP", "TIFF"])
def test_several_frames_need_a_choice(format: str) -> None:
    data = animation(format)
    with pytest.raises(PictureSeveralFrames, match="holds 3 frames; name one with `frame`, 0 to 2"):
        pixels_of(data)
    for frame in (0, 1, 2):
        assert (pixels_of(data, frame=frame) == 40 * frame + 40).all()
    for frame in (3, -1, 99):
        with pytest.raises(BadParameter, match=r"the picture has 3 frames: 0 to 2"):
            pixels_of(data, frame=frame)


def test_single_picture_has_frame_nought_only() -> None:
    for format in ("JPEG", "PNG", "GIF", "TIFF", "WEBP", "BMP"):
        data = encoded(scene(), format)
        assert np.array_equal(pixels_of(data, frame=0), pixels_of(data))
        with pytest.raises(BadParameter, match="has 1 frame: 0 to 0"):
            pixels_of(data, frame=1)


def test_pages_of_different_kind_and_size() -> None:
    pages = [Image.fromarray(scene(9, 14)), Image.fromarray(scene(30, 20)[..., 0])]
    data = encoded(pages[0], "TIFF", save_all=True, append_images=pages[1:])
    assert pixels_of(data, frame=0).shape == (9, 14, 3)
    assert np.array_equal(pixels_of(data, frame=1)[..., 0], scene(30, 20)[..., 0])


# ---- damaged ----


def test_empty() -> None:
    with pytest.raises(EmptyBody):
        pixels_of(b"")


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF"])
@pytest.mark.parametrize("share", [0.3, 0.6, 0.95])
def test_truncated_is_refused(format: str, share: float) -> None:
    data = encoded(noise(60, 60), format)
    with pytest.raises(PictureDamaged) as caught:
        pixels_of(data[: int(len(data) * share)])
    assert caught.value.status == 422


@pytest.mark.parametrize("lost", [1, 2, 12])
@pytest.mark.parametrize("format", ["JPEG", "PNG"])
def test_missing_end_is_truncation(format: str, lost: int) -> None:
    with pytest.raises(PictureDamaged):
        pixels_of(encoded(scene(), format)[:-lost])


def test_flipped_bit_in_png_pixels_is_found() -> None:
    data = bytearray(encoded(noise(50, 50), "PNG", compress_level=0))
    data[len(data) // 2] ^= 1
    with pytest.raises(PictureDamaged, match="checksum of IDAT is wrong"):
        pixels_of(bytes(data))


@pytest.mark.parametrize(("depth", "colour"), [(8, 0), (16, 0), (8, 2), (16, 2), (16, 4), (8, 6)])
def test_png_with_too_few_rows_is_refused(depth: int, colour: int) -> None:
    row = b"\0" + b"\7" * (4 * {0: 1, 2: 3, 4: 2, 6: 4}[colour] * depth // 8)
    assert pixels_of(png_of(10, 4, depth=depth, colour=colour, rows=row * 10)).shape == (10, 4, 3)
    for rows in (row * 9, (row * 10)[:-1], b""):
        with pytest.raises(PictureDamaged, match="truncated"):
            pixels_of(png_of(10, 4, depth=depth, colour=colour, rows=rows))


def test_png_with_a_black_end_is_whole() -> None:
    black = np.zeros((600, 700, 3), np.uint8)
    assert not pixels_of(encoded(black, "PNG")).any()


@pytest.mark.parametrize("shape", [(1, 1), (3, 5), (9, 2), (16, 16)])
def test_interlaced_png(shape: tuple[int, int]) -> None:
    height, width = shape
    grey = scene(*shape)[..., 0]
    starts = (0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2)
    rows = b"".join(
        b"\0" + row.tobytes()
        for x, y, across, down in (*starts, (0, 1, 1, 2))
        for row in grey[y::down, x::across]
        if row.size
    )

    def file(rows: bytes) -> bytes:
        data = png_of(height, width, depth=8, colour=0, rows=rows)
        header = data[16:28] + b"\1"
        return data[:8] + chunk(b"IHDR", header) + data[33:]

    assert np.array_equal(pixels_of(file(rows))[..., 0], grey)
    with pytest.raises(PictureDamaged, match="truncated"):
        pixels_of(file(rows[:-1]))


def test_jpeg_of_broken_entropy_data_is_refused() -> None:
    data = bytearray(encoded(noise(64, 64), "JPEG"))
    start = data.index(b"\xff\xda") + 200
    data[start : start + 60] = bytes(60)
    with pytest.raises(PictureDamaged, match="JPEG cannot be decoded"):
        pixels_of(bytes(data))


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF"])
def test_bytes_behind_the_end_are_ignored(format: str) -> None:
    data = encoded(scene(), format)
    second = encoded(scene(seed=5), format)
    for tail in (b"PK\x03\x04 an archive", b"<script>alert(1)</script>", b"\0" * 100, second):
        if format == "GIF" or not tail.startswith(b"GIF"):
            assert np.array_equal(pixels_of(data + tail), pixels_of(data))


def test_unusual_tiff_is_named() -> None:
    with pytest.raises(PictureUnsupported, match="TIFF of 5 samples of 8 bits"):
        pixels_of(tiff(np.zeros((4, 4, 5), np.uint8), photometric=1, tags=[(338, 0)]))


def test_colour_space_without_agreed_way_to_rgb() -> None:
    image = Image.fromarray(scene()).convert("RGB")
    lab = Image.merge("LAB", image.split())
    with pytest.raises(PictureUnsupported, match="colour space LAB"):
        pixels_of(encoded(lab, "TIFF"))


# ---- threads ----


def test_many_threads_see_the_same_pixels() -> None:
    files = [encoded(scene(), format) for format in ("JPEG", "PNG", "WEBP", "TIFF", "GIF")]
    expected = [pixels_of(data) for data in files]
    wrong: list[int] = []

    def work() -> None:
        for _ in range(20):
            for index, data in enumerate(files):
                if not np.array_equal(decode(data, limits=LIMITS).pixels, expected[index]):
                    wrong.append(index)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_picture_says_where_it_came_from() -> None:
    picture = decode(encoded(scene(), "JPEG", exif=exif(6)), limits=LIMITS)
    assert isinstance(picture, Picture)
    assert (picture.format, picture.orientation) == ("jpeg", 6)
