"""How near the whole server comes to its slowest part, side by side in one run.

    python -m benchmarks.limit --sides 256 512 1024 --json results.json

JPEG in, mask PNG (or RLE) out. Alone, each on the idle machine: the engine with its pixels there
already, decoding, encoding, and the HTTP server with nothing behind it; then the server end to
end. On a GPU the stages run beside each other, and the figure is end to end over the slowest. On a
CPU all stages share the cores and the net takes nearly all of them: there the slowest stage is the
bare engine, and what decoding and HTTP take comes off its time. Bare engine and server take turns,
and medians count.

`lone_ms` is the latency of one client alone, `lone_over_parts` that over decode + infer + encode,
each measured alone: what waiting, hand-over and HTTP add.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from app.bench.load import Load, drive
from app.bench.messages import Target, message
from app.encodings import base as encodings
from app.engine.base import Engine
from app.engine.choose import EngineOptions, open_engine
from app.imaging.bounds import DecodeLimits
from app.imaging.decode import decode
from app.settings import Settings
from app.store.store import ModelStore
from app.types import Mask
from benchmarks import reports
from benchmarks.pictures import jpeg
from benchmarks.processes import ServerProcess, serving

MODEL = "buildings"


def main() -> None:
    """Measure, print a table, write JSON where asked."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--sides", type=int, nargs="+", default=[256, 512, 1024])
    parser.add_argument("--formats", nargs="+", default=["png", "rle"])
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=8.0, help="of each turn of the server")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    settings = Settings.read()
    spec = ModelStore(settings.model_store, cache=settings.cache_dir / "store").resolve(MODEL)
    sample = decode(Path(spec.sample_picture).read_bytes(), limits=DecodeLimits()).pixels
    engine = open_engine(
        spec, EngineOptions(cache_dir=settings.cache_dir / "engines"), sample=sample
    )
    rows = []
    with serving("app", "serve", "--model", MODEL) as server:
        for side in asked.sides:
            for format in asked.formats:
                rows.append(measured(engine, server, side, format, asked))
                print(reports.table(rows[-1:]), flush=True)
    print(reports.table(rows))
    reports.write(asked.json, rows)


def measured(
    engine: Engine, server: ServerProcess, side: int, format: str, asked: argparse.Namespace
) -> dict[str, Any]:
    """One size and format: every part alone, and the whole."""
    picture = jpeg(side)
    encoding, limits = encodings.get(format), DecodeLimits()
    pixels = decode(picture, limits=limits).pixels
    thresholds = np.array([engine.spec.threshold], np.float32)

    def infer() -> Any:
        return engine.infer(pixels[None], thresholds, probability=encoding.needs_probability)

    found = infer()
    mask = Mask(
        height=side,
        width=side,
        task=engine.spec.task,
        classes=engine.spec.classes,
        bits=found.bits[0],
        probability=None if found.probability is None else found.probability[0],
        model=engine.spec.name,
        version=engine.spec.version,
        threshold=engine.spec.threshold,
    )
    decode_s = best_of(lambda: decode(picture, limits=limits), seconds=0.5)
    encode_s = best_of(lambda: encoding.encode(mask), seconds=0.5)
    answer = len(encoding.encode(mask))
    echo_per_s = http_alone(picture, answer, asked.clients)
    target = Target.of(f"{server.url}/segment?format={format}")
    load = Load(target, [message(target, picture)])
    drive(partial(load.closed, clients=2, seconds=0.5))
    bare, lone, rates = [], [], []
    for _ in range(asked.rounds):
        bare.append(median_of(infer, seconds=asked.seconds / 2))
        run = drive(partial(load.closed, clients=1, seconds=asked.seconds / 2))
        lone.append(statistics.median(shot.seconds for shot in run.answered))
        run = drive(partial(load.closed, clients=asked.clients, seconds=asked.seconds))
        assert set(run.statuses()) == {200}, run.statuses()
        # From the first to the last answer: with few answers a fixed stretch cuts one off.
        ends = sorted(shot.ended for shot in run.answered)
        rates.append((len(ends) - 1) / (ends[-1] - ends[0]))
    infer_s, rate = statistics.median(bare), statistics.median(rates)
    parts_s = decode_s + infer_s + encode_s
    return {
        "side": side,
        "format": format,
        "engine_per_s": round(1 / infer_s, 2),
        "decode_per_s": round(1 / decode_s, 1),
        "encode_per_s": round(1 / encode_s, 1),
        "http_per_s": round(echo_per_s, 1),
        "end_to_end_per_s": round(rate, 2),
        "of_engine": round(rate * infer_s, 3),
        "lone_ms": round(1000 * statistics.median(lone), 2),
        "parts_ms": round(1000 * parts_s, 2),
        "lone_over_parts": round(statistics.median(lone) / parts_s, 3),
    }


def http_alone(picture: bytes, answer: int, clients: int) -> float:
    """Requests a second of the HTTP server with nothing behind it."""
    kind = ("benchmarks.servers", "echo", "--answer-bytes", str(answer))
    with serving(*kind, ready="/") as server:
        target = Target.of(server.url)
        load = Load(target, [message(target, picture)])
        return drive(partial(load.closed, clients=clients, seconds=1.0, warm_s=0.2)).per_second


def times_of(work: Callable[[], Any], seconds: float) -> list[float]:
    """Seconds of each of the runs that fit into a stretch, three at least."""
    found: list[float] = []
    until = time.perf_counter() + seconds
    while len(found) < 3 or time.perf_counter() < until:
        begun = time.perf_counter()
        work()
        found.append(time.perf_counter() - begun)
    return found


def best_of(work: Callable[[], Any], *, seconds: float) -> float:
    return min(times_of(work, seconds))


def median_of(work: Callable[[], Any], *, seconds: float) -> float:
    return statistics.median(times_of(work, seconds))


if __name__ == "__main__":
    main()
