"""The engine process: the models, the device and its batcher, fed from slots by the front ends.

It runs the same `LocalDevice` as a server of one process. Pixels are read where the front end put
them; results are written over them. It never decodes, encodes or speaks HTTP, and it ends itself,
with code 1, when the device is beyond help: the supervisor starts a new one.
"""

from __future__ import annotations

import asyncio
import dataclasses
import itertools
import logging
import os
import signal
import socket
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import uvloop

from app.engine.base import Engine
from app.errors import InferenceFailed, TernausError
from app.fronts import wire
from app.fronts.board import STATES, Board
from app.fronts.count import Pace
from app.fronts.link import Link
from app.fronts.measure import measure
from app.fronts.memory import Memory
from app.fronts.parts import EnginePlan, tie_to
from app.fronts.slots import Form
from app.serving.catalog import OpenModel
from app.serving.clock import RealClock
from app.serving.device import LocalDevice
from app.serving.lanes import Flow, Item, Lane, Outcome
from app.serving.ledger import Ledger
from app.serving.metrics import Metrics
from app.serving.series import Book
from app.serving.served import Served

log = logging.getLogger("ternaus.engine")

PULSE_S = 0.05
_SOON_S = 0.001
# Pulses between looks at the models: a change of what they say of themselves is told then.
_LOOK = 20
# Longest wait for front ends to show what was changed; one that hangs is not waited for.
_SHOWN_S = 30.0
# Longest wait, before this end says that it works, for front ends to know what with.
_JOINED_S = 10.0
# Of a sentence about a failure: a packet holds all of them.
_WORDS = 400


def run(plan: EnginePlan) -> None:
    """Until the supervisor says so or is gone. Ends the process with code 1 for a lost device."""
    tie_to(plan.parent)
    # A terminal's Ctrl-C reaches every process; the front ends still need this one.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    plan.log()

    async def until_end() -> None:
        code = await EngineEnd(plan).main()
        if code:
            # A device that is lost may hang whoever tidies up after it.
            logging.shutdown()
            os._exit(code)

    uvloop.run(until_end())


