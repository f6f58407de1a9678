"""The door: every bound refuses by name, and every permit comes back."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from app.errors import (
    BodyTooLarge,
    Draining,
    NotReady,
    Overloaded,
    PictureTooLarge,
    QueueFull,
    TernausError,
)
from app.serving.admission import Admission, Bounds
from tests.fakes import FakeClock


class Door:
    def __init__(self, **changes: Any) -> None:
        self.backlog = 0.0
        self.ready = True
        self.refused: list[str] = []
        self.clock = FakeClock()
        values = {
            "max_requests": 3,
            "max_body_bytes": 1000,
            "max_body_bytes_in_flight": 1500,
            "max_pixels_in_flight": 10_000,
        }
        self.admission = Admission(
            Bounds(**{**values, **changes}),
            clock=self.clock,
            backlog_s=lambda: self.backlog,
            ready=lambda: self.ready,
            refused=self.refused.append,
        )

    def admit(self, *, seconds: float = 30.0, length: int | None = None) -> Any:
        return self.admission.admit(deadline=self.clock.now() + seconds, content_length=length)

    @property
    def inside(self) -> tuple[int, int, int, int]:
        a = self.admission
        return (a.requests, a.bytes, a.pixels, a.coming)


def test_permit_gives_everything_back_on_every_way_out() -> None:
    door = Door()
    with door.admit(length=100) as permit:
        permit.add_bytes(50)
        permit.add_pixels(400)
        assert door.inside == (1, 150, 400, 1)
        permit.in_queue()
        permit.in_queue()
        assert door.inside == (1, 150, 400, 0)
    permit.release()
    assert door.inside == (0, 0, 0, 0)
    with pytest.raises(ZeroDivisionError), door.admit(length=100) as permit:
        raise ZeroDivisionError
    assert door.inside == (0, 0, 0, 0)


def test_announced_body_over_the_limit_is_refused_before_it_is_read() -> None:
    door = Door()
    with pytest.raises(BodyTooLarge, match="TERNAUS_MAX_BODY_BYTES") as caught:
        door.admit(length=1001)
    assert (caught.value.limit, caught.value.limit_value) == ("TERNAUS_MAX_BODY_BYTES", 1000)
    assert door.inside == (0, 0, 0, 0)


def test_body_that_grows_over_the_limit_is_refused_while_it_streams() -> None:
    door = Door()
    with door.admit() as permit:
        permit.add_bytes(1000)
        with pytest.raises(BodyTooLarge):
            permit.add_bytes(1)


def test_full_house_refuses_with_a_time_to_come_back() -> None:
    door = Door()
    permits = [door.admit() for _ in range(3)]
    door.backlog = 7.0
    with pytest.raises(QueueFull, match="TERNAUS_MAX_REQUESTS") as caught:
        door.admit()
    assert caught.value.retry_after_s == pytest.approx(3.5)
    assert door.refused == ["queue_full"]
    permits[0].release()
    door.admit().release()


def test_bytes_of_all_requests_together_are_bounded() -> None:
    door = Door()
    first = door.admit(length=900)
    with pytest.raises(QueueFull, match="TERNAUS_MAX_BODY_BYTES_IN_FLIGHT"):
        door.admit(length=700)
    assert door.inside == (1, 900, 0, 1)
    first.release()
    door.admit(length=700).release()


def test_pixels_of_all_requests_together_are_bounded() -> None:
    door = Door()
    first, second = door.admit(), door.admit()
    first.add_pixels(9_000)
    with pytest.raises(QueueFull, match="TERNAUS_MAX_PIXELS_IN_FLIGHT"):
        second.add_pixels(2_000)
    with pytest.raises(PictureTooLarge, match="TERNAUS_MAX_PIXELS_IN_FLIGHT"):
        second.add_pixels(10_001)


def test_deadline_out_of_reach_is_refused_at_once() -> None:
    door = Door()
    door.backlog = 5.0
    inside = door.admit(seconds=60)
    with pytest.raises(Overloaded, match="5000 ms exceeds the time left, 2000 ms") as caught:
        door.admit(seconds=2.0)
    assert caught.value.retry_after_s == pytest.approx(3.0)
    inside.release()


def test_requests_on_their_way_count_in_the_wait() -> None:
    door = Door()
    door.admission.learn(4.0)
    inside = door.admit(seconds=60)
    assert door.admission.wait_s() == pytest.approx(4.0)
    with pytest.raises(Overloaded):
        door.admit(seconds=7.9)
    inside.in_queue()
    assert door.admission.wait_s() == 0.0


def test_lone_request_is_never_refused_for_the_wait() -> None:
    door = Door()
    door.admission.learn(100.0)
    door.admit(seconds=1.0).release()


@pytest.mark.parametrize(
    ("change", "error"), [({"draining": True}, Draining), ({"ready": False}, NotReady)]
)
def test_closed_doors_say_why(change: dict[str, bool], error: type[TernausError]) -> None:
    door = Door()
    door.ready = change.get("ready", True)
    door.admission.draining = change.get("draining", False)
    with pytest.raises(error):
        door.admit()


def test_emptied_waits_for_the_last_one() -> None:
    async def scenario() -> None:
        door = Door()
        await door.admission.emptied()
        permit = door.admit()
        waiting = asyncio.ensure_future(door.admission.emptied())
        await asyncio.sleep(0)
        assert not waiting.done()
        permit.release()
        await waiting

    asyncio.run(scenario())


def answered(door: Door, *, after_s: float) -> None:
    """A request whose body was there at once and whose answer took so long, not the first."""
    door.admission.learn(0.0)
    with door.admit(seconds=60) as permit:
        permit.begin()
        door.clock.advance(after_s)
        permit.end()


def test_predictions_that_fell_short_are_added_to_the_next() -> None:
    door = Door()
    answered(door, after_s=2.0)
    inside = door.admit(seconds=60)
    with pytest.raises(Overloaded, match="2000 ms exceeds the time left, 1900 ms"):
        door.admit(seconds=1.9)
    door.admit(seconds=2.1).release()
    inside.release()


def test_prediction_counts_what_was_inside_when_the_body_had_come() -> None:
    door = Door()
    door.admission.learn(0.0)
    door.backlog = 5.0
    with door.admit(seconds=60) as permit:
        door.clock.advance(100.0)  # a slow body is no fault of the prediction
        permit.begin()
        door.clock.advance(5.5)
        permit.end()
    assert door.admission.slip_s() == pytest.approx(0.5)


def test_burst_on_a_fresh_server_does_not_shut_the_door() -> None:
    """Nobody could say how long they would wait; one comes in while the first is computed."""
    door = Door()
    with door.admit(seconds=60) as first, door.admit(seconds=60) as second:
        first.begin()
        second.begin()
        door.clock.advance(8.0)
        first.release_device(8.0)
        first.end()
        with door.admit(seconds=60) as third:
            third.begin()
        door.clock.advance(8.0)
        second.release_device(8.0)
        second.end()
    assert door.admission.slip_s() == 0.0


def test_one_bad_moment_does_not_keep_the_door_shut() -> None:
    door = Door()
    answered(door, after_s=50.0)
    # Alone it is tried whatever was measured, so that something can be measured again.
    door.admit(seconds=1.0).release()
    inside = door.admit(seconds=60)
    with pytest.raises(Overloaded):
        door.admit(seconds=1.0)
    door.clock.advance(11.0)
    door.admit(seconds=1.0).release()
    inside.release()


def test_one_in_a_hundred_may_be_worse_than_what_is_added() -> None:
    door = Door()
    answered(door, after_s=9.0)
    for _ in range(120):
        answered(door, after_s=0.01)
    assert door.admission.slip_s() == pytest.approx(0.01)
