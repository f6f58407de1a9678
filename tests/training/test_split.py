"""What shares ground or origin stays on one side."""

from __future__ import annotations

import pytest

from app.errors import TrainingError
from app.training.split import groups, hold_back

PHOTOS = [f"photo{i:02d}" for i in range(20)]


def test_split_is_the_same_for_a_seed_and_has_the_asked_share() -> None:
    held = hold_back(PHOTOS, 0.2, seed=1)
    assert held == hold_back(list(reversed(PHOTOS)), 0.2, seed=1)
    assert len(held) == 4
    assert held != hold_back(PHOTOS, 0.2, seed=2)


def test_tiles_of_one_ground_at_all_zooms_are_one_group() -> None:
    names = ["t-10-10-18", "t-20-20-19", "t-21-21-19", "t-11-10-18", "t-90-90-18", "u-10-10-18"]
    assert groups(names) == [
        ["t-10-10-18", "t-11-10-18", "t-20-20-19", "t-21-21-19"],
        ["t-90-90-18"],
        ["u-10-10-18"],
    ]


def test_same_ground_in_two_places_is_one_group() -> None:
    assert groups(["0/t-10-10-18", "1/t-20-21-19", "0/photo", "1/photo"]) == [
        ["0/photo"],
        ["0/t-10-10-18", "1/t-20-21-19"],
        ["1/photo"],
    ]


def test_pattern_keeps_frames_of_one_film_together() -> None:
    names = [f"0/film{i}_{j}" for i in range(5) for j in range(4)]
    for seed in range(10):
        held = hold_back(names, 0.2, seed=seed, pattern=r"^(film\d)_")
        films = {name[:7] for name in held}
        assert held == {name for name in names if name[:7] in films}
        assert len(held) == 4
    with pytest.raises(TrainingError, match="not a regular expression"):
        groups(names, "(")


def test_large_groups_are_left_to_learn_from() -> None:
    names = [f"t-{i}-0-19" for i in range(50)] + [f"p{i}" for i in range(10)]
    for seed in range(10):
        held = hold_back(names, 0.1, seed=seed)
        assert len(held) == 6
        assert not any(name.startswith("t-") for name in held)


@pytest.mark.parametrize("share", [0.01, 0.5, 0.99])
def test_both_sides_have_something(share: float) -> None:
    for names in (["a", "b"], ["a", "t-0-0-1", "t-1-0-1"], PHOTOS):
        held = hold_back(names, share, seed=1)
        assert 0 < len(held) < len(names)


def test_one_ground_cannot_be_split() -> None:
    with pytest.raises(TrainingError, match="--validate"):
        hold_back(["t-0-0-19", "t-1-0-19"], 0.5, seed=1)