class EngineEnd:
    """The process without being one: front ends on one side, the device on the other."""

    def __init__(self, plan: EnginePlan) -> None:
        self._plan = plan
        self.board = Board(plan.board)
        self._guests: set[_Guest] = set()
        self._models: dict[int, OpenModel] = {}
        self._numbers: dict[Engine, int] = {}
        self._number = itertools.count()
        self._told: list[dict[str, Any]] = []
        self._summary: dict[str, Any] = {}
        self._serial = 0
        self._open = False
        self._seen = asyncio.Event()
        self._served: Served | None = None
        self._changing: set[asyncio.Task[None]] = set()
        self._preparing: dict[asyncio.Future[None], Engine] = {}
        self._preparer = ThreadPoolExecutor(1, "ternaus-preparer")
        self._published = 0.0
        self._due = False

    async def main(self) -> int:
        loop = self.loop = asyncio.get_running_loop()
        self._end: asyncio.Future[int] = loop.create_future()
        numbers = self.board.engine
        # What the engine before this one did stays done; what it was, this one is not.
        self._busy_before = numbers.get("busy_seconds")
        numbers.put(tiles=0, pixels=0, oldest_age_seconds=0, estimated_wait_seconds=0)
        opening = await asyncio.to_thread(self._plan.opening)
        self.device = LocalDevice(
            self._plan.rules,
            resolve=opening.resolve,
            open_engine=opening.open_engine,
            metrics=Metrics(Book(Ledger(self.board.ledger(None)))),
            clock=RealClock(),
            newest=opening.newest,
            on_lost=self._lost,
            on_change=self.announce,
        )
        self.device.on_leaving = self._leaving
        self._channel = Link(
            self._plan.channel, on_message=self._told_by_supervisor, on_closed=self._orphaned
        )
        self.publish()
        pulse = asyncio.create_task(self._pulse())
        try:
            if self._plan.served is not None:
                await self.device.reopen(Served(**self._plan.served))
            else:
                await self.device.open(await asyncio.to_thread(opening.labels))
        except Exception as exc:
            known = isinstance(exc, TernausError)
            log.critical("%s", exc, exc_info=None if known else exc)
            self._channel.say("failed")
            self._channel.close()
            pulse.cancel()
            return 1
        self.announce()
        # No front end may be ready before all are: a client would be sent from one to the other.
        await self._until(lambda guest: guest.shown > 0, _JOINED_S)
        self._open = True
        self.publish()
        await self._tell_pace()
        code = await self._end
        pulse.cancel()
        # Shapes that are to be prepared still are of no use to anybody.
        self._preparer.shutdown(wait=False, cancel_futures=True)
        for guest in list(self._guests):
            # Whoever waits has been told why, if this end is not a good one.
            guest.link.flush()
            guest.close()
        self._channel.close()
        if code == 0:
            await self.device.close()
        return code

    async def _tell_pace(self) -> None:
        pace = Pace(0.0, 0.0)
        if self._plan.measure:
            model = self.device.catalog.default
            pace = await asyncio.to_thread(
                measure, model, self.device.batcher, self._plan.rules.max_batch
            )
        self._channel.say("opened", rate=pace.rate, host_s=pace.host_s)

    def _lost(self, exc: BaseException) -> None:
        """From a thread of the batcher."""
        self.loop.call_soon_threadsafe(self._finish, 1)

    def _finish(self, code: int) -> None:
        if not self._end.done():
            self._end.set_result(code)

    def _orphaned(self) -> None:
        self._finish(1)

    def _told_by_supervisor(self, message: dict[str, Any], fds: list[int]) -> None:
        if message["kind"] == "front":
            guest = _Guest(self, message["seat"], socket.socket(fileno=fds[0]))
            self._guests.add(guest)
        elif message["kind"] == "drain":
            self.device.drain()
        elif message["kind"] == "close":
            self._finish(0)
        else:
            raise ValueError(f"a message `{message['kind']}`")

    def left(self, guest: _Guest) -> None:
        """A front end is gone."""
        self._guests.discard(guest)
        self._seen.set()

    async def _pulse(self) -> None:
        """Forward progress, observed: a loop or a process that stands still stops writing this."""
        beats = 0
        while True:
            await asyncio.sleep(PULSE_S)
            self.publish()
            if self.device.state == "lost":
                self._finish(1)
            beats += 1
            if beats % _LOOK == 0 and self._models:
                self.announce()

    def publish(self) -> None:
        """What front ends read without asking."""
        self._due = False
        self._published = self.loop.time()
        figures = self.device.batcher.figures()
        figures["busy_seconds"] += self._busy_before
        state = self.device.state
        if not self._open and state in ("ok", "idle"):
            state = "starting"
        self.board.engine.put(heartbeat=RealClock().now(), state=STATES.index(state), **figures)
        # After the wait that counts them: what is between is counted twice, never not at all.
        for guest in self._guests:
            guest.numbers.put(taken=guest.taken)

    def soon(self) -> None:
        """Publish what changed, but not for every packet."""
        if self.loop.time() - self._published >= _SOON_S:
            self.publish()
        elif not self._due:
            self._due = True
            self.loop.call_later(_SOON_S, self.publish)

    # Models, by numbers that are never used twice.

    def announce(self) -> None:
        """Tell the supervisor and the front ends what is open, if that is news to them."""
        catalog = self.device.catalog
        models = []
        for model in catalog.models.values():
            number = self._numbers.get(model.engine)
            if number is None:
                number = self._numbers[model.engine] = next(self._number)
                self._models[number] = model
            models.append(
                {
                    "number": number,
                    "spec": dataclasses.asdict(model.spec),
                    "batch_sizes": list(model.engine.batch_sizes),
                    "engine": dict(model.engine.describe()),
                }
            )
        if not models:
            return
        failures = {label: why[:_WORDS] for label, why in catalog.failures.items()}
        served = dataclasses.replace(self.device.changes.served(), failures=failures)
        if served != self._served:
            # First of all: what any client was told of outlives this process.
            self._served = served
            self._channel.say("served", served=dataclasses.asdict(served))
        summary = {
            "numbers": [model["number"] for model in models],
            "plain": {name: self._numbers[m.engine] for name, m in catalog.plain.items()},
            "failures": failures,
        }
        if (models, summary) != (self._told, self._summary):
            self._told, self._summary = models, summary
            self._serial += 1
            # One that is found to be gone leaves meanwhile.
            for guest in list(self._guests):
                self.tell_models(guest)

    def tell_models(self, guest: _Guest) -> None:
        """Every open model, one message each, then that this is all. The front end holds them from
        now on.
        """
        if not self._told or not guest.joined:
            return
        # All of them first: if it is found to be gone, what it holds is taken back.
        for model in self._told:
            guest.hold(model["number"], self._models[model["number"]])
        for model in self._told:
            guest.link.say("model", **model)
        guest.link.say("models", serial=self._serial, **self._summary)

    def seen(self) -> None:
        """A front end shows what it was told."""
        self._seen.set()

    async def _shown(self) -> None:
        """Wait until every front end that serves shows what is open, but for one that hangs."""
        serial = self._serial
        await self._until(lambda guest: not guest.joined or guest.shown >= serial, _SHOWN_S)

    async def _until(self, holds: Callable[[_Guest], bool], most_s: float) -> None:
        """Wait until it holds for every front end."""
        try:
            async with asyncio.timeout(most_s):
                while not all(holds(guest) for guest in self._guests):
                    self._seen.clear()
                    await self._seen.wait()
        except TimeoutError:
            log.warning("a front end does not show what is open, after %g s", most_s)

    def change(self, guest: _Guest, message: dict[str, Any]) -> None:
        """A front end was asked for a change; it hears how that ended."""
        task = asyncio.create_task(self._change(guest, message))
        self._changing.add(task)
        task.add_done_callback(self._changing.discard)

    async def _change(self, guest: _Guest, message: dict[str, Any]) -> None:
        number, label = message["id"], message["label"]
        try:
            found: Any
            if message["kind"] == "load":
                found = dataclasses.asdict(await self.device.load(label))
            else:
                found = await self.device.unload(label)
            await self._shown()
            guest.reply("changed", id=number, found=found)
        except TernausError as exc:
            await self._shown()
            guest.reply("refused", id=number, **wire.error_values(exc))
        except Exception as exc:  # a defect of ours, of which whoever waits must hear too
            log.exception("a change failed")
            guest.reply("broken", id=number, words=repr(exc)[:_WORDS])

    async def _leaving(self, engine: Engine) -> None:
        """No front end holds it any more: its number means nothing from now on."""
        jobs = [job for job, one in self._preparing.items() if one is engine]
        if jobs:
            await asyncio.wait(jobs)
        number = self._numbers.pop(engine, None)
        if number is not None:
            del self._models[number]

    def lane(self, number: int, height: int, width: int) -> Lane:
        """Raises ValueError for a model that was never announced."""
        model = self._models.get(number)
        if model is None:
            raise ValueError(f"a model {number}")
        return Lane(model.engine, height, width)

    def form(self, number: int, height: int, width: int, *, probability: bool) -> Form:
        """What lies in a slot of this model."""
        return Form.of(self._models[number].spec, height, width, probability=probability)

    def prepare(self, number: int, height: int, width: int, batch: int) -> None:
        """Have a shape prepared, one after the other: batches come in between."""
        engine = self.lane(number, height, width).engine
        job = self.loop.run_in_executor(self._preparer, engine.prepare, height, width, batch)
        self._preparing[job] = engine
        job.add_done_callback(self._prepared)

    def _prepared(self, job: asyncio.Future[None]) -> None:
        del self._preparing[job]
        if not job.cancelled() and (exc := job.exception()) is not None:
            log.warning("a shape could not be prepared: %s", exc)


