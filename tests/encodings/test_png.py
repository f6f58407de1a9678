"""PNG files: golden bytes, a strict look at every chunk, and two other readers."""

from __future__ import annotations

import io
import struct
import subprocess
import sys
import zlib

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from app.encodings import _png, _png_reader
from app.encodings.base import get
from app.errors import MalformedRequest
from tests.encodings.examples import COLOURS, MASKS, L, M, P, bytes_of, label_mask_of, mask_of

GOLDEN_BITS = bytes.fromhex(
    "89504e470d0a1a0a 0000000d49484452 00000005000000040100000000 6e48c8ed"
    "0000001349444154 7801 010800f7ff 027002e802180298 08a80211 b6e16f30 0000000049454e44ae426082"
)
GOLDEN_PALETTE = bytes.fromhex(
    "89504e470d0a1a0a 0000000d49484452 00000005000000040203000000 3b5d1dd3"
    "00000009504c5445 000000ff00000000ff 4aa5ad81"
    "0000001749444154 7801 010c00f3ff 001500001140001500000080 042400fc 791daf6a"
    "0000000049454e44ae426082"
)


def stored(scanlines: _png.Rows) -> bytes:
    """A zlib stream without compression: the same bytes on every machine."""
    return zlib.compress(scanlines.tobytes(), 0)


