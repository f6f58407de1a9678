"""The latency model: fits what was measured, guesses by pixels what was not."""

from __future__ import annotations

import numpy as np
import pytest

from app.serving.costs import Costs


def test_fit_recovers_a_line() -> None:
    costs = Costs()
    for n in (1, 2, 4, 8, 3):
        costs.observe("lane", items=n, pixels=100, seconds=0.01 * n + 0.05)
    assert costs.predict("lane", items=8, pixels=100, largest=8) == pytest.approx(0.13)
    # Sixteen items are two launches of eight.
    assert costs.predict("lane", items=16, pixels=100, largest=8) == pytest.approx(0.26)


def test_one_batch_size_is_taken_per_item() -> None:
    costs = Costs()
    costs.observe("lane", items=2, pixels=100, seconds=0.2)
    assert costs.predict("lane", items=3, pixels=100, largest=8) == pytest.approx(0.3)


def test_unknown_lane_is_judged_by_its_pixels() -> None:
    costs = Costs()
    assert costs.predict("new", items=4, pixels=1000, largest=8) == 0.0
    costs.observe("lane", items=1, pixels=100, seconds=0.2)
    assert costs.predict("new", items=1, pixels=1000, largest=8) == pytest.approx(2.0)


def test_old_launches_are_forgotten() -> None:
    costs = Costs()
    for _ in range(50):
        costs.observe("lane", items=1, pixels=100, seconds=1.0)
    for _ in range(50):
        costs.observe("lane", items=1, pixels=100, seconds=0.1)
    assert costs.predict("lane", items=1, pixels=100, largest=1) == pytest.approx(0.1)


def test_a_line_that_falls_is_not_believed() -> None:
    costs = Costs()
    costs.observe("lane", items=1, pixels=100, seconds=1.0)
    costs.observe("lane", items=8, pixels=100, seconds=0.5)
    assert costs.predict("lane", items=80, pixels=100, largest=8) >= 0.5


def test_fit_of_the_last_fifty_is_that_of_least_squares() -> None:
    random = np.random.default_rng(3)
    tiles = random.integers(1, 17, 2000)
    seconds = 0.003 * tiles + 0.02 + random.normal(0, 0.001, 2000)
    # What came before was of another device: seconds, not milliseconds.
    seconds[:1000] *= 1000
    costs = Costs()
    for n, took in zip(tiles, seconds, strict=True):
        costs.observe("lane", items=int(n), pixels=100, seconds=float(took))
    fit = np.polyfit(tiles[-50:], seconds[-50:], 1)
    assert costs.fit("lane") == pytest.approx(tuple(fit), rel=1e-6)
