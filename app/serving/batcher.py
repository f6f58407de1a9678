"""The batcher: between many requests and one device. It keeps nine laws, each with a test.

1. A failing item fails alone: a batch that raises is halved until the culprit is alone.
2. A cancelled item never touches a neighbour: an item owns its way back, there is no side table.
3. The device thread cannot die silently: it catches per batch, tells every waiter, and is watched.
4. Work that nobody waits for is dropped before the device sees it.
5. Everything is bounded: the door (admission) refuses; nothing here grows without it.
6. No sleeping: threads wait on a condition; the clock is an argument.
7. Waiting counts from the first item; a full batch goes at once; an idle device takes what is
there. 8. One batch is prepared while one computes; never two.
9. Every wait has an end: deadlines hold in the queue too; closing finishes what was taken.

Two threads: the device thread takes a batch when it is free and runs it; meanwhile the stager has
the next one stacked, if a full one is there. Neither knows asyncio, and each is woken only when
there is something for it to do: a thread woken for nothing costs more than most of our own code.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np

from app.engine.base import Engine
from app.errors import (
    DeadlineExceeded,
    DeviceOutOfMemory,
    EngineLost,
    InferenceFailed,
    NotReady,
    TernausError,
)
from app.serving.clock import Clock
from app.serving.costs import Costs
from app.serving.lanes import Flow, Item, Lane, Lanes, Outcome, Taken, stack
from app.serving.turns import Turns
from app.types import Inference, Pixels

log = logging.getLogger("ternaus.batcher")

# A lane whose batch did not fit the device's memory launches half as many for this long.
_MEMORY_CAUTION_S = 60.0

State = Literal["ok", "idle", "stalled", "lost"]


class Observer(Protocol):
    """What the batcher tells the metrics. Called from its threads; must be quick and never
    raise.
    """

    def batch(
        self, lane: Lane, *, items: int, largest: int, seconds: float, trigger: str
    ) -> None: ...
    def retried(self, cause: str) -> None: ...
    def dropped(self, stage: str, reason: str) -> None: ...


@dataclass(slots=True)
class _Staged:
    """A batch that is stacked and waits for the device."""

    items: list[Item]
    pixels: Pixels
    thresholds: np.ndarray[tuple[int], np.dtype[np.float32]]
    trigger: str


class Batcher:
    """Feeds one device with batches of waiting tiles."""

    def __init__(
        self,
        *,
        clock: Clock,
        observer: Observer,
        max_batch: int,
        max_batch_pixels: int,
        max_hold_s: float,
        stall_after_s: float,
        on_lost: Callable[[BaseException], None] = lambda exc: None,
    ) -> None:
        self._clock = clock
        self._observer = observer
        self._stall_after = stall_after_s
        self._on_lost = on_lost
        self._lanes = Lanes(
            costs=Costs(),
            max_batch=max_batch,
            max_batch_pixels=max_batch_pixels,
            max_hold_s=max_hold_s,
        )
        # One lock, three waiters: the device thread on `_changed`, the stager on `_room`, and on
        # `_finished` whoever lets an engine go. Taken by itself: a condition takes it in Python.
        self._lock = threading.RLock()
        self._changed = threading.Condition(self._lock)
        self._room = threading.Condition(self._lock)
        self._finished = threading.Condition(self._lock)
        self._device = Turns()
        self._staged: _Staged | None = None
        self._running: list[Item] = []
        self._running_since = 0.0
        self._last_finish = clock.now()
        self._busy_s = 0.0
        self._staging: list[Item] = []
        self._exclusive_since: float | None = None
        self._lost: BaseException | None = None
        self._closing = False
        self._threads = [
            threading.Thread(
                target=self._guard, args=(self._stage_loop,), name="ternaus-stager", daemon=True
            ),
            threading.Thread(
                target=self._guard, args=(self._device_loop,), name="ternaus-device", daemon=True
            ),
        ]

    def start(self) -> None:
        """Start the threads."""
        for thread in self._threads:
            thread.start()

    def submit(self, item: Item) -> None:
        """Queue a tile; `item.deliver` will be called exactly once unless its flow is gone.

        Raises NotReady when the device is lost or the batcher closed.
        """
        with self._lock:
            if self._lost is not None or self._closing:
                raise NotReady("the engine is gone") from self._lost
            now = self._clock.now()
            self._lanes.put(item, now)
            if not self._running:
                self._changed.notify()
            elif self._staged is None and self._lanes.full(item.lane, now):
                self._room.notify()

    def forget(self, flow: Flow) -> None:
        """Nobody waits for this request any more; what is left of it is dropped."""
        with self._lock:
            flow.gone = True
            if flow.waiting:
                (self._room if self._running else self._changed).notify()

    def expect(self, lane: Lane, count: int) -> None:
        """Tell that `count` tiles of this lane are (or, negative, are no longer) on their way."""
        with self._lock:
            self._lanes.expect(lane, count)
            if count < 0 and self._lanes.waiting and not self._running:
                # A batch may be held back for what will not come.
                self._changed.notify()

    def predicted_s(self, lane: Lane, items: int) -> float:
        """Predicted seconds of `items` tiles of `lane` on an idle device."""
        with self._lock:
            return self._lanes.predict_s(lane, items, self._clock.now())

    def learnt(self, lane: Lane) -> tuple[float, float, int]:
        """What `predicted_s` rests on: seconds per tile and per launch, most tiles of a launch."""
        with self._lock:
            costs, largest = self._lanes.costs, self._lanes.largest(lane, self._clock.now())
            fit = costs.fit(lane) or (costs.seconds_per_pixel * lane.pixels, 0.0)
            return (*fit, largest)

    def estimated_wait_s(self) -> float:
        """Predicted seconds until new work would begin."""
        with self._lock:
            now = self._clock.now()
            wait = self._lanes.backlog_s(now)
            if self._staged is not None:
                items = self._staged.items
                wait += self._lanes.predict_s(items[0].lane, len(items), now)
            if self._running:
                whole = self._lanes.predict_s(self._running[0].lane, len(self._running), now)
                wait += max(0.0, whole - (now - self._running_since))
            return wait

    def state(self) -> State:
        """What was observed: progress, nothing to do, no progress, or a device beyond help."""
        with self._lock:
            if self._lost is not None:
                return "lost"
            stager, device = self._threads
            if not (stager.is_alive() and device.is_alive()) and not self._closing:
                return "lost"
            waiting = self._lanes.waiting > 0
            if not (waiting or self._running or self._staged) and self._exclusive_since is None:
                return "idle"
            if self._clock.now() - self._last_finish <= self._stall_after:
                # It finished something just now: who has waited since when cannot change that.
                return "ok"
            arrivals = [item.arrived for item in self._running]
            if self._staged:
                arrivals += [item.arrived for item in self._staged.items]
            oldest = self._lanes.oldest()
            if oldest is not None:
                arrivals.append(oldest)
            if self._exclusive_since is not None:
                arrivals.append(self._exclusive_since)
            since = max(self._last_finish, min(arrivals))
            return "stalled" if self._clock.now() - since > self._stall_after else "ok"

    def exclusively(self, work: Callable[..., None], *arguments: object) -> None:
        """Run `work`, which uses an engine, while no batch does. Blocks the calling thread."""
        with self.turn():
            work(*arguments)

    @contextlib.contextmanager
    def turn(self) -> Iterator[None]:
        """The device for the calling thread, between two batches, until the block ends."""
        with self._device.turn():
            with self._lock:
                self._exclusive_since = self._clock.now()
            try:
                yield
            finally:
                with self._lock:
                    self._exclusive_since = None
                    self._last_finish = self._clock.now()

    def forget_engine(self, engine: Engine) -> None:
        """Wait until no batch of an engine is at work, and drop all that is known of its lanes.

        For an engine that is about to be closed, whose requests are done: what still waits for it
        is what nobody waits for. Blocks the calling thread.
        """
        with self._lock:
            left = self._lanes.forget(engine)
            while any(item.lane.engine is engine for item in self._at_work()):
                if self._lost is not None or self._closing:
                    break
                self._clock.wait(self._finished, None)
            # What finished just now has been measured meanwhile.
            self._lanes.forget(engine)
        for item in left:
            if item.flow.gone:
                self._release(item)
                self._observer.dropped("queue", "client_gone")
            else:
                self._fail([item], NotReady(f"the model {engine.spec.label} was closed"))

    def _at_work(self) -> list[Item]:
        staged = self._staged.items if self._staged else []
        return [*self._staging, *staged, *self._running]

    def idle_for_s(self) -> float:
        """Seconds since the device last finished something; 0 while work waits."""
        with self._lock:
            if self._running or self._staged or self._lanes.waiting:
                return 0.0
            return self._clock.now() - self._last_finish

    def figures(self) -> dict[str, float]:
        """Gauges: tiles, pixels and seconds that wait, age of the oldest, device seconds so far."""
        wait = self.estimated_wait_s()
        with self._lock:
            oldest = self._lanes.oldest()
            now = self._clock.now()
            running = now - self._running_since if self._running else 0.0
            return {
                "tiles": self._lanes.waiting + (len(self._staged.items) if self._staged else 0),
                "pixels": self._lanes.waiting_pixels,
                "oldest_age_seconds": 0.0 if oldest is None else now - oldest,
                "estimated_wait_seconds": wait,
                "busy_seconds": self._busy_s + running,
                "seconds_per_pixel": self._lanes.costs.seconds_per_pixel,
            }

    def close(self, timeout_s: float | None = 10.0) -> None:
        """Finish what was taken, then stop the threads. Idempotent."""
        with self._lock:
            self._closing = True
            self._wake_all()
        for thread in self._threads:
            if thread.is_alive() and thread is not threading.current_thread():
                thread.join(timeout_s)

    def _wake_all(self) -> None:
        """The lock is held."""
        for waiting in (self._changed, self._room, self._finished):
            waiting.notify_all()

    # The stager: has a full batch ready while the device computes.

    def _stage_loop(self) -> None:
        while True:
            with self._lock:
                taken = None
                while taken is None:
                    if self._lost is not None or self._closing:
                        return
                    if self._running and self._staged is None:
                        taken = self._lanes.take(self._clock.now(), idle=False)
                        if taken.batch or taken.expired or taken.dropped:
                            break
                        taken = None
                    self._clock.wait(self._room, None)
                self._staging = taken.batch
            self._tell(taken)
            if not taken.batch:
                continue
            staged = self._stacked(taken)
            with self._lock:
                self._staging = []
                self._staged = staged
                self._changed.notify()
                self._finished.notify_all()

    def _tell(self, taken: Taken) -> None:
        """Those that were taken and go no further."""
        for item in taken.dropped:
            self._observer.dropped("queue", "client_gone")
            self._release(item)
        for item in taken.expired:
            self._expire(item)

    def _stacked(self, taken: Taken) -> _Staged | None:
        """The batch in one piece of memory; None where there is none, and its items were told."""
        try:
            pixels, thresholds = stack(taken.batch)
        except BaseException as exc:  # MemoryError: these items fail, the thread lives on
            self._fail(taken.batch, exc)
            return None
        return _Staged(taken.batch, pixels, thresholds, taken.trigger)

    # The device thread: one batch at a time, whatever happens in it.

    def _device_loop(self) -> None:
        while True:
            taken, staged = None, None
            with self._lock:
                while taken is None and staged is None:
                    if self._lost is not None:
                        return
                    if self._staged is not None:
                        staged, self._staged = self._staged, None
                        self._begin(staged.items)
                        break
                    until = None
                    # What the stager has in hand was first.
                    if not self._staging:
                        taken = self._lanes.take(self._clock.now(), idle=True)
                        if taken.batch or taken.expired or taken.dropped:
                            self._begin(taken.batch)
                            break
                        if self._closing and not self._lanes.waiting:
                            return
                        until, taken = taken.ask_again, None
                    self._clock.wait(self._changed, until)
            items = staged.items if staged else []
            try:
                if taken is not None:
                    items = taken.batch
                    self._tell(taken)
                    staged = self._stacked(taken) if taken.batch else None
                    self._running_since = self._clock.now()
                if staged is not None:
                    self._launch(staged)
            except BaseException as exc:  # our own defect: no waiter may be left hanging
                self._lose(exc, items)
                raise
            finally:
                with self._lock:
                    if self._running:
                        self._last_finish = self._clock.now()
                        self._busy_s += self._last_finish - self._running_since
                        self._running = []
                        self._finished.notify_all()

    def _begin(self, items: list[Item]) -> None:
        """The device is taken; the lock is held."""
        self._running, self._running_since = items, self._clock.now()
        if items and self._lanes.waiting:
            self._room.notify()

    def _launch(self, staged: _Staged) -> None:
        now = self._clock.now()
        keep = []
        for index, item in enumerate(staged.items):
            if item.flow.gone:
                self._observer.dropped("staged", "client_gone")
                self._release(item)
            elif now >= item.flow.deadline:
                self._expire(item)
            else:
                item.launched = now
                keep.append(index)
        if not keep:
            return
        pixels, thresholds = staged.pixels, staged.thresholds
        if len(keep) < len(staged.items):
            pixels, thresholds = pixels[keep], thresholds[keep]
        self._run([staged.items[i] for i in keep], pixels, thresholds, staged.trigger)

    def _run(
        self,
        items: list[Item],
        pixels: Pixels,
        thresholds: np.ndarray[tuple[int], np.dtype[np.float32]],
        trigger: str,
    ) -> None:
        """Run a batch; on failure run its halves, down to single items. Never raises."""
        lane = items[0].lane
        begun = self._clock.now()
        try:
            with self._device.turn():
                begun = self._clock.now()
                result = lane.engine.infer(
                    pixels, thresholds, probability=any(item.probability for item in items)
                )
        except EngineLost as exc:
            self._lose(exc, items)
            return
        except BaseException as exc:  # whatever an engine raises must not end the device thread
            memory = isinstance(exc, DeviceOutOfMemory | MemoryError)
            if len(items) == 1:
                self._fail(items, exc)
                return
            self._observer.retried("oom" if memory else "poison")
            # As text: a record of the log may be kept, and the exception with it.
            why = repr(exc)
            log.warning("batch of %d tiles %s failed, isolating: %s", len(items), lane.words, why)
            if memory:
                with self._lock:
                    self._lanes.lower(lane, len(items) // 2, self._clock.now() + _MEMORY_CAUTION_S)
        else:
            self._computed(items, result, begun, trigger)
            return
        # Not while the exception is handled: as long as it lives, so does all that was computed of
        # the batch, and the halves would find no memory either.
        part = 1 if len(items) <= 4 and not memory else (len(items) + 1) // 2
        for at in range(0, len(items), part):
            if self._lost is not None:
                self._fail(items[at:], NotReady("the engine is gone"))
                return
            end = at + part
            self._run(items[at:end], pixels[at:end], thresholds[at:end], "retry")

    def _computed(self, items: list[Item], result: Inference, begun: float, trigger: str) -> None:
        """Give a batch's results to those who wait."""
        lane = items[0].lane
        seconds = self._clock.now() - begun
        with self._lock:
            self._lanes.costs.observe(lane, items=len(items), pixels=lane.pixels, seconds=seconds)
            largest = self._lanes.largest(lane, begun)
        self._observer.batch(
            lane, items=len(items), largest=largest, seconds=seconds, trigger=trigger
        )
        for index, item in enumerate(items):
            item.device_s = seconds / len(items)
            self._deliver(item, _outcome(result, index))

    def _deliver(self, item: Item, outcome: Outcome) -> None:
        if item.delivered:
            return
        item.delivered = True
        try:
            if item.flow.gone:
                self._observer.dropped("computed", "client_gone")
            else:
                item.deliver(item, outcome)
        except (
            Exception
        ):  # a waiter that vanished (a closed event loop) must not hurt its neighbours
            log.exception("an outcome could not be delivered")
        self._release(item)

    @staticmethod
    def _release(item: Item) -> None:
        try:
            item.release(item)
        except Exception:
            log.exception("the pixels of a tile could not be given back")

    def _expire(self, item: Item) -> None:
        self._observer.dropped("queue", "deadline")
        self._deliver(
            item, DeadlineExceeded("too little time was left when its turn came", stage="queue")
        )

    def _fail(self, items: list[Item], exc: BaseException) -> None:
        if not isinstance(exc, TernausError):
            log.error("inference failed", exc_info=exc)
            wrapped: TernausError = (
                DeviceOutOfMemory("no memory for this picture")
                if isinstance(exc, MemoryError)
                else InferenceFailed("inference failed for this picture")
            )
            wrapped.__cause__ = exc
            exc = wrapped
        for item in items:
            self._deliver(item, exc)

    def _lose(self, exc: BaseException, items: list[Item]) -> None:
        """The device is beyond help: tell everybody, take nothing more."""
        with self._lock:
            first = self._lost is None
            self._lost = exc
            waiting = self._lanes.drain()
            if self._staged is not None:
                waiting += self._staged.items
                self._staged = None
            self._wake_all()
        log.critical("the engine is lost: %r", exc)
        self._fail([*items, *waiting], NotReady("the engine was lost"))
        if first:
            self._on_lost(exc)

    def _guard(self, loop: Callable[[], None]) -> None:
        """If a loop itself breaks, that is a lost engine, never silence."""
        try:
            loop()
        except BaseException as exc:
            log.critical("a batcher thread broke", exc_info=exc)
            self._lose(exc, self._running)


def _outcome(result: Inference, index: int) -> Outcome:
    if not result.finite[index]:
        return InferenceFailed("the net gave values that are not finite for this picture")
    return result.item(index)
