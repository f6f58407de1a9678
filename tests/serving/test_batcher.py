"""The nine laws, on a fake clock and a fake engine. Nothing here sleeps."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from typing import Any

import numpy as np
import pytest

from app.errors import (
    DeadlineExceeded,
    DeviceOutOfMemory,
    EngineLost,
    InferenceFailed,
    NotReady,
    TernausError,
)
from app.serving.batcher import Batcher
from app.serving.lanes import Flow, Item, Lane, Outcome
from app.types import Inference, Pixels
from tests.fakes import FakeClock, FakeEngine

# A bound on waiting for a thread that has been told to go on: generous, and only reached on
# failure.
PATIENCE = 20.0


class Record:
    """An observer that remembers."""

    def __init__(self) -> None:
        self.batches: list[tuple[int, str]] = []
        self.retries: list[str] = []
        self.drops: list[tuple[str, str]] = []

    def batch(self, lane: Lane, *, items: int, largest: int, seconds: float, trigger: str) -> None:
        self.batches.append((items, trigger))

    def retried(self, cause: str) -> None:
        self.retries.append(cause)

    def dropped(self, stage: str, reason: str) -> None:
        self.drops.append((stage, reason))


class Gate:
    """Holds the engine inside `infer` until opened, and tells when it got there."""

    def __init__(self) -> None:
        self.entered = threading.Semaphore(0)
        self._open = threading.Semaphore(0)

    def __call__(self, pixels: Pixels) -> None:
        self.entered.release()
        assert self._open.acquire(timeout=PATIENCE)

    def wait_entered(self) -> None:
        assert self.entered.acquire(timeout=PATIENCE)

    def open(self, times: int = 1) -> None:
        self._open.release(times)


class Bench:
    """A batcher with its fakes."""

    def __init__(self) -> None:
        self.clock = FakeClock()
        self.record = Record()
        self.lost: list[BaseException] = []
        self.batcher = Batcher(
            clock=self.clock,
            observer=self.record,
            max_batch=8,
            max_batch_pixels=64 * 128 * 128,
            max_hold_s=0.002,
            stall_after_s=60.0,
            on_lost=self.lost.append,
        )

    def send(
        self,
        engine: FakeEngine,
        *,
        value: int = 200,
        size: int = 32,
        flow: Flow | None = None,
        deadline_s: float = 30.0,
        release: Callable[[Item], None] = lambda item: None,
    ) -> Future[Inference]:
        future: Future[Inference] = Future()

        def deliver(item: Item, outcome: Outcome) -> None:
            if isinstance(outcome, BaseException):
                future.set_exception(outcome)
            else:
                future.set_result(outcome)

        self.batcher.submit(
            Item(
                lane=Lane(engine, size, size),
                flow=flow or Flow(deadline=self.clock.now() + deadline_s),
                pixels=np.full((size, size, 3), value, np.uint8),
                threshold=0.5,
                probability=False,
                deliver=deliver,
                release=release,
            )
        )
        return future


@pytest.fixture
def bench() -> Iterator[Bench]:
    bench = Bench()
    bench.batcher.start()
    yield bench
    bench.batcher.close(timeout_s=PATIENCE)


def result(future: Future[Inference]) -> Any:
    return future.result(timeout=PATIENCE)


def value_of(future: Future[Inference]) -> bool:
    """The FakeEngine's mask is one bit repeated."""
    bits = result(future).bits
    assert bits is not None
    assert len(set(bits.ravel().tolist())) == 1
    return bool(bits.ravel()[0])


def test_lone_request_never_waits(bench: Bench) -> None:
    # The clock never moves: an answer can only come if nothing waits for time to pass.
    assert value_of(bench.send(FakeEngine())) is True
    assert bench.record.batches == [(1, "idle")]


def test_law_1_failing_item_fails_alone(bench: Bench) -> None:
    gate = Gate()
    engine = FakeEngine(before=gate)
    first = bench.send(engine)
    gate.wait_entered()

    def poison(pixels: Pixels) -> None:
        if (pixels[:, 0, 0, 0] == 13).any():
            raise RuntimeError("poison")

    futures = [bench.send(engine, value=v) for v in (200, 10, 13, 220, 30, 240)]
    engine.before = poison
    gate.open()
    assert value_of(first) is True
    for at, future in enumerate(futures):
        if at == 2:
            with pytest.raises(InferenceFailed):
                result(future)
        else:
            assert value_of(future) is (at in (0, 3, 5))
    assert "poison" in bench.record.retries


