"""Which format the first bytes are: one that we read, or a name for what they look like instead.

The allow-list is the product's, not the codec's: Pillow would hand EPS to Ghostscript and its
wheels contain AVIF. Sources of the magic numbers: the formats' own specifications.
"""

from __future__ import annotations

from app.errors import PictureUnsupported
from app.imaging.exif import Buffer
from app.imaging.header import FORMATS

_HEAD = 1024

_FOREIGN: tuple[tuple[int, bytes, str], ...] = (
    (0, b"%PDF", "PDF"),
    (0, b"%!PS", "PostScript"),
    (0, b"\xc5\xd0\xd3\xc6", "EPS"),
    (0, b"PK\x03\x04", "a ZIP archive or an office document"),
    (0, b"PK\x05\x06", "an empty ZIP archive"),
    (0, b"\x1f\x8b", "gzip"),
    (0, b"BZh", "bzip2"),
    (0, b"\xfd7zXZ\0", "xz"),
    (0, b"\x28\xb5\x2f\xfd", "Zstandard"),
    (0, b"7z\xbc\xaf\x27\x1c", "a 7z archive"),
    (0, b"Rar!", "a RAR archive"),
    (257, b"ustar", "a tar archive"),
    (0, b"\xff\x0a", "JPEG XL"),
    (0, b"\0\0\0\x0cJXL ", "JPEG XL"),
    (0, b"\0\0\0\x0cjP  ", "JPEG 2000"),
    (0, b"\xff\x4f\xff\x51", "JPEG 2000"),
    (0, b"8BPS", "Photoshop"),
    (0, b"\0\0\1\0", "a Windows icon"),
    (0, b"\0\0\2\0", "a Windows cursor"),
    (0, b"v/1\1", "OpenEXR"),
    (0, b"#?RADIANCE", "Radiance HDR"),
    (0, b"qoif", "QOI"),
    (0, b"DDS ", "DDS"),
    (128, b"DICM", "DICOM"),
    (0, b"SIMPLE  =", "FITS"),
    (0, b"\x89HDF", "HDF5"),
    (0, b"\x93NUMPY", "a NumPy array"),
    (0, b"\x7fELF", "a program"),
    (0, b"MZ", "a program"),
    (0, b"\x1a\x45\xdf\xa3", "Matroska or WebM video"),
    (0, b"OggS", "Ogg"),
    (0, b"ID3", "MP3"),
    (8, b"AVI ", "AVI video"),
    (8, b"WAVE", "WAVE audio"),
)
_BRANDS = {
    b"avif": "AVIF",
    b"avis": "AVIF",
    b"heic": "HEIC",
    b"heix": "HEIC",
    b"heim": "HEIC",
    b"heis": "HEIC",
    b"hevc": "HEIC",
    b"hevx": "HEIC",
    b"mif1": "HEIC",
    b"msf1": "HEIC",
    b"crx ": "a camera's raw file",
}


def recognise(data: Buffer) -> str:
    """The name (a key of `FORMATS`) of the format that `data` begins as.

    Raises PictureUnsupported, which says what the bytes look like and what is allowed.
    """
    head = bytes(data[:12])
    if head[:2] == b"\xff\xd8":
        return "jpeg"
    if head[:4] == b"\x89PNG":
        return "png"
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "webp"
    if head[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
        return "tiff"
    if head[:6] in (b"GIF87a", b"GIF89a"):
        return "gif"
    # Two letters are a weak sign: the header size that follows must be one that exists.
    if head[:2] == b"BM" and data[14:18] in _BMP_HEADERS:
        return "bmp"
    guess = _guess(bytes(data[:_HEAD]))
    raise PictureUnsupported(
        f"{guess}; this server reads {', '.join(FORMATS.values())}",
        limit="formats",
        limit_value=", ".join(FORMATS),
    )


_BMP_HEADERS = {size.to_bytes(4, "little") for size in (12, 16, 40, 52, 56, 64, 108, 124)}


def _guess(head: bytes) -> str:
    """One clause on what the bytes look like."""
    for place, magic, name in _FOREIGN:
        if head[place : place + len(magic)] == magic:
            return f"the bytes look like {name}"
    if head[4:8] == b"ftyp":
        return f"the bytes look like {_BRANDS.get(head[8:12], 'MP4 or QuickTime video')}"
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    if text.startswith((b"<?xml", b"<svg", b"<!--", b"<!doctype svg")) and b"<svg" in text:
        return "the bytes look like SVG"
    if text.startswith((b"<!doctype html", b"<html", b"<head", b"<body")):
        return "the bytes look like HTML"
    if text.startswith(b"<"):
        return "the bytes look like XML"
    if text.startswith(b"data:"):
        return "the bytes look like a data URL, not the picture itself"
    if text.startswith((b"http://", b"https://")):
        return "the bytes look like an address; send the picture itself"
    if text.startswith((b"{", b"[")):
        return "the bytes look like JSON"
    if text and all(9 <= byte < 127 for byte in head):
        return "the bytes look like text"
    return f"the first bytes ({head[:4].hex(' ')}) are of no format that we know"
