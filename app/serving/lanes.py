"""Tiles that wait for a device, in lanes of one model and one shape: who goes next, and with whom.

Pure state: no thread, no clock of its own, no sleeping. The batcher holds its lock around every
call.

Between requests the order is weighted fairness by pixels (start-time fair queueing, Goyal, Vin and
Cheng, 1996): each request is a flow, each tile gets a start tag, the smallest tag goes first. A
huge picture thus shares the device with small ones instead of blocking them, and is never starved
itself.
"""

from __future__ import annotations

import heapq
import itertools
from bisect import bisect_right
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from app.engine.base import Engine
from app.serving.costs import Costs
from app.types import Inference, Pixels

Outcome = Inference | BaseException

# A device cannot be interrupted, so a launch is what everybody else waits for. A tile of more than
# a megapixel keeps any device busy by itself: two in a launch would gain nothing but that wait.
_ALONE = 1 << 20
# How many times as many tiles a second a larger batch must give to leave those behind that have
# time for a smaller one only.
_BETTER = 1.25
# A launch that takes longer than this (seconds) is not fixed while another runs: stacking it costs
# little beside it, and who comes meanwhile may go first.
_LONG_S = 0.05


class Lane(NamedTuple):
    """What may share a batch: one engine, one tile shape.

    A tuple, because it is looked up some twenty times for each tile. An engine equals itself alone.
    """

    engine: Engine
    height: int
    width: int

    @property
    def pixels(self) -> int:
        return self.height * self.width

    @property
    def words(self) -> str:
        """For logs and metrics."""
        return f"{self.width}x{self.height}"


@dataclass(slots=True, eq=False)
class Flow:
    """One request: all its tiles share it. `gone` means that nobody waits any more.

    `weight`: its share of the device beside others of weight 1, while they want it too.
    """

    deadline: float
    priority: int = 0
    gone: bool = False
    finish: float = 0.0
    waiting: int = 0
    weight: float = 1.0


def _keep(item: Item) -> None:
    """For pixels that belong to the item alone."""


@dataclass(slots=True, eq=False)
class Item:
    """One tile in the queue. It owns its way back: `deliver` is called once, from any thread.

    `device_s` is its share of the batch it was computed in. `release` is called once too, after
    `deliver` or instead of it: nobody looks at the pixels any more.
    """

    lane: Lane
    flow: Flow
    pixels: Pixels
    threshold: float
    probability: bool
    deliver: Callable[[Item, Outcome], None]
    arrived: float = 0.0
    tag: float = 0.0
    order: int = 0
    launched: float = 0.0
    device_s: float = 0.0
    delivered: bool = False
    release: Callable[[Item], None] = _keep

    def __lt__(self, other: Item) -> bool:
        return self._key() < other._key()

    def _key(self) -> tuple[int, float, float, int]:
        return (self.flow.priority, self.tag, self.flow.deadline, self.order)


@dataclass(slots=True)
class Taken:
    """The answer of `Lanes.take`: a batch to launch, or when to ask again (None: when told)."""

    batch: list[Item] = field(default_factory=list)
    expired: list[Item] = field(default_factory=list)
    dropped: list[Item] = field(default_factory=list)
    trigger: str = ""
    ask_again: float | None = None


