"""Kaggle run lengths: golden texts in both orders, CSV dialects, and texts that are refused."""

from __future__ import annotations

import csv
import io
from typing import Literal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.encodings.base import get
from app.encodings.kaggle import decode_runs, encode_runs, read_rows, write_rows
from app.errors import MalformedRequest
from tests.encodings.examples import MASKS, L, M, Planes, label_mask_of, mask_of, random_masks

Order = Literal["F", "C"]

GOLDEN: dict[str, tuple[Planes, str, str]] = {
    "M": (M, "5 3 9 1 11 1 13 3 18 1 20 1", "2 3 7 1 9 2 12 3 20 1"),
    "class 1": (L == 1, "5 3 9 1 11 1 13 3 18 1", "2 3 7 1 9 2 12 3"),
    "class 2": (L == 2, "20 1", "20 1"),
    "empty": (np.zeros_like(M), "", ""),
    "full": (np.ones_like(M), "1 20", "1 20"),
}


def plain_runs(mask: Planes, order: Order) -> str:
    """The definition, pixel by pixel."""
    words, start = [], None
    flat = [*mask.ravel(order=order).tolist(), False]
    for position, value in enumerate(flat, start=1):
        if value and start is None:
            start = position
        elif not value and start is not None:
            words += [start, position - start]
            start = None
    return " ".join(map(str, words))


@pytest.mark.parametrize("name", GOLDEN)
def test_golden_runs(name: str) -> None:
    mask, columns, rows = GOLDEN[name]
    assert encode_runs(mask) == encode_runs(mask, "F") == columns
    assert encode_runs(mask, "C") == rows
    assert (decode_runs(columns, (4, 5)) == mask).all()
    assert (decode_runs(rows, (4, 5), "C") == mask).all()


def test_orders_differ_and_agree_for_the_transposed() -> None:
    assert encode_runs(M, "F") != encode_runs(M, "C")
    assert encode_runs(M, "F") == encode_runs(np.ascontiguousarray(M.T), "C")
    other = decode_runs(encode_runs(M, "F"), (4, 5), "C")
    assert other.sum() == M.sum()
    assert (other != M).any()


@pytest.mark.parametrize("order", ["F", "C"])
@pytest.mark.parametrize("name", MASKS)
def test_chosen_masks_match_the_definition(name: str, order: Order) -> None:
    mask = MASKS[name]
    text = encode_runs(mask, order)
    assert text == plain_runs(mask, order)
    found = decode_runs(text, (mask.shape[0], mask.shape[1]), order)
    assert (found == mask).all()
    assert found.flags.c_contiguous


@given(mask=random_masks(), order=st.sampled_from(("F", "C")))
@settings(deadline=None, max_examples=100)
def test_random_masks_match_the_definition(mask: Planes, order: Order) -> None:
    text = encode_runs(mask, order)
    assert text == plain_runs(mask, order)
    assert (decode_runs(text, (mask.shape[0], mask.shape[1]), order) == mask).all()


def test_runs_that_touch_and_spare_space_are_read() -> None:
    assert (decode_runs(" 1 2\t3  18\n", (4, 5)) == np.ones((4, 5))).all()


@pytest.mark.parametrize("order", ["F", "C"])
@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("1", "not pairs"),
        ("1 2 3", "not pairs"),
        ("0 1", "from 1"),
        ("1 0", "from 1"),
        ("-1 2", "whole numbers"),
        ("1.0 2", "whole numbers"),
        ("1,2", "whole numbers"),
        ("one 2", "whole numbers"),
        ("\u0661 2", "whole numbers"),
        ("1_0 2", "whole numbers"),
        (" " * 100_000 + "x", "whole numbers"),
        ("1 " * 50_000 + "x", "whole numbers"),
        ("9999999999999999999 1", "whole numbers"),
        ("999999999999999999 999999999999999999", "20 pixels"),
        ("20 2", "20 pixels"),
        ("21 1", "20 pixels"),
        ("5 1 3 1", "not sorted"),
        ("3 1 3 1", "overlap"),
        ("3 4 5 1", "overlap"),
    ],
)
def test_bad_runs_are_refused(text: str, says: str, order: Order) -> None:
    with pytest.raises(MalformedRequest, match=says):
        decode_runs(text, (4, 5), order)


def test_unknown_order_is_refused() -> None:
    with pytest.raises(ValueError, match="order is `F`"):
        encode_runs(M, "A")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="order is `F`"):
        decode_runs("1 1", (4, 5), "f")  # type: ignore[arg-type]


def test_answer_has_a_row_per_foreground_class() -> None:
    assert get("kaggle").encode(mask_of(M)) == b"id,rle\nclass 0,5 3 9 1 11 1 13 3 18 1 20 1\n"
    assert get("kaggle").encode(label_mask_of(L, classes=4)) == (
        b"id,rle\nclass 1,5 3 9 1 11 1 13 3 18 1\nclass 2,20 1\nclass 3,\n"
    )


def test_rows_of_other_competitions() -> None:
    rows = [("img_1", "5 3"), ("img_2", "")]
    data = write_rows(rows, columns=("record_id", "encoded_pixels"), empty="-")
    assert data == b"record_id,encoded_pixels\nimg_1,5 3\nimg_2,-\n"
    assert read_rows(data, columns=("record_id", "encoded_pixels"), empty="-") == rows


def test_rows_are_what_csv_reads() -> None:
    rows = [('a "b", c', "1 2"), ("d\ne", ""), ("é", "3 4"), ("plain", "1 2 " * 50_000 + "1")]
    data = write_rows(rows)
    limit = csv.field_size_limit(1 << 20)
    try:
        theirs = list(csv.reader(io.StringIO(data.decode(), newline="")))
    finally:
        csv.field_size_limit(limit)
    assert theirs == [["id", "rle"], *map(list, rows)]
    assert read_rows(data) == rows


def test_rows_of_other_writers_are_read() -> None:
    assert read_rows(b'\xef\xbb\xbfid,rle\r\na,"1 2"\r\n"b","",\r\n'.replace(b'"",', b'""')) == [
        ("a", "1 2"),
        ("b", ""),
    ]
    assert read_rows(b"id,rle\na,1 2") == [("a", "1 2")]


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"a,1 2\n",
        b"id,runs\na,1 2\n",
        b"id,rle\na\n",
        b"id,rle\na,1 2,3\n",
        b"id,rle\n\na,1 2\n",
        b'id,rle\n"a,1 2\n',
        b'id,rle\na"b,1 2\n',
        b"id,rle\n\xff,1 2\n",
    ],
)
def test_bad_rows_are_refused(data: bytes) -> None:
    with pytest.raises(MalformedRequest):
        read_rows(data)


def test_answer_without_rows_is_refused() -> None:
    with pytest.raises(MalformedRequest, match="no rows"):
        get("kaggle").decode(b"id,rle\n", (4, 5))
