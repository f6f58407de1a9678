"""Everything that serves, put together and taken apart in order: the device's half and the host's.

    house = House(parts...); await house.open(labels); ...; house.drain(); await house.close()

Lives on one event loop. Knows no HTTP: the API and the command line both stand on it.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from app.errors import TernausError
from app.imaging.bounds import DecodeLimits
from app.serving.admission import Admission, Bounds
from app.serving.batcher import Batcher
from app.serving.catalog import Catalog, OpenEngine, OpenModel, Resolve
from app.serving.changes import Changes, Newest
from app.serving.clock import Clock, RealClock
from app.serving.layout import Tiling
from app.serving.metrics import Metrics
from app.serving.segmenter import Segmenter
from app.store.store import Edition

log = logging.getLogger("ternaus.house")


@dataclass(frozen=True, slots=True)
class Rules:
    """The plain values that serving needs; the names are those of the settings."""

    bounds: Bounds
    max_pixels: int
    max_decoded_bytes: int
    whole_pixels: int
    tile: int
    default_model: str = ""
    host_threads: int = 0
    tiles_in_flight: int = 4
    max_batch: int = 32
    max_batch_pixels: int = 8_388_608
    max_hold_s: float = 0.002
    stall_after_s: float = 60.0
    canary_s: float = 30.0
    watch_store_s: float = 0.0


class House:
    """A catalog of models on one device, with its batcher, door, segmenter and figures."""

    def __init__(
        self,
        rules: Rules,
        *,
        resolve: Resolve,
        open_engine: OpenEngine,
        newest: Newest | None = None,
        clock: Clock | None = None,
        on_lost: Callable[[BaseException], None] = lambda exc: None,
    ) -> None:
        limits = DecodeLimits(
            max_pixels=rules.max_pixels, max_decoded_bytes=rules.max_decoded_bytes
        )
        tiling = Tiling(whole_pixels=rules.whole_pixels, side=rules.tile)
        self.draining = False
        self.clock = clock or RealClock()
        self.metrics = Metrics()
        self.started = time.time()
        self._canary_s = rules.canary_s
        self._watch_s = rules.watch_store_s
        # Of models that are open; what is closed is judged no more.
        self._canary_failures: dict[OpenModel, TernausError] = {}
        self._canary: asyncio.Task[None] | None = None
        self.host = ThreadPoolExecutor(
            rules.host_threads or len(os.sched_getaffinity(0)), thread_name_prefix="ternaus-host"
        )
        self.batcher = Batcher(
            clock=self.clock,
            observer=self.metrics,
            max_batch=rules.max_batch,
            max_batch_pixels=rules.max_batch_pixels,
            max_hold_s=rules.max_hold_s,
            stall_after_s=rules.stall_after_s,
            on_lost=on_lost,
        )
        self.catalog = Catalog(
            resolve=resolve,
            open_engine=open_engine,
            default=rules.default_model,
        )
        self.admission = Admission(
            rules.bounds,
            clock=self.clock,
            backlog_s=self.batcher.estimated_wait_s,
            ready=lambda: self.able,
            refused=lambda reason: self.metrics.rejected.labels(reason).inc(),
        )
        self.segmenter = Segmenter(
            catalog=self.catalog,
            batcher=self.batcher,
            metrics=self.metrics,
            clock=self.clock,
            host=self.host,
            limits=limits,
            tiling=tiling,
            tiles_in_flight=rules.tiles_in_flight,
        )
        self.changes = Changes(
            catalog=self.catalog,
            batcher=self.batcher,
            segmenter=self.segmenter,
            metrics=self.metrics,
            newest=newest or (lambda name: Edition(resolve(name).version, "")),
            draining=lambda: self.draining,
        )
        self.metrics.watch(self.figures)

    async def open(self, labels: tuple[str, ...]) -> None:
        """Open the models and begin. Raises the first error; nothing is then ready."""
        self.batcher.start()
        await asyncio.to_thread(self.catalog.open, labels)
        for model in self.catalog.models.values():
            self.metrics.opened(model.engine)
        log.info("ready after %.1f s", time.time() - self.started)
        if self._canary_s:
            self._canary = asyncio.create_task(self._sing())
        if self._watch_s:
            self.changes.watch(self._watch_s)

    async def _sing(self) -> None:
        """With no traffic nobody would notice a dead device: try it on each model's own sample."""
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(self._canary_s / 4)
            if self.batcher.idle_for_s() < self._canary_s or self.batcher.state() != "idle":
                continue
            for model in list(self.catalog.models.values()):
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
        open_models = self.catalog.models.values()
        return next((e for model, e in self._canary_failures.items() if model in open_models), None)

    @property
    def able(self) -> bool:
        """Models are open and the device works."""
        return self.catalog.ready and self._canary_failure is None and self.live

    @property
    def ready(self) -> bool:
        """New requests should be sent here."""
        return self.able and not self.draining

    @property
    def live(self) -> bool:
        """Nothing that only a restart would cure."""
        return self.batcher.state() in ("ok", "idle")

    @property
    def state(self) -> str:
        """One word for people and probes."""
        state = self.batcher.state()
        if state in ("lost", "stalled"):
            return state
        if self._canary_failure is not None:
            return "failing"
        if self.draining:
            return "draining"
        return state if self.catalog.ready else "starting"

    def figures(self) -> dict[str, float]:
        """Gauges of this moment."""
        return {
            **self.batcher.figures(),
            "requests": self.admission.requests,
            "body_bytes": self.admission.bytes,
            "body_pixels": self.admission.pixels,
            "ready": float(self.ready),
            "live": float(self.live),
        }

    def describe(self) -> dict[str, Any]:
        """For people: what `/health` shows."""
        failures = dict(self.catalog.failures)
        canary = self._canary_failure
        if canary is not None:
            failures["canary"] = canary.detail
        return {
            "state": self.state,
            "ready": self.ready,
            "live": self.live,
            "uptime_seconds": round(time.time() - self.started, 1),
            "models": self.catalog.describe() if self.catalog.ready else [],
            "failures": failures,
            "figures": {name: round(value, 6) for name, value in self.figures().items()},
        }

    def drain(self) -> None:
        """Say that no new requests should come; those that come are still served."""
        self.draining = True

    def refuse(self) -> None:
        """From now on new requests are refused."""
        self.draining = True
        self.admission.draining = True

    async def close(self) -> None:
        """Finish what is inside, then give the device back."""
        self.refuse()
        if self._canary is not None:
            self._canary.cancel()
        await asyncio.to_thread(self.batcher.close)
        await asyncio.to_thread(self.host.shutdown)
        await self.changes.close()
        self.catalog.close()
