"""What a front end sees of the engine process: the device's half of its house, at a distance.

It keeps the contract of `app.serving.device`. Tiles go out in slots and come back in them; the rest
is read from the board, so that nothing here ever waits for an answer of a process that may be gone.
When the engine is lost, everybody who waits is told at once, and a new one takes over by itself.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NoReturn, cast

import numpy as np
from numpy.typing import NDArray

from app.engine.base import Engine, FromHost
from app.engine.recent import Recent
from app.errors import InferenceFailed, NotReady
from app.fronts import wire
from app.fronts.board import Board
from app.fronts.link import Link
from app.fronts.slots import Arena, Form
from app.serving.catalog import Catalog, OpenModel
from app.serving.changes import Loaded
from app.serving.clock import Clock
from app.serving.device import Leaving, Queue, nothing_kept
from app.serving.lanes import Flow, Item, Lane
from app.types import ClassSpec, Halo, Inference, ModelSpec, Pixels, State

log = logging.getLogger("ternaus.front")

# A copy of more bytes than that (about 0.3 ms) is made on a thread.
_INLINE_BYTES = 2 * 2**20
_LANES = 1024
# What a client is told who comes while the engine starts anew.
_RETRY_S = 2.0


class RemoteEngine(FromHost):
    """A model in the engine process, as its front ends know it. Keeps the contract of an engine,
    but for `infer`, which is the queue's matter.
    """

    def __init__(self, link: Link, message: Mapping[str, Any]) -> None:
        self.link = link
        self.number: int = message["number"]
        self._spec = _spec(message["spec"])
        self._batch_sizes = tuple(message["batch_sizes"])
        self._described: dict[str, Any] = message["engine"]

    @property
    def spec(self) -> ModelSpec:
        return self._spec

    @property
    def batch_sizes(self) -> tuple[int, ...]:
        return self._batch_sizes

    def infer(
        self, pixels: Pixels, thresholds: NDArray[np.float32], *, probability: bool = False
    ) -> Inference:
        raise InferenceFailed("the engine is in another process; its queue takes tiles")

    def prepare(self, height: int, width: int, batch: int) -> None:
        self.link.post_from_thread(wire.Prepare(self.number, height, width, batch))

    def describe(self) -> Mapping[str, Any]:
        return self._described

    def described(self, found: dict[str, Any]) -> None:
        """It says something new of itself."""
        self._described = found

    def close(self) -> None:
        pass


def _spec(values: dict[str, Any]) -> ModelSpec:
    """The other side of `dataclasses.asdict`, through JSON."""
    lists = {name: tuple(values[name]) for name in ("mean", "std")}
    classes = tuple(ClassSpec(c["name"], tuple(c["colour"])) for c in values["classes"])
    return ModelSpec(**{**values, **lists, "classes": classes, "halo": Halo(**values["halo"])})


@dataclass(slots=True)
class _Sent:
    """A tile in the engine's hands."""

    item: Item
    form: Form
    offset: int


