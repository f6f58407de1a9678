"""Pictures a second through one process and through several, with a device that costs nothing.

    python benchmarks/frontends.py --fronts 1 2 --sides 64 256 512 --out results.json

The device is simulated: it sleeps for each batch and computes nothing, so what is measured is the
host's half: HTTP, decoding, the hand-over, encoding. `1` is the server of one process, `2` and more
are front ends beside an engine process. The load is one client process with kept-alive connections
in a closed loop; it shares the machine's cores with the server, and its own processor time is told.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import json
import logging
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

sys.path.insert(0, str(Path(__file__).parent.parent))

from app.encodings import base as encodings
from app.engine.base import FromHost
from app.fronts.parts import Opening
from app.settings import Settings
from app.types import ClassSpec, Halo, Inference, Mask, ModelSpec, Pixels

STRIDE = 32
CONNECTIONS = 32


class SleepingEngine(FromHost):
    """Takes `launch_s` for a batch and `pixel_s` for each pixel, asleep; says the left half."""

    batch_sizes = (1, 2, 4, 8, 16, 32)

    def __init__(self, spec: ModelSpec, *, launch_s: float, pixel_s: float) -> None:
        self.spec = spec
        self._launch, self._pixel = launch_s, pixel_s

    def infer(
        self, pixels: Pixels, thresholds: NDArray[np.float32], *, probability: bool = False
    ) -> Inference:
        count, height, width, _ = pixels.shape
        time.sleep(self._launch + self._pixel * count * height * width)
        return Inference(
            bits=_left(count, height, width),
            labels=None,
            probability=np.zeros((count, 1, height, width), np.uint8) if probability else None,
            finite=np.ones(count, np.bool_),
        )

    def prepare(self, height: int, width: int, batch: int) -> None:
        pass

    def describe(self) -> Mapping[str, Any]:
        return {"backend": "simulated", "device": "simulated", "precision": "none"}

    def close(self) -> None:
        pass


def _left(count: int, height: int, width: int) -> NDArray[np.uint8]:
    bits = np.zeros((count, 1, height, width // 8), np.uint8)
    bits[..., : width // 16] = 255
    return bits


def opening(folder: Path, launch_s: float, pixel_s: float) -> Opening:
    """Called in the process that has the device."""
    spec = _spec(folder)
    return Opening(
        labels=lambda: (spec.name,),
        resolve=lambda label: spec,
        open_engine=lambda spec, sample, turn: SleepingEngine(
            spec, launch_s=launch_s, pixel_s=pixel_s
        ),
    )


def _spec(folder: Path) -> ModelSpec:
    picture, mask = folder / "sample.png", folder / "sample.mask.png"
    classes = (ClassSpec("left", (255, 255, 255)),)
    picture.write_bytes(_picture(64, "PNG"))
    bits = np.unpackbits(_left(1, 64, 64)[0], axis=2).astype(np.bool_)
    mask.write_bytes(encodings.get("png").encode(Mask.from_planes(bits, "binary", classes)))
    return ModelSpec(
        name="simulated",
        version=1,
        architecture="none",
        parameters={},
        task="binary",
        classes=classes,
        mean=(0.5, 0.5, 0.5),
        std=(0.5, 0.5, 0.5),
        stride=STRIDE,
        halo=Halo(STRIDE, STRIDE, STRIDE, STRIDE),
        threshold=0.5,
        precision="float32",
        digest="",
        weights="",
        weights_sha256="",
        sample_picture=str(picture),
        sample_mask=str(mask),
    )


def _picture(side: int, format: str) -> bytes:
    """A smooth picture, as compressible as a photograph."""
    small = np.random.default_rng(side).integers(0, 256, (side // 16, side // 16, 3), np.uint8)
    out = io.BytesIO()
    Image.fromarray(small).resize((side, side), Image.Resampling.BICUBIC).save(out, format)
    return out.getvalue()


def _log() -> None:
    logging.basicConfig(level="INFO", stream=sys.stderr, format="%(name)s: %(message)s")


def serve(folder: Path, fronts: int, launch_s: float, pixel_s: float) -> int:
    """The server, until SIGTERM; its address goes to the log."""
    _log()
    settings = Settings.read(
        host="127.0.0.1", port=0, frontends=fronts, drain_grace_s=0.0, canary_s=0.0
    )
    parts = partial(opening, folder, launch_s, pixel_s)
    if fronts > 1:
        from app.fronts.supervisor import supervise

        return supervise(settings, opening=parts, log_to=_log)
    from app.api.app import create_app
    from app.api.server import listen

    made = parts()
    app = create_app(
        settings, labels=made.labels, resolve=made.resolve, open_engine=made.open_engine
    )
    listen(app, host=settings.host, port=settings.port, grace_s=0.0, log_level="info").run()
    return 0


@dataclass(frozen=True, slots=True)
class Result:
    """One run. Processor seconds are of all the server's processes, for one picture."""

    fronts: int
    side: int
    pictures_per_s: float
    median_ms: float
    p99_ms: float
    server_cpu_ms: float
    client_cpu_ms: float
    failures: int


