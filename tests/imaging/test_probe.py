"""The header: told from bytes, cheaply, and the same as the decoder's own view."""

from __future__ import annotations

from io import BytesIO
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from app.errors import EmptyBody, PictureDamaged, PictureDepth, PictureUnsupported
from app.imaging.header import FORMATS
from app.imaging.probe import probe
from tests.imaging.pictures import animation, chunk, encoded, exif, png, png_of, scene, tiff


@pytest.mark.parametrize("name", FORMATS)
def test_size_of_every_format(name: str) -> None:
    header = probe(encoded(scene(37, 53), FORMATS[name].upper()))
    assert (header.format, header.width, header.height) == (name, 53, 37)
    assert (header.frames, header.orientation) == (1, 1)
    assert header.pixels == 37 * 53
    assert header.decoded_bytes == 3 * 37 * 53


@pytest.mark.parametrize("name", FORMATS)
def test_memoryview_is_as_good_as_bytes(name: str) -> None:
    data = encoded(scene(), FORMATS[name].upper())
    assert probe(memoryview(data)) == probe(data)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("name", ["jpeg", "png", "webp"])
def test_orientation_and_seen_size(name: str, orientation: int) -> None:
    header = probe(encoded(scene(37, 53), name.upper(), exif=exif(orientation)))
    assert header.orientation == orientation
    assert (header.width, header.height) == (53, 37)
    assert header.seen_size == ((53, 37) if orientation < 5 else (37, 53))


def test_orientation_behind_the_pixels_of_a_png() -> None:
    data = encoded(scene(), "PNG")
    assert probe(data[:-12] + chunk(b"eXIf", exif(6)[6:]) + data[-12:]).orientation == 6
    # Behind the end it is not part of the picture.
    assert probe(data + chunk(b"eXIf", exif(6)[6:])).orientation == 1


@pytest.mark.parametrize("options", [{"lossless": True}, {"quality": 80}])
@pytest.mark.parametrize(("mode", "channels"), [("RGB", 3), ("RGBA", 4)])
def test_webp_with_and_without_alpha(mode: str, channels: int, options: dict[str, object]) -> None:
    image = Image.new(mode, (53, 37), (9, 8, 7, 6)[: len(mode)])
    header = probe(encoded(image, "WEBP", **options))
    assert (header.width, header.height, header.channels) == (53, 37, channels)


@pytest.mark.parametrize("name", ["GIF", "PNG", "WEBP", "TIFF"])
def test_frames_are_counted(name: str) -> None:
    assert probe(animation(name, 3)).frames == 3


def test_default_picture_of_a_png_is_a_frame_of_its_own() -> None:
    images = [Image.new("RGB", (4, 4), (50 * index,) * 3) for index in range(3)]
    data = encoded(images[0], "PNG", save_all=True, append_images=images[1:], default_image=True)
    assert probe(data).frames == 3
    with Image.open(BytesIO(data)) as image:
        assert getattr(image, "n_frames", 1) == 3


def test_reduced_pages_of_a_tiff_do_not_count() -> None:
    full = tiff(scene()[..., 0], photometric=1)
    assert probe(full).frames == 1
    with pytest.raises(PictureUnsupported, match="only reduced pictures"):
        probe(tiff(scene()[..., 0], photometric=1, tags=[(254, 1)]))
    with pytest.raises(PictureUnsupported, match="DNG"):
        probe(tiff(scene()[..., 0], photometric=1, tags=[(50706, 1)]))


def test_big_tiff() -> None:
    header = probe(encoded(scene(37, 53), "TIFF", big_tiff=True))
    assert (header.width, header.height, header.channels, header.depth) == (53, 37, 3, 8)


@pytest.mark.parametrize(
    ("values", "sample_format", "said"),
    [
        (np.zeros((2, 2), np.float32), 3, "floating point of 32 bits"),
        (np.zeros((2, 2), np.int32), 2, "signed integers of 32 bits"),
        (np.zeros((2, 2), np.uint32), 1, "numbers of 32 bits"),
        (np.zeros((2, 2), np.int16), 2, "signed integers of 16 bits"),
        (np.zeros((2, 2), np.float64), 3, "floating point of 64 bits"),
    ],
)
def test_samples_without_a_known_range(values: NDArray[Any], sample_format: int, said: str) -> None:
    with pytest.raises(PictureDepth, match=said):
        probe(tiff(values, photometric=1, sample_format=sample_format))


