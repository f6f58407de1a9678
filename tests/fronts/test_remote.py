"""A front end's house against the engine's end on one event loop: the journey at a distance."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from collections.abc import AsyncIterator, Coroutine
from pathlib import Path
from typing import Any

import pytest

from app.encodings import base as encodings
from app.errors import (
    DeviceOutOfMemory,
    Draining,
    InferenceFailed,
    ModelDamaged,
    ModelNeeded,
    ModelNotFound,
    NotReady,
)
from app.fronts import wire
from app.fronts.board import Board, SharedDoors
from app.fronts.engine import EngineEnd
from app.fronts.link import Link
from app.fronts.parts import EnginePlan, Opening
from app.fronts.remote import RemoteDevice
from app.serving.bounds import Inside
from app.serving.clock import RealClock
from app.serving.house import House
from app.serving.lanes import Lane
from app.serving.metrics import Metrics
from app.types import ModelSpec, Pixels
from tests.fakes import FakeEngine
from tests.server import THRESHOLDS, encoded, picture, sampled, truth
from tests.serving.test_segmenter import ask, rules
from tests.shelf import Shelf

PATIENCE = 60.0


class Bench:
    """An engine's end, and front ends joined to it as a supervisor would."""

    def __init__(self, shelf: Shelf) -> None:
        self.board = Board.new()
        self.rules = rules()
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.told: list[dict[str, Any]] = []
        self._channel = Link(
            ours, on_message=lambda message, _: self.told.append(message), on_closed=lambda: None
        )
        self.end = EngineEnd(
            EnginePlan(
                rules=self.rules,
                opening=lambda: Opening(
                    shelf.names, shelf.resolve, shelf.open_engine, shelf.newest
                ),
                log=lambda: None,
                board=self.board.memory,
                channel=theirs,
                measure=True,
                parent=0,
            )
        )
        self.task = asyncio.ensure_future(self.end.main())

    def line(self, seat: int = 0) -> socket.socket:
        """One end of a new line to the engine, which has the other."""
        one, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with other:
            self._channel.say("front", other.fileno(), seat=seat)
        return one

    def joining(self, line: socket.socket, *, slot_bytes: int = 2**20, seat: int = 0) -> House:
        """A front end at the other end of a line, not yet ready."""
        device = RemoteDevice(
            self.board,
            seat,
            clock=RealClock(),
            default_model="",
            stall_after_s=60.0,
            slot_bytes=slot_bytes,
        )
        house = House(self.rules, device, metrics=Metrics(), doors=SharedDoors(self.board, seat, 2))
        device.attach(line)
        return house

    async def front(self, *, slot_bytes: int = 2**20, seat: int = 0) -> House:
        house = self.joining(self.line(seat), slot_bytes=slot_bytes, seat=seat)
        async with asyncio.timeout(PATIENCE):
            await house.open(())
            while not house.ready:
                await asyncio.sleep(0)
        return house

    async def close(self, *houses: House) -> int:
        for house in houses:
            await house.close()
        self._channel.say("close")
        async with asyncio.timeout(PATIENCE):
            code = await self.task
        self._channel.close()
        return code


@contextlib.asynccontextmanager
async def bench(engine: FakeEngine) -> AsyncIterator[Bench]:
    shelf = Shelf(Path())
    shelf.add(engine)
    found = Bench(shelf)
    yield found
    assert await found.close() == 0
    assert engine.closed


def run(scenario: Coroutine[Any, Any, None]) -> None:
    asyncio.run(scenario)


def remote(house: House) -> RemoteDevice:
    assert isinstance(house.device, RemoteDevice)
    return house.device


async def settled(house: House) -> None:
    """Every slot is free again."""
    async with asyncio.timeout(PATIENCE):
        while remote(house).remote.arena.used:
            await asyncio.sleep(0)