def test_law_1_values_that_are_not_finite_fail_alone(bench: Bench) -> None:
    class Half(FakeEngine):
        def infer(self, pixels: Pixels, thresholds: Any, *, probability: bool = False) -> Inference:
            found = super().infer(pixels, thresholds, probability=probability)
            return Inference(found.bits, None, None, pixels[:, 0, 0, 0] != 13)

    gate = Gate()
    engine = Half(before=gate)
    first = bench.send(engine)
    gate.wait_entered()
    bad, good = bench.send(engine, value=13), bench.send(engine, value=210)
    gate.open(2)
    assert value_of(first) is True
    with pytest.raises(InferenceFailed, match="not finite"):
        result(bad)
    assert value_of(good) is True


def test_law_2_cancelled_item_leaves_neighbours_alone(bench: Bench) -> None:
    gate = Gate()
    engine = FakeEngine(before=gate)
    first = bench.send(engine)
    gate.wait_entered()
    flow = Flow(deadline=bench.clock.now() + 30)
    left, gone, right = (
        bench.send(engine, value=210),
        bench.send(engine, value=77, flow=flow),
        bench.send(engine, value=20),
    )
    flow.gone = True
    gate.open(2)
    assert (value_of(first), value_of(left), value_of(right)) == (True, True, False)
    assert not gone.done()
    assert engine.batches == [(200,), (210, 20)], "the cancelled tile reached the device"


def test_law_3_device_thread_survives_whatever_an_engine_raises(bench: Bench) -> None:
    class Odd(BaseException):
        pass

    def raise_odd(pixels: Pixels) -> None:
        raise Odd

    engine = FakeEngine(before=raise_odd)
    with pytest.raises(InferenceFailed):
        result(bench.send(engine))
    engine.before = lambda pixels: None
    assert value_of(bench.send(engine)) is True
    assert bench.batcher.state() == "idle"


def test_law_3_lost_engine_tells_every_waiter_and_is_seen(bench: Bench) -> None:
    gate = Gate()

    def die(pixels: Pixels) -> None:
        gate(pixels)
        raise EngineLost("sticky")

    engine = FakeEngine(before=die)
    running = bench.send(engine)
    gate.wait_entered()
    waiting = [bench.send(engine, size=size) for size in (32, 32, 64)]
    gate.open()
    for future in [running, *waiting]:
        with pytest.raises(NotReady):
            result(future)
    assert bench.batcher.state() == "lost"
    assert len(bench.lost) == 1
    with pytest.raises(NotReady):
        bench.send(engine)


def test_law_3_defect_of_our_own_is_a_lost_engine_not_silence() -> None:
    bench = Bench()

    class Broken(Record):
        def batch(self, lane: Lane, **rest: Any) -> None:
            raise ZeroDivisionError

    bench.batcher._observer = Broken()
    bench.batcher.start()
    with pytest.raises(NotReady):
        result(bench.send(FakeEngine()))
    bench.batcher.close(timeout_s=PATIENCE)
    assert bench.batcher.state() == "lost"


def test_law_4_expired_and_cancelled_work_never_reaches_the_device(bench: Bench) -> None:
    gate = Gate()
    engine = FakeEngine(before=gate)
    first = bench.send(engine)
    gate.wait_entered()
    late = bench.send(engine, value=50, deadline_s=5.0)
    flow = Flow(deadline=bench.clock.now() + 30)
    bench.send(engine, value=60, flow=flow)
    flow.gone = True
    bench.clock.advance(10.0)
    gate.open()
    with pytest.raises(DeadlineExceeded):
        result(late)
    assert value_of(first) is True
    last = bench.send(engine, value=220)
    gate.open()
    assert value_of(last) is True
    assert engine.batches == [(200,), (220,)]
    assert ("queue", "deadline") in bench.record.drops
    assert ("queue", "client_gone") in bench.record.drops


