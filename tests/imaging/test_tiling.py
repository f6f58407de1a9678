"""Tiling: the plan's laws as properties, and the numeric proof that tiles equal the whole."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from app.imaging.fit import fit, margins
from app.imaging.tiling import Canvas, Kind, TilePlan, cut, plan_tiles, tiles_needed
from app.types import Halo
from tests.imaging.pictures import noise

HALOS = [
    (32, Halo(0, 0, 0, 0)),
    (32, Halo(128, 128, 160, 160)),
    (32, Halo(192, 192, 192, 192)),
    (32, Halo(512, 512, 480, 480)),
    (64, Halo(640, 640, 640, 640)),
    (16, Halo(96, 96, 112, 112)),
]


def check(plan: TilePlan, stride: int, halo: Halo) -> None:
    """Every law of a plan."""
    height, width = plan.size
    tall, wide = plan.shape
    assert tall % stride == wide % stride == 0
    assert tall <= height
    assert wide <= width
    assert len(set(plan.tiles)) == len(plan.tiles)
    area = 0
    rows = sorted({(tile.core_top, tile.core_bottom) for tile in plan.tiles})
    columns = sorted({(tile.core_left, tile.core_right) for tile in plan.tiles})
    for tile in plan.tiles:
        assert (tile.height, tile.width) == plan.shape
        for place in (tile.top, tile.left, tile.core_top, tile.core_left):
            assert place % stride == 0
        assert 0 <= tile.top <= tile.core_top < tile.core_bottom <= tile.top + tall <= height
        assert 0 <= tile.left <= tile.core_left < tile.core_right <= tile.left + wide <= width
        assert tile.top == 0 or tile.core_top - tile.top >= halo.top
        assert tile.left == 0 or tile.core_left - tile.left >= halo.left
        bottom, right = tile.top + tall, tile.left + wide
        assert bottom == height or bottom - tile.core_bottom >= halo.bottom
        assert right == width or right - tile.core_right >= halo.right
        area += (tile.core_bottom - tile.core_top) * (tile.core_right - tile.core_left)
    # A grid of cores without gaps, each cell once: they partition the picture.
    assert area == height * width
    assert len(plan.tiles) == len(rows) * len(columns)
    for line, length in ((rows, height), (columns, width)):
        assert line[0][0] == 0
        assert line[-1][1] == length
        assert all(first[1] == second[0] for first, second in pairwise(line))


@given(
    st.integers(1, 160),
    st.integers(1, 160),
    st.sampled_from(HALOS),
    st.sampled_from([0, 1 << 16, 1 << 20, 1 << 22]),
    st.sampled_from([64, 256, 512, 1024, 2048]),
)
def test_every_plan_keeps_the_laws(
    rows: int, columns: int, net: tuple[int, Halo], whole_pixels: int, tile: int
) -> None:
    stride, halo = net
    height, width = rows * stride, columns * stride
    plan = plan_tiles(height, width, stride=stride, halo=halo, whole_pixels=whole_pixels, tile=tile)
    check(plan, stride, halo)
    if height * width <= whole_pixels:
        assert len(plan.tiles) == 1


@given(
    st.integers(1, 9),
    st.integers(1, 9),
    st.tuples(*[st.integers(0, 3)] * 4),
    st.integers(1, 200),
)
def test_small_budgets_and_lopsided_halos(
    rows: int, columns: int, margin: tuple[int, int, int, int], tile: int
) -> None:
    halo = Halo(*(8 * side for side in margin))
    plan = plan_tiles(8 * rows, 8 * columns, stride=8, halo=halo, whole_pixels=0, tile=tile)
    check(plan, 8, halo)


@pytest.mark.parametrize(("side", "count"), [(1024, 7), (2048, 3)])
def test_count_of_the_worked_example(side: int, count: int) -> None:
    assert tiles_needed(5024, side, 128, 160) == count


def test_no_more_pixels_than_square_tiles_would_take() -> None:
    halo = Halo(128, 128, 160, 160)
    for tile, factor in ((1024, 2.04), (2048, 1.50)):
        plan = plan_tiles(5024, 5024, stride=32, halo=halo, whole_pixels=1 << 20, tile=tile)
        assert plan.shape[0] * plan.shape[1] <= tile * tile
        assert plan.pixels / 5024**2 <= factor


def test_whole_up_to_the_limit() -> None:
    halo = Halo(128, 128, 160, 160)
    plan = plan_tiles(1024, 2048, stride=32, halo=halo, whole_pixels=1024 * 2048, tile=256)
    assert plan.shape == (1024, 2048)
    assert len(plan.tiles) == 1
    plan = plan_tiles(1024, 2080, stride=32, halo=halo, whole_pixels=1024 * 2048, tile=1024)
    assert len(plan.tiles) > 1


def test_wide_halo_grows_the_tile() -> None:
    halo = Halo(640, 640, 640, 640)
    plan = plan_tiles(6400, 6400, stride=64, halo=halo, whole_pixels=1 << 23, tile=512)
    assert plan.pixels < 5 * 6400**2
    tight = plan_tiles(2560, 2560, stride=64, halo=halo, whole_pixels=0, tile=64)
    assert tight.shape[0] * tight.shape[1] <= 1344**2
    check(tight, 64, halo)


def test_extreme_aspect_uses_long_tiles() -> None:
    halo = Halo(128, 128, 160, 160)
    plan = plan_tiles(32, 50_016, stride=32, halo=halo, whole_pixels=1 << 20, tile=1024)
    assert plan.shape[0] == 32
    assert len(plan.tiles) == 2
    assert plan.pixels < 1.02 * 32 * 50_016
    check(plan, 32, halo)


@pytest.mark.parametrize(
    ("height", "width", "halo"),
    [(33, 32, Halo(0, 0, 0, 0)), (0, 32, Halo(0, 0, 0, 0)), (32, 32, Halo(0, 0, 1, 0))],
)
def test_off_the_stride_is_refused(height: int, width: int, halo: Halo) -> None:
    with pytest.raises(ValueError, match="multiple of the stride 32"):
        plan_tiles(height, width, stride=32, halo=halo, whole_pixels=0, tile=64)


# ---- the proof ----

STRIDE = 32
# What `net` looks at beyond an aligned core, traced backwards: one pixel at each scale on the way
# up leaves 1 at scale 32, two sums there make 3, each scale down doubles it and adds two: 158.
HALO = Halo(160, 160, 160, 160)


def box(values: NDArray[Any]) -> NDArray[Any]:
    """A 3 x 3 sum with zero padding, uneven weights and a bend, so that order and place matter."""
    padded = np.pad(values, 1)
    rows = 0.25 * padded[:-2] + 0.5 * padded[1:-1] + 0.375 * padded[2:]
    total = 0.3 * rows[:, :-2] + 0.4 * rows[:, 1:-1] + 0.2 * rows[:, 2:]
    return np.maximum(total, 0.1 * total - 0.01)


def net(pixels: NDArray[np.uint8]) -> NDArray[Any]:
    """(H, W, 3) uint8 -> (H, W) float64: a U of five halvings, as our nets have."""
    values = pixels.astype(np.float64) @ np.array([0.3, 0.5, -0.2]) / 255 - 0.2
    skips = []
    for _ in range(5):
        values = box(box(values))
        skips.append(values)
        high, wide = values.shape
        values = values.reshape(high // 2, 2, wide // 2, 2).max((1, 3))
    values = box(box(values))
    for skip in reversed(skips):
        values = box(values.repeat(2, 0).repeat(2, 1) + 0.7 * skip)
    return values


def results(values: NDArray[Any]) -> dict[Kind, NDArray[np.uint8]]:
    """The three kinds of result of one tile, two channels where there are channels."""
    planes = np.stack((values > 0.1, values > 0.2))
    probability = np.rint(255 / (1 + np.exp(-np.stack((values, -values))))).astype(np.uint8)
    labels = np.digitize(values, [0.0, 0.1, 0.2]).astype(np.uint8)
    return {"bits": np.packbits(planes, axis=2), "labels": labels, "probability": probability}


@pytest.mark.parametrize(
    ("height", "width", "tile"),
    [(700, 500, 384), (1, 1500, 64), (900, 33, 64), (641, 642, 480), (640, 704, 448)],
)
def test_tiles_equal_the_whole_exactly(height: int, width: int, tile: int) -> None:
    pixels = noise(height, width)
    padded, fitting = fit(pixels, STRIDE)
    plan = plan_tiles(*padded.shape[:2], stride=STRIDE, halo=HALO, whole_pixels=0, tile=tile)
    assert len(plan.tiles) > 1
    canvases = {kind: Canvas(plan, channels=2, kind=kind) for kind in results(np.zeros((8, 8)))}
    # Any order will do.
    for index in np.random.default_rng(0).permutation(len(plan.tiles)):
        spec = plan.tiles[index]
        part = cut(pixels, fitting, spec)
        assert part.shape == (*plan.shape, 3)
        for kind, result in results(net(part)).items():
            canvases[kind].place(spec, result)
    whole = results(net(padded))
    for kind, canvas in canvases.items():
        assert np.array_equal(canvas.plane, whole[kind])
        found = canvas.crop(fitting, height=height, width=width)
        if kind == "bits":
            planes = np.unpackbits(whole[kind], axis=2)
            inner = planes[:, fitting.top :, fitting.left :][:, :height, :width]
            assert np.array_equal(found, np.packbits(inner, axis=2))
        else:
            inner = whole[kind][..., fitting.top :, fitting.left :][..., :height, :width]
            assert np.array_equal(found, inner)


def test_the_proof_would_notice_a_halo_too_small() -> None:
    pixels = noise(640, 640)
    padded, fitting = fit(pixels, STRIDE)
    halo = Halo(32, 32, 32, 32)
    plan = plan_tiles(640, 640, stride=STRIDE, halo=halo, whole_pixels=0, tile=320)
    whole = net(padded)
    tile = plan.tiles[0]
    part = net(cut(pixels, fitting, tile))
    core = (slice(0, tile.core_bottom), slice(0, tile.core_right))
    assert not np.array_equal(part[core], whole[core])


# ---- cutting and the canvas ----


@settings(max_examples=40)
@given(st.integers(1, 400), st.integers(1, 400), st.sampled_from([64, 128]))
def test_cut_is_the_tile_of_the_padded_picture(height: int, width: int, tile: int) -> None:
    pixels = noise(height, width)
    padded, fitting = fit(pixels, 32)
    halo = Halo(32, 32, 32, 32)
    plan = plan_tiles(*padded.shape[:2], stride=32, halo=halo, whole_pixels=0, tile=tile)
    for spec in plan.tiles:
        expected = padded[spec.top : spec.top + spec.height, spec.left : spec.left + spec.width]
        assert np.array_equal(cut(pixels, fitting, spec), expected)


def test_inner_tiles_are_views() -> None:
    pixels = noise(500, 500)
    fitting = margins(500, 500, 32)
    halo = Halo(32, 32, 32, 32)
    plan = plan_tiles(512, 512, stride=32, halo=halo, whole_pixels=0, tile=160)
    shared = [np.shares_memory(cut(pixels, fitting, tile), pixels) for tile in plan.tiles]
    edge = [
        tile.top == 0 or tile.left == 0 or 512 in (tile.top + tile.height, tile.left + tile.width)
        for tile in plan.tiles
    ]
    assert shared == [not at_edge for at_edge in edge]
    assert any(shared)


def test_single_tile_is_kept_without_a_copy() -> None:
    plan = plan_tiles(64, 64, stride=32, halo=Halo(0, 0, 0, 0), whole_pixels=1 << 20, tile=64)
    canvas = Canvas(plan, channels=1, kind="bits")
    bits = np.zeros((1, 64, 8), np.uint8)
    canvas.place(plan.tiles[0], bits)
    assert canvas.plane is bits


def test_canvas_refuses_what_is_missing_foreign_or_misshapen() -> None:
    plan = plan_tiles(64, 128, stride=32, halo=Halo(0, 0, 0, 0), whole_pixels=0, tile=64)
    canvas = Canvas(plan, channels=1, kind="labels")
    first, second = plan.tiles
    canvas.place(first, np.zeros((64, 64), np.uint8))
    assert canvas.missing == 1
    with pytest.raises(ValueError, match="1 of 2 tiles are missing"):
        _ = canvas.plane
    with pytest.raises(KeyError):
        canvas.place(first, np.zeros((64, 64), np.uint8))
    with pytest.raises(ValueError, match=r"result of a tile is \(64, 32\), expected \(64, 64\)"):
        canvas.place(second, np.zeros((64, 32), np.uint8))


def test_packed_rows_need_whole_bytes() -> None:
    plan = plan_tiles(4, 16, stride=4, halo=Halo(0, 0, 0, 0), whole_pixels=0, tile=4)
    with pytest.raises(ValueError, match="multiples of 8"):
        Canvas(plan, channels=1, kind="bits")
    assert Canvas(plan, channels=1, kind="labels").missing == len(plan.tiles)