def test_no_front_end_is_ready_before_all_are(tmp_path: Path) -> None:
    """A client that was told so by one would be turned away by the next."""

    async def scenario() -> None:
        async with bench(FakeEngine(sampled(tmp_path))) as one:
            lines = [one.line(seat) for seat in range(2)]
            first = one.joining(lines[0], seat=0)
            async with asyncio.timeout(PATIENCE):
                await first.open(())
            # It knows the models, and keeps it to itself for as long as another does not.
            for _ in range(100):
                await asyncio.sleep(0)
                assert (first.ready, first.state) == (False, "starting")
            second = one.joining(lines[1], seat=1)
            async with asyncio.timeout(PATIENCE):
                while not first.ready:
                    await asyncio.sleep(0)
            assert second.ready
            await first.close()
            await second.close()

    run(scenario())


def test_front_end_that_left_keeps_no_other_waiting(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with bench(FakeEngine(sampled(tmp_path))) as one:
            lost = one.line(1)
            first = one.joining(one.line(0), seat=0)
            async with asyncio.timeout(PATIENCE):
                await first.open(())
                assert not first.ready
                lost.close()
                while not first.ready:
                    await asyncio.sleep(0)
            await first.close()

    run(scenario())


def test_journey_at_a_distance_gives_the_same_masks(tmp_path: Path) -> None:
    async def scenario() -> None:
        engine = FakeEngine(sampled(tmp_path))
        async with bench(engine) as one:
            house = await one.front()
            assert house.catalog.get(None).spec == engine.spec
            sizes = [(1, 1), (48, 80), (128, 128), (300, 500), (33, 700)]
            pictures = [picture(*size, seed=seed) for seed, size in enumerate(sizes * 3)]
            answers = await asyncio.gather(
                *(ask(house, encoded(p), threshold=0.1 + n / 20) for n, p in enumerate(pictures))
            )
            for n, (pixels, answer) in enumerate(zip(pictures, answers, strict=True)):
                found = encodings.get("png").decode(answer.body)[0]
                assert (found == truth(pixels, 0.1 + n / 20)).all()
                assert answer.timings.tiles_done == answer.timings.tiles
                assert 0 <= answer.timings.queue < PATIENCE
            await settled(house)
            served, opened = one.told
            assert (served["kind"], opened["kind"]) == ("served", "opened")
            assert served["served"]["labels"] == ["fake@1"]
            assert opened["rate"] > 0
            assert opened["host_s"] > 0
            await house.close()

    run(scenario())


def test_failures_come_back_as_themselves(tmp_path: Path) -> None:
    def broken(pixels: Pixels) -> None:
        if pixels.shape[1:3] == (32, 32):
            raise ValueError("a defect")
        if pixels.shape[1:3] != (64, 96) and pixels[0].size > 3 * 96 * 96:
            raise DeviceOutOfMemory("full")

    async def scenario() -> None:
        async with bench(FakeEngine(sampled(tmp_path), before=broken)) as one:
            house = await one.front()
            with pytest.raises(InferenceFailed, match="this picture"):
                await ask(house, encoded(picture(10, 10)))
            pixels = picture(128, 128)
            answer = await ask(house, encoded(pixels))
            assert (encodings.get("png").decode(answer.body)[0] == truth(pixels)).all()
            await settled(house)
            await house.close()

    run(scenario())


def test_request_that_nobody_waits_for_gives_its_slots_back_when_they_are_free(
    tmp_path: Path,
) -> None:
    entered, gate = threading.Event(), threading.Event()

    def hold(pixels: Pixels) -> None:
        if pixels.shape[1:3] == (128, 128):
            entered.set()
            assert gate.wait(PATIENCE)

    async def scenario() -> None:
        engine = FakeEngine(sampled(tmp_path), before=hold)
        async with bench(engine) as one:
            house = await one.front()
            first = asyncio.ensure_future(ask(house, encoded(picture(128, 128))))
            await asyncio.to_thread(entered.wait, PATIENCE)
            second = asyncio.ensure_future(ask(house, encoded(picture(128, 128, seed=5))))
            async with asyncio.timeout(PATIENCE):
                while remote(house).figures()["tiles"] < 1:
                    await asyncio.sleep(0)
            batches = len(engine.batches)
            for task in (first, second):
                task.cancel()
            await asyncio.wait((first, second))
            # The device still reads the first one's slot: it is not free before the batch is done.
            async with asyncio.timeout(PATIENCE):
                while remote(house).remote.arena.used != 128 * 128 * 3:
                    await asyncio.sleep(0)
            assert remote(house).figures()["slot_bytes"] == 128 * 128 * 3
            gate.set()
            await settled(house)
            assert len(engine.batches) == batches, "dropped work reached the device"
            await house.close()

    run(scenario())


def test_lost_engine_is_told_to_all_and_the_next_one_serves(tmp_path: Path) -> None:
    gate = threading.Event()

    def hold(pixels: Pixels) -> None:
        if pixels.shape[1:3] == (128, 128):
            assert gate.wait(PATIENCE)

    async def scenario() -> None:
        async with bench(FakeEngine(sampled(tmp_path), before=hold)) as one:
            # Room for two tiles: the third request waits in line for a slot.
            house = await one.front(slot_bytes=2 * 128 * 128 * 3)
            tasks = [
                asyncio.ensure_future(ask(house, encoded(picture(128, 128)))) for _ in range(3)
            ]
            async with asyncio.timeout(PATIENCE):
                while remote(house).remote.arena.used < 2 * 128 * 128 * 3:
                    await asyncio.sleep(0)
            for guest in list(one.end._guests):
                guest.close()
            for task in tasks:
                with pytest.raises(NotReady):
                    await task
            assert (house.state, house.ready, house.live) == ("restarting", False, True)
            assert house.describe()["failures"]
            with pytest.raises(NotReady):
                await ask(house, encoded(picture()))
            assert remote(house).remote.arena.used == 0
            gate.set()
            remote(house).attach(one.line())
            async with asyncio.timeout(PATIENCE):
                while not house.ready:
                    await asyncio.sleep(0)
            pixels = picture(128, 128, seed=2)
            answer = await ask(house, encoded(pixels))
            assert (encodings.get("png").decode(answer.body)[0] == truth(pixels)).all()
            await house.close()

    run(scenario())


def test_front_end_that_leaves_takes_what_it_announced_along(tmp_path: Path) -> None:
    async def scenario() -> None:
        engine = FakeEngine(sampled(tmp_path))
        async with bench(engine) as one:
            house = await one.front()
            model = house.catalog.get(None)
            remote(house).queue.expect(Lane(model.engine, 64, 64), 3)
            lanes = one.end.device.batcher._lanes
            async with asyncio.timeout(PATIENCE):
                while not lanes._coming:
                    await asyncio.sleep(0)
                await house.close()
                while lanes._coming:
                    await asyncio.sleep(0)

    run(scenario())


@pytest.mark.parametrize(
    "record",
    [
        wire.Submit(1, 1, 2**40, 1e9, 0.5, 0, 64, 64, 0, 1.0, False),  # outside its arena
        wire.Submit(1, 1, 0, 1e9, 0.5, 7, 64, 64, 0, 1.0, False),  # a model that there is not
        wire.Done(1, 0.0, 0.0, 0.0, 0.0, 1),
    ],
)
def test_front_end_that_lies_is_cut_off_and_hurts_nobody(
    tmp_path: Path, record: wire.Record
) -> None:
    async def scenario() -> None:
        async with bench(FakeEngine(sampled(tmp_path))) as one:
            house = await one.front()
            liar = one.line(seat=1)
            liar.setblocking(False)
            liar.send(b"R" + wire.record(record))
            async with asyncio.timeout(PATIENCE):
                while await asyncio.get_running_loop().sock_recv(liar, 2**17):
                    pass
            liar.close()
            pixels = picture()
            answer = await ask(house, encoded(pixels))
            assert (encodings.get("png").decode(answer.body)[0] == truth(pixels)).all()
            await house.close()

    run(scenario())


def test_wait_counts_what_the_engine_has_not_seen_yet(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with bench(FakeEngine(sampled(tmp_path))) as one:
            house = await one.front()
            queue = remote(house).remote
            one.board.engine.put(seconds_per_pixel=1e-6, estimated_wait_seconds=2.0)
            lane = Lane(house.catalog.get(None).engine, 100, 100)
            assert queue.predicted_s(lane, 3) == pytest.approx(0.03)
            queue._fresh.extend([(5, 0.5), (6, 0.25)])
            one.board.seats[0].put(taken=4)
            assert queue.estimated_wait_s() == pytest.approx(2.75)
            one.board.seats[0].put(taken=5)
            assert queue.estimated_wait_s() == pytest.approx(2.25)
            queue._fits.put(lane, (0.1, 1.0, 4))
            assert queue.predicted_s(lane, 9) == pytest.approx(3.9)
            await house.close()

    run(scenario())


def test_model_that_cannot_be_opened_is_told_to_the_supervisor(tmp_path: Path) -> None:
    async def scenario() -> None:
        engine = FakeEngine(sampled(tmp_path))
        (tmp_path / "sample.mask.png").write_bytes(b"damaged")
        shelf = Shelf(tmp_path)
        shelf.add(engine)
        one = Bench(shelf)
        async with asyncio.timeout(PATIENCE):
            assert await one.task == 1
            while not one.told:
                await asyncio.sleep(0)
        assert one.told == [{"kind": "failed"}]

    run(scenario())


@contextlib.asynccontextmanager
async def pair(shelf: Shelf) -> AsyncIterator[tuple[Bench, list[House]]]:
    """Two front ends of an engine that has version 1 open; version 2 is published then."""
    shelf.publish("fake", 1)
    one = Bench(shelf)
    fronts = [await one.front(seat=seat) for seat in (0, 1)]
    shelf.publish("fake", 2)
    yield one, fronts
    assert await one.close(*fronts) == 0


async def version(house: House, pixels: Pixels) -> int:
    """The version that answered, whose own mask it must be."""
    answer = await ask(house, encoded(pixels))
    found = encodings.get("png").decode(answer.body)[0]
    assert (found == truth(pixels, THRESHOLDS[answer.mask.version])).all()
    return answer.mask.version


async def closed(shelf: Shelf, label: str) -> None:
    async with asyncio.timeout(PATIENCE):
        while not shelf.engine(label).closed:
            await asyncio.sleep(0.001)


def test_model_is_changed_for_all_front_ends_and_closed_when_none_needs_it(tmp_path: Path) -> None:
    pixels, large = picture(48, 80), picture(300, 300)
    entered, gate = threading.Event(), threading.Event()

    def hold(found: Pixels) -> None:
        if found.shape[1:3] == (128, 128):
            entered.set()
            assert gate.wait(PATIENCE)

    async def scenario() -> None:
        shelf = Shelf(tmp_path)
        shelf.before = hold
        async with pair(shelf) as (one, fronts):
            for house in fronts:
                assert await version(house, pixels) == 1
            # The first tiles of a picture are with the old version when the new one is opened.
            held = asyncio.ensure_future(version(fronts[1], large))
            assert await asyncio.to_thread(entered.wait, PATIENCE)
            old = fronts[1].catalog.get("fake")
            load = asyncio.ensure_future(fronts[0].load("fake"))
            async with asyncio.timeout(PATIENCE):
                while not shelf.engines.get("fake@2"):
                    await asyncio.sleep(0)
            gate.set()
            done = await load
            assert (done.label, done.replaced, done.opened) == ("fake@2", "fake@1", True)
            for house in fronts:
                assert house.catalog.describe() == [done.model]
                assert await version(house, pixels) == 2
            assert await held == 1
            await closed(shelf, "fake@1")
            # Nothing is left of it on either side.
            assert list(one.end._models.values()) == list(one.end.device.catalog.models.values())
            assert list(one.end._numbers.values()) == [1]
            for house in fronts:
                fits = remote(house).remote._fits
                assert old.engine not in [lane.engine for lane in fits.keys()]  # noqa: SIM118
            # To and fro: a number is never used twice.
            await fronts[1].load("fake@1")
            assert await version(fronts[0], pixels) == 1
            assert list(one.end._numbers.values())[-1] == 2

    run(scenario())


def test_change_is_answered_when_every_front_end_shows_it(tmp_path: Path) -> None:
    async def scenario() -> None:
        shelf = Shelf(tmp_path)
        async with pair(shelf) as (_, [house, slow]):
            loop, link = asyncio.get_running_loop(), remote(slow)._link
            assert link is not None
            loop.remove_reader(link._line.fileno())
            load = asyncio.ensure_future(house.load("fake"))
            async with asyncio.timeout(PATIENCE):
                while list(house.catalog.models) != ["fake@2"]:
                    await asyncio.sleep(0)
            for _ in range(100):
                await asyncio.sleep(0)
            assert not load.done()
            assert list(slow.catalog.models) == ["fake@1"]
            loop.add_reader(link._line.fileno(), link._read)
            await load
            assert await version(slow, picture()) == 2

    run(scenario())


def test_model_that_a_front_end_holds_stays_open_until_it_lets_go_or_dies(tmp_path: Path) -> None:
    async def scenario() -> None:
        shelf = Shelf(tmp_path)
        async with pair(shelf) as (_, [house, other]):
            with other.catalog.get("fake").loans:
                await house.load("fake")
                assert await version(other, picture()) == 2
                assert not shelf.engine("fake@1").closed
            await closed(shelf, "fake@1")
            other.catalog.get("fake").loans.__enter__()  # a request that never ends
            await house.load("fake@1")
            assert not shelf.engine("fake@2").closed
            await other.close()
            await closed(shelf, "fake@2")

    run(scenario())


def test_front_end_that_is_gone_when_it_is_told_of_a_change_holds_nothing(tmp_path: Path) -> None:
    async def scenario() -> None:
        shelf = Shelf(tmp_path)
        shelf.publish("other", 1)
        async with pair(shelf) as (one, [house, other]):
            models = one.end.device.catalog.models
            assert [model.loans.held for model in models.values()] == [2, 2]
            link = remote(other)._link
            assert link is not None
            link.close()
            # In the same turn of the loop, so that the engine has not read of its end.
            one.end.device.catalog.fail("fake@9", "news")
            one.end.announce()
            assert [model.loans.held for model in models.values()] == [1, 1]
            await house.load("fake")
            await closed(shelf, "fake@1")
            assert list(house.catalog.models) == ["other@1", "fake@2"]

    run(scenario())


def test_tile_for_a_model_that_was_let_go_is_never_computed(tmp_path: Path) -> None:
    async def scenario() -> None:
        shelf = Shelf(tmp_path)
        async with pair(shelf) as (one, [house, other]):
            await house.load("fake")
            await closed(shelf, "fake@1")
            batches = len(shelf.engine("fake@2").batches)
            link = remote(other)._link
            assert link is not None
            link.post(wire.Submit(1, 1, 0, 1e9, 0.5, 0, 64, 64, 0, 1.0, False))
            async with asyncio.timeout(PATIENCE):
                while not link.closed:
                    await asyncio.sleep(0)
            assert len(one.end._guests) == 1
            assert len(shelf.engine("fake@2").batches) == batches
            assert await version(house, picture()) == 2

    run(scenario())


def test_change_that_fails_comes_back_as_itself_and_is_shown_everywhere(tmp_path: Path) -> None:
    def defect(spec: ModelSpec) -> None:
        raise KeyError("a defect")

    async def scenario() -> None:
        shelf = Shelf(tmp_path)
        async with pair(shelf) as (_, fronts):
            shelf.damage("fake@2")
            with pytest.raises(ModelDamaged, match="not a readable mask"):
                await fronts[0].load("fake")
            for house in fronts:
                assert "not a readable mask" in house.describe()["failures"]["fake@2"]
                assert house.ready
                assert await version(house, picture()) == 1
            with pytest.raises(ModelNotFound):
                await fronts[1].load("nobody")
            with pytest.raises(ModelNeeded):
                await fronts[1].unload("fake")
            shelf.publish("fake", 3)
            shelf.opening = defect
            # No error of ours: it is answered as any other defect is.
            with pytest.raises(RuntimeError, match="a defect"):
                await fronts[0].load("fake")
            shelf.opening = lambda spec: None
            await fronts[0].load("fake")
            for house in fronts:
                assert not house.describe()["failures"]
            shelf.publish("other", 1)
            await fronts[1].load("other")
            assert await fronts[0].unload("other") == ["other@1"]
            assert [list(house.catalog.models) for house in fronts] == [["fake@3"]] * 2
            fronts[0].drain()
            with pytest.raises(Draining):
                await fronts[0].load("fake")
            assert not (await fronts[1].load("fake")).opened

    run(scenario())


def test_supervisor_is_told_what_a_successor_needs(tmp_path: Path) -> None:
    async def scenario() -> None:
        shelf = Shelf(tmp_path)
        async with pair(shelf) as (one, [house, _]):
            await house.load("fake")
            told = [message["served"] for message in one.told if message["kind"] == "served"]
            # While it was being opened the process might have ended because of it.
            assert [(found["labels"], list(found["bad"])) for found in told] == [
                (["fake@1"], []),
                (["fake@1"], ["fake"]),
                (["fake@2"], []),
            ]
            assert told[-1]["plain"] == {"fake": "fake@2"}

    run(scenario())


def test_engine_that_was_told_to_drain_changes_nothing(tmp_path: Path) -> None:
    async def scenario() -> None:
        shelf = Shelf(tmp_path)
        async with pair(shelf) as (one, [house, _]):
            one._channel.say("drain")
            async with asyncio.timeout(PATIENCE):
                while not one.end.device.changes.draining:
                    await asyncio.sleep(0)
            with pytest.raises(Draining):
                await house.load("fake")
            assert await version(house, picture()) == 1

    run(scenario())


def test_who_waits_for_a_change_hears_that_the_engine_is_gone(tmp_path: Path) -> None:
    opening, go = threading.Event(), threading.Event()

    def held(spec: ModelSpec) -> None:
        opening.set()
        assert go.wait(PATIENCE)

    async def scenario() -> None:
        shelf = Shelf(tmp_path)
        async with pair(shelf) as (one, [house, _]):
            shelf.opening = held
            load = asyncio.ensure_future(house.load("fake"))
            assert await asyncio.to_thread(opening.wait, PATIENCE)
            for guest in list(one.end._guests):
                guest.close()
            with pytest.raises(NotReady, match="how the change ended"):
                await load
            with pytest.raises(NotReady):
                await house.load("fake")
            go.set()
            # The change goes on all the same, and whoever comes next finds it done.
            await closed(shelf, "fake@1")
            remote(house).attach(one.line())
            async with asyncio.timeout(PATIENCE):
                while not house.ready:
                    await asyncio.sleep(0)
            assert await version(house, picture()) == 2

    run(scenario())


def test_doors_count_together() -> None:
    board = Board.new()
    one, other = SharedDoors(board, 0, 3), SharedDoors(board, 1, 3)
    one.tell(Inside(1, 20, 300, 1))
    other.tell(Inside(2, 10, 100, 0))
    assert one.others() == Inside(2, 10, 100, 0)
    assert SharedDoors(board, 2, 3).others() == Inside(3, 30, 400, 1)
    board.leave(0)
    assert other.others() == Inside()
