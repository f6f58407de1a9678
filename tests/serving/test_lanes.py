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


def timed(lane: Lane, per_tile: float, per_launch: float) -> Costs:
    """What is known of a device after two launches."""
    costs = Costs()
    for count in (1, 4):
        seconds = per_tile * count + per_launch
        costs.observe(lane, items=count, pixels=lane.pixels, seconds=seconds)
    return costs


def waiting_until(costs: Costs, lane: Lane, *deadlines: float) -> tuple[Lanes, dict[Item, float]]:
    waiting = lanes(costs)
    items = {item(lane, Flow(deadline=each)): each for each in deadlines}
    for each in items:
        waiting.put(each, 0.0)
    return waiting, items


def drained(waiting: Lanes, items: dict[Item, float], until: Costs, lane: Lane) -> list[float]:
    """Deadlines of what a device that keeps to its predictions has done in time."""
    now, done = 0.0, []
    while waiting.waiting:
        batch = waiting.take(now, idle=True).batch
        if batch:
            now += until.predict(lane, items=len(batch), pixels=lane.pixels, largest=8)
        done += [items[each] for each in batch if items[each] >= now]
    return done


def test_batch_is_as_large_as_its_deadlines_allow() -> None:
    """A device that gains nothing by batches: eight at once would be too late for the first."""
    lane = Lane(FakeEngine(sizes=(1, 2, 4, 8)), 32, 32)
    costs = timed(lane, 1.0, 0.0)
    waiting, items = waiting_until(costs, lane, *(1.5 + n for n in range(8)))
    assert drained(waiting, items, costs, lane) == [1.5 + n for n in range(8)]


def test_what_cannot_be_done_in_time_is_not_begun() -> None:
    lane = Lane(FakeEngine(sizes=(1,)), 32, 32)
    waiting, items = waiting_until(timed(lane, 1.0, 0.0), lane, 0.9, 1.1)
    hopeless, able = items
    # Each take is one decision: the first only throws out.
    first = waiting.take(0.0, idle=True)
    assert (first.batch, first.expired) == ([], [hopeless])
    assert waiting.take(0.0, idle=True).batch == [able]


def test_prediction_is_put_to_the_test_where_nobody_waits_behind() -> None:
    lane = Lane(FakeEngine(sizes=(1,)), 32, 32)
    waiting, items = waiting_until(timed(lane, 1.0, 0.0), lane, 0.9)
    assert waiting.take(0.0, idle=True).batch == list(items)


def test_nothing_is_thrown_out_where_nothing_is_known() -> None:
    lane = Lane(FakeEngine(sizes=(1, 2)), 32, 32)
    waiting, items = waiting_until(Costs(), lane, 1e-9, 2e-9)
    assert waiting.take(0.0, idle=True).batch == list(items)


def test_one_that_is_nearly_late_does_not_cost_the_others_their_batch() -> None:
    """A device that takes as long for eight as for one: the first has no time for eight."""
    lane = Lane(FakeEngine(sizes=(1, 2, 4, 8)), 32, 32)
    costs = timed(lane, 0.1, 1.0)
    waiting, items = waiting_until(costs, lane, 1.15, *(1.9,) * 7, *(3.7,) * 8)
    assert sorted(drained(waiting, items, costs, lane)) == [1.9] * 7 + [3.7] * 8


def test_what_waits_on_keeps_its_place() -> None:
    lane = Lane(FakeEngine(sizes=(1, 2, 4)), 32, 32)
    waiting, items = waiting_until(timed(lane, 1.0, 0.0), lane, 1.5, 9.0, 9.0, 9.0)
    taken = waiting.take(0.0, idle=True)
    assert (taken.batch, taken.trigger) == ([next(iter(items))], "deadline")
    assert (waiting.waiting, waiting.waiting_pixels) == (3, 3 * lane.pixels)
    assert waiting.take(1.0, idle=True).batch == list(items)[1:]