def unfiltered(rows: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return np.pad(rows, ((0, 0), (1, 0)))


def chunks(data: bytes) -> list[tuple[bytes, bytes]]:
    """Every chunk, by a reader written apart from ours."""
    assert data.startswith(b"\x89PNG\r\n\x1a\n")
    found, rest = [], data[8:]
    while rest:
        length = int.from_bytes(rest[:4], "big")
        content, crc = rest[8 : 8 + length], rest[8 + length : 12 + length]
        assert len(content) == length
        assert int.from_bytes(crc, "big") == zlib.crc32(rest[4 : 8 + length])
        found.append((rest[4:8], content))
        rest = rest[12 + length :]
    return found


def build(*parts: tuple[bytes, bytes]) -> bytes:
    """A file of any chunks, with right lengths and CRCs."""
    return _png.SIGNATURE + b"".join(
        struct.pack(">I", len(content)) + kind + content + zlib.crc32(kind + content).to_bytes(4)
        for kind, content in parts
    )


def open_with_pillow(data: bytes) -> Image.Image:
    with Image.open(io.BytesIO(data)) as image:
        image.load()
        return image


def open_with_opencv(data: bytes) -> NDArray[np.uint8]:
    found = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    assert found is not None
    return np.asarray(found, np.uint8)


def test_golden_bits() -> None:
    scanlines = _png.filter_up(np.packbits(M, axis=1))
    assert scanlines.tobytes() == bytes.fromhex("0270 02e8 0218 0298")
    found = _png.assemble(scanlines, width=5, depth=1, colour=_png.Colour.GREY, deflate=stored)
    assert found == GOLDEN_BITS
    assert (get("png").decode(GOLDEN_BITS) == M).all()


def test_golden_bits_differ_from_ours_in_the_stream_alone() -> None:
    ours = chunks(get("png").encode(mask_of(M)))
    theirs = chunks(GOLDEN_BITS)
    assert [ours[0], ours[-1]] == [theirs[0], theirs[-1]]
    assert zlib.decompress(ours[1][1]) == zlib.decompress(theirs[1][1])


def test_golden_palette() -> None:
    rows = _png.pack(L, depth=2)
    assert rows.tobytes() == bytes.fromhex("1500 1140 1500 0080")
    palette = bytes(np.array(COLOURS, np.uint8))
    found = _png.assemble(
        unfiltered(rows),
        width=5,
        depth=2,
        colour=_png.Colour.PALETTE,
        palette=palette,
        deflate=stored,
    )
    assert found == GOLDEN_PALETTE
    assert (get("png").decode(GOLDEN_PALETTE) == L).all()


def test_golden_scanlines_of_grey() -> None:
    assert (M * np.uint8(255)).tobytes() == bytes.fromhex(
        "00ffffff00 00ff00ffff 00ffffff00 00000000ff"
    )
    assert get("png8").decode(get("png8").encode(mask_of(M))).tobytes() == (
        bytes.fromhex("00ffffff00 00ff00ffff 00ffffff00 00000000ff")
    )


def test_golden_probability() -> None:
    mask = mask_of(M, probability=bytes_of(P)[None])
    values = get("probability").decode(get("probability").encode(mask))
    assert sorted(set(values.ravel().tolist())) == [51, 153, 204]
    assert np.abs(values[0] / 255 - P).max() <= 1 / 510


@pytest.mark.parametrize("name", MASKS)
def test_others_read_bits(name: str) -> None:
    data = get("png").encode(mask_of(MASKS[name]))
    image = open_with_pillow(data)
    assert image.mode == "1"
    assert (np.asarray(image) == MASKS[name]).all()
    assert (open_with_opencv(data) == MASKS[name] * np.uint8(255)).all()


@pytest.mark.parametrize("name", MASKS)
def test_others_read_grey(name: str) -> None:
    data = get("png8").encode(mask_of(MASKS[name]))
    image = open_with_pillow(data)
    assert image.mode == "L"
    assert (np.asarray(image) == MASKS[name] * np.uint8(255)).all()
    assert (open_with_opencv(data) == MASKS[name] * np.uint8(255)).all()


@pytest.mark.parametrize(("classes", "depth"), [(2, 1), (3, 2), (4, 2), (5, 4), (16, 4), (17, 8)])
@pytest.mark.parametrize("width", [1, 7, 8, 33])
def test_others_read_label_maps(classes: int, depth: int, width: int) -> None:
    labels = np.random.default_rng(width).integers(0, classes, (11, width), np.uint8)
    mask = label_mask_of(labels, classes=classes)
    data = get("png").encode(mask)
    assert chunks(data)[0][1][8] == depth
    image = open_with_pillow(data)
    assert image.mode == "P"
    assert (np.asarray(image) == labels).all()
    colours = np.array([each.colour for each in mask.classes], np.uint8)
    assert (np.asarray(image.convert("RGB")) == colours[labels]).all()
    assert (open_with_opencv(data)[..., ::-1] == colours[labels]).all()
    assert (open_with_opencv(get("png8").encode(mask)) == labels).all()


def test_chunks_are_the_four_in_order() -> None:
    def kinds(data: bytes) -> list[bytes]:
        return [kind for kind, _ in chunks(data)]

    assert kinds(get("png").encode(mask_of(M))) == [b"IHDR", b"IDAT", b"IEND"]
    palette = get("png").encode(label_mask_of(L, classes=3))
    assert kinds(palette) == [b"IHDR", b"PLTE", b"IDAT", b"IEND"]


@pytest.mark.parametrize("depth", [1, 2, 4, 8])
def test_pack_is_packbits_of_the_bits(depth: int) -> None:
    for width in (1, 5, 8, 16, 31):
        labels = np.random.default_rng(width).integers(0, 1 << depth, (6, width), np.uint8)
        bits = np.unpackbits(labels[:, :, None], axis=2)[:, :, 8 - depth :].reshape(6, -1)
        assert (_png.pack(labels, depth=depth) == np.packbits(bits, axis=1)).all()
        strided = np.repeat(labels, 2, axis=1)[:, ::2]
        assert (_png.pack(strided, depth=depth) == np.packbits(bits, axis=1)).all()


def test_without_isal_the_file_reads_the_same() -> None:
    code = (
        "import sys; sys.modules['isal'] = None\n"
        "import numpy as np\n"
        "from app.encodings import _png, png\n"
        "assert _png.fast_zlib.__name__ == 'zlib'\n"
        "bits = np.arange(64, dtype=np.uint8).reshape(8, 8)\n"
        "assert (np.packbits(png.decode(_png.write_bits(bits, width=64))[0], axis=1) == bits).all()"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_any_changed_byte_is_refused() -> None:
    data = get("png").encode(mask_of(M))
    for place in range(len(data)):
        for flip in (1, 0x20, 0x80):
            broken = bytearray(data)
            broken[place] ^= flip
            with pytest.raises(MalformedRequest):
                _png_reader.read(bytes(broken))


HEADER = struct.pack(">IIBBBBB", 5, 4, 1, 0, 0, 0, 0)
PALETTE_HEADER = struct.pack(">IIBBBBB", 5, 4, 2, 3, 0, 0, 0)
BODY = zlib.compress(bytes.fromhex("0270 02e8 0218 0298"))
INDICES = zlib.compress(bytes.fromhex("001500 001140 001500 000080"))
RGB = bytes(np.array(COLOURS, np.uint8))
HEAD, DATA, END = (b"IHDR", HEADER), (b"IDAT", BODY), (b"IEND", b"")
PALETTE_HEAD, INDEX_DATA = (b"IHDR", PALETTE_HEADER), (b"IDAT", INDICES)


def test_what_the_specification_allows_is_read() -> None:
    text = (b"tEXt", b"Comment\0x")
    for parts in (
        (HEAD, DATA, END),
        (HEAD, text, DATA, text, text, END),
        (HEAD, (b"IDAT", BODY[:5]), (b"IDAT", b""), (b"IDAT", BODY[5:]), END),
    ):
        assert (_png_reader.read(build(*parts)).samples == M).all()
    palette = build(PALETTE_HEAD, (b"PLTE", RGB), INDEX_DATA, END)
    assert (_png_reader.read(palette).samples == L).all()


@pytest.mark.parametrize(
    ("parts", "says"),
    [
        ([DATA, HEAD, END], "IHDR is not the first"),
        ([HEAD, HEAD, DATA, END], "repeated"),
        ([HEAD, END], "no IDAT"),
        ([HEAD, DATA], "truncated"),
        ([HEAD, DATA, END, END], "after IEND"),
        ([HEAD, DATA, (b"IEND", b"x")], "IEND"),
        ([HEAD, DATA, (b"tEXt", b""), DATA, END], "not in one piece"),
        ([HEAD, (b"ABCD", b""), DATA, END], "unknown critical"),
        ([HEAD, (b"a1cd", b""), DATA, END], "four letters"),
        ([HEAD, (b"PLTE", RGB), DATA, END], "PLTE"),
        ([PALETTE_HEAD, INDEX_DATA, END], "PLTE"),
        ([PALETTE_HEAD, INDEX_DATA, (b"PLTE", RGB), END], "PLTE after IDAT"),
        ([PALETTE_HEAD, (b"PLTE", RGB + RGB), INDEX_DATA, END], "PLTE of 18 bytes"),
        ([PALETTE_HEAD, (b"PLTE", RGB[:4]), INDEX_DATA, END], "PLTE of 4 bytes"),
        ([PALETTE_HEAD, (b"PLTE", RGB[:6]), INDEX_DATA, END], "no colour"),
        ([(b"IHDR", HEADER[:12]), DATA, END], "13 bytes"),
        ([(b"IHDR", HEADER[:12] + b"\1"), DATA, END], "interlace"),
        ([(b"IHDR", HEADER[:8] + b"\x08\2\0\0\0"), DATA, END], "not a mask of ours"),
        ([(b"IHDR", HEADER[:8] + b"\x10\0\0\0\0"), DATA, END], "not a mask of ours"),
        ([(b"IHDR", b"\0" * 8 + HEADER[8:]), DATA, END], "is not decoded"),
        ([(b"IHDR", b"\x7f" * 8 + HEADER[8:]), DATA, END], "is not decoded"),
        ([HEAD, (b"IDAT", b"x" + BODY), END], "zlib stream is broken"),
        ([HEAD, (b"IDAT", BODY[:-1]), END], "does not end"),
        ([HEAD, (b"IDAT", BODY + b"x"), END], "does not end"),
        ([HEAD, (b"IDAT", zlib.compress(b"\0" * 7)), END], "after 8 bytes"),
        ([HEAD, (b"IDAT", zlib.compress(b"\0" * 99999)), END], "after 8 bytes"),
        ([HEAD, (b"IDAT", zlib.compress(b"\4\0" * 4)), END], "filters"),
        ([HEAD, (b"IDAT", zlib.compress(b"\2\0\0\0" * 2)), END], "filters"),
    ],
)
def test_what_is_not_ours_is_refused(parts: list[tuple[bytes, bytes]], says: str) -> None:
    with pytest.raises(MalformedRequest, match=says):
        _png_reader.read(build(*parts))


def test_formats_are_not_taken_for_each_other() -> None:
    bits, grey = get("png").encode(mask_of(M)), get("png8").encode(mask_of(M))
    with pytest.raises(MalformedRequest, match="8-bit grey; format `png` is"):
        get("png").decode(grey)
    for name in ("png8", "probability"):
        with pytest.raises(MalformedRequest, match="not 8-bit grey"):
            get(name).decode(bits)
