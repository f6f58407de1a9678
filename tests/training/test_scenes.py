"""Tiles that touch make one scene; ground without a tile is not labelled."""

from __future__ import annotations

import numpy as np
import pytest

from app.errors import TrainingError
from app.training.losses import IGNORE
from app.training.scenes import Scene, Tile, grids, join, touching


def tile(name: str, value: int, size: tuple[int, int] = (4, 6)) -> Scene:
    return Scene(
        name,
        np.full((*size, 3), value, np.uint8),
        np.full((1, *size), value % 2, np.uint8),
    )


def test_names_tell_tiles() -> None:
    assert Tile.of("town-a-12-7-19") == Tile("town-a", 19, 12, 7)
    assert Tile.of("holiday-2019") is None
    assert Tile("t", 20, 13, 6).at(19) == Tile("t", 19, 6, 3)


def test_tiles_are_joined_with_x_to_the_right_and_y_down_and_gaps_ignored() -> None:
    names = ["t-10-5-19", "t-11-5-19", "t-11-6-19"]
    scene = join({name: tile(name, value) for value, name in enumerate(names, start=1)})
    assert scene.name == "t-19-10-5"
    assert scene.pixels.shape == (8, 12, 3)
    assert scene.labels.shape == (1, 8, 12)
    assert (scene.pixels[:4, :6] == 1).all()
    assert (scene.pixels[:4, 6:] == 2).all()
    assert (scene.pixels[4:, 6:] == 3).all()
    assert (scene.labels[0, 4:, :6] == IGNORE).all()
    assert (scene.labels[0, :4] != IGNORE).all()


def test_only_tiles_that_touch_are_one_scene() -> None:
    found = grids(["b", "t-0-0-19", "t-1-1-19", "t-5-5-19", "t-0-0-20", "u-1-0-19", "a"])
    assert found == [
        ["b"],
        ["a"],
        ["t-0-0-19", "t-1-1-19"],
        ["t-5-5-19"],
        ["t-0-0-20"],
        ["u-1-0-19"],
    ]


def test_groups_do_not_depend_on_order() -> None:
    places = [(0, 0), (1, 0), (2, 1), (7, 7), (8, 6)]
    assert touching(places) == touching(reversed(places))
    assert touching(places) == [[(0, 0), (1, 0), (2, 1)], [(7, 7), (8, 6)]]


def test_single_picture_stays_what_it_is() -> None:
    scene = tile("photo", 1)
    assert join({"photo": scene}) is scene


def test_tiles_of_different_size_cannot_be_joined() -> None:
    with pytest.raises(TrainingError, match="differ in size"):
        join({"t-0-0-1": tile("t-0-0-1", 1), "t-1-0-1": tile("t-1-0-1", 1, (8, 8))})
