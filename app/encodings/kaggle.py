"""`kaggle`: CSV with Kaggle's run lengths, and the functions that training sets are read with.

    id,rle
    class 1,5 3 9 1 11 1 13 3 18 1

A pair is a start, counted from 1, and a length. The answer has the columns `id,rle`, one row per
foreground class with the class's name as id, column-major runs, and an empty text for an empty
class. Competitions differ in order, column names and empty token, so the functions take them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from app.encodings import _runs
from app.encodings._runs import Integers, Order, Runs
from app.encodings.base import Decoded, Encoding, Shape, check_size, register
from app.errors import MalformedRequest
from app.types import Mask

COLUMNS = ("id", "rle")

_FIELD = r'("(?:[^"]|"")*"|[^",\r\n]*)'
_ROW = re.compile(rf"{_FIELD},{_FIELD}(?:\r?\n|\Z)")
_SPECIAL = re.compile(r'[",\r\n]')
# Eighteen digits fit into 64 bits; no position of a mask needs more.
# Possessive, so that no text makes the match slow.
_NUMBERS = re.compile(r"\s*+(?:[0-9]{1,18}(?:\s++|\Z))*+", re.ASCII)


def encode_runs(mask: NDArray[np.bool_], order: Order = "F") -> str:
    """(H, W) bool -> `start length ...`; an empty mask is an empty text.

    F walks down columns (TGS Salt, HuBMAP, Contrails), C along rows (Carvana, Vesuvius).
    """
    return _text(_runs.of_pixels(mask, order=_known(order)))


def decode_runs(text: str, shape: Shape, order: Order = "F") -> NDArray[np.bool_]:
    """`start length ...` -> (H, W) bool.

    Raises MalformedRequest unless the numbers are pairs, positive, sorted, within the mask, and do
    not overlap. The wrong order cannot be seen from the text: it gives another mask of equal area.
    """
    _known(order)
    height, width = shape
    check_size(height, width)
    if not _NUMBERS.fullmatch(text):
        raise _malformed("not whole numbers with spaces between them")
    numbers = np.array([int(word) for word in text.split()], np.int64)
    if len(numbers) % 2:
        raise _malformed(f"{len(numbers)} numbers are not pairs of start and length")
    starts, lengths = numbers[0::2] - 1, numbers[1::2]
    if not len(starts):
        return np.zeros(shape, np.bool_)
    if int(starts.min()) < 0 or int(lengths.min()) < 1:
        raise _malformed("starts and lengths count from 1")
    ends = starts + lengths
    if int(starts.max()) >= height * width or int(ends.max()) > height * width:
        raise _malformed(f"a run ends after the {height * width} pixels of the mask")
    if (starts[1:] < starts[:-1]).any():
        raise _malformed("starts are not sorted")
    if (starts[1:] < ends[:-1]).any():
        raise _malformed("runs overlap")
    counts = Runs(starts, ends, height, width, order).counts
    return _runs.paint(counts, height=height, width=width, order=order)


def write_rows(
    rows: Iterable[tuple[str, str]], *, columns: tuple[str, str] = COLUMNS, empty: str = ""
) -> bytes:
    """(id, runs) rows -> CSV in UTF-8 under a header; runs of nothing become the token `empty`."""
    # Not by `csv`, which inspects every character of a field and limits its length, globally.
    lines = [",".join(map(_quote, columns))]
    lines += [f"{_quote(name)},{runs or empty}" for name, runs in rows]
    return "\n".join([*lines, ""]).encode()


def read_rows(
    data: bytes, *, columns: tuple[str, str] = COLUMNS, empty: str = ""
) -> list[tuple[str, str]]:
    """CSV -> (id, runs) rows, the token `empty` as an empty text. Raises MalformedRequest."""
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as exc:
        raise _malformed("the CSV is not UTF-8") from exc
    rows: list[tuple[str, str]] = []
    position = 0
    while position < len(text):
        found = _ROW.match(text, position)
        if not found:
            raise _malformed(f"row {len(rows)} of the CSV is not two fields")
        rows.append((_unquote(found[1]), _unquote(found[2])))
        position = found.end()
    if rows[:1] != [columns]:
        raise _malformed(f"the header is not `{','.join(columns)}`")
    return [(name, "" if runs == empty else runs) for name, runs in rows[1:]]


def encode(mask: Mask) -> bytes:
    """One row per foreground class, under its name."""
    found = _runs.of_mask(mask)
    return write_rows((mask.classes[index].name, _text(runs)) for index, runs in found.items())


def decode(data: bytes, shape: Shape | None = None) -> Decoded:
    """(C, H, W) bool, one plane per row."""
    assert shape is not None
    planes = [decode_runs(runs, shape) for _, runs in read_rows(data)]
    if not planes:
        raise _malformed("no rows")
    return np.stack(planes)


def _text(runs: Runs) -> str:
    """Start and length of every run, in whole arrays: a loop would hold the GIL."""
    numbers = np.empty((len(runs.starts), 2), runs.starts.dtype)
    numbers[:, 0] = runs.starts + 1
    numbers[:, 1] = runs.ends - runs.starts
    return _decimal(numbers.ravel())


def _decimal(numbers: Integers) -> str:
    """(K,) positive numbers -> decimal text with single spaces."""
    if not len(numbers):
        return ""
    digits = len(str(int(numbers.max())))
    letters = np.zeros((len(numbers), digits + 1), np.uint8)
    letters[:, digits] = ord(" ")
    rest = numbers
    for place in range(digits - 1, -1, -1):
        tens = rest // 10
        letters[:, place] = (rest - 10 * tens + ord("0")) * (rest > 0)
        rest = tens
    # Leading places are NUL, which no digit is.
    return letters.tobytes().translate(None, b"\0").decode("ascii").rstrip(" ")


def _quote(field: str) -> str:
    """A field of CSV, in quotes where RFC 4180 wants them."""
    return '"' + field.replace('"', '""') + '"' if _SPECIAL.search(field) else field


def _unquote(field: str) -> str:
    return field[1:-1].replace('""', '"') if field.startswith('"') else field


def _known(order: Order) -> Order:
    if order not in ("F", "C"):
        raise ValueError(f"order is `F` (down columns) or `C` (along rows), not `{order}`")
    return order


def _malformed(what: str) -> MalformedRequest:
    return MalformedRequest(f"Kaggle runs: {what}")


register(
    Encoding(
        name="kaggle",
        title="CSV with Kaggle run lengths, column-major from 1, one row per class",
        media_type="text/csv",
        extension="csv",
        write=encode,
        read=decode,
        needs_shape=True,
        overlapping=True,
    )
)
