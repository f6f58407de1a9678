"""How many front ends, when one process will do, and when to give up."""

from __future__ import annotations

from typing import Any

import pytest

from app.fronts import count
from app.fronts.count import Pace, front_ends, one_process
from app.fronts.patience import Patience
from app.settings import Settings


@pytest.mark.parametrize(
    ("rate", "host_s", "cores", "expected"),
    [
        (5.0, 0.004, 16, 1),  # a slow device: one front end has nothing to do most of the time
        (2000.0, 0.004, 16, 8),
        (2001.0, 0.004, 16, 9),
        (5000.0, 0.004, 16, 15),  # the engine keeps a core
        (5000.0, 0.004, 1, 1),
        (1e9, 0.004, 1000, 64),
    ],
)
def test_front_ends_are_as_many_cores_as_the_host_needs(
    rate: float, host_s: float, cores: int, expected: int
) -> None:
    assert front_ends(Pace(rate, host_s), cores) == expected


@pytest.mark.parametrize(
    ("settings", "cores", "driver", "expected"),
    [
        ({}, 16, False, True),  # the net takes every core
        ({"device": "cpu"}, 16, True, True),
        ({"device": "cpu", "engine_threads": 4}, 16, False, False),
        ({"device": "cpu", "engine_threads": 16}, 16, False, True),
        ({}, 16, True, False),
        ({"backend": "openvino"}, 16, True, True),
        ({"device": "cuda"}, 16, False, False),
        ({"device": "cuda"}, 2, True, True),
        ({"device": "cuda", "frontends": 1}, 16, True, True),
        ({"frontends": 2}, 1, False, False),
        # Models are changed where they are open, wherever that is.
        ({"frontends": 2, "admin_key": "secret", "watch_store_s": 10.0}, 2, False, False),
        ({"admin_key": "secret", "watch_store_s": 10.0}, 16, True, False),
    ],
)
def test_one_process_where_more_could_not_help(
    settings: dict[str, Any],
    cores: int,
    driver: bool,
    expected: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(count, "cores", lambda: cores)
    monkeypatch.setattr(count, "driver_present", lambda: driver)
    assert one_process(Settings.read(**settings)) == expected


def test_patience_grows_and_ends() -> None:
    patience = Patience(deaths=4, window_s=100.0)
    assert [patience.died(now) for now in (0.0, 1.0, 2.0, 3.0, 4.0)] == [0.0, 0.5, 1.0, 2.0, None]


def test_patience_forgets_what_is_long_ago() -> None:
    patience = Patience(deaths=2, window_s=100.0)
    assert [patience.died(now) for now in (0.0, 90.0, 180.0, 270.0, 500.0)] == [
        0.0,
        0.5,
        0.5,
        0.5,
        0.0,
    ]
