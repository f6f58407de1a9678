"""Everything that serves, put together and taken apart in order: the host's half and the device's.

    house = House.local(rules, ...); await house.open(labels); house.drain(); await house.close()

Lives on one event loop. Knows no HTTP: the API and the command line both stand on it. Where the
device is, here or in another process, it does not know either.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Callable
from typing import Any

from app.errors import Draining
from app.imaging.bounds import DecodeLimits
from app.serving.admission import Admission
from app.serving.bounds import Doors
from app.serving.catalog import OpenEngine, Resolve
from app.serving.changes import Loaded, Newest
from app.serving.clock import Clock, RealClock
from app.serving.device import Device, LocalDevice
from app.serving.layout import Tiling
from app.serving.memory import keep_freed
from app.serving.metrics import Metrics
from app.serving.pool import HostPool
from app.serving.rules import Rules
from app.serving.segmenter import Segmenter

__all__ = ["House", "Rules"]

log = logging.getLogger("ternaus.house")


class House:
    """A device with its models behind a door, a segmenter and figures."""

    def __init__(
        self,
        rules: Rules,
        device: Device,
        *,
        metrics: Metrics,
        clock: Clock | None = None,
        doors: Doors | None = None,
    ) -> None:
        limits = DecodeLimits(
            max_pixels=rules.max_pixels, max_decoded_bytes=rules.max_decoded_bytes
        )
        tiling = Tiling(whole_pixels=rules.whole_pixels, side=rules.tile)
        keep_freed()
        self.draining = False
        self.clock = clock or RealClock()
        self.metrics = metrics
        self.started = time.time()
        self.device = device
        self.catalog = device.catalog
        self.host = HostPool(rules.host_threads or len(os.sched_getaffinity(0)))
        # Shapes one after the other: batches come in between, and no picture waits for a thread
        # that waits for the device.
        self.preparer = HostPool(1)
        self.admission = Admission(
            rules.bounds,
            clock=self.clock,
            backlog_s=device.queue.estimated_wait_s,
            ready=lambda: self.able,
            refused=lambda reason: self.metrics.rejected.labels(reason).inc(),
            doors=doors,
        )
        self.segmenter = Segmenter(
            catalog=self.catalog,
            queue=device.queue,
            metrics=self.metrics,
            clock=self.clock,
            host=self.host,
            preparer=self.preparer,
            limits=limits,
            tiling=tiling,
            tiles_in_flight=rules.tiles_in_flight,
        )
        device.on_leaving = self.segmenter.forget
        self.metrics.watch(self.figures)

    @classmethod
    def local(
        cls,
        rules: Rules,
        *,
        resolve: Resolve,
        open_engine: OpenEngine,
        newest: Newest | None = None,
        clock: Clock | None = None,
        on_lost: Callable[[BaseException], None] = lambda exc: None,
    ) -> House:
        """Everything in this process."""
        metrics, clock = Metrics(), clock or RealClock()
        device = LocalDevice(
            rules,
            resolve=resolve,
            open_engine=open_engine,
            metrics=metrics,
            clock=clock,
            newest=newest,
            on_lost=on_lost,
        )
        return cls(rules, device, metrics=metrics, clock=clock)

    async def open(self, labels: tuple[str, ...]) -> None:
        """Open the models and begin. Raises the first error; nothing is then ready."""
        await self.device.open(labels)
        log.info("ready after %.1f s", time.time() - self.started)

    async def load(self, label: str) -> Loaded:
        """Have `name@version`, or the newest version of `name`, answer to its name, and return
        then. Raises Draining and as `Device.load` does; nothing has changed then, unless the device
        went away meanwhile.
        """
        self._check()
        return await self.device.load(label)

    async def unload(self, label: str) -> list[str]:
        """Close every version of `name`, or `name@version`, and return then: the labels. Raises as
        `load` does.
        """
        self._check()
        return await self.device.unload(label)

    def _check(self) -> None:
        if self.draining:
            raise Draining("this server is shutting down", retry_after_s=1.0)

    @property
    def able(self) -> bool:
        """Models are open and the device works."""
        return self.catalog.ready and self.device.state in ("ok", "idle")

    @property
    def ready(self) -> bool:
        """New requests should be sent here."""
        return self.able and not self.draining

    @property
    def live(self) -> bool:
        """Nothing that only a restart would cure."""
        return self.device.state not in ("lost", "stalled")

    @property
    def state(self) -> str:
        """One word for people and probes."""
        state = self.device.state
        if self.draining and state not in ("lost", "stalled", "failing"):
            return "draining"
        return state

    def figures(self) -> dict[str, float]:
        """Gauges of this moment, over all processes."""
        others = self.admission.doors.others()
        return {
            **self.device.figures(),
            "requests": self.admission.requests + others.requests,
            "body_bytes": self.admission.bytes + others.bytes,
            "body_pixels": self.admission.pixels + others.pixels,
            "ready": float(self.ready),
            "live": float(self.live),
        }

    def describe(self) -> dict[str, Any]:
        """For people: what `/health` shows."""
        return {
            "process": os.getpid(),
            "state": self.state,
            "ready": self.ready,
            "live": self.live,
            "uptime_seconds": round(time.time() - self.started, 1),
            "models": self.catalog.describe() if self.catalog.ready else [],
            "failures": self.device.failures(),
            "figures": {name: round(value, 6) for name, value in self.figures().items()},
        }

    def drain(self) -> None:
        """Say that no new requests should come; those that come are still served."""
        self.draining = True
        self.device.drain()

    def refuse(self) -> None:
        """From now on new requests are refused."""
        self.drain()
        self.admission.draining = True

    async def close(self) -> None:
        """Finish what is inside, then give the device back."""
        self.refuse()
        self.segmenter.prepare_no_more()
        for pool in (self.host, self.preparer):
            await asyncio.to_thread(pool.close)
        await self.device.close()
