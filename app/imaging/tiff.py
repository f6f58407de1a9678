"""TIFF: the directories by hand: size, samples, orientation, and which pages are pictures.

Reduced copies (overviews of a GeoTIFF) and transparency masks are not pages: a file with one full
picture and nine overviews is one picture. Source: TIFF 6.0, sections 2 and 8; BigTIFF.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from app.errors import PictureDamaged, PictureDepth, PictureUnsupported
from app.imaging.exif import Buffer
from app.imaging.header import Header

_SUBFILE, _WIDTH, _HEIGHT, _BITS, _PHOTOMETRIC = 254, 256, 257, 258, 262
_ORIENTATION, _SAMPLES, _TILE_WIDTH, _TILE_HEIGHT, _FORMAT, _DNG = 274, 277, 322, 323, 339, 50706
_WANTED = frozenset(
    {_SUBFILE, _WIDTH, _HEIGHT, _BITS, _PHOTOMETRIC, _ORIENTATION, _SAMPLES}
    | {_TILE_WIDTH, _TILE_HEIGHT, _FORMAT, _DNG}
)
_REDUCED, _MASK = 1, 4
_TYPES = {1: "B", 3: "H", 4: "I", 16: "Q"}
_CODING = {0: "inverted", 1: "grey", 2: "rgb", 3: "palette", 5: "cmyk"}
_UNSIGNED = 1
_MOST_PAGES, _MOST_ENTRIES, _MOST_SAMPLES = 10_000, 4_096, 64
# A tile is decoded as a whole; larger than this is no tile but a bomb.
_LARGEST_TILE = 64_000_000


@dataclass(frozen=True, slots=True)
class _Layout:
    """How numbers lie in this file: byte order, and classic or big offsets."""

    order: str
    big: bool

    def directory(self, data: Buffer, place: int) -> tuple[dict[int, tuple[int, ...]], int]:
        """The wanted tags of the directory at `place`, and where the next one is (0: none)."""
        count, entry, offset = ("Q", 20, "Q") if self.big else ("H", 12, "I")
        (entries,) = struct.unpack_from(self.order + count, data, place)
        if entries > _MOST_ENTRIES:
            raise PictureDamaged(f"TIFF directory has {entries:,} entries")
        place += struct.calcsize("=" + count)
        tags: dict[int, tuple[int, ...]] = {}
        inline = struct.calcsize("=" + offset)
        for _ in range(entries):
            tag, kind, many = struct.unpack_from(self.order + "HH" + offset, data, place)
            if tag in _WANTED and kind in _TYPES and 0 < many <= _MOST_SAMPLES:
                at = place + 4 + inline
                if many * struct.calcsize("=" + _TYPES[kind]) > inline:
                    (at,) = struct.unpack_from(self.order + offset, data, at)
                tags[tag] = struct.unpack_from(f"{self.order}{many}{_TYPES[kind]}", data, at)
            place += entry
        (following,) = struct.unpack_from(self.order + offset, data, place)
        return tags, following


def probe(data: Buffer) -> Header:
    """The header of a TIFF: its first full page, and how many such pages there are.

    Raises PictureDepth for float, signed, complex or wider than 16 bits, PictureUnsupported for a
    camera's raw file, PictureDamaged for directories that cannot be followed.
    """
    order = "<" if data[0] == 0x49 else ">"
    big = 43 in (data[2], data[3])
    layout = _Layout(order, big)
    (place,) = struct.unpack_from(order + ("Q" if big else "I"), data, 8 if big else 4)
    found: list[tuple[int, dict[int, tuple[int, ...]]]] = []
    seen: set[int] = set()
    while place:
        if place in seen or len(seen) >= _MOST_PAGES:
            raise PictureDamaged("TIFF directories form a circle or are too many")
        index = len(seen)
        seen.add(place)
        tags, place = layout.directory(data, place)
        if _DNG in tags:
            raise PictureUnsupported("the bytes look like a camera's raw file (DNG)")
        if not tags.get(_SUBFILE, (0,))[0] & (_REDUCED | _MASK):
            found.append((index, tags))
    if not found:
        raise PictureUnsupported("TIFF holds only reduced pictures: it looks like a raw file")
    pages = tuple(index for index, _ in found)
    return _page(found[0][1], pages)


def at_page(data: Buffer, header: Header, frame: int) -> Header:
    """The header of full page `frame`, which may differ from that of the first."""
    order, big = ("<" if data[0] == 0x49 else ">"), 43 in (data[2], data[3])
    (place,) = struct.unpack_from(order + ("Q" if big else "I"), data, 8 if big else 4)
    for _ in range(header.pages[frame] + 1):
        tags, place = _Layout(order, big).directory(data, place)
    return _page(tags, header.pages)


def _page(tags: dict[int, tuple[int, ...]], pages: tuple[int, ...]) -> Header:
    """One directory as a Header."""
    for tag, name in ((_WIDTH, "width"), (_HEIGHT, "height")):
        if tag not in tags:
            raise PictureDamaged(f"TIFF does not state its {name}")
    bits = tags.get(_BITS, (1,))
    channels = tags.get(_SAMPLES, (len(bits),))[0]
    depth = max(bits)
    kinds = set(tags.get(_FORMAT, (_UNSIGNED,)))
    if kinds != {_UNSIGNED} or depth > 16:
        kind = {2: "signed integers", 3: "floating point"}.get(max(kinds), "numbers")
        raise PictureDepth(
            f"TIFF holds {kind} of {depth} bits, whose range is not known; "
            "this server reads unsigned samples of up to 16 bits"
        )
    if tags.get(_TILE_WIDTH, (0,))[0] * tags.get(_TILE_HEIGHT, (0,))[0] > _LARGEST_TILE:
        raise PictureDamaged("TIFF tile is larger than any picture needs")
    orientation = tags.get(_ORIENTATION, (1,))[0]
    return Header(
        "tiff",
        tags[_WIDTH][0],
        tags[_HEIGHT][0],
        channels,
        depth,
        frames=len(pages),
        orientation=orientation if 1 <= orientation <= 8 else 1,
        coding=_CODING.get(tags.get(_PHOTOMETRIC, (1,))[0], ""),
        pages=pages,
    )