def test_law_4_forgotten_work_is_let_go_while_the_device_is_busy(bench: Bench) -> None:
    gate, released = Gate(), threading.Event()
    engine = FakeEngine(before=gate)
    first = bench.send(engine)
    gate.wait_entered()
    flow = Flow(deadline=bench.clock.now() + 30)
    bench.send(engine, value=60, flow=flow, release=lambda item: released.set())
    stager_waits = False
    while not stager_waits:  # it has looked at the new tile and found nothing to do
        with bench.batcher._changed:
            stager_waits = len(bench.batcher._room._waiters) == 1  # type: ignore[attr-defined]
    assert not released.is_set()
    bench.batcher.forget(flow)
    assert released.wait(PATIENCE), "its pixels are held until the device is free"
    gate.open()
    assert value_of(first) is True


def test_pixels_are_given_back_once_on_every_way_out(bench: Bench) -> None:
    gate = Gate()
    released: list[int] = []
    all_back = threading.Semaphore(0)

    def release(item: Item) -> None:
        released.append(int(item.pixels[0, 0, 0]))
        all_back.release()

    def before(pixels: Pixels) -> None:
        gate(pixels)
        if pixels[0, 0, 0, 0] == 4:
            raise ValueError("poison")
        if pixels[0, 0, 0, 0] == 5:
            raise EngineLost("gone")

    engine = FakeEngine(sizes=(1,), before=before)
    gone = Flow(deadline=bench.clock.now() + 30)
    bench.send(engine, value=1, flow=gone, release=release)
    gate.wait_entered()
    bench.batcher.forget(gone)  # its batch goes on, and nobody looks at the result
    late = bench.send(engine, value=2, deadline_s=5.0, release=release)
    bench.clock.advance(10.0)
    served = bench.send(engine, value=3, release=release)
    poisoned = bench.send(engine, value=4, release=release)
    lost = [bench.send(engine, value=value, release=release) for value in (5, 6, 7)]
    gate.open(4)
    for future in (late, poisoned, *lost):
        with pytest.raises(TernausError):
            result(future)
    assert result(served)
    for _ in range(7):
        assert all_back.acquire(timeout=PATIENCE)
    assert sorted(released) == [1, 2, 3, 4, 5, 6, 7]


def test_law_5_memory_exhausted_halves_the_batch_and_remembers(bench: Bench) -> None:
    gate = Gate()
    engine = FakeEngine(before=gate)
    first = bench.send(engine)
    gate.wait_entered()

    def small_device(pixels: Pixels) -> None:
        if len(pixels) > 2:
            raise DeviceOutOfMemory("full")

    engine.before = small_device
    futures = [bench.send(engine, value=200) for _ in range(8)]
    gate.open()
    assert value_of(first) is True
    assert all(value_of(future) for future in futures)
    assert "oom" in bench.record.retries
    assert bench.batcher._lanes.largest(Lane(engine, 32, 32), bench.clock.now()) <= 4
    bench.clock.advance(1000.0)
    assert bench.batcher._lanes.largest(Lane(engine, 32, 32), bench.clock.now()) == 8


def test_law_5_halves_are_tried_when_nothing_of_the_batch_is_left(bench: Bench) -> None:
    """What a net has computed so far lives in the frames of the error that ended it."""

    class Map:
        pass

    left: list[weakref.ref[Map]] = []
    alive_later: list[bool] = []

    def no_room(pixels: Pixels) -> None:
        alive_later.extend(one() is not None for one in left)
        computed = Map()
        if len(pixels) > 1:
            left.append(weakref.ref(computed))
            raise DeviceOutOfMemory("full")

    gate = Gate()
    engine = FakeEngine(before=gate)
    first = bench.send(engine)
    gate.wait_entered()
    engine.before = no_room
    futures = [bench.send(engine, value=200) for _ in range(4)]
    gate.open()
    assert value_of(first) is True
    assert all(value_of(future) for future in futures)
    assert alive_later
    assert not any(alive_later)


def test_law_5_tile_that_does_not_fit_alone_says_so(bench: Bench) -> None:
    def no_memory(pixels: Pixels) -> None:
        raise MemoryError

    with pytest.raises(DeviceOutOfMemory):
        result(bench.send(FakeEngine(before=no_memory)))


