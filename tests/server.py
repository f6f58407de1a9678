"""A real server on loopback, in a thread of the test, with a fake engine behind it."""

from __future__ import annotations

import contextlib
import io
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from app.api.app import create_app, line_of
from app.api.server import Server, listen
from app.encodings import base as encodings
from app.engine.base import Engine
from app.serving.house import House
from app.settings import Settings
from app.types import Mask, ModelSpec
from tests.fakes import FakeEngine, model_spec

START_S = 60.0


def picture(height: int = 48, width: int = 80, *, seed: int = 0) -> NDArray[np.uint8]:
    """Smooth noise, so that JPEG keeps it and the fake engine finds some structure."""
    random = np.random.default_rng(seed)
    small = random.integers(0, 256, (height // 8 + 2, width // 8 + 2, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(small).resize((width, height), Image.Resampling.BILINEAR))


def encoded(pixels: NDArray[np.uint8], format: str = "PNG", **options: Any) -> bytes:
    """A file, written by Pillow."""
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, format, **options)
    return out.getvalue()


def truth(pixels: NDArray[np.uint8], threshold: float = 0.5) -> NDArray[np.bool_]:
    """What FakeEngine must say of a picture."""
    return pixels[..., 0].astype(np.float32) / 255 > np.float32(threshold)


def sampled(folder: Path, **changes: Any) -> ModelSpec:
    """A fake model with a sample picture and its mask on disk."""
    pixels = picture(seed=7)
    (folder / "sample.png").write_bytes(encoded(pixels))
    spec = model_spec(
        sample_picture=str(folder / "sample.png"),
        sample_mask=str(folder / "sample.mask.png"),
        **changes,
    )
    mask = Mask.from_planes(truth(pixels)[None], "binary", spec.classes)
    (folder / "sample.mask.png").write_bytes(encodings.get("png").encode(mask))
    return spec


class Running:
    """A server that answers at `url`."""

    def __init__(self, server: Server, house: House, url: str, thread: threading.Thread) -> None:
        self.server, self.house, self.url, self.thread = server, house, url, thread
        self.client = httpx.Client(base_url=url, timeout=30.0, trust_env=False)

    def post(self, data: bytes, query: str = "", **headers: str) -> httpx.Response:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return self.client.post(f"/segment{query}", content=data, headers=named)


@contextlib.contextmanager
def running(
    folder: Path, engine: Engine | None = None, *, wait: bool = True, **settings: Any
) -> Iterator[Running]:
    """Serve `engine` (a FakeEngine with a sample in `folder` if none) until the block ends."""
    engine = engine or FakeEngine(sampled(folder))
    values = {"host": "127.0.0.1", "port": 0, "drain_grace_s": 0.0, "host_threads": 2, **settings}
    read = Settings.read(**values)
    failures: list[BaseException] = []
    app = create_app(
        read,
        labels=lambda: (engine.spec.name,),
        resolve=lambda label: engine.spec,
        open_engine=lambda spec, sample: engine,
        on_failure=failures.append,
    )
    server = listen(
        app,
        host=read.host,
        port=read.port,
        grace_s=read.drain_grace_s,
        log_level="error",
        line=line_of(read, app.state.house.metrics),
    )
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    until = time.monotonic() + START_S
    try:
        while not server.started and thread.is_alive() and time.monotonic() < until:
            time.sleep(0.005)
        port = server.servers[0].sockets[0].getsockname()[1]
        run = Running(server, app.state.house, f"http://127.0.0.1:{port}", thread)
        with run.client:
            while wait and run.client.get("/health/ready").status_code != 200:
                assert time.monotonic() < until, failures
                assert not failures, failures
                time.sleep(0.005)
            yield run
    finally:
        server.should_exit = True
        thread.join(30)
        assert not thread.is_alive(), "the server did not stop"
