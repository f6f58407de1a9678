"""The device's half of the house: open models and the queue in front of them.

Two things keep this contract: `LocalDevice`, in this process, and a front end's view of the engine
process. The host's half (decoding, admission, encoding) knows this contract alone.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Protocol, TypeVar

from app.engine.base import Engine
from app.errors import TernausError
from app.serving.batcher import Batcher
from app.serving.catalog import Catalog, OpenEngine, OpenModel, Resolve
from app.serving.changes import Changes, Loaded, Newest
from app.serving.clock import Clock
from app.serving.lanes import Flow, Item, Lane
from app.serving.metrics import Metrics
from app.serving.rules import Rules
from app.serving.served import Served
from app.store.store import Edition
from app.types import State

log = logging.getLogger("ternaus.device")

What = TypeVar("What")
# Lets go of an engine that no request holds any more.
Leaving = Callable[[Engine], Awaitable[None]]


async def nothing_kept(engine: Engine) -> None:
    """For where nobody keeps anything of an engine."""


class Queue(Protocol):
    """What the journey of a picture asks of the way to the device. Called on the event loop."""

    async def submit(self, item: Item) -> None:
        """Queue a tile; `item.deliver` will be called exactly once unless its flow is forgotten.

        May wait for room. Raises NotReady when the device is gone.
        """
        ...

    def forget(self, flow: Flow) -> None:
        """A request is over, served or not: what is left of it is dropped."""
        ...

    def expect(self, lane: Lane, count: int) -> None:
        """`count` tiles of this lane are (or, negative, are no longer) on their way."""
        ...

    def predicted_s(self, lane: Lane, items: int) -> float:
        """Predicted seconds of `items` tiles of `lane` on an idle device."""
        ...

    def estimated_wait_s(self) -> float:
        """Predicted seconds until new work would begin."""
        ...


class Device(Protocol):
    """Models on a device, wherever that is.

    `on_leaving` is waited for before an engine that no request holds any more is closed.
    """

    on_leaving: Leaving

    @property
    def catalog(self) -> Catalog:
        """The open models."""
        ...

    @property
    def queue(self) -> Queue:
        """The way to the device."""
        ...

    @property
    def state(self) -> State:
        """One word, observed."""
        ...

    async def open(self, labels: tuple[str, ...]) -> None:
        """Open models and begin. Raises the first error; nothing is then ready."""
        ...

    async def load(self, label: str) -> Loaded:
        """Have `name@version`, or the newest version of `name`, answer to its name.

        Raises what `Changes.load` does, and NotReady for a device that is gone.
        """
        ...

    async def unload(self, label: str) -> list[str]:
        """Close every version of `name`, or `name@version`; their labels. Raises as `load` does."""
        ...

    def drain(self) -> None:
        """Change no more: the server is about to end."""
        ...

    def figures(self) -> dict[str, float]:
        """Gauges of this moment; the names are those of `app.serving.metrics`."""
        ...

    def failures(self) -> dict[str, str]:
        """What is wrong, by model or part, in words."""
        ...

    async def close(self) -> None:
        """Finish what was taken, then give the device back."""
        ...


class LocalQueue:
    """The batcher of this process."""

    def __init__(self, batcher: Batcher) -> None:
        self._batcher = batcher
        self.forget = batcher.forget
        self.expect = batcher.expect
        self.predicted_s = batcher.predicted_s
        self.estimated_wait_s = batcher.estimated_wait_s

    async def submit(self, item: Item) -> None:
        self._batcher.submit(item)


class LocalDevice:
    """Models on a device of this process, tried now and then while nobody asks."""

    def __init__(
        self,
        rules: Rules,
        *,
        resolve: Resolve,
        open_engine: OpenEngine,
        metrics: Metrics,
        clock: Clock,
        newest: Newest | None = None,
        on_lost: Callable[[BaseException], None] = lambda exc: None,
        on_change: Callable[[], None] = lambda: None,
    ) -> None:
        """`newest` looks for the newest version of a name; without it `resolve` does. `on_change`
        is called when other models are open than before, or there is other news of them.
        """
        self.on_leaving: Leaving = nothing_kept
        self._metrics = metrics
        self._canary_s = rules.canary_s
        self._watch_s = rules.watch_store_s
        # Of models that are open; what is closed is judged no more.
        self._canary_failures: dict[OpenModel, TernausError] = {}
        self._canary: asyncio.Task[None] | None = None
        self.batcher = Batcher(
            clock=clock,
            observer=metrics,
            max_batch=rules.max_batch,
            max_batch_pixels=rules.max_batch_pixels,
            max_hold_s=rules.max_hold_s,
            stall_after_s=rules.stall_after_s,
            on_lost=on_lost,
        )
        self.queue: Queue = LocalQueue(self.batcher)
        self.catalog = Catalog(
            resolve=resolve, open_engine=open_engine, default=rules.default_model
        )
        self.changes = Changes(
            catalog=self.catalog,
            batcher=self.batcher,
            metrics=metrics,
            newest=newest or (lambda name: Edition(resolve(name).version, "")),
            leaving=lambda engine: self.on_leaving(engine),
            changed=on_change,
        )
        self.load = self.changes.load
        self.unload = self.changes.unload

    async def open(self, labels: tuple[str, ...]) -> None:
        await self._open(self.catalog.open, labels)

    async def reopen(self, served: Served) -> None:
        """Open what another process served last, and go on from there. Raises as `open` does."""
        await self._open(self.catalog.reopen, served)
        self.changes.resume(served)

    async def _open(self, opening: Callable[[What], None], what: What) -> None:
        self.batcher.start()
        await asyncio.to_thread(opening, what)
        for model in self.catalog.models.values():
            self._metrics.opened(model.engine)
        if self._canary_s:
            self._canary = asyncio.create_task(self._sing())
        if self._watch_s:
            self.changes.watch(self._watch_s)

    def drain(self) -> None:
        self.changes.draining = True

    async def _sing(self) -> None:
        """With no traffic nobody would notice a dead device: try it on each model's own sample."""
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(self._canary_s / 4)
            if self.batcher.idle_for_s() < self._canary_s or self.batcher.state() != "idle":
                continue
            for model in list(self.catalog.models.values()):
                if model.sample is None:
                    continue
                try:
                    # Held, so that it is not closed meanwhile; one that has left is not tried.
                    with model.loans:
                        if model not in self.catalog.models.values():
                            continue
                        await loop.run_in_executor(
                            None, self.batcher.exclusively, model.sample.test, model.engine
                        )
                    self._canary_failures.pop(model, None)
                except TernausError as exc:
                    self._canary_failures[model] = exc
                    log.critical("model %s no longer gives its own mask: %s", model.spec.label, exc)
            for model in self._canary_failures.keys() - self.catalog.models.values():
                del self._canary_failures[model]

    @property
    def _canary_failure(self) -> TernausError | None:
        if not self._canary_failures:
            return None
        open_models = self.catalog.models.values()
        return next((e for model, e in self._canary_failures.items() if model in open_models), None)

    @property
    def state(self) -> State:
        state = self.batcher.state()
        if state in ("lost", "stalled"):
            return state
        if self._canary_failure is not None:
            return "failing"
        return state if self.catalog.ready else "starting"

    def figures(self) -> dict[str, float]:
        return {**self.batcher.figures(), "slot_bytes": 0.0}

    def failures(self) -> dict[str, str]:
        found = dict(self.catalog.failures)
        canary = self._canary_failure
        if canary is not None:
            found["canary"] = canary.detail
        return found

    async def close(self) -> None:
        if self._canary is not None:
            self._canary.cancel()
        await self.changes.close()
        await asyncio.to_thread(self.batcher.close)
        self.catalog.close()