def test_law_7_full_batch_goes_at_once_and_hold_counts_from_the_first(bench: Bench) -> None:
    engine = FakeEngine(sizes=(1, 2, 4))
    lane = Lane(engine, 32, 32)
    bench.batcher.expect(lane, 4)
    held = bench.send(engine)
    bench.clock.advance(0.0015)
    second = bench.send(engine)
    assert not held.done()
    bench.clock.advance(0.0006)  # 2.1 ms after the first, 0.6 ms after the second
    assert value_of(held) is True
    assert value_of(second) is True
    assert engine.batches == [(200, 200)]
    # Four of four: nothing more fits, so nothing is waited for although more are on their way.
    gate = Gate()
    engine.before = gate
    running = bench.send(engine, size=64)
    gate.wait_entered()
    four = [bench.send(engine) for _ in range(4)]
    gate.open(2)
    assert value_of(running) is True
    assert all(value_of(future) for future in four)
    assert (4, "full") in bench.record.batches


def test_law_7_hold_ends_when_the_expected_picture_will_not_come(bench: Bench) -> None:
    engine = FakeEngine()
    lane = Lane(engine, 32, 32)
    bench.batcher.expect(lane, 1)
    held = bench.send(engine)
    assert not held.done()
    bench.batcher.expect(lane, -1)
    assert value_of(held) is True


def test_law_8_one_batch_is_prepared_while_one_computes_never_two(bench: Bench) -> None:
    gate = Gate()
    engine = FakeEngine(sizes=(1, 2), before=gate)
    futures = [bench.send(engine, size=64)]
    gate.wait_entered()
    futures += [bench.send(engine, value=value) for value in (1, 2, 3, 4, 5, 6)]
    # One full batch may leave the queue while the first computes; the other four stay.
    with bench.batcher._changed:
        assert bench.batcher._changed.wait_for(
            lambda: bench.batcher._staged is not None, timeout=PATIENCE
        )
        assert bench.batcher._lanes.waiting == 4
    gate.open(4)
    for future in futures:
        result(future)
    assert engine.batches[1:] == [(1, 2), (3, 4), (5, 6)]


def test_engine_gets_the_batch_that_it_staged_while_the_one_before_it_computed(
    bench: Bench,
) -> None:
    staged: list[Pixels] = []
    second = threading.Event()
    gate = Gate()
    seen: list[int] = []

    class Staging(FakeEngine):
        def stage(self, tiles: Sequence[Pixels]) -> Pixels:
            staged.append(np.stack(tiles))
            if len(staged) == 2:
                second.set()
            return staged[-1]

        def infer(self, pixels: Pixels, *rest: Any, **more: Any) -> Inference:
            seen.append(id(pixels))
            return super().infer(pixels, *rest, **more)

    engine = Staging(sizes=(1, 2), before=gate)
    first = bench.send(engine)
    gate.wait_entered()
    rest = [bench.send(engine) for _ in range(2)]
    assert second.wait(PATIENCE), "nothing was staged before the first batch was done"
    assert not first.done()
    gate.open(2)
    for future in (first, *rest):
        future.result(PATIENCE)
    assert [len(batch) for batch in staged] == [1, 2]
    assert seen == [id(batch) for batch in staged]


def test_law_8_batch_that_is_not_full_is_not_fixed_early(bench: Bench) -> None:
    gate = Gate()
    engine = FakeEngine(sizes=(1, 2, 4), before=gate)
    futures = [bench.send(engine, size=64)]
    gate.wait_entered()
    futures += [bench.send(engine, value=v) for v in (1, 2)]
    futures.append(bench.send(engine, value=3))
    gate.open(2)
    for future in futures:
        result(future)
    assert engine.batches[1:] == [(1, 2, 3)], "a late comer was shut out of a batch with room"


def test_law_9_closing_finishes_what_was_taken_and_refuses_more() -> None:
    bench = Bench()
    bench.batcher.start()
    gate = Gate()
    engine = FakeEngine(before=gate)
    futures = [bench.send(engine), bench.send(engine), bench.send(engine, size=64)]
    gate.open(3)
    bench.batcher.close(timeout_s=PATIENCE)
    assert all(value_of(future) for future in futures)
    with pytest.raises(NotReady):
        bench.send(engine)


