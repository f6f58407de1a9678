"""The device's half of the house: open models and the queue in front of them.

Two things keep this contract: `LocalDevice`, in this process, and a front end's view of the engine
process. The host's half (decoding, admission, encoding) knows this contract alone.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Protocol

from app.errors import TernausError
from app.serving.batcher import Batcher
from app.serving.catalog import Catalog, OpenEngine, Resolve
from app.serving.clock import Clock
from app.serving.lanes import Flow, Item, Lane
from app.serving.metrics import Metrics
from app.serving.rules import Rules
from app.types import State

log = logging.getLogger("ternaus.device")


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
    """Models on a device, wherever that is."""

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
        on_lost: Callable[[BaseException], None] = lambda exc: None,
    ) -> None:
        self._metrics = metrics
        self._canary_s = rules.canary_s
        self._canary_failure: TernausError | None = None
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

    async def open(self, labels: tuple[str, ...]) -> None:
        self.batcher.start()
        await asyncio.to_thread(self.catalog.open, labels)
        for model in self.catalog.models.values():
            spec, engine = model.spec, model.engine.describe()
            self._metrics.model_info.labels(
                spec.name, spec.version, spec.digest, engine.get("device"), engine.get("precision")
            ).set(1)
        if self._canary_s:
            self._canary = asyncio.create_task(self._sing())

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
                    await loop.run_in_executor(
                        None, self.batcher.exclusively, model.sample.test, model.engine
                    )
                    self._canary_failure = None
                except TernausError as exc:
                    self._canary_failure = exc
                    log.critical("model %s no longer gives its own mask: %s", model.spec.label, exc)

    @property
    def state(self) -> State:
        state = self.batcher.state()
        if state in ("lost", "stalled"):
            return state
        if self._canary_failure is not None:
            return "failing"
        return state if self.catalog.ready else "starting"

    def figures(self) -> dict[str, float]:
        return self.batcher.figures()

    def failures(self) -> dict[str, str]:
        found = {label: exc.detail for label, exc in self.catalog.failures.items()}
        if self._canary_failure is not None:
            found["canary"] = self._canary_failure.detail
        return found

    async def close(self) -> None:
        if self._canary is not None:
            self._canary.cancel()
        await asyncio.to_thread(self.batcher.close)
        self.catalog.close()