class Lanes:
    """Every waiting tile of one device."""

    def __init__(
        self, *, costs: Costs, max_batch: int, max_batch_pixels: int, max_hold_s: float
    ) -> None:
        self.costs = costs
        self._max_batch = max_batch
        self._max_batch_pixels = max_batch_pixels
        self._max_hold = max_hold_s
        self._heaps: dict[Lane, list[Item]] = {}
        self._coming: dict[Lane, int] = {}
        self._limits: dict[Lane, tuple[int, float]] = {}
        self._virtual = 0.0
        self._flows = 0
        self._order = itertools.count()
        self.waiting = 0
        self.waiting_pixels = 0

    def put(self, item: Item, now: float) -> None:
        """Queue a tile."""
        item.arrived = now
        item.order = next(self._order)
        item.tag = max(self._virtual, item.flow.finish)
        item.flow.finish = item.tag + item.lane.pixels / item.flow.weight
        self._push(item.lane, item)

    def expect(self, lane: Lane, count: int) -> None:
        """`count` more (or, negative, fewer) tiles of this lane are known to be on their way."""
        left = self._coming.get(lane, 0) + count
        if left > 0:
            self._coming[lane] = left
        else:
            self._coming.pop(lane, None)

    def lower(self, lane: Lane, items: int, until: float) -> None:
        """Launch at most `items` of this lane at once until that moment (the device ran out of
        memory).
        """
        self._limits[lane] = (max(1, items), until)

    def largest(self, lane: Lane, now: float) -> int:
        """Most tiles that one launch of this lane takes."""
        # Bounded by pixels too: a 1024 x 1024 tile is 16 times a 256 x 256 one.
        pixels = lane.height * lane.width
        within = min(self._max_batch, max(1, self._max_batch_pixels // pixels))
        if pixels > _ALONE:
            within = 1
        sizes = lane.engine.batch_sizes
        fitting = bisect_right(sizes, within)
        limit = sizes[fitting - 1] if fitting else 1
        lowered = self._limits.get(lane)
        if lowered is not None:
            if now < lowered[1]:
                return min(limit, lowered[0])
            del self._limits[lane]
        return limit

    def full(self, lane: Lane, now: float) -> bool:
        """Whether a full batch of this lane waits."""
        return len(self._heaps.get(lane, ())) >= self.largest(lane, now)

    def take(self, now: float, *, idle: bool) -> Taken:
        """The next batch. `idle`: the device has nothing to do; otherwise only a full batch goes,
        and only one that is soon done.

        An idle device takes what is there at once, unless another tile of the lane is known to be
        on its way and the batch is not full: then it waits for it at most `max_hold_s`, counted
        from the first item, and never into a deadline. A lone request never waits.

        A batch is as large as its deadlines allow. What could not be done in time even alone is not
        begun: its answer would come to nobody, at the cost of those behind it.
        """
        taken = Taken()
        lane = self._next_lane(now, taken)
        if lane is None:
            return taken
        heap = self._heaps[lane]
        largest = self.largest(lane, now)
        if not idle and self.predict_s(lane, largest, now) > _LONG_S:
            return taken
        if len(heap) < largest:
            if not idle:
                return taken
            hold_until = self._hold(lane, heap, largest)
            if now < hold_until:
                taken.ask_again = hold_until
                return taken
        coming = self._coming.get(lane, 0)
        items: list[Item] = []
        while heap and len(items) < largest:
            item = self._pop(lane)
            if self._alive(item, now, taken):
                items.append(item)
        taken.batch = self._in_time(lane, items, now, taken)
        if len(taken.batch) == largest:
            taken.trigger = "full"
        elif len(taken.batch) < len(items):
            taken.trigger = "deadline"
        else:
            taken.trigger = "hold" if coming else "idle"
        return taken

    def _in_time(self, lane: Lane, items: list[Item], now: float, taken: Taken) -> list[Item]:
        """Those of `items`, in their order, that go together and are done in time by what this lane
        is known to cost. The others wait on, or have expired if there is no use in it.
        """
        if self.costs.fit(lane) is None:
            return items

        def done(count: int) -> float:
            return now + self.predict_s(lane, count, now)

        together = done(len(items))
        if all(item.flow.deadline >= together for item in items):
            return items
        soonest = done(1)
        able = [item for item in items if item.flow.deadline >= soonest]
        if not able and not self._heaps[lane]:
            # A prediction that is never put to the test is never corrected.
            able = [max(items, key=lambda item: item.flow.deadline)]
            batch = able
        else:
            batch = _best(able, done, now)
        taken.expired += [item for item in items if item not in able]
        for item in able:
            if item not in batch:
                self._push(lane, item)
        return batch

    def _push(self, lane: Lane, item: Item) -> None:
        """Count it, with the tag that it has."""
        heapq.heappush(self._heaps.setdefault(lane, []), item)
        self.waiting += 1
        self.waiting_pixels += lane.pixels
        self._flows += item.flow.waiting == 0
        item.flow.waiting += 1

    def _hold(self, lane: Lane, heap: list[Item], largest: int) -> float:
        """Until when a batch that is not full is worth holding back."""
        if not self._coming.get(lane):
            return float("-inf")
        first = min(item.arrived for item in heap)
        run = self.costs.predict(lane, items=len(heap) + 1, pixels=lane.pixels, largest=largest)
        return min(first + self._max_hold, min(i.flow.deadline for i in heap) - run)

    def _next_lane(self, now: float, taken: Taken) -> Lane | None:
        """The lane whose head goes first, heads that nobody waits for thrown out."""
        best: Lane | None = None
        for lane in list(self._heaps):
            heap = self._heaps[lane]
            while heap and not self._living(heap[0], now):
                self._alive(self._pop(lane), now, taken)
            if not heap:
                del self._heaps[lane]
            elif best is None or heap[0] < self._heaps[best][0]:
                best = lane
        return best

    @staticmethod
    def _living(item: Item, now: float) -> bool:
        return not item.flow.gone and now < item.flow.deadline

    def _alive(self, item: Item, now: float, taken: Taken) -> bool:
        if item.flow.gone:
            taken.dropped.append(item)
            return False
        if now >= item.flow.deadline:
            taken.expired.append(item)
            return False
        # Virtual time runs at the rate at which each waiting flow is served.
        self._virtual = max(self._virtual, item.tag) + item.lane.pixels / (self._flows + 1)
        return True

    def _pop(self, lane: Lane) -> Item:
        item = heapq.heappop(self._heaps[lane])
        self.waiting -= 1
        self.waiting_pixels -= lane.pixels
        item.flow.waiting -= 1
        self._flows -= item.flow.waiting == 0
        return item

    def drain(self) -> list[Item]:
        """Take everything out, for a device that is gone."""
        items = [item for heap in self._heaps.values() for item in heap]
        for lane in list(self._heaps):
            while self._heaps[lane]:
                self._pop(lane)
        self._heaps.clear()
        return items

    def forget(self, engine: Engine) -> list[Item]:
        """Take out every tile of an engine, and all that is known of its lanes."""

        def gone(lane: Hashable) -> bool:
            return isinstance(lane, Lane) and lane.engine is engine

        items = []
        for lane in [lane for lane in self._heaps if gone(lane)]:
            while self._heaps[lane]:
                items.append(self._pop(lane))
            del self._heaps[lane]
        for table in (self._coming, self._limits):
            for lane in [lane for lane in table if gone(lane)]:
                del table[lane]
        self.costs.forget(gone)
        return items

    def oldest(self) -> float | None:
        """Arrival of the oldest waiting tile."""
        return min((i.arrived for heap in self._heaps.values() for i in heap), default=None)

    def backlog_s(self, now: float) -> float:
        """Predicted seconds of everything that waits."""
        seconds = 0.0
        for lane, heap in self._heaps.items():
            seconds += self.predict_s(lane, len(heap), now)
        return seconds

    def predict_s(self, lane: Lane, items: int, now: float) -> float:
        """Predicted seconds of `items` tiles of this lane alone."""
        return self.costs.predict(
            lane, items=items, pixels=lane.pixels, largest=self.largest(lane, now)
        )


def _best(able: list[Item], done: Callable[[int], float], now: float) -> list[Item]:
    """The first few of `able` for whom there is time together, or all that have time for the whole
    batch, if that gives many more a second. `done(n)`: the moment at which n tiles would be.
    """
    few = next(
        (
            able[:count]
            for count in range(len(able), 0, -1)
            if min(item.flow.deadline for item in able[:count]) >= done(count)
        ),
        [],
    )
    many = [item for item in able if item.flow.deadline >= done(len(able))]

    def rate(batch: list[Item]) -> float:
        return len(batch) / (done(len(batch)) - now) if batch else 0.0

    return many if rate(many) > _BETTER * rate(few) else few


def stack(items: list[Item]) -> tuple[Pixels, np.ndarray[tuple[int], np.dtype[np.float32]]]:
    """(N, H, W, 3) uint8, where the engine wants it, and (N,) float32."""
    pixels = items[0].lane.engine.stage([item.pixels for item in items])
    return pixels, np.array([item.threshold for item in items], np.float32)
