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
from app.errors import DeviceOutOfMemory, InferenceFailed, NotReady
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
from app.types import Pixels
from tests.fakes import FakeEngine
from tests.server import encoded, picture, sampled, truth
from tests.serving.test_segmenter import ask, rules

PATIENCE = 30.0


class Bench:
    """An engine's end, and front ends joined to it as a supervisor would."""

    def __init__(self, engine: FakeEngine) -> None:
        self.board = Board.new()
        self.rules = rules()
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.told: list[dict[str, Any]] = []
        self._channel = Link(
            ours, on_message=lambda message, _: self.told.append(message), on_closed=lambda: None
        )
        spec = engine.spec
        self.end = EngineEnd(
            EnginePlan(
                rules=self.rules,
                opening=lambda: Opening(
                    lambda: (spec.name,), lambda label: spec, lambda spec, sample, turn: engine
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

    async def front(self, *, slot_bytes: int = 2**20) -> House:
        device = RemoteDevice(
            self.board,
            0,
            clock=RealClock(),
            default_model="",
            stall_after_s=60.0,
            slot_bytes=slot_bytes,
        )
        house = House(self.rules, device, metrics=Metrics(), doors=SharedDoors(self.board, 0, 2))
        device.attach(self.line())
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
    found = Bench(engine)
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
            assert {message["kind"] for message in one.told} == {"opened"}
            assert one.told[0]["rate"] > 0
            assert one.told[0]["host_s"] > 0
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
        one = Bench(engine)
        async with asyncio.timeout(PATIENCE):
            assert await one.task == 1
            while not one.told:
                await asyncio.sleep(0)
        assert one.told == [{"kind": "failed"}]

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
