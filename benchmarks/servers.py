"""The real server with an engine that computes nothing, as a process of its own.

    python -m benchmarks.servers null
    python -m benchmarks.servers simulated --pictures-per-s 100 --side 512 --launch-ms 1
    python -m benchmarks.servers echo --answer-bytes 4000

Everything else is read from `TERNAUS_*`, as in production. `echo` is the HTTP server alone: it
reads a body and answers bytes that are there already. `--decode-ms` makes decoding take so much
longer, asleep: a machine with few cores can then have more front ends than it has cores.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, MutableMapping
from functools import partial
from pathlib import Path
from typing import Any

import uvicorn

from app import logs
from app.api.app import create_app, line_of
from app.api.server import Server, listen
from app.engine.base import Engine
from app.fronts.count import one_process
from app.fronts.parts import Opening
from app.fronts.supervisor import supervise
from app.imaging.decode import decode
from app.serving import segmenter
from app.settings import Settings
from app.types import Picture
from benchmarks.stand_ins import NullEngine, SimulatedDevice, nothing_spec


def main() -> int:
    """Serve until a signal comes; the exit code is the server's own."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("kind", choices=("null", "simulated", "echo"))
    parser.add_argument("--pictures-per-s", type=float, default=100.0)
    parser.add_argument("--side", type=int, default=512, help="of those pictures")
    parser.add_argument("--launch-ms", type=float, default=1.0)
    parser.add_argument("--largest-batch", type=int, default=32)
    parser.add_argument("--answer-bytes", type=int, default=4000)
    parser.add_argument("--decode-ms", type=float, default=0.0, help="more for each picture")
    asked = parser.parse_args()
    settings = Settings.read()
    prepare = partial(prepared, asked.decode_ms)
    prepare()
    if asked.kind == "echo":
        return echo(settings, bytes(asked.answer_bytes))
    with tempfile.TemporaryDirectory() as folder:
        if one_process(settings):
            return serve(settings, opening(asked, Path(folder)))
        return supervise(settings, opening=partial(opening, asked, Path(folder)), log_to=prepare)


def prepared(decode_ms: float) -> None:
    """In every process: the log of `ternaus serve` where nobody watches, and slow decoding."""
    logs.set_up("info", "json")
    if decode_ms:

        def slow(data: bytes, **how: Any) -> Picture:
            time.sleep(decode_ms / 1000)
            return decode(data, **how)

        vars(segmenter)["decode"] = slow


def opening(asked: argparse.Namespace, folder: Path) -> Opening:
    """The only model there is; with several processes, called in that of the engine."""
    placed = engine(asked, folder)
    return Opening(
        labels=lambda: (placed.spec.name,),
        resolve=lambda label: placed.spec,
        open_engine=lambda spec, sample, turn: placed,
    )


def engine(asked: argparse.Namespace, folder: Path) -> Engine:
    """The engine that was asked for."""
    spec = nothing_spec(folder)
    sizes = tuple(size for size in (1, 2, 4, 8, 16, 32) if size <= asked.largest_batch)
    if asked.kind == "null":
        return NullEngine(spec, batch_sizes=sizes)
    return SimulatedDevice(
        spec,
        pixels_per_s=asked.pictures_per_s * asked.side**2,
        launch_s=asked.launch_ms / 1000,
        batch_sizes=sizes,
    )


def serve(settings: Settings, models: Opening) -> int:
    """`ternaus serve` in one process, but for the engine."""
    server: Server | None = None

    def fail(exc: BaseException) -> None:
        assert server is not None
        server.fail(exc)

    app = create_app(
        settings,
        labels=models.labels,
        resolve=models.resolve,
        open_engine=models.open_engine,
        on_failure=fail,
    )
    server = listen(
        app,
        host=settings.host,
        port=settings.port,
        grace_s=settings.drain_grace_s,
        log_level="warning",
        line=line_of(settings, app.state.house.metrics),
    )
    server.run()
    return 1 if server.failure is not None or not server.started else 0


def echo(settings: Settings, answer: bytes) -> int:
    """The HTTP server that `listen` uses, with nothing behind it."""
    head = [
        (b"content-type", b"image/png"),
        (b"content-length", b"%d" % len(answer)),
    ]

    async def app(
        scope: MutableMapping[str, Any],
        receive: Callable[[], Awaitable[Any]],
        send: Callable[[Any], Awaitable[None]],
    ) -> None:
        while (await receive()).get("more_body", False):
            pass
        await send({"type": "http.response.start", "status": 200, "headers": head})
        await send({"type": "http.response.body", "body": answer})

    uvicorn.run(
        app,
        host=settings.host,
        port=settings.port,
        loop="uvloop",
        http="httptools",
        ws="none",
        lifespan="off",
        access_log=False,
        log_config=None,
        log_level="info",
        server_header=False,
        backlog=2048,
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