class RemoteQueue:
    """The way to the engine process. Lives on the event loop."""

    def __init__(self, board: Board, seat: int, *, clock: Clock, slot_bytes: int) -> None:
        self._engine = board.engine
        self._numbers = board.seats[seat]
        self._clock = clock
        self.arena = Arena(slot_bytes)
        self._link: Link | None = None
        self._sent: dict[int, _Sent] = {}
        self._flows: dict[Flow, int] = {}
        self._tag = 0
        self._flow = 0
        self._fits: Recent[Lane, tuple[float, float, int]] = Recent(_LANES)
        # Tiles that the engine's own estimate may not count yet: tag and predicted seconds.
        self._fresh: deque[tuple[int, float]] = deque()

    def attach(self, link: Link) -> None:
        """A new engine process. Raises nothing; what the last one had is lost already."""
        self._link = link
        self._tag = 0
        link.say("arena", self.arena.memory.fd, size=self.arena.memory.size)

    def lose(self) -> None:
        """The engine process is gone: every slot is ours again, and everybody is told."""
        self._link = None
        sent, self._sent = self._sent, {}
        self._flows.clear()
        self._fresh.clear()
        self.arena.refuse(_gone)
        for waiting in sent.values():
            self.arena.give(waiting.offset)
            self._deliver(waiting.item, _gone())
        self._tell_used()

    async def submit(self, item: Item) -> None:
        link, engine = self._current(item.lane)
        form = Form.of(engine.spec, item.lane.height, item.lane.width, probability=item.probability)
        offset = await self.arena.take(form.size)
        await self._fill(form.pixels(self.arena.memory.view, offset), item.pixels, offset)
        if link.closed or item.flow.gone:
            self.arena.give(offset)
            raise _gone()
        self._tag += 1
        number = self._flows.get(item.flow)
        if number is None:
            self._flow += 1
            number = self._flows[item.flow] = self._flow
        self._sent[self._tag] = _Sent(item, form, offset)
        self._fresh.append((self._tag, self.predicted_s(item.lane, 1)))
        link.post(
            wire.Submit(
                tag=self._tag,
                flow=number,
                offset=offset,
                deadline=item.flow.deadline,
                threshold=item.threshold,
                model=engine.number,
                height=item.lane.height,
                width=item.lane.width,
                priority=item.flow.priority,
                weight=item.flow.weight,
                probability=item.probability,
            )
        )
        self._tell_used()

    async def _fill(self, slot: Pixels, pixels: Pixels, offset: int) -> None:
        if slot.nbytes <= _INLINE_BYTES:
            slot[...] = pixels
            return
        copying = asyncio.get_running_loop().run_in_executor(None, np.copyto, slot, pixels)
        try:
            await asyncio.shield(copying)
        except asyncio.CancelledError:
            # The thread cannot be stopped; the slot is free when it is done.
            copying.add_done_callback(lambda _: self.arena.give(offset))
            raise

    def forget(self, flow: Flow) -> None:
        flow.gone = True
        number = self._flows.pop(flow, None)
        if number is not None and self._link is not None:
            self._link.post(wire.Forget(number))

    def expect(self, lane: Lane, count: int) -> None:
        engine = lane.engine
        assert isinstance(engine, RemoteEngine)
        # A tile that was announced to an engine that is gone is not taken back from the next one.
        if engine.link is self._link and self._link is not None:
            self._link.post(wire.Expect(engine.number, lane.height, lane.width, count))

    def predicted_s(self, lane: Lane, items: int) -> float:
        fit = self._fits.get(lane)
        if fit is None:
            return self._engine.get("seconds_per_pixel") * lane.pixels * items
        per_item, per_launch, largest = fit
        return per_item * items + per_launch * -(-items // largest)

    def estimated_wait_s(self) -> float:
        taken = self._numbers.get("taken")
        while self._fresh and self._fresh[0][0] <= taken:
            self._fresh.popleft()
        return self._engine.get("estimated_wait_seconds") + sum(s for _, s in self._fresh)

    def forget_engine(self, engine: Engine) -> None:
        """Drop what was learnt of an engine that no request holds."""
        self._fits.drop(lambda lane: lane.engine is engine)

    def _current(self, lane: Lane) -> tuple[Link, RemoteEngine]:
        """The link to the engine of this lane. Raises NotReady for one that is gone."""
        engine = lane.engine
        assert isinstance(engine, RemoteEngine)
        if self._link is None or engine.link is not self._link:
            raise _gone()
        return self._link, engine

    # What the engine answers.

    def record(self, record: wire.Record) -> None:
        """A tile is done or was dropped."""
        match record:
            case wire.Done():
                sent = self._sent.pop(record.tag)
                sent.item.launched, sent.item.device_s = record.launched, record.device_s
                if sent.item.flow.gone:
                    # Nobody holds its model either: nothing is learnt of one that may have left.
                    self.arena.give(sent.offset)
                else:
                    fit = (record.per_item_s, record.per_launch_s, record.largest)
                    self._fits.put(sent.item.lane, fit)
                    result = sent.form.read(self.arena.memory.view, sent.offset)
                    self.arena.give(sent.offset)
                    self._deliver(sent.item, result)
            case wire.Dropped(tag):
                self.arena.give(self._sent.pop(tag).offset)
            case _:
                raise ValueError(f"unexpected {type(record).__name__}")
        self._tell_used()

    def failed(self, message: dict[str, Any]) -> None:
        """A tile failed, for the reason that the engine says."""
        sent = self._sent.pop(message["tag"])
        self.arena.give(sent.offset)
        sent.item.launched = message["launched"]
        self._deliver(sent.item, wire.error_of(message))
        self._tell_used()

    @staticmethod
    def _deliver(item: Item, outcome: Inference | BaseException) -> None:
        if not item.delivered and not item.flow.gone:
            item.delivered = True
            item.deliver(item, outcome)

    def _tell_used(self) -> None:
        self._numbers.put(used_bytes=self.arena.used)


def _unfinished() -> NotReady:
    return NotReady(
        "the engine process ended before it said how the change ended; it is being started again, "
        "and `/models` will tell what it serves",
        retry_after_s=_RETRY_S,
    )


def _gone() -> NotReady:
    return NotReady("the engine process ended; it is being started again", retry_after_s=_RETRY_S)


class RemoteDevice:
    """The device's half of the house, in another process."""

    def __init__(
        self,
        board: Board,
        seat: int,
        *,
        clock: Clock,
        default_model: str,
        stall_after_s: float,
        slot_bytes: int,
    ) -> None:
        self._board = board
        self._clock = clock
        self._stall_after = stall_after_s
        self._link: Link | None = None
        self._coming: dict[int, OpenModel] = {}
        self._known: dict[int, OpenModel] = {}
        self._failures: dict[str, str] = {}
        # Changes that were asked for, by number, until the engine process says how they ended.
        self._asked: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._ask = 0
        self._leaving: set[asyncio.Task[None]] = set()
        self.on_leaving: Leaving = nothing_kept
        self._opened = asyncio.Event()
        self._was_open = False
        self._again = False
        self.remote = RemoteQueue(board, seat, clock=clock, slot_bytes=slot_bytes)
        self.queue: Queue = self.remote
        self.catalog = Catalog(resolve=_elsewhere, open_engine=_elsewhere, default=default_model)

    def attach(self, line: socket.socket) -> None:
        """The supervisor gave us an engine process, perhaps one that still opens its models."""
        if self._link is not None:
            self._link.close()
            self._lost()
        link = Link(
            line,
            on_record=self.remote.record,
            on_message=self._message,
            on_closed=self._lost,
        )
        self._link = link
        self.remote.attach(link)

    def _lost(self) -> None:
        log.warning("the engine process is gone")
        self._link = None
        self._again = self._was_open
        left = self._known.values()
        self._coming, self._known, self._failures = {}, {}, {}
        self.catalog.show((), {})
        self.remote.lose()
        for model in left:
            self._let_go(model)
        asked, self._asked = self._asked, {}
        for answer in asked.values():
            if not answer.done():
                answer.set_exception(_unfinished())

    def _message(self, message: dict[str, Any], fds: list[int]) -> None:
        assert self._link is not None
        match message["kind"]:
            case "model":
                number = message["number"]
                known = self._known.get(number)
                if known is None:
                    engine = RemoteEngine(self._link, message)
                    known = OpenModel(engine.spec, engine, None)
                else:
                    assert isinstance(known.engine, RemoteEngine)
                    known.engine.described(message["engine"])
                self._coming[number] = known
            case "models":
                self._show(message)
            case "changed" | "refused" | "broken":
                answer = self._asked.pop(message["id"])
                if not answer.done():
                    answer.set_result(message)
            case "failed":
                self.remote.failed(message)
            case other:
                raise ValueError(f"a message `{other}`")

    def _show(self, message: dict[str, Any]) -> None:
        """These models are open from now on; requests under way keep those that they have."""
        assert self._link is not None
        before = self._known
        self._known = {number: self._coming[number] for number in message["numbers"]}
        self._coming = {}
        plain = {name: self._known[number] for name, number in message["plain"].items()}
        self.catalog.show(self._known.values(), plain)
        self._failures = message["failures"]
        self._link.say("showing", serial=message["serial"])
        for number, model in before.items():
            if number not in self._known:
                self._let_go(model)
        self._was_open = True
        self._opened.set()

    def _let_go(self, model: OpenModel) -> None:
        task = asyncio.get_running_loop().create_task(self._retire(model))
        self._leaving.add(task)
        task.add_done_callback(self._leaving.discard)

    async def _retire(self, model: OpenModel) -> None:
        """Once the last request has ended that holds it, the engine process may close it."""
        engine = model.engine
        assert isinstance(engine, RemoteEngine)
        await model.loans.ended()
        await self.on_leaving(engine)
        self.remote.forget_engine(engine)
        if engine.link is self._link:
            engine.link.say("let_go", number=engine.number)

    async def load(self, label: str) -> Loaded:
        return Loaded(**await self._change("load", label))

    async def unload(self, label: str) -> list[str]:
        found: list[str] = await self._change("unload", label)
        return found

    async def _change(self, kind: str, label: str) -> Any:
        """Have the engine process do it. Its answer comes after what it then has us show."""
        link = self._link
        if link is None or not self.catalog.ready:
            raise NotReady("the engine process is still opening its models", retry_after_s=_RETRY_S)
        self._ask += 1
        answer = self._asked[self._ask] = asyncio.get_running_loop().create_future()
        link.say(kind, id=self._ask, label=label)
        message = await answer
        match message["kind"]:
            case "refused":
                raise wire.error_of(message)
            case "broken":
                raise RuntimeError(f"the engine process: {message['words']}")
        return message["found"]

    def drain(self) -> None:
        """Nothing: the house refuses by itself, and the engine process is told as well."""

    async def open(self, labels: tuple[str, ...]) -> None:
        """Wait for the engine process to have opened its models."""
        await self._opened.wait()

    @property
    def state(self) -> State:
        if not self.catalog.ready:
            return "restarting" if self._was_open else "starting"
        state = cast(State, self._board.engine.state)
        if state == "starting":
            # Another front end does not know the models yet.
            return "restarting" if self._again else "starting"
        if self._clock.now() - self._board.engine.get("heartbeat") > self._stall_after:
            return "stalled"
        return state

    def figures(self) -> dict[str, float]:
        numbers = self._board.engine
        found = {name: numbers.get(name) for name in numbers.FIGURES}
        found["estimated_wait_seconds"] = self.queue.estimated_wait_s()
        found["slot_bytes"] = sum(seat.get("used_bytes") for seat in self._board.seats)
        return found

    def failures(self) -> dict[str, str]:
        if self._link is None and self._was_open:
            return {"engine": "its process ended and is being started again"}
        found = dict(self._failures)
        if self.state == "failing":
            found["canary"] = "a model no longer gives its own mask; the log says which"
        return found

    async def close(self) -> None:
        for task in self._leaving:
            task.cancel()
        if self._link is not None:
            self._link.close()
            self._link = None


def _elsewhere(*_: object) -> NoReturn:
    raise NotReady("models are opened in the engine process")