def test_empty_body() -> None:
    with pytest.raises(EmptyBody, match="the body is empty"):
        probe(b"")


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "HEIC"),
        (b"\0\0\0\x1cftypavif\0\0\0\0mif1avif", "AVIF"),
        (b"\0\0\0\x20ftypisom\0\0\2\0", "MP4 or QuickTime video"),
        (b"\xff\x0a\xfa\x7f", "JPEG XL"),
        (b"\0\0\0\x0cJXL \r\n\x87\n", "JPEG XL"),
        (b"\0\0\0\x0cjP  \r\n\x87\n", "JPEG 2000"),
        (b"%PDF-1.7\n", "PDF"),
        (b"%!PS-Adobe-3.0 EPSF-3.0", "PostScript"),
        (b"\xc5\xd0\xd3\xc6\x20\0\0\0", "EPS"),
        (b"PK\x03\x04\x14\0", "ZIP"),
        (b"\x1f\x8b\x08", "gzip"),
        (b"8BPS\0\1", "Photoshop"),
        (b"\0\0\1\0\1\0", "icon"),
        (b'<svg xmlns="http://www.w3.org/2000/svg"/>', "SVG"),
        (b'<?xml version="1.0"?>\n<svg/>', "SVG"),
        (b"\xef\xbb\xbf  <!DOCTYPE html><html>", "HTML"),
        (b"<?xml version='1.0'?><a/>", "XML"),
        (b'{"image": "abc"}', "JSON"),
        (b"data:image/png;base64,iVBORw0KGgo=", "data URL"),
        (b"https://example.com/cat.jpg", "address"),
        (b"hello, world\n", "text"),
        (b"\0" * 128 + b"DICM", "DICOM"),
        (b"\x93NUMPY\1\0", "NumPy"),
        (b"RIFF\x24\0\0\0WAVEfmt ", "WAVE"),
        (b"\1\2\3\4\5\6\7\x08", r"first bytes \(01 02 03 04\)"),
        (b"BM" + b"\xff" * 60, "first bytes"),
    ],
)
def test_foreign_formats_are_named(data: bytes, said: str) -> None:
    with pytest.raises(PictureUnsupported, match=said) as caught:
        probe(data)
    assert caught.value.detail.endswith("this server reads JPEG, PNG, WebP, TIFF, BMP, GIF")
    assert caught.value.status == 415


@pytest.mark.parametrize(("height", "width"), [(0, 5), (5, 0), (0, 0)])
def test_zero_side(height: int, width: int) -> None:
    data = png_of(height, width, depth=8, colour=0, rows=b"")
    with pytest.raises(PictureDamaged, match="each side must be at least 1 pixel"):
        probe(data)


@pytest.mark.parametrize(("depth", "colour"), [(3, 0), (4, 2), (16, 3), (8, 5), (1, 6)])
def test_png_header_that_cannot_be(depth: int, colour: int) -> None:
    with pytest.raises(PictureDamaged, match="colour type"):
        probe(png_of(2, 2, depth=depth, colour=colour, rows=b"\0" * 20))


def test_png_mangled_as_text() -> None:
    data = encoded(scene(), "PNG").replace(b"\r\n", b"\n", 1)
    with pytest.raises(PictureDamaged, match="transferred as text"):
        probe(data)


@pytest.mark.parametrize("bodies", [[b"\0\0\0\0\0\0\0\0"], [b"\0\0\0\2\0\0\0\0"] * 2, [b"\0\0\0"]])
def test_png_with_a_senseless_number_of_frames(bodies: list[bytes]) -> None:
    data = png(scene(), colour=2, extra=[(b"acTL", body) for body in bodies])
    with pytest.raises(PictureDamaged, match="number of frames"):
        probe(data)


def test_tiff_whose_directories_form_a_circle() -> None:
    data = bytearray(tiff(scene()[..., 0], photometric=1))
    data[-4:] = data[4:8]
    with pytest.raises(PictureDamaged, match="circle"):
        probe(bytes(data))


def test_broken_exif_means_upright() -> None:
    data = encoded(scene(), "JPEG", exif=exif(6))
    assert probe(data.replace(b"II*\0", b"IIII")).orientation == 1
