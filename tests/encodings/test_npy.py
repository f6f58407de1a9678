"""npy files: golden headers and sizes, and what NumPy itself reads."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from app.encodings.base import get
from app.encodings.npy import pack
from app.errors import MalformedRequest
from tests.encodings.examples import L, M, P, bytes_of, label_mask_of, mask_of


@pytest.mark.parametrize(
    ("array", "size", "descr"),
    [
        (M.astype(np.uint8), 148, b"'|u1'"),
        (P.astype(np.float32), 208, b"'<f4'"),
        (P.astype(np.float16), 168, b"'<f2'"),
    ],
)
def test_golden_files(array: NDArray[Any], size: int, descr: bytes) -> None:
    data = pack(array)
    assert len(data) == size
    assert data.startswith(
        b"\x93NUMPY\x01\x00\x76\x00{'descr': "
        + descr
        + b", 'fortran_order': False, 'shape': (4, 5), } "
    )
    assert data[127:128] == b"\n"
    theirs = io.BytesIO()
    np.save(theirs, array, allow_pickle=False)
    assert data == theirs.getvalue()


def test_golden_data() -> None:
    data = pack(M.astype(np.uint8))[128:]
    assert data == bytes.fromhex("0001010100 0001000101 0001010100 0000000001")
    assert pack(P.astype(np.float16))[128:130] == bytes.fromhex("6632")


@pytest.mark.parametrize("shape", [(1, 1, 1), (256, 30000, 1), (3, 1, 12345678)])
def test_data_begin_at_a_multiple_of_64(shape: tuple[int, int, int]) -> None:
    array = np.broadcast_to(np.uint8(7), shape)
    data = pack(array)
    assert (len(data) - array.size) % 64 == 0
    assert np.load(io.BytesIO(data), allow_pickle=False).shape == shape


def test_answer_is_every_class_as_the_engine_rounded_it() -> None:
    data = get("npy").encode(mask_of(M, probability=bytes_of(P)[None]))
    found = np.load(io.BytesIO(data), allow_pickle=False)
    assert found.shape == (1, 4, 5)
    assert np.abs(found[0] / 255 - P).max() <= 1 / 510
    several = get("npy").decode(get("npy").encode(label_mask_of(L, classes=3)))
    assert (several.argmax(axis=0) == L).all()


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (pack(M.astype(np.uint8)), "not a .C, H, W. uint8"),
        (pack(P[None]), "not a .C, H, W. uint8"),
        (pack(np.zeros((0, 4, 5), np.uint8)), "0 bytes"),
        (pack(np.zeros((1, 0, 5), np.uint8)), "is not decoded"),
        (pack(bytes_of(P)[None]) + b"x", "21 bytes"),
        (pack(bytes_of(P)[None])[:-1], "19 bytes"),
        (pack(bytes_of(P)[None]).replace(b"(1, 4, 5)", b"(9, 4, 5)"), "20 bytes"),
        (pack(bytes_of(P)[None]).replace(b"False", b"True "), "C order"),
        (pack(bytes_of(P)[None]).replace(b"\x01\x00v", b"\x02\x00v"), "version"),
    ],
)
def test_other_arrays_are_refused(data: bytes, says: str) -> None:
    with pytest.raises(MalformedRequest, match=says):
        get("npy").decode(data)