class _Guest:
    """One front end as the engine sees it. When it leaves, everything of it is dropped."""

    def __init__(self, engine: EngineEnd, seat: int, line: socket.socket) -> None:
        self._engine = engine
        self._batcher = engine.device.batcher
        self.numbers = engine.board.seats[seat]
        self.taken = 0
        self.numbers.put(taken=0)
        self._arena: Memory | None = None
        self._flows: dict[int, Flow] = {}
        self._expected: dict[Lane, int] = {}
        self._held: dict[int, OpenModel] = {}
        # The serial number of what it shows.
        self.shown = 0
        self.link = Link(
            line,
            on_record=self._record,
            on_message=self._message,
            on_closed=self.close,
            after=engine.soon,
        )

    def close(self) -> None:
        """Nobody waits for anything of this front end any more. Idempotent.

        Its memory goes when the last batch that reads it is done.
        """
        self.link.close()
        for flow in self._flows.values():
            self._batcher.forget(flow)
        self._flows.clear()
        for lane, count in self._expected.items():
            self._batcher.expect(lane, -count)
        self._expected.clear()
        for number in list(self._held):
            self._let_go(number)
        self._engine.left(self)

    @property
    def joined(self) -> bool:
        """It has a place for tiles, and is told what is open."""
        return self._arena is not None

    def hold(self, number: int, model: OpenModel) -> None:
        """It may send tiles for this model until it says otherwise, or is gone."""
        if number not in self._held:
            self._held[number] = model
            model.loans.__enter__()

    def _let_go(self, number: int) -> None:
        self._held.pop(number).loans.__exit__()

    def reply(self, kind: str, **values: Any) -> None:
        """Say something, if it is still there."""
        if not self.link.closed:
            self.link.say(kind, **values)

    def _message(self, message: dict[str, Any], fds: list[int]) -> None:
        match message["kind"]:
            case "arena" if len(fds) == 1 and self._arena is None:
                self._arena = Memory(fds[0], message["size"])
                self._arena.forget_fd()
                self._engine.tell_models(self)
            case "load" | "unload":
                self._engine.change(self, message)
            case "let_go":
                self._let_go(message["number"])
            case "showing":
                self.shown = message["serial"]
                self._engine.seen()
            case other:
                raise ValueError(f"a message `{other}`")

    def _record(self, record: wire.Record) -> None:
        match record:
            case wire.Submit():
                self._submit(record)
                self.taken = record.tag
            case wire.Forget(number):
                flow = self._flows.pop(number, None)
                if flow is not None:
                    self._batcher.forget(flow)
            case wire.Expect(model, height, width, count):
                lane = self._engine.lane(model, height, width)
                self._batcher.expect(lane, count)
                left = self._expected.pop(lane, 0) + count
                if left:
                    self._expected[lane] = left
            case wire.Prepare(model, height, width, batch):
                self._engine.prepare(model, height, width, batch)
            case _:
                raise ValueError(f"unexpected {type(record).__name__}")

    def _submit(self, ask: wire.Submit) -> None:
        if ask.model not in self._held:
            raise ValueError(f"a tile for a model {ask.model} that it does not hold")
        lane = self._engine.lane(ask.model, ask.height, ask.width)
        form = self._engine.form(ask.model, ask.height, ask.width, probability=ask.probability)
        if self._arena is None or ask.offset + form.size > self._arena.size:
            raise ValueError("a slot outside the arena")
        memory = self._arena.view
        flow = self._flows.get(ask.flow)
        if flow is None:
            flow = self._flows[ask.flow] = Flow(ask.deadline, ask.priority, weight=ask.weight)
        link = self.link
        answered = False

        def deliver(item: Item, outcome: Outcome) -> None:
            nonlocal answered
            if not isinstance(outcome, BaseException):
                try:
                    form.write(memory, ask.offset, outcome)
                except ValueError as exc:
                    outcome = InferenceFailed(f"the engine gave a result of another shape: {exc}")
            answered = True
            if isinstance(outcome, BaseException):
                self._engine.loop.call_soon_threadsafe(self._fail, ask.tag, item.launched, outcome)
                return
            link.post_from_thread(
                wire.Done(ask.tag, item.launched, item.device_s, *self._batcher.learnt(item.lane))
            )

        def release(item: Item) -> None:
            if not answered:
                link.post_from_thread(wire.Dropped(ask.tag))

        pixels = form.pixels(memory, ask.offset)
        item = Item(lane, flow, pixels, ask.threshold, ask.probability, deliver, release=release)
        try:
            self._batcher.submit(item)
        except TernausError as exc:
            self._fail(ask.tag, 0.0, exc)

    def _fail(self, tag: int, launched: float, exc: BaseException) -> None:
        assert isinstance(exc, TernausError)
        self.reply("failed", tag=tag, launched=launched, **wire.error_values(exc))