def measure(fronts: int, side: int, *, seconds: float, launch_s: float, pixel_s: float) -> Result:
    """Start a server, warm it up, load it, stop it."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, __file__, "--serve", str(fronts), "--folder", folder]
        command += ["--launch-ms", str(1000 * launch_s), "--pixel-ns", str(1e9 * pixel_s)]
        process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        try:
            assert process.stderr is not None
            address = next(line for line in process.stderr if "listening on" in line)
            port = int(address.split("//")[1].split()[0].rsplit(":", 1)[1])
            data = _picture(side, "JPEG")
            asyncio.run(_load(port, data, 2.0))
            before = _processor_s(process.pid), _own_s()
            times, failures = asyncio.run(_load(port, data, seconds))
            after = _processor_s(process.pid), _own_s()
        finally:
            process.terminate()
            process.communicate(timeout=60)
    spent = [1000 * (late - early) / len(times) for late, early in zip(after, before, strict=True)]
    quantiles = np.quantile(times, [0.5, 0.99]) * 1000
    return Result(
        fronts=fronts,
        side=side,
        pictures_per_s=round(len(times) / seconds, 1),
        median_ms=round(float(quantiles[0]), 2),
        p99_ms=round(float(quantiles[1]), 2),
        server_cpu_ms=round(spent[0], 3),
        client_cpu_ms=round(spent[1], 3),
        failures=failures,
    )


async def _load(port: int, data: bytes, seconds: float) -> tuple[list[float], int]:
    """Closed loop: every connection sends its next picture when the last mask has come."""
    request = b"POST /segment HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(data) + data
    times: list[float] = []
    failures = 0
    end = time.monotonic() + seconds

    async def one() -> None:
        nonlocal failures
        reader, writer = await _connect(port)
        while (begun := time.monotonic()) < end:
            writer.write(request)
            head = await reader.readuntil(b"\r\n\r\n")
            length = int(head.lower().split(b"content-length:")[1].split(b"\r\n")[0])
            await reader.readexactly(length)
            if head.startswith(b"HTTP/1.1 200"):
                times.append(time.monotonic() - begun)
            else:
                # Not ready yet, during the warm-up; in a measurement it is told.
                failures += 1
                await asyncio.sleep(0.1)
        writer.close()

    await asyncio.gather(*(one() for _ in range(CONNECTIONS)))
    return times, failures


async def _connect(port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    return await asyncio.open_connection("127.0.0.1", port)


def _processor_s(pid: int) -> float:
    """Processor seconds of a process and its children, which still run."""
    total, ticks = 0.0, os.sysconf("SC_CLK_TCK")
    for path in Path("/proc").glob("[0-9]*"):
        try:
            fields = (path / "stat").read_text().rsplit(")", 1)[1].split()
        except OSError:
            continue
        if int(path.name) == pid or int(fields[1]) == pid:
            total += (int(fields[11]) + int(fields[12])) / ticks
    return total


def _own_s() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--fronts", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--sides", type=int, nargs="+", default=[64, 256, 512])
    parser.add_argument("--seconds", type=float, default=6.0)
    parser.add_argument("--rounds", type=int, default=2, help="the best of so many is kept")
    parser.add_argument("--launch-ms", type=float, default=1.0)
    parser.add_argument("--pixel-ns", type=float, default=0.5)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--serve", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    launch_s, pixel_s = asked.launch_ms / 1000, asked.pixel_ns / 1e9
    if asked.serve:
        return serve(asked.folder, asked.serve, launch_s, pixel_s)
    found: dict[tuple[int, int], Result] = {}
    # The kinds take turns, so that a machine that drifts drifts for all of them.
    for _ in range(asked.rounds):
        for side in asked.sides:
            for fronts in asked.fronts:
                result = measure(
                    fronts, side, seconds=asked.seconds, launch_s=launch_s, pixel_s=pixel_s
                )
                sys.stderr.write(f"{result}\n")
                best = found.get((side, fronts))
                if best is None or result.pictures_per_s > best.pictures_per_s:
                    found[side, fronts] = result
    print("| side | front ends | pictures/s | median ms | p99 ms | server CPU ms | client CPU ms |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for r in found.values():
        print(
            f"| {r.side} | {r.fronts} | {r.pictures_per_s} | {r.median_ms} | {r.p99_ms} "
            f"| {r.server_cpu_ms} | {r.client_cpu_ms} |"
        )
    if asked.out:
        about = {
            "command": " ".join(["python", "benchmarks/frontends.py", *sys.argv[1:]]),
            "machine": {"cores": len(os.sched_getaffinity(0)), "platform": platform.machine()},
            "python": platform.python_version(),
            "connections": CONNECTIONS,
            "device": {"launch_ms": asked.launch_ms, "pixel_ns": asked.pixel_ns},
        }
        results = [asdict(result) for result in found.values()]
        asked.out.write_text(json.dumps({**about, "results": results}, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
