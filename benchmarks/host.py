"""What the host pays for a picture: the whole server with an engine that costs nothing, beside the
bare codecs.

    python -m benchmarks.host --sides 256 512 1024 --json results.json

The server has one processor core to itself, the client another. Server and bare codecs take turns,
many short ones, for a shared machine is faster in one second than in the next: processor
milliseconds of the server's processes for a picture (from the kernel's own books), pictures a
second of its core, and the ratio to decoding the same JPEG and encoding the same mask in a loop, on
the same core, just before. Medians of the rounds, and the quartiles of the ratio. A core of the
server that is not busy all the time is one that the client could not fill: then the rate is the
client's.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from pathlib import Path
from typing import Any

from app.bench.load import Load, drive
from app.bench.messages import Target, message
from app.encodings import base as encodings
from app.imaging.bounds import DecodeLimits
from app.imaging.decode import decode
from app.types import ClassSpec, Mask
from benchmarks import reports
from benchmarks.pictures import jpeg
from benchmarks.processes import ServerProcess, serving
from benchmarks.stand_ins import blobs


def main() -> None:
    """Measure, print a table, write JSON where asked."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--sides", type=int, nargs="+", default=[256, 512, 1024])
    parser.add_argument("--frontends", type=int, nargs="+", default=[1])
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=0.8)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--form", action="store_true", help="multipart instead of a raw body")
    parser.add_argument("--format", default="png")
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    cores = sorted(os.sched_getaffinity(0))
    rows = []
    for frontends in asked.frontends:
        ours, rest = cores[:frontends], cores[frontends:] or cores[-1:]
        os.sched_setaffinity(0, rest)
        more = {"TERNAUS_FRONTENDS": str(frontends)}
        with serving("benchmarks.servers", "null", cores=ours, **more) as server:
            rows += [measured(server, side, asked, ours, rest, frontends) for side in asked.sides]
    print(reports.table(rows))
    reports.write(asked.json, rows)


def measured(
    server: ServerProcess,
    side: int,
    asked: argparse.Namespace,
    ours: list[int],
    rest: list[int],
    frontends: int,
) -> dict[str, Any]:
    """One row: a picture of side x side, `rounds` turns of codecs and server."""
    picture = jpeg(side)
    target = Target.of(f"{server.url}/segment?format={asked.format}")
    load = Load(target, [message(target, picture, form=asked.form)])
    drive(lambda: load.closed(clients=asked.clients, seconds=0.5))
    bare, cpu, rate, busy, client = [], [], [], [], []
    for _ in range(asked.rounds):
        os.sched_setaffinity(0, ours[:1])
        bare.append(codecs_ms(picture, side, asked.format, seconds=asked.seconds / 3))
        os.sched_setaffinity(0, rest)
        before, begun = server.cpu_s(), time.perf_counter()
        run = drive(lambda: load.closed(clients=asked.clients, seconds=asked.seconds))
        used, took = server.cpu_s() - before, time.perf_counter() - begun
        assert set(run.statuses()) == {200}, run.statuses()
        cpu.append(1000 * used / run.requests)
        rate.append(run.per_second)
        busy.append(used / took / len(ours))
        client.append(1000 * run.client_cpu_s / run.requests)
    codecs, server_ms = statistics.median(bare), statistics.median(cpu)
    ratios = [ours / theirs for ours, theirs in zip(cpu, bare, strict=True)]
    low, middle, high = statistics.quantiles(ratios, n=4)
    return {
        "side": side,
        "frontends": frontends,
        "codecs_cpu_ms": round(codecs, 3),
        "server_cpu_ms": round(server_ms, 3),
        "times_codecs": round(middle, 2),
        "quartiles": (round(low, 2), round(high, 2)),
        "per_second": round(statistics.median(rate), 1),
        "per_second_per_core": round(1000 / server_ms, 1),
        "server_busy": round(statistics.median(busy), 2),
        "client_cpu_ms": round(statistics.median(client), 3),
    }


def codecs_ms(picture: bytes, side: int, format: str, *, seconds: float) -> float:
    """Processor milliseconds of decoding `picture` and encoding a mask of its size, in a loop."""
    limits, encoding = DecodeLimits(), encodings.get(format)
    bits = blobs(side, side)
    mask = Mask(
        height=side,
        width=side,
        task="binary",
        classes=(ClassSpec("piece", (255, 255, 255)),),
        bits=bits,
        labels=None,
        probability=None,
        model="nothing",
        version=1,
        threshold=0.5,
    )
    count, until = 0, time.perf_counter() + seconds
    begun = time.thread_time()
    while time.perf_counter() < until:
        decode(picture, limits=limits)
        encoding.encode(mask)
        count += 1
    return 1000 * (time.thread_time() - begun) / count


if __name__ == "__main__":
    main()
