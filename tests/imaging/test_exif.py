"""Orientation: all eight values, and blocks that lie."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageOps

from app.imaging.exif import INVERSE, orientation_of, turned
from tests.imaging.pictures import exif, scene


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("kind", [1, 3, 4])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_read_in_both_orders_and_all_types(
    orientation: int, kind: int, order: str
) -> None:
    assert orientation_of(exif(orientation, kind, order)) == orientation
    assert orientation_of(exif(orientation, kind, order)[6:]) == orientation


@pytest.mark.parametrize("orientation", range(1, 9))
def test_turned_is_what_pillow_shows(orientation: int) -> None:
    stored = scene()
    image = Image.fromarray(stored)
    image.getexif()[0x0112] = orientation
    assert np.array_equal(turned(stored, orientation), np.array(ImageOps.exif_transpose(image)))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_inverse_undoes(orientation: int) -> None:
    stored = scene()
    assert np.array_equal(turned(turned(stored, orientation), INVERSE[orientation]), stored)


@pytest.mark.parametrize("value", [0, 9, 255])
def test_value_outside_one_to_eight_means_upright(value: int) -> None:
    assert orientation_of(exif(value)) == 1


@given(st.binary(max_size=80))
def test_noise_never_raises(block: bytes) -> None:
    assert 1 <= orientation_of(block) <= 8


@given(st.integers(0, 40), st.sampled_from([1, 3, 4]), st.sampled_from("<>"))
def test_cut_block_means_upright_or_the_truth(length: int, kind: int, order: str) -> None:
    assert orientation_of(exif(6, kind, order)[:length]) in (1, 6)


@pytest.mark.parametrize("place", range(6, 28))
def test_flipped_byte_never_raises(place: int) -> None:
    block = bytearray(exif(6))
    block[place] ^= 0xFF
    assert 1 <= orientation_of(bytes(block)) <= 8
