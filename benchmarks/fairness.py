"""What small pictures suffer while a huge one is being worked on.

    python -m benchmarks.fairness --json results.json

Small pictures come at random moments and half the speed of the device, first alone, then while one
50-megapixel picture after the other is being segmented. The device is simulated (it cannot be
interrupted, as no device can); its cost goes by pixels.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
from functools import partial
from pathlib import Path
from typing import Any

from app.bench.load import Load, drive
from app.bench.messages import Target, message
from app.bench.shots import Run
from benchmarks import reports
from benchmarks.pictures import jpeg
from benchmarks.processes import serving


def main() -> None:
    """Measure, print a table, write JSON where asked."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--pictures-per-s", type=float, default=60.0, help="of the device")
    parser.add_argument("--side", type=int, default=512, help="of the small pictures")
    parser.add_argument("--load", type=float, default=0.5, help="of the device's speed")
    parser.add_argument("--huge", type=int, nargs=2, default=[8660, 5774], help="width, height")
    parser.add_argument("--largest-batch", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    arguments = ["--side", str(asked.side), "--pictures-per-s", str(asked.pictures_per_s)]
    arguments += ["--largest-batch", str(asked.largest_batch)]
    with serving(
        "benchmarks.servers", "simulated", *arguments, TERNAUS_REQUEST_TIMEOUT_S="300"
    ) as server:
        target = Target.of(server.url)
        small = [message(target, jpeg(asked.side))]
        huge = Load(target, [message(target, jpeg(*asked.huge, quality=75))], patience_s=300)
        rate = asked.load * asked.pictures_per_s
        drive(partial(Load(target, small).opened, rate=rate, seconds=3))
        alone = drive(partial(Load(target, small, seed=1).opened, rate=rate, seconds=asked.seconds))
        beside, crowd = drive(
            partial(both, Load(target, small, seed=1), huge, rate=rate, seconds=asked.seconds)
        )
    rows = [row("alone", alone, alone), row("beside a huge one", beside, alone)]
    rows[-1]["huge_done"] = len(crowd.answered)
    print(reports.table(rows))
    reports.write(asked.json, rows)


async def both(small: Load, huge: Load, *, rate: float, seconds: float) -> tuple[Run, Run]:
    """Small pictures at their rate, while huge ones follow each other on a connection."""
    large = asyncio.ensure_future(huge.closed(clients=1, seconds=seconds + 2))
    # The small ones are counted once the huge one has been decoded and is on the device.
    run = await small.opened(rate=rate, seconds=seconds, warm_s=2.0)
    if not large.done():
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(asyncio.shield(large), 120)
    return run, await large


def row(name: str, run: Run, alone: Run) -> dict[str, Any]:
    found, reference = run.summary()["latency_ms"], alone.summary()["latency_ms"]
    return {
        "small pictures": name,
        "per_second": round(run.per_second, 1),
        "p50_ms": found["p50"],
        "p99_ms": found["p99"],
        "p99_over_alone": round(found["p99"] / reference["p99"], 2),
        "not_answered": len(run.shots) - len(run.answered),
        "huge_done": 0,
    }


if __name__ == "__main__":
    main()
