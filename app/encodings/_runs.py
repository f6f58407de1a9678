"""Runs of set pixels in scan order, found in packed rows without unpacking or transposing them.

In column-major order a run begins or ends where a pixel differs from the one above (the last of the
column before, for the top row). That is an exclusive or of neighbouring packed rows, 1/8 of the
bytes; few of its bits are set, so they are listed row by row and then put into column order.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from app.types import Mask

Order = Literal["F", "C"]
Integers = NDArray[np.signedinteger[Any]]


@dataclass(frozen=True, slots=True)
class Runs:
    """The runs of one class: [start, end) positions from 0, sorted, none touching the next.

    `starts`, `ends`: (K,) int32, or int64 in a mask of 2**31 pixels. `height`, `width` and `order`
    say how positions map to pixels: F walks down columns, C along rows.
    """

    starts: Integers
    ends: Integers
    height: int
    width: int
    order: Order = "F"

    @property
    def area(self) -> int:
        """Pixels set."""
        return int((self.ends - self.starts).sum(dtype=np.int64))

    @property
    def counts(self) -> Integers:
        """(N,) lengths of alternating runs, of unset pixels first, as COCO counts them."""
        borders = np.zeros(2 * len(self.starts) + 2, self.starts.dtype)
        borders[1:-1:2] = self.starts
        borders[2:-1:2] = self.ends
        borders[-1] = self.height * self.width
        counts = np.diff(borders)
        return counts if counts[-1] else counts[:-1]

    @property
    def bbox(self) -> list[int] | None:
        """[x, y, w, h] of column-major runs, None where there are none."""
        if not len(self.starts):
            return None
        first, last = self.starts // self.height, (self.ends - 1) // self.height
        left, right = int(first[0]), int(last[-1])
        if (first != last).any():  # a run over the end of a column touches both edges
            top, bottom = 0, self.height - 1
        else:
            top = int((self.starts - first * self.height).min())
            bottom = int((self.ends - 1 - last * self.height).max())
        return [left, top, right - left + 1, bottom - top + 1]


def of_mask(mask: Mask) -> dict[int, Runs]:
    """Column-major runs of every foreground class, by its index."""
    if mask.labels is not None:
        found = of_labels(mask.labels, classes=len(mask.classes))
        return {index: found[index] for index in mask.foreground}
    assert mask.bits is not None
    return {index: of_bits(mask.bits[index], width=mask.width) for index in mask.foreground}


def of_bits(bits: NDArray[np.uint8], *, width: int) -> Runs:
    """Column-major runs of (H, ceil(W / 8)) uint8 packed rows whose padding bits are 0."""
    height = bits.shape[0]
    changes = np.empty_like(bits)
    np.bitwise_xor(bits[1:], bits[:-1], out=changes[1:])
    top = np.unpackbits(bits[0], count=width)
    bottom = np.unpackbits(bits[-1], count=width)
    top[1:] ^= bottom[:-1]
    changes[0] = np.packbits(top)
    return _alternate(_in_columns(changes), height, width, "F")


def of_labels(labels: NDArray[np.uint8], *, classes: int) -> list[Runs]:
    """Column-major runs of each class of an (H, W) uint8 label map, found in one pass."""
    height, width = labels.shape
    changed = np.empty((height, width), np.bool_)
    np.not_equal(labels[1:], labels[:-1], out=changed[1:])
    np.not_equal(labels[0, 1:], labels[-1, :-1], out=changed[0, 1:])
    changed[0, 0] = True  # the first run begins here, whatever its class
    starts = _in_columns(np.packbits(changed, axis=1))
    ends = np.append(starts[1:], starts.dtype.type(height * width))
    columns = starts // height
    found = labels.ravel().take((starts - columns * height) * width + columns)
    owned = (np.flatnonzero(found == index) for index in range(classes))
    return [Runs(starts.take(own), ends.take(own), height, width) for own in owned]


def of_pixels(mask: NDArray[np.bool_], *, order: Order) -> Runs:
    """Runs of an (H, W) bool mask in either order."""
    height, width = mask.shape
    if order == "F":
        return of_bits(np.packbits(mask, axis=1), width=width)
    flat = mask.ravel()
    changed = np.empty(flat.size, np.bool_)
    changed[0] = flat[0]
    np.not_equal(flat[1:], flat[:-1], out=changed[1:])
    return _alternate(np.flatnonzero(changed).astype(np.int64), height, width, "C")


def paint(counts: Integers, *, height: int, width: int, order: Order = "F") -> NDArray[np.bool_]:
    """(H, W) bool from alternating counts that are non-negative and sum to H * W."""
    values = np.arange(len(counts)) & 1
    flat = np.repeat(values.astype(np.bool_), counts)
    if order == "C":
        return flat.reshape(height, width)
    return np.ascontiguousarray(flat.reshape(width, height).T)


def _alternate(borders: Integers, height: int, width: int, order: Order) -> Runs:
    """Runs from the sorted positions at which the value changes, the first one to set."""
    starts, ends = borders[0::2], borders[1::2]
    if len(ends) < len(starts):
        ends = np.append(ends, borders.dtype.type(height * width))
    return Runs(starts, ends, height, width, order)


def _in_columns(changes: NDArray[np.uint8]) -> Integers:
    """Positions, sorted in column-major order, of the set bits of (H, S) packed rows."""
    height, size = changes.shape
    kind = np.int32 if height * size * 8 < 1 << 31 else np.int64
    flat = changes.ravel()
    places: Integers = np.flatnonzero(flat != 0).astype(kind)
    # Viewed as bool because NumPy lists those several times faster than bytes.
    bits: Integers = np.flatnonzero(np.unpackbits(flat.take(places)).view(np.bool_)).astype(kind)
    owners = places.take(bits >> 3)
    rows = owners // size
    columns = ((owners - rows * size) << 3) + (bits & 7)
    # Rows ascend already, so a stable sort by column is all: NumPy sorts 16-bit keys by radix.
    keys = columns.astype(np.uint16) if size * 8 <= 1 << 16 else columns
    positions: Integers = columns * height + rows
    return positions.take(np.argsort(keys, kind="stable"))
