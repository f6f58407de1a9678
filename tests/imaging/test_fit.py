"""Padding is the policy's reflection, and the way back is exact."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.imaging.fit import Fit, crop_bits, crop_plane, fit, margins, window
from tests.imaging.pictures import noise

sides = st.integers(1, 70)
strides = st.sampled_from([1, 8, 16, 32, 64])


@given(sides, sides, strides)
def test_padding_is_reflection_without_the_edge(height: int, width: int, stride: int) -> None:
    pixels = noise(height, width)
    padded, fitting = fit(pixels, stride)
    around = ((fitting.top, fitting.bottom), (fitting.left, fitting.right), (0, 0))
    assert np.array_equal(padded, np.pad(pixels, around, "reflect"))
    assert padded.shape[0] % stride == padded.shape[1] % stride == 0
    assert padded.shape[:2] == fitting.padded(height, width)


@pytest.mark.parametrize("shape", [(40, 50), (17, 33), (375, 500), (2, 3)])
def test_padding_is_what_opencv_calls_reflect_101(shape: tuple[int, int]) -> None:
    pixels = noise(*shape)
    padded, found = fit(pixels, 32)
    expected = cv2.copyMakeBorder(
        pixels, found.top, found.bottom, found.left, found.right, cv2.BORDER_REFLECT_101
    )
    assert np.array_equal(padded, expected)


@given(sides, sides, strides)
def test_margins_are_split_evenly_the_odd_pixel_last(height: int, width: int, stride: int) -> None:
    found = margins(height, width, stride)
    assert 0 <= found.bottom - found.top <= 1
    assert 0 <= found.right - found.left <= 1
    assert found.top + found.bottom < stride
    assert found.left + found.right < stride


def test_nothing_to_pad_is_no_copy() -> None:
    pixels = noise(64, 96)
    padded, fitting = fit(pixels, 32)
    assert padded is pixels or padded.base is pixels
    assert fitting == Fit()
    bits = np.packbits(pixels[..., 0] > 9, axis=1)[None]
    assert np.shares_memory(crop_bits(bits, fitting, height=64, width=96), bits)
    assert crop_plane(pixels[..., 0].copy(), fitting, height=64, width=96).shape == (64, 96)


def test_one_pixel() -> None:
    padded, fitting = fit(noise(1, 1), 32)
    assert padded.shape == (32, 32, 3)
    assert (padded == noise(1, 1)).all()
    assert fitting == Fit(15, 15, 16, 16)


@given(sides, sides, strides, st.data())
def test_window_is_a_part_of_the_padded_picture(
    height: int, width: int, stride: int, data: st.DataObject
) -> None:
    pixels = noise(height, width)
    padded, fitting = fit(pixels, stride)
    top = data.draw(st.integers(0, padded.shape[0] - 1))
    left = data.draw(st.integers(0, padded.shape[1] - 1))
    rows = data.draw(st.integers(1, padded.shape[0] - top))
    columns = data.draw(st.integers(1, padded.shape[1] - left))
    part = window(pixels, fitting, top=top, left=left, height=rows, width=columns)
    assert np.array_equal(part, padded[top : top + rows, left : left + columns])


def test_window_inside_is_a_view() -> None:
    pixels = noise(100, 100)
    fitting = margins(100, 100, 32)
    part = window(pixels, fitting, top=32, left=32, height=64, width=64)
    assert np.shares_memory(part, pixels)


@given(sides, sides, st.sampled_from([1, 3]), st.sampled_from([8, 16, 32, 64]))
def test_bits_come_back_exactly(height: int, width: int, channels: int, stride: int) -> None:
    fitting = margins(height, width, stride)
    rows, columns = fitting.padded(height, width)
    planes = np.random.default_rng(height * width).random((channels, rows, columns)) < 0.5
    packed = np.packbits(planes, axis=2)
    before = packed.copy()
    found = crop_bits(packed, fitting, height=height, width=width)
    inner = planes[:, fitting.top : fitting.top + height, fitting.left : fitting.left + width]
    # packbits leaves the padding bits 0, so equality says that ours are too.
    assert np.array_equal(found, np.packbits(inner, axis=2))
    assert found.flags.c_contiguous
    assert np.array_equal(packed, before)


@given(st.integers(0, 40), st.integers(1, 70), st.integers(0, 40))
def test_bits_come_back_from_any_offset(left: int, width: int, right: int) -> None:
    planes = np.random.default_rng(width).random((1, 3, left + width + right)) < 0.5
    found = crop_bits(np.packbits(planes, axis=2), Fit(1, left, 1, right), height=1, width=width)
    assert np.array_equal(found, np.packbits(planes[:, 1:2, left : left + width], axis=2))


@given(sides, sides, strides)
def test_planes_come_back_exactly(height: int, width: int, stride: int) -> None:
    pixels = noise(height, width)
    padded, fitting = fit(pixels, stride)
    back = crop_plane(padded[..., 0], fitting, height=height, width=width)
    assert np.array_equal(back, pixels[..., 0])
    assert back.flags.c_contiguous
    stack = np.ascontiguousarray(padded.transpose(2, 0, 1))
    found = crop_plane(stack, fitting, height=height, width=width)
    assert np.array_equal(found, pixels.transpose(2, 0, 1))