def test_hung_engine_reads_as_stalled_and_a_busy_one_does_not(bench: Bench) -> None:
    gate = Gate()
    engine = FakeEngine(before=gate)
    bench.clock.advance(3600.0)  # an idle hour is not a stall
    assert bench.batcher.state() == "idle"
    future = bench.send(engine, deadline_s=1e6)
    gate.wait_entered()
    assert bench.batcher.state() == "ok"
    bench.clock.advance(59.0)
    assert bench.batcher.state() == "ok"
    bench.clock.advance(2.0)
    assert bench.batcher.state() == "stalled"
    gate.open()
    result(future)
    assert bench.batcher.state() in ("ok", "idle")


def test_estimated_wait_follows_what_was_measured(bench: Bench) -> None:
    engine = FakeEngine(sizes=(1,), before=lambda pixels: bench.clock.advance(0.5))
    assert bench.batcher.estimated_wait_s() == 0.0
    result(bench.send(engine))
    gate = Gate()
    engine.before = gate
    futures = [bench.send(engine) for _ in range(3)]
    gate.wait_entered()
    assert bench.batcher.estimated_wait_s() == pytest.approx(1.5)
    waited_and_run = bench.batcher.estimated_wait_s() + bench.batcher.predicted_s(
        Lane(engine, 64, 64), 1
    )
    assert waited_and_run == pytest.approx(1.5 + 4 * 0.5)
    gate.open(3)
    for future in futures:
        result(future)


def test_huge_picture_shares_the_device_with_small_ones(bench: Bench) -> None:
    gate = Gate()
    engine = FakeEngine(sizes=(1,), before=gate)
    futures = [bench.send(engine, value=1)]
    gate.wait_entered()
    huge = Flow(deadline=bench.clock.now() + 30)
    futures += [bench.send(engine, value=100 + i, size=128, flow=huge) for i in range(4)]
    futures += [bench.send(engine, value=10 + i) for i in range(3)]
    gate.open(8)
    for future in futures:
        result(future)
    order = [batch[0] for batch in engine.batches[1:]]
    small = [order.index(10 + i) for i in range(3)]
    assert max(small) <= 4, f"small pictures waited behind the tiles of a huge one: {order}"
    assert order.index(103) == 6, f"the huge picture was not finished last: {order}"


def test_forgotten_engine_leaves_its_neighbours_alone(bench: Bench) -> None:
    gate = Gate()
    leaving, staying = FakeEngine(before=gate), FakeEngine()
    running = bench.send(leaving)
    gate.wait_entered()
    gone = Flow(deadline=bench.clock.now() + 30, gone=True)
    bench.send(leaving, flow=gone, size=64)
    late = bench.send(leaving, size=64)
    other = bench.send(staying, size=96)
    forgetting = threading.Thread(target=bench.batcher.forget_engine, args=(leaving,))
    forgetting.start()
    gate.open()
    # What is on the device ends well; what waits is told, and nobody else is.
    assert running.result(PATIENCE).finite.all()
    assert other.result(PATIENCE).finite.all()
    forgetting.join(PATIENCE)
    assert not forgetting.is_alive()
    with pytest.raises(NotReady, match="was closed"):
        late.result(PATIENCE)
    assert ("queue", "client_gone") in bench.record.drops
    assert bench.batcher.state() == "idle"


def test_exclusive_work_and_batches_alternate(bench: Bench) -> None:
    """However many batches wait, whoever asks for a turn has it after the next of them."""
    gate = Gate()
    engine = FakeEngine(sizes=(1,), before=gate)
    futures = [bench.send(engine) for _ in range(6)]
    gate.wait_entered()
    had = threading.Event()

    def work() -> None:
        with bench.batcher.turn():
            had.set()

    thread = threading.Thread(target=work)
    thread.start()
    while not bench.batcher._device._waiting:
        threading.Event().wait(0.001)
    assert not had.is_set()
    gate.open()
    assert had.wait(PATIENCE)
    assert sum(future.done() for future in futures) <= 2
    gate.open(len(futures))
    for future in futures:
        future.result(PATIENCE)
    thread.join(PATIENCE)
