"""COCO's compressed run lengths: counts to text and back, in whole arrays.

From the fourth count on, the count two places earlier is subtracted. Each number is two's
complement in groups of five bits, lowest first; a character is 48 + group, + 32 where more follow,
and as few groups are written as keep the sign. Format: `common/maskApi.c` of `cocodataset/cocoapi`.
"""

from __future__ import annotations

import numpy as np

from app.encodings._runs import Integers
from app.errors import MalformedRequest

# Seven groups hold 35 bits, more than any count of a mask that we decode, or its difference.
_MOST_GROUPS = 7


def to_text(counts: Integers) -> str:
    """(K,) counts of alternating runs, unset first -> the compressed text."""
    numbers = counts.copy()
    numbers[3:] -= counts[1:-2]
    magnitudes = np.where(numbers < 0, ~numbers, numbers)
    groups = 1
    while int(magnitudes.max()) >= 1 << (5 * groups - 1):
        groups += 1
    letters = np.zeros((groups, len(numbers)), np.uint8)
    for place, letter in enumerate(letters):
        np.copyto(letter, (numbers >> (5 * place)) & 31, casting="unsafe")
        letter += 48
        letter += (magnitudes >= 1 << (5 * place + 4)).view(np.uint8) << np.uint8(5)
        if place:
            letter *= magnitudes >= 1 << (5 * place - 1)
    # Groups that a number does not need are NUL, which no letter is.
    return letters.T.tobytes().translate(None, b"\0").decode("ascii")


def to_counts(text: str, *, pixels: int) -> Integers:
    """The compressed text -> (K,) int64 counts that are non-negative and sum to `pixels`.

    Raises MalformedRequest for anything else: unchecked counts would leave pixels undefined.
    """
    try:
        codes = np.frombuffer(text.encode("ascii"), np.uint8).astype(np.int64) - 48
    except UnicodeEncodeError as exc:
        raise _malformed("a character is not ASCII") from exc
    if not len(codes) or int(codes.min()) < 0 or int(codes.max()) > 63:
        raise _malformed("empty, or a character outside '0' to 'o'")
    last = np.flatnonzero(codes < 32)
    if not len(last) or last[-1] != len(codes) - 1:
        raise _malformed("truncated within a number")
    first = np.append(0, last[:-1] + 1)
    lengths = last - first + 1
    if int(lengths.max()) > _MOST_GROUPS:
        raise _malformed("a number of too many characters")
    places = np.arange(len(codes)) - np.repeat(first, lengths)
    numbers = np.add.reduceat((codes & 31) << (5 * places), first)
    numbers -= (codes[last] >> 4 & 1) << (5 * lengths)
    # Subtracting the count two earlier, undone: a running sum over every second number.
    for chain in (numbers[1::2], numbers[2::2]):
        np.cumsum(chain, out=chain)
    if int(numbers.min()) < 0 or int(numbers.sum()) != pixels:
        raise _malformed(f"counts are negative or do not sum to {pixels} pixels")
    return numbers


def _malformed(what: str) -> MalformedRequest:
    return MalformedRequest(f"COCO counts: {what}")
