"""How busy the scheduler keeps a device of a given speed.

    python -m benchmarks.device --json results.json

A simulated device that computes so many pictures a second, asleep while it does, behind the real
batcher on a real event loop: as many requests as four full batches wait at any time, each sent
again when its answer has come. The figure is the share of the time in which a perfect scheduler
would have kept the device at work; what is missing was spent between batches. Pictures are decoded
already: what decoding costs, `benchmarks.host` says.
"""

from __future__ import annotations

import argparse
import asyncio
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from app.bench.load import drive
from app.serving.batcher import Batcher
from app.serving.clock import RealClock
from app.serving.lanes import Flow, Item, Lane, Outcome
from app.serving.metrics import Metrics
from benchmarks import reports
from benchmarks.stand_ins import SimulatedDevice, nothing_spec


def main() -> None:
    """Measure, print a table, write JSON where asked."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    speeds = [100.0, 300.0, 1000.0, 3000.0, 10_000.0]
    parser.add_argument("--pictures-per-s", type=float, nargs="+", default=speeds)
    parser.add_argument("--side", type=int, default=256)
    parser.add_argument("--launch-ms", type=float, default=0.0)
    parser.add_argument("--largest-batch", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for speed in asked.pictures_per_s:
            device = SimulatedDevice(
                nothing_spec(Path(folder)),
                pixels_per_s=speed * asked.side**2,
                launch_s=asked.launch_ms / 1000,
                batch_sizes=tuple(n for n in (1, 2, 4, 8, 16, 32) if n <= asked.largest_batch),
            )
            rows.append(measured(device, speed, asked))
    print(reports.table(rows))
    reports.write(asked.json, rows)


def measured(device: SimulatedDevice, speed: float, asked: argparse.Namespace) -> dict[str, Any]:
    """One speed, kept up for a while."""
    batcher = Batcher(
        clock=RealClock(),
        observer=Metrics(),
        max_batch=asked.largest_batch,
        max_batch_pixels=asked.largest_batch * asked.side**2,
        max_hold_s=0.002,
        stall_after_s=60.0,
    )
    batcher.start()
    waiting = 4 * asked.largest_batch
    run = Run(device, batcher, asked.side)
    # Until the first batches are through, nothing is in step yet.
    drive(lambda: run.keep_up(waiting, seconds=max(0.2, 2 * waiting / speed)))
    busy, done, cpu = device.busy_s, run.done, time.process_time()
    begun = time.perf_counter()
    drive(lambda: run.keep_up(waiting, seconds=asked.seconds))
    took = time.perf_counter() - begun
    batcher.close()
    done = run.done - done
    return {
        "device_per_s": speed,
        "reached_per_s": round(done / took, 1),
        "busy": round((device.busy_s - busy) / took, 3),
        "host_cpu_ms": round(1000 * (time.process_time() - cpu) / done, 3),
    }


class Run:
    """Requests that follow each other for as long as they are told."""

    def __init__(self, device: SimulatedDevice, batcher: Batcher, side: int) -> None:
        self._lane = Lane(device, side, side)
        self._batcher = batcher
        self._pixels = np.zeros((side, side, 3), np.uint8)
        self.done = 0

    async def keep_up(self, waiting: int, *, seconds: float) -> None:
        """`waiting` requests at a time, the next when one is answered."""
        until = time.perf_counter() + seconds
        await asyncio.gather(*(self._follow(until) for _ in range(waiting)))

    async def _follow(self, until: float) -> None:
        loop = asyncio.get_running_loop()
        while time.perf_counter() < until:
            answer: asyncio.Future[None] = loop.create_future()

            def deliver(
                item: Item, outcome: Outcome, answer: asyncio.Future[None] = answer
            ) -> None:
                loop.call_soon_threadsafe(answer.set_result, None)

            flow = Flow(deadline=float("inf"))
            self._batcher.submit(Item(self._lane, flow, self._pixels, 0.5, False, deliver))
            await answer
            self.done += 1


if __name__ == "__main__":
    main()
