"""Which batch a device is given, as pure state: no thread, no clock."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from app.serving.costs import Costs
from app.serving.lanes import Flow, Item, Lane, Lanes
from tests.fakes import FakeEngine


def lanes(costs: Costs | None = None) -> Lanes:
    return Lanes(costs=costs or Costs(), max_batch=8, max_batch_pixels=64 * 2**20, max_hold_s=0.002)


def item(lane: Lane, flow: Flow | None = None) -> Item:
    pixels = np.zeros((1, 1, 3), np.uint8)
    return Item(lane, flow or Flow(deadline=1e9), pixels, 0.5, False, lambda item, outcome: None)


def test_tile_of_more_than_a_megapixel_is_launched_alone() -> None:
    waiting, engine = lanes(), FakeEngine(sizes=(1, 2, 4))
    small, large = Lane(engine, 1024, 1024), Lane(engine, 1024, 1056)
    for lane in (small, large):
        for _ in range(4):
            waiting.put(item(lane), 0.0)
    taken = [waiting.take(1.0, idle=True).batch for _ in range(5)]
    assert sorted(len(batch) for batch in taken) == [1, 1, 1, 1, 4]
    assert all(len(batch) == 1 for batch in taken if batch[0].lane == large)


def test_full_batch_is_fixed_early_only_where_it_is_soon_done() -> None:
    costs, engine = Costs(), FakeEngine(sizes=(1, 2))
    quick, slow = Lane(engine, 32, 32), Lane(engine, 64, 64)
    costs.observe(quick, items=2, pixels=quick.pixels, seconds=0.01)
    costs.observe(slow, items=2, pixels=slow.pixels, seconds=0.4)
    for lane, early in ((quick, 2), (slow, 0)):
        waiting = lanes(costs)
        for _ in range(2):
            waiting.put(item(lane), 0.0)
        assert waiting.full(lane, 1.0)
        assert len(waiting.take(1.0, idle=False).batch) == early
        # A free device takes it at once, long or not.
        assert len(waiting.take(1.0, idle=True).batch) == 2 - early


@pytest.mark.parametrize(("weight", "between"), [(1.0, 4), (0.5, 8)])
def test_light_flow_lets_more_of_the_others_go_first(weight: float, between: int) -> None:
    """One request of large tiles, one of small ones, both with plenty waiting."""
    waiting, engine = lanes(), FakeEngine(sizes=(1,))
    large, small = Lane(engine, 64, 64), Lane(engine, 32, 32)
    light, plain = Flow(deadline=1e9, weight=weight), Flow(deadline=1e9)
    for _ in range(4):
        waiting.put(item(large, light), 0.0)
    for _ in range(40):
        waiting.put(item(small, plain), 0.0)
    order = [waiting.take(1.0, idle=True).batch[0].lane for _ in range(30)]
    tiles = [at for at, lane in enumerate(order) if lane == large]
    gaps = [b - a - 1 for a, b in itertools.pairwise(tiles)]
    # A large tile has four times the pixels of a small one.
    assert set(gaps) == {between}
